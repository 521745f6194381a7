//! Ships one range of the log to one proxy (`proxy.proto`, `semantics.md` §3.5 steps 9-11).
//!
//! Invariants: the end message, and with it the gids, is sent only after every pack of the range
//! was checked and sent; success means that the proxy has acknowledged a durable wdiff (I5).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::convert::uuid_bytes;
use proto::v1::wlog_transfer_request::Step;
use proto::v1::{WlogEnd, WlogStart, WlogTransferReply, WlogTransferRequest};
use server_kit::error::RoleError;
use server_kit::packing::{self, Packing, Way};
use server_kit::volume_name::VolumeName;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};
use wlog_format::units::{Lb, Pb};

use crate::budget::Budget;
use crate::log::Log;
use crate::marks::Mark;
use crate::plan::Plan;
use crate::proxies::Proxy;
use crate::reader::PackReader;

/// Messages between the reader and the connection: enough that neither waits for the other.
const QUEUE: usize = 2;

/// What is shipped, and on whose behalf.
pub struct Transfer {
    /// The volume.
    pub volume: VolumeName,
    /// The id of this server.
    pub storage_id: String,
    /// Its size.
    pub size: Lb,
    /// Its log.
    pub log: Arc<Log>,
    /// The range, and the gids that it gets.
    pub plan: Plan,
    /// Where the memory comes from.
    pub budget: Budget,
    /// How long the proxy may keep us waiting.
    pub patience: Duration,
}

/// Since when the proxy keeps us waiting: it takes nothing, or does not answer.
#[derive(Default)]
struct Waiting(Mutex<Option<Instant>>);

impl Waiting {
    fn begin(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    fn end(&self) {
        *self.0.lock() = None;
    }

    /// Returns when it has lasted that long.
    async fn too_long(&self, patience: Duration) {
        loop {
            let since = *self.0.lock();
            let left = since.map_or(patience, |since| patience.saturating_sub(since.elapsed()));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// Why nothing was acknowledged.
#[derive(Debug)]
pub enum TransferError {
    /// The log cannot be read: no other proxy would help.
    Log(RoleError),
    /// The proxy refused, or the connection broke: another proxy may do.
    Proxy(RoleError),
    /// The proxy is there and does nothing.
    Stalled(RoleError),
}

impl Transfer {
    /// Sends the range; what becomes `done`, and in which store of the proxy it lies.
    ///
    /// # Errors
    /// [`TransferError`]. The proxy may have stored the wdiff all the same.
    pub async fn send(&self, proxy: &Proxy) -> Result<(Mark, Bytes), TransferError> {
        let (messages, receiver) = mpsc::channel(QUEUE);
        let (mut client, address) = (proxy.client(), &*proxy.address);
        let call = client.wlog_transfer(ReceiverStream::new(receiver));
        let waiting = Waiting::default();
        let produce = self.produce(messages, proxy.way, &waiting);
        let exchange = self.exchange(address, call, produce, &waiting);
        tokio::select! {
            exchanged = exchange => exchanged,
            () = waiting.too_long(self.patience) => {
                let why = format!("it does nothing for {:?}", self.patience);
                Err(TransferError::Stalled(RoleError::unreachable(address, why)))
            }
        }
    }

    /// Sends everything and waits for the answer.
    async fn exchange(
        &self,
        proxy: &str,
        call: impl Future<Output = Result<Response<WlogTransferReply>, Status>>,
        produce: impl Future<Output = Result<Option<Mark>, RoleError>>,
        waiting: &Waiting,
    ) -> Result<(Mark, Bytes), TransferError> {
        tokio::pin!(call, produce);
        let refused = |status| TransferError::Proxy(RoleError::from_status(proxy, &status));
        tokio::select! {
            produced = &mut produce => {
                // A queue that nobody reads any more: the answer says why.
                let done = produced.map_err(TransferError::Log)?;
                waiting.begin();
                let reply = call.await.map_err(refused)?.into_inner();
                Ok((done.ok_or_else(|| early(proxy))?, reply.store_uuid))
            }
            answer = &mut call => match answer {
                Err(status) => Err(refused(status)),
                Ok(_) => Err(early(proxy)),
            },
        }
    }

    /// Puts the whole transfer into the queue. `None` when nobody takes it out.
    async fn produce(
        &self,
        messages: mpsc::Sender<WlogTransferRequest>,
        way: Way,
        waiting: &Waiting,
    ) -> Result<Option<Mark>, RoleError> {
        let messages = Messages { queue: messages, waiting };
        if !messages.put(Step::Start(self.start())).await {
            return Ok(None);
        }
        let (begin, limit) = (self.plan.begin.lsid, self.plan.limit);
        let (log, volume) = (Arc::clone(&self.log), self.volume.clone());
        let mut reader = PackReader::open(log, volume, self.budget.clone(), begin, limit).await;
        let mut packing = VecDeque::new();
        let parallel = server_kit::blocking::parallelism();
        while let Some(piece) = reader.next().await? {
            packing.push_back(packing::pack(piece, way));
            if packing.len() > parallel && !send_first(&messages, &mut packing).await? {
                return Ok(None);
            }
        }
        while !packing.is_empty() {
            if !send_first(&messages, &mut packing).await? {
                return Ok(None);
            }
        }
        let reached = reader.reached();
        let (diff, done) = self.plan.finish(reached).map_err(|e| self.contradicted(e))?;
        let end = WlogEnd { end_lsid: reached.0, diff: Some(diff.into()) };
        Ok(messages.put(Step::End(end)).await.then_some(done))
    }

    fn start(&self) -> WlogStart {
        let Pb(max_log_pb) = self.plan.max_log();
        WlogStart {
            volume: self.volume.to_string(),
            storage_id: self.storage_id.clone(),
            log_uuid: uuid_bytes(self.log.uuid),
            physical_block_bytes: self.log.block_size().bytes(),
            salt: self.log.salt.0,
            device_size_lb: self.size.0,
            begin_lsid: self.plan.begin.lsid.0,
            max_log_pb,
        }
    }

    fn contradicted(&self, error: crate::plan::PlanError) -> RoleError {
        let path = self.log.path();
        RoleError::damaged(format!("volume {}: log device {path} cannot be shipped", self.volume))
            .with_volume(&self.volume)
            .with_file(path)
            .with_source(error)
    }
}

/// The way to the proxy.
struct Messages<'a> {
    queue: mpsc::Sender<WlogTransferRequest>,
    waiting: &'a Waiting,
}

impl Messages<'_> {
    /// Whether somebody will take the message.
    async fn put(&self, step: Step) -> bool {
        self.waiting.begin();
        let sent = self.queue.send(WlogTransferRequest { step: Some(step) }).await;
        self.waiting.end();
        sent.is_ok()
    }
}

async fn send_first(
    messages: &Messages<'_>,
    packing: &mut VecDeque<Packing>,
) -> Result<bool, RoleError> {
    match packing.pop_front() {
        Some(first) => Ok(messages.put(Step::Chunk(first.chunk().await?)).await),
        None => Ok(true),
    }
}

fn early(proxy: &str) -> TransferError {
    TransferError::Proxy(RoleError::wrong_peer(format!("{proxy} acknowledged half a transfer")))
}
