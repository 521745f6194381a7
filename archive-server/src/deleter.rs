//! The one task of an archive that deletes what its volumes do not need any more (I12), in two
//! phases.
//!
//! ```text
//!  apply, merge, gc, receive, repair, load --Leases::mark--> NAME.doomed-SECONDS, durable
//!                                                                   |
//!  restore, mount, replicate ... --leases (they know the new name)--+
//!                                                                   |
//!             nobody reads it, and its grace is over or space short +--this task--> gone
//! ```
//! Invariants: what is marked is in no catalogue, so it gets no new readers; that it is marked, and
//! since when, is in its name, so a restart goes on with it and a kill at any instant loses
//! nothing: a file that was to be marked is found needless by the next start, one that was to be
//! deleted is still marked. Space that the grace holds never refuses what would fit otherwise:
//! whoever finds too little asks for room first (I10). Two more delete wdiffs: the reset and the
//! clear of a volume, of which nothing is left.

use crate::archive::Archive;
use crate::repair::place::ASIDE_SUFFIX;
use crate::volume::Volume;
use server_kit::error::RoleError;
use server_kit::retry::Backoff;
use server_kit::{blocking, clock};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use wdiff_format::name::SUFFIX;

/// In the name of a marked file, between the name that it had and the time.
const MARK: &str = ".doomed-";
/// How often it looks whether space is short, while there is something that could go.
const LOOK: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// The name of a file that is marked since then (unix seconds).
pub(crate) fn marked_name(name: &str, since_s: u64) -> String {
    format!("{name}{MARK}{since_s}")
}

/// Since when a file is marked, by its name; `None`: it is not.
pub(crate) fn marked_since(name: &str) -> Option<u64> {
    let (first, since_s) = name.rsplit_once(MARK)?;
    let is_ours = first.strip_suffix(ASIDE_SUFFIX).unwrap_or(first).ends_with(SUFFIX);
    let since_s = since_s.parse().ok()?;
    // One time has one name.
    (is_ours && marked_name(first, since_s) == name).then_some(since_s)
}

/// Tells the task that something is marked, or that one reader is less. Clones tell the same task.
#[derive(Clone, Default)]
pub(crate) struct Wake(Arc<Notify>);

impl Wake {
    pub(crate) fn wake(&self) {
        self.0.notify_one();
    }
}

/// Asks the task for room. Clones ask the same one.
#[derive(Clone)]
pub(crate) struct Deleter {
    pub(crate) wake: Wake,
    asked: watch::Sender<u64>,
    served: watch::Sender<u64>,
    ending: CancellationToken,
}

impl Deleter {
    /// The task is not there yet ([`start`]); it ends with the archive.
    pub(crate) fn new(wake: Wake, ending: CancellationToken) -> Self {
        let (asked, served) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { wake, asked, served, ending }
    }

    /// What nobody reads is deleted when this returns, whether or not its grace is over; or that
    /// failed, which the log tells.
    pub(crate) async fn make_room(&self) {
        let mut asked = 0;
        self.asked.send_modify(|n| {
            *n += 1;
            asked = *n;
        });
        self.wake.wake();
        let mut served = self.served.subscribe();
        tokio::select! {
            _ = served.wait_for(|served| *served >= asked) => {}
            () = self.ending.cancelled() => {}
        }
    }

    /// Bytes that are free for a volume; when that is less than `needed`, all that can be deleted
    /// is gone.
    pub(crate) async fn free_bytes(&self, volume: &Volume, needed: u64) -> Result<u64, RoleError> {
        let free = volume.dir.free_bytes()?;
        if free >= needed {
            return Ok(free);
        }
        self.make_room().await;
        Ok(volume.dir.free_bytes()?)
    }

    async fn rounds(&self, archive: &Archive) {
        let mut backoff = Backoff::new(LOOK, PAUSE_MAX);
        loop {
            let asked = *self.asked.borrow();
            let is_asked = *self.served.borrow() < asked;
            let mut failed = false;
            for volume in archive.volumes() {
                if let Err(error) = sweep(archive, &volume, is_asked).await {
                    let error = error.full_message();
                    tracing::warn!(volume = %volume.name, error, "needless wdiffs are not deleted");
                    failed = true;
                }
            }
            self.served.send_replace(asked);
            if !failed {
                backoff.reset();
            }
            let is_unread = |volume: &Arc<Volume>| volume.leases.waiting().is_unread;
            let looks = archive.volumes().iter().any(is_unread);
            let pause = async {
                match (failed, looks) {
                    (true, _) => tokio::time::sleep(backoff.next_delay()).await,
                    (false, true) => tokio::time::sleep(LOOK).await,
                    (false, false) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = pause => {}
                () = self.wake.0.notified() => {}
            }
        }
    }
}

/// Begins to delete, until the archive ends.
pub(crate) fn start(archive: &Arc<Archive>) {
    let archive = archive.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = archive.deleter.rounds(&archive) => {}
            () = archive.ending.cancelled() => {}
        }
    });
}

/// Deletes what may go of a volume.
async fn sweep(archive: &Archive, volume: &Arc<Volume>, is_asked: bool) -> Result<(), RoleError> {
    if !volume.leases.waiting().is_unread {
        return Ok(());
    }
    let (grace_s, reserve) = (archive.settings.grace.as_secs(), archive.settings.reserve_bytes);
    let volume = volume.clone();
    let sweep = move || -> Result<(), RoleError> {
        let at_once = is_asked || volume.dir.free_bytes()? < reserve;
        let now_s = clock::unix_seconds();
        // A clock that was set back must not keep them for years.
        let due = volume.leases.due(|since_s| at_once || now_s.abs_diff(since_s) >= grace_s);
        volume.dir.remove_all(&due)?;
        volume.leases.gone(&due);
        if !due.is_empty() {
            tracing::debug!(volume = %volume.name, files = due.len(), "deleted needless wdiffs");
        }
        Ok(())
    };
    blocking::run(sweep).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_name_says_since_when_and_no_other_name_does() {
        for name in ["20260101000000-M--0-1.wdiff", "20260101000000-M--0-1.wdiff.damaged"] {
            let marked = marked_name(name, 1_700_000_000);
            assert_eq!(marked, format!("{name}.doomed-1700000000"));
            assert_eq!(marked_since(&marked), Some(1_700_000_000));
            assert_eq!(marked_since(name), None);
        }
        for name in ["a.wdiff.doomed-", "a.wdiff.doomed-+5", "a.wdiff.doomed-05", "a.doomed-5"] {
            assert_eq!(marked_since(name), None, "{name}");
        }
    }
}
