//! One volume: its state, what it keeps, and the answers that need no I/O.
//!
//! Invariants: memory follows the disk (a change is durable before it is seen here); the state file
//! is written by one at a time; who reads the state of the base image and then copies the image
//! holds `image_gate` for reading, who announces that it will write to the image holds it for
//! writing.

use crate::backend::{Image, VolumeImages};
use crate::index::{INDEX_DIR, Index};
use crate::jobs::Jobs;
use crate::leases::Leases;
use crate::load::{self, GAP};
use crate::mount::Mounts;
use crate::record::{
    COPY_FILE, Coming, ELSEWHERE_FILE, Elsewhere, Kept, PROGRESS_FILE, Progress, Record,
    STATE_FILE, Whole,
};
use crate::state::State;
use crate::upkeep::Upkeep;
use crate::verify::damage;
use crate::verify::ledger::Ledger;
use block_io::device::BlockDevice;
use parking_lot::Mutex;
use proto::v1::Snapshot as SnapshotMessage;
use server_kit::blocking;
use server_kit::clock;
use server_kit::durable::{DurableDir, StateFile, TmpFile};
use server_kit::error::{Reason, RoleError};
use server_kit::state_machine::{StateCell, StopFlag};
use server_kit::volume_name::VolumeName;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::RwLock;
use wdiff_format::diff_set::{DiffSet, RestorePoint};
use wdiff_format::gid::{BaseState, Diff, Gid, Snapshot};
use wdiff_format::name::to_file_name;
use wlog_format::units::{Lb, LogUuid};

/// What is known about a volume.
pub(crate) struct Catalogue {
    pub(crate) record: Record,
    pub(crate) base: BaseState,
    pub(crate) diffs: DiffSet,
    /// Where the base image and all diffs lead to, with its time.
    pub(crate) latest: (Snapshot, u64),
    pub(crate) last_received_s: u64,
    /// What is wrong now, by who found it.
    pub(crate) faults: BTreeMap<&'static str, Fault>,
    /// It could not be loaded, and a rebuild makes its state anew from the second copy.
    pub(crate) rebuildable: bool,
    /// What a killed process had left half-made, removed at the start.
    pub(crate) mended: Vec<String>,
}

impl Catalogue {
    /// Nothing but the record.
    pub(crate) fn new(record: Record, base: BaseState) -> Self {
        let latest = (base.snapshot(), base.timestamp);
        let (diffs, faults) = (DiffSet::new(), BTreeMap::new());
        let (mended, rebuildable) = (Vec::new(), false);
        Self { record, base, diffs, latest, last_received_s: 0, faults, rebuildable, mended }
    }

    /// Takes diffs out; those that were there.
    pub(crate) fn take_out(&mut self, diffs: Vec<Diff>) -> Vec<Diff> {
        diffs.iter().filter_map(|diff| self.diffs.remove(diff)).collect()
    }

    /// A diff comes in, in the place of the equal one, which is the answer if its file has another
    /// name.
    pub(crate) fn put(&mut self, diff: Diff) -> Option<Diff> {
        let old = self.diffs.remove(&diff);
        // Nothing equal is left, so this cannot fail.
        let _ = self.diffs.insert(diff);
        old.filter(|old| to_file_name(old) != to_file_name(&diff))
    }
}

/// Something that is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) reason: Reason,
    pub(crate) text: String,
}

impl Fault {
    /// Files that are damaged or missing.
    pub(crate) const fn damage(text: String) -> Self {
        Self { reason: Reason::Damaged, text }
    }
}

impl From<&RoleError> for Fault {
    fn from(error: &RoleError) -> Self {
        Self { reason: error.reason(), text: error.full_message() }
    }
}

/// A volume of an archive.
pub(crate) struct Volume {
    pub(crate) name: VolumeName,
    pub(crate) dir: Arc<dyn DurableDir>,
    pub(crate) images: Arc<dyn VolumeImages>,
    pub(crate) cell: StateCell<State>,
    pub(crate) jobs: Jobs,
    pub(crate) leases: Leases,
    pub(crate) mounts: Mounts,
    pub(crate) upkeep: Upkeep,
    pub(crate) index: Index,
    pub(crate) image_gate: Arc<RwLock<()>>,
    pub(crate) progress: StateFile<Progress>,
    pub(crate) elsewhere: StateFile<Elsewhere>,
    /// What was read back.
    pub(crate) ledger: Ledger,
    /// Wdiffs that the scrub has not got to in its cycle.
    overdue: AtomicU64,
    /// Held, by many, while diffs are neither in the catalogue nor marked yet ([`Volume::doom`]).
    dooming: parking_lot::RwLock<()>,
    file: StateFile<Record>,
    copy: StateFile<Record>,
    storing: Mutex<()>,
    catalogue: Mutex<Catalogue>,
}

impl Volume {
    /// A volume in `dir`, in the state `state`. Blocks.
    pub(crate) fn new(
        name: VolumeName,
        dir: Arc<dyn DurableDir>,
        images: Arc<dyn VolumeImages>,
        leases: Leases,
        (state, catalogue): (State, Catalogue),
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            cell: StateCell::new(state),
            jobs: Jobs::default(),
            leases,
            mounts: Mounts::default(),
            upkeep: Upkeep::load(dir.clone()),
            index: Index::new(dir.clone()),
            image_gate: Arc::default(),
            progress: StateFile::new(dir.clone(), PROGRESS_FILE),
            elsewhere: StateFile::new(dir.clone(), ELSEWHERE_FILE),
            ledger: Ledger::load(dir.clone()),
            overdue: AtomicU64::new(0),
            dooming: parking_lot::RwLock::default(),
            file: StateFile::new(dir.clone(), STATE_FILE),
            copy: StateFile::new(dir.clone(), COPY_FILE),
            storing: Mutex::new(()),
            catalogue: Mutex::new(catalogue),
            dir,
            images,
        })
    }

    /// Looks at the catalogue, or changes the parts of it that are not in the state file. Short: no
    /// I/O in there (but in `rename_diff`, where name and memory change as one).
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Catalogue) -> T) -> T {
        look(&mut self.catalogue.lock())
    }

    /// Changes the record: on the disk, then here. The copy goes first: a change that it alone has
    /// is one that was about to be, and each of those may be done again. Blocks.
    pub(crate) fn store(&self, change: impl FnOnce(&mut Record)) -> Result<(), RoleError> {
        let _one_writer = self.storing.lock();
        let mut record = self.with(|c| c.record.clone());
        change(&mut record);
        let base = record.base().map_err(|e| self.damaged(&e.to_string()))?;
        for file in [&self.copy, &self.file] {
            file.store(&record).map_err(|e| RoleError::from(e).with_volume(&self.name))?;
        }
        self.with(|c| (c.record, c.base) = (record, base));
        Ok(())
    }

    fn damaged(&self, why: &str) -> RoleError {
        RoleError::damaged(format!("the state of volume {} makes no sense: {why}", self.name))
            .with_volume(&self.name)
            .with_file(self.file.path().display().to_string())
    }

    /// As [`Volume::store`], for the state alone.
    pub(crate) fn store_state(&self, state: Kept) -> Result<(), RoleError> {
        self.store(|record| record.state = state)
    }

    /// What was not proved since a rebuild is: by content, or by files that are all well. Blocks.
    pub(crate) fn proved(&self, by_content: bool) -> Result<(), RoleError> {
        let open =
            self.with(|c| c.record.rebuilt.as_ref().is_some_and(|r| by_content || !r.by_hand));
        if open { self.store(|record| record.rebuilt = None) } else { Ok(()) }
    }

    /// Opens an image of this volume, which has this size, away from the async threads.
    pub(crate) async fn open_image(
        &self,
        image: Image,
        size: Lb,
    ) -> Result<Arc<dyn BlockDevice>, RoleError> {
        let images = self.images.clone();
        blocking::run(move || images.open(image, size)).await
    }

    /// As [`Self::open_image`], for a mount: it reads small pieces, and the same ones again.
    pub(crate) async fn open_cached(
        &self,
        image: Image,
        size: Lb,
    ) -> Result<Arc<dyn BlockDevice>, RoleError> {
        let images = self.images.clone();
        blocking::run(move || images.open_cached(image, size)).await
    }

    /// Names of the files of diffs.
    pub(crate) fn diff_names(&self, diffs: &[Diff]) -> Result<Vec<String>, RoleError> {
        diffs.iter().map(|d| self.diff_name(d)).collect()
    }

    /// Name of a diff's file.
    pub(crate) fn diff_name(&self, diff: &Diff) -> Result<String, RoleError> {
        to_file_name(diff)
            .map_err(|e| RoleError::bad_request(e.to_string()).with_volume(&self.name))
    }

    /// Size of the image.
    pub(crate) fn size(&self) -> Lb {
        self.with(|c| Lb(c.record.size_lb))
    }

    /// Fails unless the archive of the volume can be used now.
    pub(crate) fn require_active(&self, attempt: &str) -> Result<(), RoleError> {
        let view = self.cell.view();
        if view.stop != StopFlag::NotStopping {
            let message = format!("cannot {attempt} volume {}: it is being stopped", self.name);
            return Err(RoleError::stopping(message).with_volume(&self.name));
        }
        self.require(&State::ACTIVE, attempt)
    }

    /// Fails unless the state is one of `allowed`.
    pub(crate) fn require(&self, allowed: &[State], attempt: &str) -> Result<(), RoleError> {
        let state = self.cell.state();
        if allowed.contains(&state) {
            return Ok(());
        }
        if state == State::Broken {
            return Err(self.broken(attempt));
        }
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        Err(RoleError::wrong_state(&self.name, attempt, state, &allowed))
    }

    /// The refusal of everything by a volume that could not be loaded.
    pub(crate) fn broken(&self, attempt: &str) -> RoleError {
        let name = &self.name;
        let message = format!("cannot {attempt} volume {name}: {}", self.fault_text().1);
        let step = match self.with(|c| c.rebuildable) {
            true => format!("make its state anew: walbc rebuild ARCHIVE {name}"),
            false => format!(
                "bring the file back and restart the archive; or, if it is the state: walbc \
                 rebuild ARCHIVE {name}; or clear the volume"
            ),
        };
        RoleError::damaged(message)
            .with_volume(name)
            .with_state(State::Broken, &[])
            .with_file(self.dir.path().display().to_string())
            .with_next_step(step)
    }

    /// Remembers what is wrong, until the same `finder` says otherwise.
    pub(crate) fn set_fault(&self, finder: &'static str, error: &RoleError) {
        if error.reason() != Reason::Cancelled {
            self.with(|c| c.faults.insert(finder, error.into()));
        }
    }

    /// What `finder` found is over.
    pub(crate) fn clear_fault(&self, finder: &'static str) {
        self.with(|c| c.faults.remove(finder));
    }

    /// All that is wrong, as one line, and the reason that weighs most.
    pub(crate) fn fault_text(&self) -> (Reason, String) {
        let mut all: Vec<Fault> = self.with(|c| c.faults.values().cloned().collect());
        let already: Vec<&str> = all.iter().map(|fault| fault.text.as_str()).collect();
        let damages = damage::text(self, &already.join("; "));
        all.extend(damages.into_iter().map(Fault::damage));
        let weight = |reason: &Reason| match reason {
            Reason::Damaged => 0,
            Reason::NoSpace => 1,
            _ => 2,
        };
        let reason = all.iter().map(|fault| fault.reason).min_by_key(weight);
        let text = all.into_iter().map(|fault| fault.text).collect::<Vec<_>>().join("; ");
        (reason.unwrap_or(Reason::Unspecified), text)
    }

    /// How many wdiffs the scrub has not got to in its cycle.
    pub(crate) fn overdue(&self) -> u64 {
        self.overdue.load(Ordering::Relaxed)
    }

    pub(crate) fn set_overdue(&self, wdiffs: u64) {
        self.overdue.store(wdiffs, Ordering::Relaxed);
    }

    pub(crate) fn one_less_overdue(&self) {
        self.set_overdue(self.overdue().saturating_sub(1));
    }

    /// The latest snapshot as a message.
    pub(crate) fn latest_message(&self) -> SnapshotMessage {
        self.with(|c| c.latest.0).into()
    }

    /// Takes diffs out of the catalogue and marks their files for deletion (I12). Blocks.
    pub(crate) fn doom(
        &self,
        take_out: impl FnOnce(&mut Catalogue) -> Vec<Diff>,
    ) -> Result<Vec<String>, RoleError> {
        let _dooming = self.dooming.read();
        let names = self.diff_names(&self.with(take_out))?;
        self.leases.mark(&names)?;
        Ok(names)
    }

    /// Whether a file is the one of no diff, and of none that is being taken out of the catalogue.
    /// Blocks.
    pub(crate) fn is_foreign(&self, file: &str) -> Result<bool, RoleError> {
        let _nobody_dooms = self.dooming.write();
        let parsed = wdiff_format::name::parse(file).ok();
        let stored = parsed.and_then(|diff| self.with(|c| c.diffs.get(&diff).copied()));
        let known = stored.is_some_and(|d| to_file_name(&d).is_ok_and(|name| name == file));
        Ok(!known && self.dir.look_at(file)?.is_some())
    }

    /// A received diff whose file is durable becomes part of the history. An equal diff whose file
    /// has another name (another time or flag, §9.2 #15) is replaced. Blocks.
    fn add_diff(&self, diff: Diff, now_s: u64) -> Result<(), RoleError> {
        self.ledger.forget(&diff);
        let add = |c: &mut Catalogue| {
            let old = c.put(diff);
            c.latest = match c.latest.0.apply(&diff) {
                // It may close a gap, and what lies behind leads on.
                Ok(at) => {
                    let last = c.diffs.chain(at).last();
                    last.map_or((at, diff.timestamp), |(d, at)| (at, d.timestamp))
                }
                Err(_) => c.diffs.latest(&c.base),
            };
            if c.faults.contains_key(GAP) && load::beyond(c).is_none() {
                c.faults.remove(GAP);
            }
            c.last_received_s = now_s;
            Vec::from_iter(old)
        };
        self.doom(add).map(drop)
    }

    /// A diff that has arrived becomes part of the history: file, log and catalogue as one, so that
    /// a crash leaves all of it or nothing. Blocks.
    pub(crate) fn commit_diff(
        &self,
        tmp: TmpFile,
        diff: Diff,
        log_uuid: LogUuid,
    ) -> Result<(), RoleError> {
        let name = self.diff_name(&diff)?;
        let replaced = self.with(|c| c.diffs.get(&diff).copied());
        let other_log = log_uuid != self.with(|c| c.record.log_uuid);
        if other_log {
            let coming = Coming { file: name.clone(), log_uuid };
            self.store(|record| record.coming = Some(coming))?;
        }
        if let Err(error) = self.dir.commit(tmp, &name) {
            // It may have its name all the same, and would count at the next start. Nobody has seen
            // it, so nobody reads it.
            if replaced.is_none() && self.dir.remove(&name).is_ok() {
                let _ = self.store(|record| record.coming = None);
            }
            return Err(RoleError::from(error).with_volume(&self.name));
        }
        let added = self.add_diff(diff, clock::unix_seconds());
        if other_log {
            // The file decides: from now on this is so, whether or not it can be written down.
            self.with(|c| c.record.log_uuid = log_uuid);
            if let Err(error) = self.store(|record| record.coming = None) {
                let error = error.full_message();
                tracing::warn!(volume = %self.name, error, "the new log is not written down yet");
            }
        }
        added
    }

    /// A base image that is whole and flushed becomes the archive of the volume. Blocks.
    pub(crate) fn become_archived(&self, whole: &Whole) -> Result<(), RoleError> {
        self.store(|record| {
            record.state = Kept::Archived;
            record.size_lb = whole.size.0;
            record.log_uuid = whole.log_uuid;
            record.archive_uuid = whole.archive_uuid;
            record.set_base(&whole.base);
        })?;
        self.with(|c| c.latest = (whole.base.snapshot(), whole.base.timestamp));
        // Should it stay: the next start removes it.
        if let Err(error) = self.progress.remove() {
            tracing::warn!(volume = %self.name, %error, "the progress of a full sync is left");
        }
        Ok(())
    }

    /// A merged diff, whose file is durable, takes the place of its inputs. Blocks.
    pub(crate) fn replace_merged(&self, merged: Diff, inputs: &[Diff]) -> Result<(), RoleError> {
        self.ledger.forget(&merged);
        let replace = |c: &mut Catalogue| {
            let others = inputs.iter().filter(|diff| **diff != merged);
            let mut gone: Vec<Diff> = others.filter_map(|diff| c.diffs.remove(diff)).collect();
            gone.extend(c.put(merged));
            gone
        };
        self.doom(replace).map(drop)
    }

    /// Gives a diff other flags: its file gets another name, and before anybody sees that it is
    /// durable and in the catalogue, since files are opened by their names. Blocks.
    pub(crate) fn rename_diff(&self, old: &Diff, new: Diff) -> Result<(), RoleError> {
        let (from, to) = (self.diff_name(old)?, self.diff_name(&new)?);
        let renamed = self.with(|c| {
            self.leases.rename(&from, &to)?;
            c.diffs.replace(new);
            self.dir.sync()
        });
        let path = self.dir.path().join(&from);
        renamed.map_err(|e| RoleError::io("rename", &path, e).with_volume(&self.name))
    }

    /// The newest clean snapshot.
    pub(crate) fn newest_restorable(&self) -> Option<RestorePoint> {
        self.with(|c| {
            let (at, timestamp) = c.latest;
            if at.is_clean() && c.base.applying_to().is_none() {
                let gid = at.begin();
                return Some(RestorePoint { gid, timestamp, explicit: true, change_bytes: 0 });
            }
            c.diffs.restorable(&c.base, true).pop()
        })
    }

    /// An image at `gid` has some of the diffs, which go. Blocks.
    pub(crate) fn drop_applied(&self, gid: Gid) -> Result<(), RoleError> {
        self.doom(|c| c.take_out(c.diffs.done_at(gid))).map(drop)
    }

    /// The diffs inside `diff` go. Blocks.
    pub(crate) fn drop_contained(&self, diff: &Diff) -> Result<(), RoleError> {
        let (begin, end) = (diff.begin().begin(), diff.end().begin());
        self.doom(|c| c.take_out(c.diffs.garbage_in(begin, end))).map(drop)
    }

    /// Removes everything but the record, at once: nothing is left that anybody could read. Blocks.
    pub(crate) fn remove_content(&self) -> Result<(), RoleError> {
        let mut content = self.dir.list()?;
        content.retain(|n| n.contains(wdiff_format::name::SUFFIX) || n == PROGRESS_FILE);
        self.dir.remove_all(&content)?;
        self.leases.gone(&content);
        self.dir.remove_dir(INDEX_DIR)?;
        self.images.clear()
    }
}
