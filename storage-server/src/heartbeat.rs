//! Tells the archives how far their volumes are complete, so that they can tell one that nobody
//! writes to from one that they are cut off from.
//!
//! One call for all targets: to the primary archive, and to a proxy, which knows the others and
//! hands it on. Invariant: a volume counts as complete at a time only if its device,
//! asked after that time, has no write that is not part of a snapshot that was shipped.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use proto::convert::uuid_bytes;
use proto::v1::{CompleteRequest, CompleteTo};
use server_kit::clock::unix_seconds;
use server_kit::error::RoleError;
use tonic::Status;

use crate::peers::PeerSet;
use crate::registry::Registry;
use crate::shared::Shared;
use crate::state::State;
use crate::volume::Volume;

/// Pause between two calls.
const PAUSE: Duration = Duration::from_secs(10);

/// Devices that are asked at once.
const PARALLEL: usize = 8;

/// How long a device or the archive may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells again and again, until the server stops.
pub async fn run(registry: Arc<Registry>, shared: Arc<Shared>) {
    let stop = shared.shutdown.requested();
    loop {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => return,
        }
        let targets = registry.volumes().into_iter().filter(|v| v.cell.state() == State::Target);
        let found = stream::iter(targets).map(|v| async move { complete(&v).await });
        let found: Vec<_> = found.buffer_unordered(PARALLEL).collect().await;
        let volumes: Vec<_> = found.into_iter().flatten().collect();
        if volumes.is_empty() {
            continue;
        }
        let peers = shared.peers.now();
        let said = CompleteRequest { volumes };
        let told = tokio::join!(tell_primary(&peers, said.clone()), tell_proxy(&peers, said));
        for error in [told.0, told.1].into_iter().filter_map(Result::err) {
            let error = error.full_message();
            tracing::debug!(error, "cannot tell archives how far their volumes are complete");
        }
    }
}

/// The snapshot that has every write until now, if there is one.
async fn complete(volume: &Volume) -> Option<CompleteTo> {
    let at_s = unix_seconds();
    let info = tokio::time::timeout(ANSWER_TIMEOUT, volume.device.info()).await.ok()?.ok()?;
    let status = info.status;
    let (log_uuid, done) = volume.book.read(|r| {
        let history = r.history.as_ref().filter(|_| r.gap.is_none())?;
        Some((history.log_uuid, history.marks.done))
    })?;
    let whole = log_uuid == status.log_uuid && done.lsid >= status.positions.latest;
    let volume = volume.name.to_string();
    let said = CompleteTo { volume, log_uuid: uuid_bytes(log_uuid), gid: done.gid.0, at_s };
    (whole && !status.overflow && !info.overwriting).then_some(said)
}

async fn tell_primary(peers: &PeerSet, said: CompleteRequest) -> Result<(), RoleError> {
    let primary = &peers.primary;
    in_time(primary.name(), primary.client().complete(said)).await
}

/// Tells the first proxy that takes it.
async fn tell_proxy(peers: &PeerSet, said: CompleteRequest) -> Result<(), RoleError> {
    let mut told = Ok(());
    for proxy in peers.proxies.candidates().0 {
        told = in_time(&proxy.address, proxy.client().complete(said.clone())).await;
        if told.is_ok() {
            break;
        }
    }
    told
}

async fn in_time<T>(
    peer: impl Display,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<(), RoleError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(answer) => answer.map(drop).map_err(|status| RoleError::from_status(peer, &status)),
        Err(_) => Err(RoleError::unreachable(peer, "no answer in time")),
    }
}
