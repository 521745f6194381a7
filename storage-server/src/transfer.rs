//! Ships one range of the log to one proxy (`proxy.proto`, `semantics.md` §3.5 steps 9-11).
//!
//! Invariants: the end message, and with it the gids, is sent only after every pack of the range
//! was checked and sent; success means that the proxy has acknowledged a durable wdiff (I5).

use std::sync::Arc;
use std::thread::available_parallelism;

use futures::stream::{self, TryStreamExt};
use proto::convert::uuid_bytes;
use proto::v1::proxy_client::ProxyClient;
use proto::v1::wlog_transfer_request::Step;
use proto::v1::{WlogEnd, WlogStart, WlogTransferRequest};
use server_kit::error::RoleError;
use server_kit::volume_name::VolumeName;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use wlog_format::units::{Lb, Pb};

use crate::budget::Budget;
use crate::chunk;
use crate::log::Log;
use crate::marks::Mark;
use crate::plan::Plan;
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
}

/// Why nothing was acknowledged.
#[derive(Debug)]
pub enum TransferError {
    /// The log cannot be read: no other proxy would help.
    Log(RoleError),
    /// The proxy refused, or the connection broke: another proxy may do.
    Proxy(RoleError),
}

impl Transfer {
    /// Sends the range; what becomes `done`.
    ///
    /// # Errors
    /// [`TransferError`]. The proxy may have stored the wdiff all the same.
    pub async fn send(
        &self,
        proxy: &str,
        mut client: ProxyClient<Channel>,
    ) -> Result<Mark, TransferError> {
        let (messages, receiver) = mpsc::channel(QUEUE);
        let call = client.wlog_transfer(ReceiverStream::new(receiver));
        let produce = self.produce(messages);
        tokio::pin!(call, produce);
        let refused = |status| TransferError::Proxy(RoleError::from_status(proxy, &status));
        tokio::select! {
            produced = &mut produce => {
                // A queue that nobody reads any more: the answer says why.
                let done = produced.map_err(TransferError::Log)?;
                call.await.map_err(refused)?;
                done.ok_or_else(|| early(proxy))
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
    ) -> Result<Option<Mark>, RoleError> {
        let put = async |step| messages.send(WlogTransferRequest { step: Some(step) }).await;
        if put(Step::Start(self.start())).await.is_err() {
            return Ok(None);
        }
        let (begin, limit) = (self.plan.begin.lsid, self.plan.limit);
        let (log, volume) = (Arc::clone(&self.log), self.volume.clone());
        let mut reader = PackReader::open(log, volume, self.budget.clone(), begin, limit).await;
        {
            let pieces = stream::try_unfold(&mut reader, |reader| async {
                Ok::<_, RoleError>(reader.next().await?.map(|piece| (piece, reader)))
            });
            let compressed = pieces
                .map_ok(chunk::pack)
                .try_buffered(available_parallelism().map_or(1, Into::into));
            tokio::pin!(compressed);
            while let Some(chunk) = compressed.try_next().await? {
                if put(Step::Chunk(chunk)).await.is_err() {
                    return Ok(None);
                }
            }
        }
        let reached = reader.reached();
        let finished = self.plan.finish(reached);
        let (diff, done) = finished.map_err(|e| self.contradicted(e))?;
        let end = WlogEnd { end_lsid: reached.0, diff: Some(diff.into()) };
        Ok(put(Step::End(end)).await.is_ok().then_some(done))
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

fn early(proxy: &str) -> TransferError {
    TransferError::Proxy(RoleError::wrong_peer(format!("{proxy} acknowledged half a transfer")))
}
