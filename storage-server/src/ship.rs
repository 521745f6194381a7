//! A target volume: ships its log piece by piece (`semantics.md` §3.5).
//!
//! Invariants: log positions are released only below `done`, which is durable and acknowledged by
//! a proxy (I4); a snapshot is durable before anybody hears of its gid (I6); a log that is not the
//! one that `done` speaks of ends the work, whatever it holds (I11).

use std::sync::Arc;
use std::time::Duration;

use proto::v1::ProxyRefusal;
use server_kit::error::{Reason, RoleError};
use tokio::sync::watch;
use tokio::time::Instant;
use wlog_format::units::{Lsid, Pb};

use crate::book::History;
use crate::device::{Positions, Seen, Status};
use crate::follower::{Failure, Next, REARM};
use crate::log::Log;
use crate::loss::lost;
use crate::marks::Marks;
use crate::plan::{self, Plan, plan};
use crate::transfer::{Transfer, TransferError};
use crate::volume::Volume;

/// How long writes gather after a pause before the first of them are shipped.
const GATHER: Duration = Duration::from_millis(10);

/// Pause between checkpoints that we ask for because the ring fills.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(1);

/// Ships the log of one volume.
pub struct Shipper {
    volume: Arc<Volume>,
    seen: watch::Receiver<Seen>,
    log: Option<Arc<Log>>,
    /// Released up to here; the event that says so may still be on its way.
    released: Lsid,
    /// When the last implicit snapshot was taken.
    snapshot_at: Option<Instant>,
    /// Since when there are logs without a snapshot.
    unsent_since: Option<Instant>,
    checkpoint_at: Option<Instant>,
}

impl Shipper {
    /// Nothing done yet.
    #[must_use]
    pub fn new(volume: Arc<Volume>, seen: watch::Receiver<Seen>) -> Self {
        Self {
            volume,
            seen,
            log: None,
            released: Lsid(0),
            snapshot_at: None,
            unsent_since: None,
            checkpoint_at: None,
        }
    }

    /// Ships one piece, or finds that there is nothing to ship now.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn round(&mut self, seen: Seen) -> Result<Next, Failure> {
        let status = match seen {
            Seen::Up(status) => status,
            Seen::Nothing => return Ok(Next::Wait(None)),
            Seen::Down(error) => {
                self.volume.progress.failed(&error, None);
                return Ok(Next::Wait(None));
            }
        };
        let (status, history) = self.trusted(status).await?;
        self.open_log(&history).await?;
        let due = self.take_implicit(&status.positions, &history.marks).await?;
        let marks = self.history()?.marks;
        match plan(&marks, status.positions.permanent, self.piece()?) {
            Some(plan) => {
                self.ship(&status, plan).await?;
                Ok(Next::Now)
            }
            None => self.rest(&status.positions, &marks, due).await,
        }
    }

    fn history(&self) -> Result<History, RoleError> {
        let missing = || RoleError::damaged(format!("{} has no history", self.volume.book.path()));
        self.volume.book.read(|r| r.history.clone()).ok_or_else(missing)
    }

    /// The status and our history, when they belong together. An event may be older than a reset
    /// of ours, so the device is asked before logs are declared lost.
    async fn trusted(&self, status: Status) -> Result<(Status, History), Failure> {
        let history = self.history()?;
        if lost(&status, &history).is_none() {
            return Ok((status, history));
        }
        let status = self.volume.device.info().await?.status;
        match lost(&status, &history) {
            None => Ok((status, history)),
            Some(loss) => Err(Failure::Lost(loss)),
        }
    }

    async fn open_log(&mut self, history: &History) -> Result<(), RoleError> {
        if self.log.as_ref().is_none_or(|log| log.uuid != history.log_uuid) {
            self.log = None;
            let device = &self.volume.device;
            let info = device.info().await?;
            let log = Log::open(device.open_log(&info)?, history.log_uuid).await?;
            self.log = Some(Arc::new(log));
        }
        Ok(())
    }

    fn opened(&self) -> Result<&Arc<Log>, RoleError> {
        let missing = || RoleError::new(Reason::Io, "the log device is not open");
        self.log.as_ref().ok_or_else(missing)
    }

    fn piece(&self) -> Result<Pb, RoleError> {
        Ok(self.volume.shared.config.piece(self.opened()?.block_size()))
    }

    /// Takes an implicit snapshot when logs have none and it is time; else answers when it will be.
    async fn take_implicit(
        &mut self,
        positions: &Positions,
        marks: &Marks,
    ) -> Result<Option<Instant>, RoleError> {
        let (now, permanent, piece) = (Instant::now(), positions.permanent, self.piece()?);
        if !plan::wants_snapshot(marks, permanent) {
            self.unsent_since = None;
            return Ok(None);
        }
        let gathered = *self.unsent_since.get_or_insert(now) + GATHER;
        let interval = self.volume.shared.config.snapshot_interval;
        let due = self.snapshot_at.map_or(gathered, |last| gathered.max(last + interval));
        if now < due && !plan::is_pressing(marks, permanent, piece) {
            return Ok(Some(due));
        }
        self.volume.record_snapshot(permanent, true, piece).await?;
        // Counted from when it was due, not from when the turn came: so a busy volume has one in
        // every interval, and does not fall behind by a little each time.
        let on_time =
            self.snapshot_at.map(|last| last + interval).filter(|at| now < *at + interval);
        self.snapshot_at = Some(on_time.filter(|at| *at <= now).unwrap_or(now));
        self.unsent_since = None;
        Ok(None)
    }

    /// Ships the piece to the first proxy that takes it.
    async fn ship(&mut self, status: &Status, plan: Plan) -> Result<(), Failure> {
        let shared = &self.volume.shared;
        let transfer = Transfer {
            volume: self.volume.name.clone(),
            storage_id: shared.config.id.to_string(),
            size: status.size,
            log: Arc::clone(self.opened()?),
            plan,
            budget: shared.budget.clone(),
            patience: shared.config.send_timeout,
        };
        let peers = shared.peers.now();
        let (candidates, down) = peers.proxies.candidates();
        let refusal = |address: &str, reason: Reason, message: String| ProxyRefusal {
            address: address.to_owned(),
            reason: reason.into(),
            message,
        };
        let silent = |address| refusal(address, Reason::Unreachable, "does not answer".to_owned());
        let mut refusals: Vec<_> = down.iter().map(|proxy| silent(&proxy.address)).collect();
        for proxy in candidates {
            match transfer.send(&proxy).await {
                Ok((done, store)) => {
                    self.volume.acknowledged(done, &proxy.address, &store).await?;
                    self.volume.progress.sent(&proxy.address);
                    let positions = self.now().unwrap_or(status.positions);
                    return Ok(self.release(&positions, done.lsid).await?);
                }
                Err(TransferError::Log(error)) => return Err(self.log_failed(error).await),
                Err(TransferError::Stalled(error)) => {
                    peers.proxies.avoid(&proxy);
                    let (reason, message) = (error.reason(), error.full_message());
                    refusals.push(refusal(&proxy.address, reason, message));
                }
                Err(TransferError::Proxy(error)) => {
                    if error.reason() == Reason::Unreachable {
                        peers.proxies.mark_down(&proxy);
                    }
                    let (reason, message) = (error.reason(), error.full_message());
                    refusals.push(refusal(&proxy.address, reason, message));
                }
            }
        }
        let why: Vec<_> =
            refusals.iter().map(|r| format!("{}: {}", r.address, r.message)).collect();
        let why = why.join("; ");
        self.volume.progress.refused(refusals);
        Err(RoleError::unreachable("any proxy that takes the log", why)
            .with_volume(&self.volume.name)
            .with_next_step("look at the proxies: walbc status")
            .into())
    }

    /// A log that cannot be read has perhaps been overwritten meanwhile, which is another matter.
    async fn log_failed(&mut self, error: RoleError) -> Failure {
        self.log = None;
        let (Ok(info), Ok(history)) = (self.volume.device.info().await, self.history()) else {
            return Failure::Retry(error);
        };
        match lost(&info.status, &history) {
            Some(loss) => Failure::Lost(loss),
            None => Failure::Retry(error),
        }
    }

    /// The positions as they are known by now.
    fn now(&self) -> Option<Positions> {
        match &*self.seen.borrow() {
            Seen::Up(status) => Some(status.positions),
            _ => None,
        }
    }

    /// Releases what is shipped and not needed by the device's redo (I4). `done` is durable.
    async fn release(&mut self, positions: &Positions, done: Lsid) -> Result<(), RoleError> {
        let target = done.min(positions.prev_written);
        if target > positions.oldest.max(self.released) {
            self.volume.device.set_oldest(target).await?;
            self.released = target;
        }
        Ok(())
    }

    /// Nothing can be shipped now: releases what can be, and says how long to wait.
    async fn rest(
        &mut self,
        positions: &Positions,
        marks: &Marks,
        due: Option<Instant>,
    ) -> Result<Next, Failure> {
        let done = marks.done.lsid;
        self.release(positions, done).await?;
        let now = Instant::now();
        let used = positions.latest.distance_from(positions.oldest.max(self.released));
        let is_full = used.0 > self.opened()?.ring.size().0 / 2;
        let may_ask = self.checkpoint_at.is_none_or(|last| now - last >= CHECKPOINT_PAUSE);
        if is_full && done > positions.prev_written && may_ask {
            self.checkpoint_at = Some(now);
            self.volume.device.take_checkpoint().await?;
        }
        self.volume.progress.well();
        let rearm = (used.0 > 0).then(|| now + REARM);
        Ok(Next::Wait(due.or(rearm)))
    }
}
