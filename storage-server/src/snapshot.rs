//! Snapshots of one volume: taken, recorded, acknowledged by a proxy (`semantics.md` §3.4).

use std::time::Duration;

use server_kit::clock::unix_seconds;
use server_kit::error::{Reason, RoleError};
use wlog_format::units::{Lsid, Pb};

use crate::archive_view::hex;
use crate::book::Record;
use crate::device::Seen;
use crate::marks::Mark;
use crate::state::State;
use crate::volume::Volume;

/// How long a snapshot waits for the device to make its log permanent.
const PERMANENT_TIMEOUT: Duration = Duration::from_secs(30);

impl Volume {
    /// Takes an explicit snapshot, which holds every write that the device had acknowledged before.
    ///
    /// # Errors
    /// Wrong state, lost logs, an unreachable device.
    pub async fn snapshot(&self) -> Result<Mark, RoleError> {
        self.require(&[State::Target, State::Stopped], "snapshot")?;
        self.refuse_gap()?;
        self.snapshot_now().await
    }

    /// [`Volume::snapshot`] in any state.
    pub(crate) async fn snapshot_now(&self) -> Result<Mark, RoleError> {
        let info = self.device_info().await?;
        if let Some(loss) = self.lost_logs(&info) {
            return Err(self.gap_error(&loss.why));
        }
        let lsid = info.status.positions.latest;
        if info.status.positions.permanent < lsid {
            self.make_permanent(lsid).await?;
        }
        let piece = self.shared.config.piece(info.block_size);
        let mark = self.record_snapshot(lsid, false, piece).await?;
        self.wake.notify_one();
        Ok(mark)
    }

    /// Waits until the log below `lsid` is permanent. A snapshot beyond that could be lost with
    /// the power, and its gid would then mean another content.
    async fn make_permanent(&self, lsid: Lsid) -> Result<(), RoleError> {
        if self.device.take_checkpoint().await?.permanent >= lsid {
            return Ok(());
        }
        let mut seen = self.device.watch();
        let reached = |seen: &Seen| matches!(seen, Seen::Up(s) if s.positions.permanent >= lsid);
        match tokio::time::timeout(PERMANENT_TIMEOUT, seen.wait_for(reached)).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let device = self.device.address();
                let message = format!("device {device} does not make its log permanent");
                Err(RoleError::new(Reason::Io, message).with_volume(&self.name))
            }
        }
    }

    /// Records a snapshot of everything below `lsid`, durable (I6). Another one may have been taken
    /// further on meanwhile: then an implicit snapshot is not needed any more, and an explicit one
    /// is taken there, which holds what it has to hold.
    pub(crate) async fn record_snapshot(
        &self,
        lsid: Lsid,
        mergeable: bool,
        piece: Pb,
    ) -> Result<Mark, RoleError> {
        let update = self.book.update(|record| {
            let history = record.history.as_mut().ok_or_else(|| self.never_backed_up())?;
            let newest = *history.marks.newest();
            if mergeable && newest.lsid >= lsid {
                return Ok(newest);
            }
            let lsid = lsid.max(newest.lsid);
            history.marks.take(lsid, mergeable, unix_seconds(), piece).map_err(|e| {
                RoleError::new(Reason::Overflow, format!("no snapshot of volume {}", self.name))
                    .with_volume(&self.name)
                    .with_source(e)
            })
        });
        update.await
    }

    /// A proxy has acknowledged everything up to `done` and holds it in `store`: durable before
    /// logs are released (I4).
    pub(crate) async fn acknowledged(
        &self,
        done: Mark,
        proxy: &str,
        store: &[u8],
    ) -> Result<(), RoleError> {
        let store = hex(store);
        let known = self.archive.known();
        let update = self.book.update(|record| {
            let Record { history, ledger, .. } = record;
            let history = history.as_mut().ok_or_else(|| self.never_backed_up())?;
            history.marks.acknowledge(done);
            ledger.note(history.log_uuid, done.gid, done.lsid);
            if let Some(known) = known {
                ledger.trim(known.log_uuid, known.gid);
            }
            Ok(history.sent_to(proxy, store, done.gid))
        });
        if update.await? {
            tracing::warn!(volume = %self.name, proxy, "the proxy has lost what it held");
            self.shared.ask_archive.notify_one();
        }
        Ok(())
    }

    pub(crate) fn never_backed_up(&self) -> RoleError {
        let message = format!("volume {} was never backed up", self.name);
        RoleError::new(Reason::WrongState, message)
            .with_volume(&self.name)
            .with_next_step(format!("walbc full-backup S {}", self.name))
    }
}
