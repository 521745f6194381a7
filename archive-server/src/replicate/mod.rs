//! Replication: this archive sends a volume to another one (`semantics.md` §2.14 step 2, §5.13).
//!
//! The other archive says what it has, this one decides what it needs next, until nothing is
//! missing: its base image as it is (full), what differs from it (resync), a comparison of two
//! snapshots (hash), or merged wdiffs (diff). Invariants: between two steps nothing is held at the
//! other archive but what its session holds for a while; an apply may not run beside it, wdiffs are
//! leased while they are read (I12); equal gids prove nothing unless the logs are equal too (I13).

mod plan;
mod send;

use crate::archive::Archive;
use crate::jobs::{APPLY, Job, REPLICATE, RESIZE, RESYNC};
use crate::replica::needs_resync;
use crate::upkeep;
use crate::volume::Volume;
use plan::{Goal, Next, Remote};
use proto::v1::archive_client::ArchiveClient;
use proto::v1::replicate_request::Until;
use proto::v1::{
    Operation, PrepareReplicationReply, PrepareReplicationRequest, ReplicateRequest,
    ReplicationKind,
};
pub(crate) use send::Output;
use server_kit::error::{Reason, RoleError};
use server_kit::net::Endpoint;
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::packing::Way;
use server_kit::retry::Backoff;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use wdiff_format::compression::{Compression, CompressionKind};
use wdiff_format::gid::{Gid, Snapshot};

/// What must not run beside it.
const EXCLUDED: [&str; 4] = [REPLICATE, APPLY, RESIZE, RESYNC];
/// Most bytes of wdiffs that are merged into one, when nothing else is said.
const MERGE_BYTES: u64 = 1 << 30;
/// Pauses while the other archive is busy, and how often that may be in a row.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 20;

/// A replication that runs.
struct Replication {
    archive: Arc<Archive>,
    volume: Arc<Volume>,
    job: Job,
    handle: OperationHandle,
    peer: String,
    client: ArchiveClient<Channel>,
    way: Way,
    goal: Goal,
    resync: bool,
    dont_merge: bool,
    compression: Compression,
    max_merge_bytes: u64,
    scan_bytes_per_s: u64,
    /// Bytes of wdiffs after which it is enough; 0: no limit.
    max_send_bytes: u64,
    sent_bytes: u64,
    /// What earlier steps have told as done.
    done_bytes: u64,
}

/// Starts to replicate a volume; `ended` hears what becomes of it.
pub(crate) fn start<F>(
    archive: &Arc<Archive>,
    request: ReplicateRequest,
    ended: impl FnOnce(Result<Outcome, RoleError>) -> F + Send + 'static,
) -> Result<Operation, RoleError>
where
    F: Future<Output = Result<Outcome, RoleError>> + Send,
{
    let volume = archive.volume(&request.volume)?;
    volume.require_active(REPLICATE)?;
    let bad = |why: String| RoleError::bad_request(why).with_volume(&volume.name);
    let to = request.to.ok_or_else(|| bad("replicate to whom: an archive is needed".into()))?;
    let address: Endpoint = to.address.parse().map_err(|e| bad(format!("{}: {e}", to.id)))?;
    let compression = match &*request.compression {
        "" => Compression::with_level(CompressionKind::Zstd, 1).unwrap_or_default(),
        text => text.parse().map_err(|e| bad(format!("compression: {e}")))?,
    };
    let goal = match request.until {
        Some(Until::Gid(gid)) => Goal::Gid(Gid(gid)),
        Some(Until::MaxBytes(bytes)) => Goal::Within(bytes),
        None => Goal::Within(0),
    };
    let job = volume.jobs.begin(volume.name.as_str(), REPLICATE, &EXCLUDED)?;
    let client = ArchiveClient::new(archive.world.connector.channel(&address));
    let max_merge_bytes =
        if request.max_merge_bytes == 0 { MERGE_BYTES } else { request.max_merge_bytes };
    let (archive, name) = (archive.clone(), volume.name.clone());
    Ok(archive.operations.clone().start(REPLICATE, name, move |handle| {
        handle.set_peer(&to.id);
        async move {
            let replication = Replication {
                archive,
                volume,
                job,
                handle,
                peer: to.id,
                client,
                way: Way::to(&address),
                goal,
                resync: request.resync,
                dont_merge: request.dont_merge,
                compression,
                max_merge_bytes,
                scan_bytes_per_s: request.scan_bytes_per_s,
                max_send_bytes: request.max_send_bytes,
                sent_bytes: 0,
                done_bytes: 0,
            };
            ended(replication.run().await).await
        }
    }))
}

impl Replication {
    async fn run(mut self) -> Result<Outcome, RoleError> {
        let (token, handle) = (self.job.token.clone(), self.handle.clone());
        let done = tokio::select! {
            done = self.steps() => done,
            () = token.cancelled() => Err(RoleError::stopping("broken off by a stop")),
            () = handle.cancelled() => Err(RoleError::cancelled("given up as asked")),
        };
        let Self { archive, volume, job, .. } = self;
        drop(job);
        // It was kept from being finished.
        crate::apply::mend(&archive, &volume);
        done.map_err(|e| e.with_volume(&volume.name))
    }

    /// One step after the other until the other archive has what it shall have.
    async fn steps(&mut self) -> Result<Outcome, RoleError> {
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        let (mut before, mut attempts) = (None, 0);
        loop {
            let stepped = self.step().await;
            let now = match stepped {
                Ok(Step::Done(at)) => {
                    return Ok(Outcome { gid: Some(at.begin().0), path: None });
                }
                Ok(Step::At(at)) => Ok(at),
                Err(error) if matches!(error.reason(), Reason::Busy) => Err(error),
                Err(error) => return Err(error),
            };
            if let Ok(now) = &now
                && before != Some(*now)
            {
                (before, attempts) = (Some(*now), 0);
                backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
                continue;
            }
            attempts += 1;
            if attempts == ATTEMPTS {
                let stuck = || RoleError::busy(&self.volume.name, "the other archive stays busy");
                return Err(now.err().unwrap_or_else(stuck));
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// One step, chosen by what the other archive says.
    async fn step(&mut self) -> Result<Step, RoleError> {
        let reply = self.prepare().await?;
        let strange = |why: &str| RoleError::wrong_peer(format!("{} {why}", self.peer));
        let latest = reply.latest.ok_or_else(|| strange("does not say where it is"))?;
        let latest = Snapshot::try_from(latest).map_err(|e| strange(&e.to_string()))?;
        let uuid = proto::convert::uuid(&reply.log_uuid).map_err(|e| strange(&e.to_string()))?;
        let remote = Remote { latest, log_uuid: uuid };
        match reply.kind() {
            ReplicationKind::Unspecified => Err(strange("prepares what is not known here")),
            ReplicationKind::Full => {
                self.full(reply).await?;
                self.resync = false;
                self.done_bytes += self.volume.size().bytes();
                Ok(Step::At(latest))
            }
            ReplicationKind::Resync => {
                self.resync(reply).await?;
                self.resync = false;
                self.done_bytes += self.volume.size().bytes();
                Ok(Step::At(latest))
            }
            ReplicationKind::HashOrDiff => match self.next(remote).await? {
                Next::Finish => Ok(Step::Done(latest)),
                Next::Hash(to, timestamp) => {
                    self.hash(reply, latest, (to, timestamp)).await?;
                    self.done_bytes += self.volume.size().bytes();
                    Ok(Step::At(latest))
                }
                Next::Diff(batch) => {
                    let bytes = batch.bytes;
                    self.diff(batch).await?;
                    self.done_bytes += bytes;
                    self.sent_bytes += bytes;
                    Ok(Step::At(latest))
                }
            },
        }
    }

    /// Asks the other archive what comes next.
    async fn prepare(&mut self) -> Result<PrepareReplicationReply, RoleError> {
        let (archive_uuid, size, base) =
            self.volume.with(|c| (c.record.archive_uuid, c.record.size_lb, c.base));
        if base.applying_to().is_some() {
            let message = format!("volume {}: its base image is {base}", self.volume.name);
            return Err(RoleError::busy(&self.volume.name, message).with_next_step(
                "wait for the apply, or finish it: walbc apply ARCHIVE VOLUME GID",
            ));
        }
        let request = PrepareReplicationRequest {
            volume: self.volume.name.to_string(),
            source_id: self.archive.id.to_string(),
            archive_uuid: proto::convert::uuid_bytes(archive_uuid),
            size_lb: size,
            resync: self.resync,
            base: Some(base.into()),
            complete: upkeep::complete_message(&self.volume),
        };
        let answer = self.client.prepare_replication(request).await;
        Ok(answer.map_err(|s| RoleError::from_status(&self.peer, &s))?.into_inner())
    }

    /// The refusal when the two histories do not fit.
    fn forked(&self, why: &str) -> RoleError {
        needs_resync(&self.volume, why, (self.archive.id.as_str(), &self.peer))
    }
}

/// What a step has come to.
enum Step {
    /// The other archive has all of it.
    Done(Snapshot),
    /// It was here before the step.
    At(Snapshot),
}
