//! What the primary archive is known to have, and whether a proxy has lost what it has not
//! (`semantics.md` §3.10, snapshot poll).
//!
//! Only targets with something that the archive was not seen to have yet are asked about, so idle
//! volumes cost nothing. Invariant: wdiffs count as lost only when their proxy has shown that it
//! does not hold them any more and the archive, asked after that, has not got them; silence of
//! either proves nothing.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use proto::convert;
use proto::v1::{Snapshot, VolumeRef};
use server_kit::clock::unix_seconds;
use server_kit::error::{Reason, RoleError};
use wdiff_format::gid::Gid;
use wlog_format::units::LogUuid;

use crate::book::{Doubt, History};
use crate::loss::{Cause, Loss};
use crate::peers::PeerSet;
use crate::registry::Registry;
use crate::shared::Shared;
use crate::state::State;
use crate::volume::Volume;

/// Volumes that are asked about at once.
const PARALLEL: usize = 8;

/// How long a server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The archive's latest snapshot, when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The log that led there.
    pub log_uuid: LogUuid,
    /// Every write up to here is in it.
    pub gid: Gid,
    /// Unix seconds.
    pub asked_s: u64,
}

/// What is known of one volume at the primary archive.
#[derive(Debug, Default)]
pub struct ArchiveView(Mutex<Option<Known>>);

impl ArchiveView {
    /// The last answer.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        *self.0.lock()
    }

    /// Another archive is the primary one now.
    pub fn forget(&self) {
        *self.0.lock() = None;
    }

    /// Asks; nothing is known of a volume that the archive has no snapshot of.
    ///
    /// # Errors
    /// The archive does not answer, or in the wrong way.
    pub async fn ask(&self, volume: &Volume) -> Result<Option<Known>, RoleError> {
        let primary = Arc::clone(&volume.shared.peers.now().primary);
        let request = VolumeRef { volume: volume.name.to_string() };
        let mut client = primary.client();
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, client.get(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(RoleError::from_status(primary.name(), &status)),
            Err(_) => return Err(RoleError::unreachable(primary.name(), "no answer in time")),
        };
        let known = match (answer.latest, convert::uuid(&answer.log_uuid)) {
            (Some(Snapshot { gid_begin, .. }), Ok(log_uuid)) => {
                Some(Known { log_uuid, gid: Gid(gid_begin), asked_s: unix_seconds() })
            }
            _ => None,
        };
        *self.0.lock() = known;
        Ok(known)
    }
}

/// Asks about all volumes that have something new, again and again, until the server stops.
pub async fn poll(registry: Arc<Registry>, shared: Arc<Shared>) {
    let stop = shared.shutdown.requested();
    loop {
        tokio::select! {
            () = tokio::time::sleep(shared.config.archive_poll) => {}
            () = shared.ask_archive.notified() => {}
            () = stop.cancelled() => return,
        }
        let due = registry.volumes().into_iter().filter(|v| is_due(v));
        stream::iter(due)
            .for_each_concurrent(PARALLEL, |volume| async move {
                if let Err(error) = look(&volume).await {
                    let (volume, error) = (&volume.name, error.full_message());
                    tracing::debug!(%volume, error, "cannot compare with the archive");
                }
            })
            .await;
    }
}

fn is_due(volume: &Volume) -> bool {
    let known = volume.archive.known();
    let is_behind = |h: &History| {
        h.doubt.is_some()
            || known.is_none_or(|k| k.log_uuid != h.log_uuid || k.gid < h.marks.done.gid)
    };
    match volume.cell.state() {
        State::Target => volume.book.read(|r| r.history.as_ref().is_some_and(is_behind)),
        State::Stopped | State::SyncReady => volume.book.read(|r| r.gap.is_some()),
        _ => false,
    }
}

/// Asks the archive, and the proxies about what it has not.
async fn look(volume: &Arc<Volume>) -> Result<(), RoleError> {
    let Some(history) = volume.book.read(|r| r.history.clone()) else { return Ok(()) };
    let missing = |known: &Known| known.log_uuid == history.log_uuid;
    let Some(known) = volume.archive.ask(volume).await?.filter(missing) else { return Ok(()) };
    if volume.cell.state() != State::Target {
        return Ok(());
    }
    let peers = volume.shared.peers.now();
    let gone = match &history.doubt {
        Some(doubt) => Some(doubt.clone()),
        None => gone(volume, &peers, &history, known.gid).await,
    };
    let Some(Doubt { proxy, gid }) = gone else { return Ok(()) };
    // It may have delivered everything and been emptied since.
    let Some(known) = volume.archive.ask(volume).await?.filter(missing) else { return Ok(()) };
    if known.gid.0 >= gid {
        return settle(volume, gid).await;
    }
    let why = format!(
        "proxy {proxy} has lost wdiffs up to gid {gid}, the archive has only those up to {}",
        known.gid
    );
    let loss = Loss::new(Cause::ProxyDataLost, why);
    volume.lost_downstream(history.log_uuid, &loss).await;
    Ok(())
}

/// A proxy that does not hold any more what it was sent beyond `gid`.
async fn gone(volume: &Volume, peers: &PeerSet, history: &History, gid: Gid) -> Option<Doubt> {
    for (address, sent) in history.sent.iter().filter(|(_, sent)| sent.gid > gid.0) {
        let Some(proxy) = peers.proxies.find(address) else { continue };
        let request = VolumeRef { volume: volume.name.to_string() };
        let mut client = proxy.client();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.get(request)).await;
        let is_gone = match answer {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                let other = !answer.store_uuid.is_empty() && hex(&answer.store_uuid) != sent.store;
                answer.state == "Clear" || other
            }
            Ok(Err(status)) => {
                RoleError::from_status(address, &status).reason() == Reason::UnknownVolume
            }
            Err(_) => false,
        };
        if is_gone {
            return Some(Doubt { proxy: address.clone(), gid: sent.gid });
        }
    }
    None
}

/// The archive has got what a proxy has lost.
async fn settle(volume: &Volume, gid: u64) -> Result<(), RoleError> {
    let update = volume.book.update(|record| {
        if let Some(history) = &mut record.history {
            history.doubt.take_if(|doubt| doubt.gid <= gid);
        }
        Ok(())
    });
    update.await
}

/// Bytes as text.
#[must_use]
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
