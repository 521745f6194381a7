//! An archive that does as it is told: each transfer takes the next order, without one it stores.
use super::log::SIZE_LB;
use futures::StreamExt;
use proto::v1::wdiff_transfer_request::Step;
use proto::v1::{WdiffResult, WdiffStart, WdiffTransferReply, WdiffTransferRequest};
use server_kit::chunks;
use server_kit::error::RoleError;
use server_kit::net::{Endpoint, Listener};
use server_kit::operations::Operations;
use server_kit::role::RoleServer;
use server_kit::shutdown::Shutdown;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{ClientStreamingService, Grpc, NamedService};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::gid::{Diff, Relation};
use wdiff_format::sorted_reader::SortedReader;

/// What to do with one transfer.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// Answer at once, without reading any data.
    Answer(WdiffResult),
    /// Read everything, then answer.
    AnswerLate(WdiffResult),
    /// Refuse with a typed error.
    Refuse,
    /// Read a little, then break off as a dying server does.
    Break,
    /// Wait until the stub is released, then read everything and store.
    Hold,
}

/// A stored transfer.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) start: WdiffStart,
    pub(crate) diff: Diff,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct Shared {
    orders: Mutex<VecDeque<Order>>,
    always: Mutex<Option<Order>>,
    stored: Mutex<Vec<Stored>>,
    attempts: Mutex<Vec<Diff>>,
    held: Mutex<usize>,
    release: Notify,
}

/// A running stub.
pub(crate) struct Archive {
    pub(crate) endpoint: Endpoint,
    shared: Arc<Shared>,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), RoleError>>,
}

impl Archive {
    pub(crate) async fn start(endpoint: &Endpoint) -> Self {
        Self::serve(endpoint, Arc::default()).await
    }

    async fn serve(endpoint: &Endpoint, shared: Arc<Shared>) -> Self {
        let server = RoleServer {
            base: None,
            role: proto::v1::Role::Archive,
            id: "a0".parse().unwrap(),
            listener: Listener::bind(endpoint, false).await.unwrap(),
            operations: Operations::new(),
            shutdown: Shutdown::new(),
        };
        let shutdown = server.shutdown.clone();
        let routes = Routes::new(Stub(Arc::clone(&shared)));
        let task = tokio::spawn(server.run(routes));
        Self { endpoint: endpoint.clone(), shared, shutdown, task }
    }

    /// Dies at once; what it has stays for [`Dead::revive`].
    pub(crate) async fn kill(self) -> Dead {
        self.shutdown.request(proto::v1::StopMode::Force);
        super::soon("the end of the archive", self.task).await.unwrap().unwrap();
        Dead { endpoint: self.endpoint, shared: self.shared }
    }

    pub(crate) fn order(&self, orders: &[Order]) {
        self.shared.orders.lock().unwrap().extend(orders.iter().cloned());
    }

    /// What to do with transfers for which there is no order; `None` is to store.
    pub(crate) fn always(&self, order: Option<Order>) {
        *self.shared.always.lock().unwrap() = order;
    }

    pub(crate) fn stored(&self) -> Vec<Stored> {
        self.shared.stored.lock().unwrap().clone()
    }

    /// The diffs of all transfers that were begun.
    pub(crate) fn attempts(&self) -> Vec<Diff> {
        self.shared.attempts.lock().unwrap().clone()
    }

    pub(crate) async fn attempted(&self, count: usize) {
        super::until("so many attempts", || async { self.attempts().len() >= count }).await;
    }

    pub(crate) async fn holds_one(&self) {
        super::until("a held transfer", || async { *self.shared.held.lock().unwrap() > 0 }).await;
    }

    pub(crate) fn release(&self) {
        self.shared.release.notify_waiters();
    }

    /// The image that the stored diffs make, one after the other.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut image = vec![0; (SIZE_LB * 512) as usize];
        for stored in self.stored() {
            apply(&stored.bytes, &mut image);
        }
        image
    }
}

pub(crate) struct Dead {
    endpoint: Endpoint,
    shared: Arc<Shared>,
}

impl Dead {
    pub(crate) async fn revive(self) -> Archive {
        Archive::serve(&self.endpoint, self.shared).await
    }
}

fn apply(wdiff: &[u8], image: &mut [u8]) {
    let mut codec = Codec::new(Compression::NONE);
    for record in SortedReader::new(wdiff, "sent").unwrap() {
        let record = record.unwrap();
        let at = (record.address.0 * 512) as usize;
        let to = at + record.blocks as usize * 512;
        match record.raw(&mut codec).unwrap() {
            Some(data) => image[at..to].copy_from_slice(&data),
            None => image[at..to].fill(0),
        }
    }
}

#[derive(Clone)]
struct Stub(Arc<Shared>);

impl NamedService for Stub {
    const NAME: &'static str = "walb.v1.Archive";
}

impl Service<http::Request<Body>> for Stub {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert_eq!(request.uri().path(), "/walb.v1.Archive/WdiffTransfer");
        let stub = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::default();
            Ok(Grpc::new(codec).client_streaming(stub, request).await)
        })
    }
}

impl ClientStreamingService<WdiffTransferRequest> for Stub {
    type Response = WdiffTransferReply;
    type Future = BoxFuture<Response<WdiffTransferReply>, Status>;

    fn call(&mut self, request: Request<Streaming<WdiffTransferRequest>>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { shared.transfer(request.into_inner()).await })
    }
}

fn reply(result: WdiffResult) -> Result<Response<WdiffTransferReply>, Status> {
    let message = "as ordered".to_owned();
    Ok(Response::new(WdiffTransferReply { result: result.into(), message, latest: None }))
}

impl Shared {
    fn has(&self, diff: &Diff, start: &WdiffStart) -> bool {
        let stored = self.stored.lock().unwrap();
        let same_log = stored.iter().filter(|s| s.start.log_uuid == start.log_uuid);
        same_log.last().is_some_and(|s| s.diff.end().relation(diff) == Relation::TooOld)
    }

    async fn transfer(
        &self,
        mut stream: Streaming<WdiffTransferRequest>,
    ) -> Result<Response<WdiffTransferReply>, Status> {
        let first = stream.message().await?.and_then(|m| m.step);
        let Some(Step::Start(start)) = first else { panic!("no start: {first:?}") };
        let diff = Diff::try_from(start.diff.unwrap()).unwrap();
        self.attempts.lock().unwrap().push(diff);
        let order = self.orders.lock().unwrap().pop_front();
        match order.or_else(|| self.always.lock().unwrap().clone()) {
            Some(Order::Answer(result)) => return reply(result),
            Some(Order::AnswerLate(result)) => {
                read(stream).await?;
                return reply(result);
            }
            Some(Order::Refuse) => return Err(RoleError::stopping("going down").into()),
            Some(Order::Break) => {
                let _ = stream.next().await;
                return Err(Status::unavailable("the stub breaks off"));
            }
            Some(Order::Hold) => {
                let released = self.release.notified();
                *self.held.lock().unwrap() += 1;
                released.await;
            }
            None if self.has(&diff, &start) => return reply(WdiffResult::TooOld),
            None => {}
        }
        let bytes = read(stream).await?;
        self.stored.lock().unwrap().push(Stored { start, diff, bytes });
        reply(WdiffResult::Stored)
    }
}

/// The bytes of a whole transfer; an error when it has no end.
async fn read(mut stream: Streaming<WdiffTransferRequest>) -> Result<Vec<u8>, Status> {
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await? {
        match message.step.unwrap() {
            Step::Chunk(chunk) => bytes.extend_from_slice(&chunks::decode(chunk).unwrap()),
            Step::End(end) => {
                assert_eq!(end.total_bytes, bytes.len() as u64);
                return Ok(bytes);
            }
            Step::Start(_) => panic!("two starts"),
        }
    }
    Err(RoleError::bad_request("no end").into())
}
