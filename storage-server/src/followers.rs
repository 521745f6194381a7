//! The archives that follow a volume beside the primary one: they come along after a hash backup.
//!
//! The log after a hash backup continues the primary's comparison, which nobody else has got: other
//! archives refuse what is shipped from then on, and the proxies drop it for them. So the primary
//! is asked to replicate to each archive that the proxies feed, until that is done or a person has
//! to decide.
//!
//! Invariants: who follows is what the proxies' lists say, and no list is changed; no archive's
//! history is thrown away for it (that needs a resync); what a proxy has dropped for an archive
//! meanwhile is at the primary before the last replication begins, so that no hole is left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use proto::v1::replicate_request::Until;
use proto::v1::{KickProxyRequest, OperationRef, Peer, ReplicateRequest, VolumeRef};
use server_kit::error::{Reason, RoleError};
use server_kit::retry::Backoff;
use wlog_format::units::LogUuid;

use crate::peers::{PeerSet, Primary};
use crate::resync::{at_archive, outcome};
use crate::state::State;
use crate::volume::Volume;

/// Pause between two looks at what has arrived at the primary.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Brings the followers along, if a hash backup has left them behind.
pub(crate) fn wake(volume: &Arc<Volume>) {
    if behind(volume).is_none() || volume.bringing.swap(true, Ordering::SeqCst) {
        return;
    }
    let volume = Arc::clone(volume);
    tokio::spawn(async move {
        let shutdown = volume.shared.shutdown.requested();
        tokio::select! {
            () = bring_all(&volume) => {}
            () = shutdown.cancelled() => return,
        }
        volume.bringing.store(false, Ordering::SeqCst);
        // They may have been left behind again before that could be seen.
        wake(&volume);
    });
}

/// The log that they have to be brought to.
fn behind(volume: &Volume) -> Option<LogUuid> {
    let is_target = volume.cell.state() == State::Target;
    let log = volume.book.read(|r| r.history.as_ref().filter(|_| r.leads).map(|h| h.log_uuid));
    log.filter(|_| is_target)
}

async fn bring_all(volume: &Arc<Volume>) {
    let config = &volume.shared.config;
    let mut backoff = Backoff::new(config.retry_min, config.retry_max);
    while let Some(log) = behind(volume) {
        let brought = match bring(volume).await {
            Err(error) if error.reason() == Reason::NeedsResync => {
                let (volume, error) = (&volume.name, error.full_message());
                tracing::error!(%volume, error, "an archive cannot follow any more");
                Ok(())
            }
            brought => brought,
        };
        let settled = match brought {
            Ok(()) => settle(volume, log).await,
            Err(error) => Err(error),
        };
        let Err(error) = settled else { return };
        let (delay, volume) = (backoff.next_delay(), &volume.name);
        tracing::warn!(%volume, error = error.full_message(), ?delay, "archives are left behind");
        tokio::time::sleep(delay).await;
    }
}

/// All of them have come along to this log.
async fn settle(volume: &Volume, log: LogUuid) -> Result<(), RoleError> {
    let update = volume.book.update(|record| {
        record.leads &= record.history.as_ref().is_some_and(|h| h.log_uuid != log);
        Ok(())
    });
    update.await
}

/// What the proxies say of a volume.
#[derive(Default)]
struct Lists {
    /// The archives beside the primary, with their addresses.
    followers: BTreeMap<String, String>,
    /// The newest gid that waits for the primary.
    held: u64,
    /// A proxy that does not answer: what it holds is not known.
    silent: Option<RoleError>,
}

async fn lists(volume: &Volume, peers: &PeerSet) -> Lists {
    let mut lists = Lists::default();
    let primary = peers.primary.address();
    for proxy in peers.proxies.all() {
        let request = VolumeRef { volume: volume.name.to_string() };
        let answer = match proxy.client().get(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let error = RoleError::from_status(&proxy.address, &status);
                if error.reason() != Reason::UnknownVolume {
                    lists.silent = Some(error);
                }
                continue;
            }
        };
        for queue in answer.queues {
            let Some(archive) = queue.archive else { continue };
            if archive.address == primary {
                lists.held = lists.held.max(queue.last_gid.unwrap_or_default());
            } else {
                lists.followers.insert(archive.name, archive.address);
            }
        }
    }
    lists
}

/// One attempt. An archive that is down keeps none of the others.
async fn bring(volume: &Volume) -> Result<(), RoleError> {
    let peers = volume.shared.peers.now();
    let Lists { followers, silent, .. } = lists(volume, &peers).await;
    let mut result = silent.map_or(Ok(()), Err);
    for (name, address) in followers {
        let brought = bring_one(volume, &peers, Peer { id: name, address }).await;
        result = result.and(brought);
    }
    result
}

async fn bring_one(volume: &Volume, peers: &PeerSet, to: Peer) -> Result<(), RoleError> {
    replicate(volume, &peers.primary, &to, latest(volume).await?).await?;
    // From now on it takes what is shipped. What came before is at the primary, or still waits for
    // it at a proxy.
    let held = lists(volume, peers).await.held;
    let reached = loop {
        let latest = latest(volume).await?;
        if latest >= held {
            break latest;
        }
        if behind(volume).is_none() {
            let why = format!("volume {} is shipped no more", volume.name);
            return Err(RoleError::cancelled(why));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    };
    replicate(volume, &peers.primary, &to, reached).await?;
    for proxy in peers.proxies.all() {
        let (volume, archive) = (volume.name.to_string(), to.id.clone());
        // It only hurries.
        let _ = proxy.client().kick(KickProxyRequest { volume, archive }).await;
    }
    tracing::info!(volume = %volume.name, archive = to.id, "it follows the new log");
    Ok(())
}

async fn latest(volume: &Volume) -> Result<u64, RoleError> {
    Ok(at_archive(volume).await?.latest.map_or(0, |latest| latest.gid_begin))
}

/// A replication by the primary, to its end.
async fn replicate(
    volume: &Volume,
    primary: &Primary,
    to: &Peer,
    gid: u64,
) -> Result<(), RoleError> {
    let request = ReplicateRequest {
        volume: volume.name.to_string(),
        to: Some(to.clone()),
        until: Some(Until::Gid(gid)),
        ..ReplicateRequest::default()
    };
    let refused = |status| RoleError::from_status(primary.name(), &status);
    let mut last = primary.client().replicate(request).await.map_err(refused)?.into_inner();
    let watch = OperationRef { id: last.id.clone() };
    let mut reports = primary.host().watch_operation(watch).await.map_err(refused)?.into_inner();
    while let Some(report) = reports.next().await {
        last = report.map_err(refused)?;
    }
    outcome(last)
}
