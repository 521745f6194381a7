//! A RAM disk over NBD: measures the protocol with nothing below it.
//!
//! `nbd_memory SOCKET SIZE_MIB`, then for example
//! `fio --name=x --ioengine=nbd --uri='nbd+unix:///?socket=SOCKET' --rw=randwrite --iodepth=32`.
#![allow(clippy::expect_used, reason = "a tool for developers may panic")]

use std::collections::HashMap;
use std::sync::Arc;

use block_io::buffer::AlignedBuf;
use block_io::nbd::{Chunk, Export, ExportError, Limits, Listener, NbdServer, WriteZeroes};
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

const SHARD_BYTES: u64 = 1 << 20;

/// Memory in pieces with a lock each.
struct RamDisk {
    shards: Vec<RwLock<Box<[u8]>>>,
}

impl RamDisk {
    fn new(size_mib: usize) -> Self {
        let shard = || RwLock::new(vec![0; 1 << 20].into_boxed_slice());
        Self { shards: std::iter::repeat_with(shard).take(size_mib).collect() }
    }

    /// Calls `visit` with each part of a range: shard, start in the shard, start in the range, end.
    fn parts(offset: u64, len: usize, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let size = |bytes: u64| usize::try_from(bytes).expect("fits");
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let start = size(at % SHARD_BYTES);
            let part = (len - done).min(size(SHARD_BYTES) - start);
            visit(size(at / SHARD_BYTES), start, done, done + part);
            done += part;
        }
    }

    fn load(&self, offset: u64, len: usize) -> Bytes {
        let mut buf = AlignedBuf::recycled(len);
        Self::parts(offset, len, |shard, start, from, to| {
            let shard = self.shards.get(shard).expect("in range").read();
            let source = shard.get(start..start + to - from).expect("in shard");
            buf.get_mut(from..to).expect("in range").copy_from_slice(source);
        });
        buf.freeze()
    }

    fn store(&self, offset: u64, data: &[u8]) {
        Self::parts(offset, data.len(), |shard, start, from, to| {
            let mut shard = self.shards.get(shard).expect("in range").write();
            let target = shard.get_mut(start..start + to - from).expect("in shard");
            target.copy_from_slice(data.get(from..to).expect("in range"));
        });
    }
}

type Answer<'a, T> = BoxFuture<'a, Result<T, ExportError>>;

impl Export for RamDisk {
    fn size_bytes(&self) -> u64 {
        self.shards.len() as u64 * SHARD_BYTES
    }

    fn read(&self, offset: u64, len: u32) -> Answer<'_, Vec<Chunk>> {
        let len = usize::try_from(len).expect("fits");
        Box::pin(async move { Ok(vec![self.load(offset, len).into()]) })
    }

    fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Answer<'_, ()> {
        Box::pin(async move {
            self.store(offset, &data);
            Ok(())
        })
    }

    fn flush(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn trim(&self, _offset: u64, _len: u32, _fua: bool) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn write_zeroes(&self, offset: u64, len: u32, _how: WriteZeroes) -> Answer<'_, ()> {
        Box::pin(async move {
            self.store(offset, &vec![0; usize::try_from(len).expect("fits")]);
            Ok(())
        })
    }
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let socket = args.next().expect("usage: nbd_memory SOCKET SIZE_MIB");
    let size = args.next().and_then(|size| size.parse().ok()).expect("a size in MiB");
    let disk: Arc<dyn Export> = Arc::new(RamDisk::new(size));
    let exports = HashMap::from([("ram".to_owned(), disk)]);
    let server = NbdServer::new(exports, Limits::default()).expect("a server");
    let listener = Listener::unix(&socket).await.expect("a socket");
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::signal::ctrl_c().await.expect("signals");
        stop.cancel();
    });
    server.serve(listener, shutdown).await;
}
