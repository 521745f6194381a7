//! The two ways through a socket: requests of an NBD client, and chunks between servers. Both ends
//! run in this process, and nothing is stored.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a benchmark may panic"
)]

use std::collections::HashMap;
use std::sync::Arc;

use benches::{Payload, input_bytes, payloads};
use block_io::nbd::{Chunk, Client, Export, ExportError, Limits, Listener, NbdServer, WriteZeroes};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::future::{BoxFuture, join_all};
use proto::v1::proxy_client::ProxyClient;
use proto::v1::proxy_server::{Proxy, ProxyServer};
use proto::v1::wlog_transfer_request::Step;
use proto::v1::{
    ArchiveInfoRef, ArchiveInfoRequest, Empty, KickProxyReply, KickProxyRequest, ProxyVolume,
    ProxyVolumeList, StopRequest, VolumeRef, WlogTransferReply, WlogTransferRequest,
};
use server_kit::chunks::{self, bridge};
use server_kit::net::{self, Connector, Endpoint, RealConnector};
use server_kit::packing::{Packing, Way, pack};
use server_kit::shutdown::Shutdown;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

const VOLUME_BYTES: u64 = 1 << 30;

/// A volume that reads as one piece of memory and takes every write.
struct Nothing(Bytes);

impl Export for Nothing {
    fn size_bytes(&self) -> u64 {
        VOLUME_BYTES
    }

    fn read(&self, _: u64, len: u32) -> BoxFuture<'_, Result<Vec<Chunk>, ExportError>> {
        let data = self.0.slice(..len as usize);
        Box::pin(async move { Ok(vec![data.into()]) })
    }

    fn write(&self, _: u64, _: Bytes, _: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async { Ok(()) })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async { Ok(()) })
    }

    fn trim(&self, _: u64, _: u32, _: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async { Ok(()) })
    }

    fn write_zeroes(
        &self,
        _: u64,
        _: u32,
        _: WriteZeroes,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async { Ok(()) })
    }
}

fn nbd(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let socket = dir.path().join("nbd.sock");
    let export: Arc<dyn Export> = Arc::new(Nothing(vec![0x5a; 1 << 20].into()));
    let exports = HashMap::from([("v".to_owned(), export)]);
    let server = NbdServer::new(exports, Limits::default()).unwrap();
    let shutdown = CancellationToken::new();
    let listener = runtime.block_on(Listener::unix(&socket)).unwrap();
    let (serving, until) = (server.clone(), shutdown.clone());
    let served = runtime.spawn(async move { serving.serve(listener, until).await });
    let client = runtime.block_on(Client::unix(&socket, "v")).unwrap();
    let mut group = c.benchmark_group("nbd");
    for (name, bytes, depth) in
        [("4K, one at a time", 4096, 1), ("4K, 32 at a time", 4096, 32), ("256K, 8", 256 << 10, 8)]
    {
        let data = Bytes::from(vec![7; bytes as usize]);
        group.throughput(Throughput::Bytes(u64::from(bytes) * depth));
        let offsets = || (0..depth).map(|n| n * u64::from(bytes));
        group.bench_function(format!("read {name}"), |b| {
            b.iter(|| {
                let reads = offsets().map(|at| client.read(at, bytes));
                runtime.block_on(join_all(reads)).into_iter().for_each(|r| drop(r.unwrap()));
            });
        });
        group.bench_function(format!("write {name}"), |b| {
            b.iter(|| {
                let writes = offsets().map(|at| client.write(at, data.clone(), false));
                runtime.block_on(join_all(writes)).into_iter().for_each(|w| w.unwrap());
            });
        });
    }
    group.finish();
    runtime.block_on(client.disconnect());
    shutdown.cancel();
    runtime.block_on(served).unwrap();
}

/// A proxy that checks the chunks of a log, hands them to a thread, and keeps nothing.
struct Sink;

type Answer<T> = Result<Response<T>, Status>;

fn never<T>() -> Answer<T> {
    Err(Status::unimplemented("nobody asks for it"))
}

#[tonic::async_trait]
impl Proxy for Sink {
    async fn wlog_transfer(
        &self,
        request: Request<Streaming<WlogTransferRequest>>,
    ) -> Answer<WlogTransferReply> {
        let mut stream = request.into_inner();
        let (feeder, mut receiver) = bridge();
        let reader = tokio::task::spawn_blocking(move || {
            let mut bytes = 0;
            while let Some(piece) = receiver.next_bytes().unwrap() {
                bytes += piece.len() as u64;
            }
            bytes
        });
        while let Some(message) = stream.message().await? {
            if let Some(Step::Chunk(chunk)) = message.step {
                feeder.feed(chunk).await.unwrap();
            }
        }
        feeder.end().await.unwrap();
        let wdiff_bytes = reader.await.unwrap();
        Ok(Response::new(WlogTransferReply { wdiff_bytes, store_uuid: Bytes::new() }))
    }

    async fn add_archive(&self, _: Request<ArchiveInfoRequest>) -> Answer<Empty> {
        never()
    }
    async fn update_archive(&self, _: Request<ArchiveInfoRequest>) -> Answer<Empty> {
        never()
    }
    async fn delete_archive(&self, _: Request<ArchiveInfoRef>) -> Answer<Empty> {
        never()
    }
    async fn clear(&self, _: Request<VolumeRef>) -> Answer<Empty> {
        never()
    }
    async fn start(&self, _: Request<VolumeRef>) -> Answer<Empty> {
        never()
    }
    async fn stop(&self, _: Request<StopRequest>) -> Answer<Empty> {
        never()
    }
    async fn get(&self, _: Request<VolumeRef>) -> Answer<ProxyVolume> {
        never()
    }
    async fn list(&self, _: Request<Empty>) -> Answer<ProxyVolumeList> {
        never()
    }
    async fn kick(&self, _: Request<KickProxyRequest>) -> Answer<KickProxyReply> {
        never()
    }
}

fn grpc(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let endpoint = Endpoint::Unix(dir.path().join("grpc.sock"));
    let shutdown = Shutdown::new();
    let listener = runtime.block_on(net::Listener::bind(&endpoint, false)).unwrap();
    let until = shutdown.clone();
    let served = runtime.spawn(async move {
        net::serve(listener, Routes::new(ProxyServer::new(Sink)), &until).await
    });
    let client = runtime.block_on(async { ProxyClient::new(RealConnector.channel(&endpoint)) });
    let mut group = c.benchmark_group("grpc chunks");
    for payload in [Payload::Random, Payload::Semi] {
        let pieces = payloads(payload, 1 << 20, input_bytes() >> 20);
        group.throughput(Throughput::Bytes(input_bytes() as u64));
        group.bench_function(format!("pack {payload:?}"), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    let packing: Vec<_> =
                        pieces.iter().cloned().map(|piece| pack(piece, Way::Compressed)).collect();
                    join_all(packing.into_iter().map(Packing::chunk)).await
                })
            });
        });
        let step = |piece: &Bytes| WlogTransferRequest {
            step: Some(Step::Chunk(chunks::encode(piece.clone()))),
        };
        group.bench_function(format!("through a socket as they are, {payload:?}"), |b| {
            b.iter(|| {
                let steps: Vec<_> = pieces.iter().map(step).collect();
                let mut client = client.clone();
                let sent = client.wlog_transfer(futures::stream::iter(steps));
                let reply = runtime.block_on(sent).unwrap().into_inner();
                assert_eq!(reply.wdiff_bytes, input_bytes() as u64);
            });
        });
    }
    group.finish();
    shutdown.request(proto::v1::StopMode::Force);
    runtime.block_on(served).unwrap().unwrap();
}

criterion_group! {
    name = wire;
    config = Criterion::default().sample_size(10);
    targets = nbd, grpc
}
criterion_main!(wire);
