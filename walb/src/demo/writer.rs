//! A writer that never gives up: it writes at random, and after the device went away connects
//! again and repeats what was not acknowledged, as a VM's NBD client does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use block_io::nbd::Client;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use sha2::{Digest, Sha256};

use super::{HASH_CHUNK, VOLUME, hex};

/// Bytes of one write.
const WRITE_BYTES: usize = 64 << 10;
/// Writes in flight.
const DEPTH: usize = 8;
/// How long a reconnect may take, and how long progress may be missing.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    /// Acknowledged writes.
    pub(super) writes: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Writes that had to be sent again.
    pub(super) repeated: u64,
}

#[derive(Default)]
struct Counters {
    acknowledged: AtomicU64,
    repeated: AtomicU64,
    stop: AtomicBool,
}

/// The writer's tasks.
pub(super) struct Writer {
    counters: Arc<Counters>,
    tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Writer {
    /// Starts writing to the volume behind `socket`.
    pub(super) fn start(socket: PathBuf, size: u64) -> Self {
        let counters = Arc::new(Counters::default());
        // Each task has slots of its own, so that no two writes in flight overlap: what NBD
        // leaves open then (which one wins) must not decide the outcome.
        let task = |seed: usize| write_on(seed, socket.clone(), size, Arc::clone(&counters));
        let tasks = (0..DEPTH).map(|seed| tokio::spawn(task(seed))).collect();
        Self { counters, tasks }
    }

    /// Writes acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.counters.acknowledged.load(Ordering::Relaxed)
    }

    /// Returns when `more` further writes are acknowledged.
    pub(super) async fn wait_for_more(&self, more: u64) -> anyhow::Result<()> {
        let goal = self.acknowledged() + more;
        let deadline = Instant::now() + PATIENCE;
        while self.acknowledged() < goal {
            ensure!(Instant::now() < deadline, "the writer does not get on");
            ensure!(!self.tasks.iter().any(|task| task.is_finished()), "the writer has failed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Ends it after the writes in flight.
    pub(super) async fn stop(self) -> anyhow::Result<Written> {
        self.counters.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        let writes = self.counters.acknowledged.load(Ordering::Relaxed);
        Ok(Written {
            writes,
            bytes: writes * WRITE_BYTES as u64,
            repeated: self.counters.repeated.load(Ordering::Relaxed),
        })
    }
}

async fn connect(socket: &Path) -> anyhow::Result<Client> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Client::unix(socket, VOLUME).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("cannot connect to the device again");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn write_on(
    seed: usize,
    socket: PathBuf,
    size: u64,
    counters: Arc<Counters>,
) -> anyhow::Result<()> {
    let mut rng = StdRng::seed_from_u64(seed as u64);
    let mut client = connect(&socket).await?;
    let slots = size / WRITE_BYTES as u64 / DEPTH as u64;
    while !counters.stop.load(Ordering::Relaxed) {
        let slot = rng.random_range(0..slots) * DEPTH as u64 + seed as u64;
        let data = half_compressible(&mut rng);
        while client.write(slot * WRITE_BYTES as u64, data.clone(), false).await.is_err() {
            counters.repeated.fetch_add(1, Ordering::Relaxed);
            client = connect(&socket).await?;
        }
        counters.acknowledged.fetch_add(1, Ordering::Relaxed);
        // A writer that pauses leaves the two cores of a small machine to the roles.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    client.disconnect().await;
    Ok(())
}

fn half_compressible(rng: &mut StdRng) -> Bytes {
    let mut data = vec![0; WRITE_BYTES];
    rng.fill_bytes(data.split_at_mut(WRITE_BYTES / 2).0);
    data.into()
}

/// SHA-256 of the whole volume, read through NBD.
pub(super) async fn device_sha256(socket: &Path) -> anyhow::Result<String> {
    let client = connect(socket).await?;
    let mut hash = Sha256::new();
    let mut offset = 0;
    while offset < client.size_bytes() {
        let len = (client.size_bytes() - offset).min(HASH_CHUNK as u64);
        hash.update(client.read(offset, u32::try_from(len)?).await?);
        offset += len;
    }
    client.disconnect().await;
    Ok(hex(hash))
}
