//! Random 4 KiB reads or writes with many in flight: the figure to hold against `fio`.
//!
//! `random_io PATH read|write DEPTH SECONDS [plain]` prints operations per second. `fio` for the
//! same: `fio --name=x --filename=PATH --direct=1 --ioengine=io_uring --rw=randread --bs=4k
//! --iodepth=DEPTH --runtime=SECONDS --time_based`. Writing destroys what PATH holds.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block_io::buffer::AlignedBuf;
use block_io::device::BlockDevice;
use block_io::{Engine, OpenOptions, open};
use bytes::Bytes;

type Error = Box<dyn std::error::Error + Send + Sync>;

const IO_BYTES: usize = 4096;

/// splitmix64: spreads well enough, costs nothing.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 27)
}

async fn one_lane(
    device: Arc<dyn BlockDevice>,
    write: Option<Bytes>,
    mut state: u64,
    until: Instant,
    done: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let blocks = device.size_bytes() / IO_BYTES as u64;
    while Instant::now() < until {
        let at = next_random(&mut state) % blocks * IO_BYTES as u64;
        match &write {
            Some(data) => device.write(at, vec![data.clone()]).await?,
            None => drop(device.read(at, IO_BYTES).await?),
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, what, depth, seconds, engine @ ..] = args.as_slice() else {
        return Err("usage: random_io PATH read|write DEPTH SECONDS [plain]".into());
    };
    let engine = if engine.is_empty() { Engine::Auto } else { Engine::Plain };
    let device = open(path, OpenOptions { engine, ..OpenOptions::default() })?;
    let data = (what == "write").then(|| AlignedBuf::zeroed(IO_BYTES).freeze());
    let seconds: u64 = seconds.parse()?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let done = Arc::new(AtomicU64::new(0));
    let lanes: Vec<_> = (0..depth.parse()?)
        .map(|lane| {
            let (device, done) = (Arc::clone(&device), Arc::clone(&done));
            tokio::spawn(one_lane(device, data.clone(), lane, until, done))
        })
        .collect();
    for lane in lanes {
        lane.await??;
    }
    let per_second = done.load(Ordering::Relaxed) / seconds.max(1);
    writeln!(std::io::stdout(), "{per_second} operations/s")?;
    Ok(())
}
