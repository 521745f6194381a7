//! What waits for one archive: the wdiffs of one send directory, and how sending them goes.
//!
//! Wdiffs are kept apart by the log that they came from (its *history*): gids of another history
//! mean nothing, they may even start at 0 again. The oldest history is sent first. Invariants:
//! what is in memory is in the directory; of two wdiffs of one history with the same gids the first
//! one stays (they hold the same log, I6); files and memory change together under `files`.
use crate::archive::Archive;
use crate::disk::{Staged, drop_files, list_queue};
use crate::settings::Limits;
use parking_lot::{Mutex, MutexGuard};
use proto::v1::{ProxyQueue, WdiffResult};
use server_kit::clock::unix_seconds;
use server_kit::durable::DurableDir;
use server_kit::error::{Reason, RoleError};
use server_kit::retry::Backoff;
use server_kit::volume_name::ServerId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wdiff_format::diff_set::DiffSet;
use wdiff_format::gid::{Diff, Gid};
use wdiff_format::name::to_file_name;
use wlog_format::units::LogUuid;

/// Why a queue does not send although it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// It does.
    None,
    /// The archive was given up; a kick, a new wlog or a start resumes.
    GivenUp,
    /// A staged wdiff is damaged; a kick or a start resumes.
    Damaged,
}

/// What stopping a volume waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) sending: bool,
    pub(crate) empty: bool,
}

/// Wdiffs that are sent as one.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) uuid: LogUuid,
    pub(crate) diffs: Vec<Diff>,
    pub(crate) merged: Diff,
}

/// What a sender does next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Wait until woken.
    Idle,
    /// Wait: more wdiffs may come that merge.
    NotBefore(Instant),
    /// Send.
    Send(Batch),
}

/// The queue of one archive.
pub(crate) struct Queue {
    pub(crate) name: ServerId,
    dir: Arc<dyn DurableDir>,
    inner: Mutex<Inner>,
    files: Mutex<()>,
    settled: watch::Sender<Settled>,
    /// There is something to look at: a wdiff, a cleared mark.
    pub(crate) wake: Notify,
    /// Somebody wants an attempt now.
    pub(crate) kick: Notify,
    /// The queue is deleted.
    pub(crate) end: CancellationToken,
}

struct Inner {
    archive: Archive,
    histories: Vec<History>,
    mark: Mark,
    error: String,
    /// The last answer for programs, see [`crate::reaction::Answer::kind`].
    last: (WdiffResult, Reason),
    last_sent_s: u64,
    retry_at: Option<Instant>,
    not_before: Option<Instant>,
    backoff: Backoff,
}

struct History {
    uuid: LogUuid,
    diffs: DiffSet,
}

impl Inner {
    /// An attempt succeeded.
    fn note_success(&mut self, sent: bool) {
        self.error.clear();
        self.last = (WdiffResult::Unspecified, Reason::Unspecified);
        self.backoff.reset();
        if sent {
            self.last.0 = WdiffResult::Stored;
            self.last_sent_s = unix_seconds();
        }
    }

    fn add(&mut self, Staged { diff, uuid }: Staged) -> bool {
        let at = self.histories.iter().position(|h| h.uuid == uuid).unwrap_or_else(|| {
            self.histories.push(History { uuid, diffs: DiffSet::new() });
            self.histories.len() - 1
        });
        self.histories.get_mut(at).is_some_and(|h| h.diffs.insert(diff).is_ok())
    }

    fn diffs(&self) -> impl Iterator<Item = &Diff> {
        self.histories.iter().flat_map(|h| h.diffs.iter())
    }
}

/// A transfer that runs; dropped, it is over.
pub(crate) struct Sending<'a>(&'a Queue);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.settled.send_modify(|s| s.sending = false);
    }
}

impl Queue {
    /// An empty queue.
    pub(crate) fn new(archive: Archive, dir: Arc<dyn DurableDir>, limits: &Limits) -> Self {
        let inner = Inner {
            archive: archive.clone(),
            histories: Vec::new(),
            mark: Mark::None,
            error: String::new(),
            last: (WdiffResult::Unspecified, Reason::Unspecified),
            last_sent_s: 0,
            retry_at: None,
            not_before: None,
            backoff: Backoff::new(limits.retry_min, limits.retry_max),
        };
        Self {
            name: archive.name,
            dir,
            inner: Mutex::new(inner),
            files: Mutex::new(()),
            settled: watch::Sender::new(Settled { sending: false, empty: true }),
            wake: Notify::new(),
            kick: Notify::new(),
            end: CancellationToken::new(),
        }
    }

    /// Reads the directory anew. Of wdiffs with the same gids the first by name stays.
    pub(crate) fn load(&self) -> Result<(), RoleError> {
        let _files = self.files.lock();
        let mut staged = list_queue(&*self.dir)?;
        staged.sort_by_key(|s| s.diff.timestamp);
        let mut inner = self.inner.lock();
        inner.histories.clear();
        for one in staged {
            if !inner.add(one) {
                tracing::warn!(diff = %one.diff, dir = %self.dir.path().display(),
                    "two wdiffs with the same gids: the later one is dropped");
                let name =
                    to_file_name(&one.diff).map_err(|e| RoleError::damaged(e.to_string()))?;
                drop_files(&*self.dir, &[name])?;
            }
        }
        let empty = inner.diffs().next().is_none();
        drop(inner);
        self.settled.send_modify(|s| s.empty = empty);
        Ok(())
    }

    /// Keeps files and memory as they are while held.
    pub(crate) fn lock_files(&self) -> MutexGuard<'_, ()> {
        self.files.lock()
    }

    /// Where a new wdiff is linked to; `None` when one with its gids waits already. Makes room for
    /// its name if a wdiff of another history has it. Under [`Queue::lock_files`].
    pub(crate) fn place(
        &self,
        new: Staged,
        name: &str,
    ) -> Result<Option<Arc<dyn DurableDir>>, RoleError> {
        let mut inner = self.inner.lock();
        for history in &mut inner.histories {
            let Some(old) = history.diffs.get(&new.diff).copied() else { continue };
            if history.uuid == new.uuid {
                return Ok(None);
            }
            if to_file_name(&old).is_ok_and(|old_name| old_name == name) {
                tracing::warn!(name, "a wdiff of an older log gives way to one of the same name");
                // Were it to stay, it would be found there as the new one's content.
                drop_files(&*self.dir, &[name.to_owned()])?;
                history.diffs.remove(&old);
            }
        }
        Ok(Some(Arc::clone(&self.dir)))
    }

    /// A wdiff was received: queues it, clears a give-up, wakes the sender. Under
    /// [`Queue::lock_files`].
    pub(crate) fn received(&self, new: Staged) {
        let mut inner = self.inner.lock();
        inner.add(new);
        if inner.mark == Mark::GivenUp {
            inner.mark = Mark::None;
        }
        if !inner.archive.send_delay.is_zero() && inner.not_before.is_none() {
            inner.not_before = Some(Instant::now() + inner.archive.send_delay);
        }
        drop(inner);
        self.settled.send_modify(|s| s.empty = false);
        self.wake.notify_one();
    }

    /// What to do now (semantics.md §4.5 step 1).
    pub(crate) fn next(&self, limits: &Limits) -> Next {
        let mut inner = self.inner.lock();
        if inner.mark != Mark::None {
            return Next::Idle;
        }
        if let Some(at) = inner.not_before.filter(|at| *at > Instant::now()) {
            return Next::NotBefore(at);
        }
        inner.not_before = None;
        inner.histories.retain(|h| !h.diffs.is_empty());
        let batch = inner.histories.first().and_then(|history| {
            let mut diffs = history.diffs.mergeable_up_to_size(Gid(0), limits.max_merge_bytes);
            diffs.truncate(limits.max_merge_files);
            let (first, rest) = diffs.split_first()?;
            let merged = rest.iter().try_fold(*first, |all, next| all.merge(next)).ok()?;
            Some(Batch { uuid: history.uuid, diffs, merged })
        });
        batch.map_or(Next::Idle, Next::Send)
    }

    /// Marks a transfer as running.
    pub(crate) fn begin_sending(&self) -> Sending<'_> {
        self.settled.send_modify(|s| s.sending = true);
        Sending(self)
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> Arc<dyn DurableDir> {
        Arc::clone(&self.dir)
    }

    /// The files of a batch, oldest first.
    pub(crate) fn names(batch: &Batch) -> Result<Vec<String>, RoleError> {
        let names: Result<_, _> = batch.diffs.iter().map(to_file_name).collect();
        names.map_err(|e| RoleError::damaged(e.to_string()))
    }

    /// The archive needs these no more: away with the links, then with the entries.
    pub(crate) fn drop_batch(&self, batch: &Batch, sent: bool) -> Result<(), RoleError> {
        let _files = self.files.lock();
        drop_files(&*self.dir, &Self::names(batch)?)?;
        let mut inner = self.inner.lock();
        if let Some(history) = inner.histories.iter_mut().find(|h| h.uuid == batch.uuid) {
            for diff in &batch.diffs {
                history.diffs.remove(diff);
            }
        }
        // Together: nobody sees an empty queue with an error that is over.
        inner.note_success(sent);
        let empty = inner.diffs().next().is_none();
        drop(inner);
        self.settled.send_modify(|s| s.empty = empty);
        Ok(())
    }

    /// An attempt failed; whether the text is news.
    pub(crate) fn note_failure(
        &self,
        error: String,
        kind: (WdiffResult, Reason),
        mark: Mark,
    ) -> bool {
        let mut inner = self.inner.lock();
        let news = inner.error != error;
        inner.error = error;
        inner.last = kind;
        inner.mark = inner.mark.max(mark);
        news
    }

    /// The delay before the next attempt.
    pub(crate) fn next_delay(&self) -> Duration {
        self.inner.lock().backoff.next_delay()
    }

    /// Tells status when the next attempt comes.
    pub(crate) fn set_retry_at(&self, at: Option<Instant>) {
        self.inner.lock().retry_at = at;
    }

    /// Clears marks and back-off and lets the sender run now (kick, start).
    pub(crate) fn resume(&self) -> Result<(), RoleError> {
        if self.mark() == Mark::Damaged {
            // Somebody may have restored or taken away the file.
            self.load()?;
        }
        let mut inner = self.inner.lock();
        inner.mark = Mark::None;
        inner.not_before = None;
        inner.backoff.reset();
        drop(inner);
        self.wake.notify_one();
        self.kick.notify_one();
        Ok(())
    }

    pub(crate) fn mark(&self) -> Mark {
        self.inner.lock().mark
    }

    pub(crate) fn archive(&self) -> Archive {
        self.inner.lock().archive.clone()
    }

    pub(crate) fn set_archive(&self, archive: Archive) {
        self.inner.lock().archive = archive;
    }

    /// Waits, without a limit of its own, until `condition` holds.
    pub(crate) async fn settle(&self, mut condition: impl FnMut(&Settled) -> bool) {
        // The sender is ours, so the channel cannot close.
        let _ = self.settled.subscribe().wait_for(|s| condition(s)).await;
    }

    pub(crate) fn status(&self) -> ProxyQueue {
        let sending = self.settled.borrow().sending;
        let inner = self.inner.lock();
        let left = inner.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
        ProxyQueue {
            archive: Some(inner.archive.info()),
            wdiffs: inner.histories.iter().map(|h| h.diffs.len() as u64).sum(),
            bytes: inner.histories.iter().map(|h| h.diffs.total_bytes()).sum(),
            last_sent_s: inner.last_sent_s,
            send_error: inner.mark != Mark::None,
            error: inner.error.clone(),
            last_result: inner.last.0.into(),
            error_reason: inner.last.1.into(),
            retry_in_ms: left.map_or(0, |l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX)),
            sending,
            oldest_s: inner.diffs().map(|d| d.timestamp).min().unwrap_or(0),
            first_gid: inner.diffs().map(|d| d.begin().begin().0).min(),
            last_gid: inner.diffs().map(|d| d.end().end().0).max(),
        }
    }
}
