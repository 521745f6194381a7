//! What the other archive needs next (`semantics.md` §2.14 step 2).
//!
//! Invariant I13: whether the other archive is at a point of our history is decided by gid and log
//! together. Gids are given anew by a hash backup that the other one never saw; wdiffs of the new
//! log on top of snapshots of the old one would make an image that never was.

use super::Replication;
use crate::faults;
use crate::image;
use crate::leases::Lease;
use server_kit::blocking;
use server_kit::error::RoleError;
use wdiff_format::gid::{Diff, Gid, Snapshot, walk};
use wdiff_format::open::WdiffReader;
use wlog_format::units::LogUuid;

/// Wdiffs that are merged into one.
const FILES_MAX: usize = 1000;

/// How far the other archive shall come.
#[derive(Clone, Copy)]
pub(super) enum Goal {
    /// To this gid at least.
    Gid(Gid),
    /// Until no more than so many bytes of wdiffs are missing.
    Within(u64),
}

/// Where the other archive is.
#[derive(Clone, Copy)]
pub(super) struct Remote {
    pub(super) latest: Snapshot,
    pub(super) log_uuid: LogUuid,
}

/// What comes next.
pub(super) enum Next {
    Finish,
    /// The comparison with this snapshot, which has this time.
    Hash(Snapshot, u64),
    Diff(Batch),
}

/// Wdiffs that become one.
pub(super) struct Batch {
    pub(super) merged: Diff,
    pub(super) lease: Lease,
    /// The log that the end of the diff is of.
    pub(super) log_uuid: LogUuid,
    pub(super) bytes: u64,
}

/// What the catalogue says of the other archive's snapshot.
struct Known {
    latest: Snapshot,
    base: Snapshot,
    log_uuid: LogUuid,
    /// The diff that leads to it or over it, or away from it if it is the base image.
    witness: Option<(Diff, Lease)>,
    chain: Vec<Diff>,
}

impl Replication {
    /// What comes next for an archive that is there.
    pub(super) async fn next(&self, remote: Remote) -> Result<Next, RoleError> {
        let known = self.look(remote.latest);
        self.same_history(&known, remote).await?;
        let Remote { latest: at, .. } = remote;
        if at.begin() >= known.latest.begin() {
            return Ok(Next::Finish);
        }
        if at.begin() < known.base.begin() {
            return self.comparison(at);
        }
        let missing: u64 = known.chain.iter().map(|d| d.size).sum();
        let first = known.chain.first().map_or(at.begin(), |d| d.begin().begin());
        let enough = match self.goal {
            Goal::Within(0) => false,
            Goal::Within(bytes) => missing <= bytes,
            Goal::Gid(gid) => at.begin() >= gid || first >= gid,
        };
        if enough || (self.max_send_bytes > 0 && self.sent_bytes >= self.max_send_bytes) {
            return Ok(Next::Finish);
        }
        let reached = walk(at, &known.chain).ok();
        if reached.map(Snapshot::begin) != Some(known.latest.begin()) {
            let why = format!("no diffs lead from {at}, where it is, to {}", known.latest);
            return Err(self.forked(&why));
        }
        self.handle.set_total(self.done_bytes + missing);
        self.batch(at).await
    }

    /// What is known about the snapshot `at` here.
    fn look(&self, at: Snapshot) -> Known {
        let volume = &self.volume;
        volume.with(|c| {
            let base = c.base.snapshot();
            let gid = at.begin();
            let mut walk = c.diffs.chain(base);
            let over = walk.find(|(diff, after)| {
                after.begin() >= gid || (gid == base.begin() && diff.is_clean())
            });
            let witness = over.map(|(diff, _)| diff).filter(|_| gid >= base.begin());
            let witness = witness.map(|diff| (diff, volume.leases.take([diff])));
            let chain = c.diffs.chain(at).map(|(diff, _)| diff).collect();
            let (latest, log_uuid) = (c.latest.0, c.record.log_uuid);
            Known { latest, base, log_uuid, witness, chain }
        })
    }

    /// Fails when the other archive's snapshot is surely not of this history.
    async fn same_history(&self, known: &Known, remote: Remote) -> Result<(), RoleError> {
        let Remote { latest: at, log_uuid } = remote;
        let other = |uuid: LogUuid| {
            let why = format!("{at} is of log {log_uuid} at {}, and of log {uuid} here", self.peer);
            Err(self.forked(&why))
        };
        if at.begin() >= known.latest.begin() {
            return if log_uuid == known.log_uuid { Ok(()) } else { other(known.log_uuid) };
        }
        let Some((diff, lease)) = &known.witness else { return Ok(()) };
        // A diff of a hash backup leads from one log to the next: it says nothing of its start.
        let starts_there = diff.begin().begin() == at.begin();
        if starts_there && !diff.is_clean() {
            return Ok(());
        }
        let uuid = self.log_of(lease).await?;
        if uuid == LogUuid::ZERO || uuid == log_uuid { Ok(()) } else { other(uuid) }
    }

    /// The log that our snapshot `at`, which the base image is at or a diff leads to, is of.
    pub(super) async fn log_at(&self, at: Snapshot) -> Result<LogUuid, RoleError> {
        let known = self.look(at);
        let Some((diff, lease)) = &known.witness else { return Ok(known.log_uuid) };
        if diff.begin().begin() == at.begin() && !diff.is_clean() {
            return Ok(known.log_uuid);
        }
        let uuid = self.log_of(lease).await?;
        Ok(if uuid == LogUuid::ZERO { known.log_uuid } else { uuid })
    }

    /// The log of the last of some wdiffs.
    async fn log_of(&self, lease: &Lease) -> Result<LogUuid, RoleError> {
        let wdiffs = self.open(lease).await?;
        Ok(wdiffs.last().map_or(LogUuid::ZERO, |wdiff| wdiff.header().uuid))
    }

    /// Opens all wdiffs of a lease.
    pub(super) async fn open(&self, lease: &Lease) -> Result<Vec<WdiffReader>, RoleError> {
        let (volume, lease) = (self.volume.clone(), lease.clone());
        blocking::run(move || {
            let open =
                |names: &[String]| image::open_wdiffs(volume.name.as_str(), &*volume.dir, names);
            lease.open(0..lease.len(), open)
        })
        .await
    }

    /// The comparison that leads from `at`, which is before our base image, into our history.
    fn comparison(&self, at: Snapshot) -> Result<Next, RoleError> {
        let volume = &self.volume;
        let to = volume.with(|c| c.diffs.oldest_clean(&c.base));
        let Some((to, timestamp)) = to else {
            let message = format!("volume {}: it has no clean snapshot yet", volume.name);
            return Err(RoleError::unknown_snapshot(&volume.name, message).with_next_step(
                "replicate again when there is one: walbc restorable ARCHIVE VOLUME",
            ));
        };
        if Diff::new(at, to).is_err() {
            return Err(self.forked(&format!("{at}, where it is, reaches beyond {to}")));
        }
        Ok(Next::Hash(to, timestamp))
    }

    /// The next wdiffs to send, leased.
    async fn batch(&self, at: Snapshot) -> Result<Next, RoleError> {
        let volume = &self.volume;
        let left = match self.max_send_bytes {
            0 => u64::MAX,
            most => most.saturating_sub(self.sent_bytes),
        };
        let most = self.max_merge_bytes.min(left);
        let (merged, lease, ours, bytes) = volume.with(|c| {
            let mut list = c.diffs.applicable_and_mergeable(at);
            let mut bytes = 0_u64;
            let fits = |diff: &Diff| {
                bytes = bytes.saturating_add(diff.size);
                let beyond = match self.goal {
                    Goal::Gid(gid) => diff.begin().begin() >= gid,
                    Goal::Within(_) => false,
                };
                bytes <= most && !beyond
            };
            let count = if self.dont_merge { 1 } else { FILES_MAX };
            let kept = list.iter().take(count).copied().take_while(fits).count().max(1);
            list.truncate(kept);
            let failed =
                |e: wdiff_format::gid::GidError| faults::snapshot(volume.name.as_str(), &e.into());
            let Some((first, others)) = list.split_first() else {
                return Err(self.forked(&format!("no diff leads on from {at}, where it is")));
            };
            let merged = others.iter().try_fold(*first, |m, d| m.merge(d)).map_err(failed)?;
            let bytes = list.iter().map(|d| d.size).sum();
            let lease = volume.leases.take(list);
            Ok((merged, lease, c.record.log_uuid, bytes))
        })?;
        let log_uuid = match self.log_of(&lease).await? {
            // Made of several logs, or by a file tool: the log that it leads to is ours.
            LogUuid::ZERO => ours,
            uuid => uuid,
        };
        Ok(Next::Diff(Batch { merged, lease, log_uuid, bytes }))
    }
}
