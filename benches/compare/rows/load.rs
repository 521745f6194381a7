//! Writes to a protected volume by an NBD client of ours, which knows when each was acknowledged.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use benches::{Payload, payloads};
use block_io::nbd::Client;
use bytes::{Bytes, BytesMut};
use futures::stream::{FuturesUnordered, StreamExt as _, TryStreamExt as _};
use tests::cluster::Cluster;

use super::group::VOLUME;

/// Bytes of a random write.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Bytes of a sequential write.
const STEP_BYTES: usize = 256 << 10;
/// Sequential writes in flight.
const DEPTH: usize = 8;
/// Random writes in flight at most: what is due beyond waits.
const MOST: usize = 1024;

async fn connect(cluster: &Cluster) -> anyhow::Result<Client> {
    Ok(Client::unix(cluster.path("d0.nbd.sock"), VOLUME).await?)
}

/// Writes `bytes` from the front on, half-compressible; returns when all are acknowledged.
pub(super) fn sequential(cluster: &Cluster, bytes: u64) -> anyhow::Result<()> {
    let pieces = payloads(Payload::Semi, STEP_BYTES, 64);
    cluster.run(async {
        let client = &connect(cluster).await?;
        let writes = (0..bytes).step_by(STEP_BYTES).zip(pieces.iter().cycle());
        let writes = writes.map(|(at, piece)| client.write(at, piece.clone(), false));
        futures::stream::iter(writes).buffer_unordered(DEPTH).try_collect::<()>().await?;
        Ok(())
    })
}

/// Writes of 4 KiB at random places: how many a second, for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steady {
    pub(super) per_second: u32,
    pub(super) time: Duration,
    pub(super) volume_bytes: u64,
}

/// The number of the write that left this block; each begins with its own.
pub(super) fn number_of(block: &[u8]) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*block.first_chunk()?)).ok()
}

impl Steady {
    /// When each write was acknowledged, by its number.
    pub(super) async fn run(self, cluster: &Cluster) -> anyhow::Result<Vec<Instant>> {
        let client = &connect(cluster).await?;
        let pieces = payloads(Payload::Semi, BLOCK_BYTES, 256);
        let period = Duration::from_secs(1) / self.per_second;
        let count = usize::try_from(self.time.as_nanos() / period.as_nanos())?;
        let mut acknowledged = vec![None; count];
        let mut in_flight = FuturesUnordered::new();
        let (start, mut issued) = (Instant::now(), 0);
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        loop {
            tokio::select! {
                _ = tick.tick(), if issued < count => {
                    let due = start.elapsed().as_nanos() / period.as_nanos();
                    let due = usize::try_from(due)?.min(count);
                    while issued < due && in_flight.len() < MOST {
                        let data = block(&pieces, issued);
                        let (number, at) = (issued, self.place(issued));
                        in_flight.push(async move {
                            client.write(at, data, false).await.map(|()| number)
                        });
                        issued += 1;
                    }
                }
                Some(written) = in_flight.next() => {
                    let slot = acknowledged.get_mut(written?).context("a write of ours")?;
                    *slot = Some(Instant::now());
                }
                else => break,
            }
        }
        acknowledged.into_iter().collect::<Option<_>>().context("a write without an answer")
    }

    /// Strewn over the volume, the same in every run.
    fn place(self, number: usize) -> u64 {
        let block_bytes = BLOCK_BYTES as u64;
        let noise = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        noise.wrapping_mul(0xbf58_476d_1ce4_e5b9) % (self.volume_bytes / block_bytes) * block_bytes
    }
}

fn block(pieces: &[Bytes], number: usize) -> Bytes {
    let piece = pieces.get(number % pieces.len()).cloned().unwrap_or_default();
    let mut block = BytesMut::from(piece.as_ref());
    if let Some(head) = block.first_chunk_mut() {
        *head = (number as u64).to_le_bytes();
    }
    block.freeze()
}
