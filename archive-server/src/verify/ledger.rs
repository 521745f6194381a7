//! What was read back when, what was wrong, and what is known of the content of snapshots: durable,
//! in one small file for each volume.
//!
//! Invariants: a diff is known by its gids, so that other flags do not make it unread; a file that
//! comes anew under the same gids is unread, and counts from its time; the hash of a snapshot is
//! recorded once and never changed, since the content of a snapshot never changes. Losing the file
//! costs reading again, and the recorded hashes.

use serde::{Deserialize, Serialize};
use server_kit::durable::{DurableDir, DurableError, StateFile};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use wdiff_format::gid::{Diff, Gid};
use wdiff_format::name;

use parking_lot::Mutex;

/// Name of the file in a volume's directory.
pub(crate) const CHECKS_FILE: &str = "checks";

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The content of a wdiff fails a check.
    Wdiff,
    /// A wdiff of the catalogue has no file.
    Missing,
    /// A wdiff has another size than it had.
    WrongSize,
    /// A file that is not ours.
    Foreign,
    /// The base image is too short, or cannot be read.
    Image,
    /// A snapshot reads as something else than it did.
    Content,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    /// Name in the volume's directory; of a snapshot its gid.
    pub(crate) file: String,
    pub(crate) why: String,
    pub(crate) found_s: u64,
}

/// What was proved of a snapshot. Times of 0: never.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Proof {
    pub(crate) restored_s: u64,
    pub(crate) drilled_s: u64,
    /// Of the content, with the time when it was recorded.
    pub(crate) hash: String,
    pub(crate) hashed_s: u64,
}

/// How far the base image was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageCheck {
    /// Everything below was read since the last time that all was.
    pub(crate) done_bytes: u64,
    /// When all of it was read.
    pub(crate) checked_s: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Checks {
    /// When everything was read back, the last time.
    through_s: u64,
    image: ImageCheck,
    damages: Vec<Found>,
    files: BTreeMap<String, u64>,
    snapshots: BTreeMap<String, Proof>,
}

#[derive(Default)]
struct Inner {
    checks: Checks,
    /// Changed since it was stored.
    dirty: bool,
}

/// The checks of one volume.
pub(crate) struct Ledger {
    file: StateFile<Checks>,
    inner: Mutex<Inner>,
    storing: Mutex<()>,
}

/// What a diff is known by: its gids.
fn key(diff: &Diff) -> String {
    let (b, e) = (diff.begin(), diff.end());
    format!("{}-{}-{}-{}", b.begin(), b.end(), e.begin(), e.end())
}

/// The same for a damage: that of its diff, if it is one of a wdiff.
fn key_of(found: &Found) -> String {
    name::parse(&found.file).map_or_else(|_| found.file.clone(), |diff| key(&diff))
}

impl Ledger {
    /// Reads what is there. What cannot be read is begun anew. Blocks.
    pub(crate) fn load(dir: Arc<dyn DurableDir>) -> Self {
        let file = StateFile::<Checks>::new(dir, CHECKS_FILE);
        let checks = file.load().unwrap_or_else(|error| {
            tracing::warn!(%error, "what was checked is forgotten, with all recorded hashes");
            None
        });
        let inner = Mutex::new(Inner { checks: checks.unwrap_or_default(), dirty: false });
        Self { file, inner, storing: Mutex::default() }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Checks) -> T) -> T {
        let mut inner = self.inner.lock();
        inner.dirty = true;
        change(&mut inner.checks)
    }

    /// Makes it durable, if something changed. Blocks.
    pub(crate) fn store(&self) -> Result<(), DurableError> {
        let _one_writer = self.storing.lock();
        let checks = {
            let mut inner = self.inner.lock();
            if !std::mem::take(&mut inner.dirty) {
                return Ok(());
            }
            inner.checks.clone()
        };
        self.file.store(&checks).inspect_err(|_| self.inner.lock().dirty = true)
    }

    /// Forgets what is about diffs and snapshots that are gone.
    pub(crate) fn prune(&self, diffs: &[Diff], snapshots: &BTreeSet<Gid>) {
        let kept: BTreeSet<String> = diffs.iter().map(key).collect();
        self.change(|c| {
            c.files.retain(|file, _| kept.contains(file));
            let is_kept = |d: &Found| d.kind == Kind::Foreign || kept.contains(&key_of(d));
            c.damages.retain(|d| name::parse(&d.file).is_err() || is_kept(d));
            c.snapshots.retain(|gid, _| gid.parse().is_ok_and(|g| snapshots.contains(&Gid(g))));
        });
    }

    /// Forgets everything: the volume begins anew. Blocks.
    pub(crate) fn clear(&self) -> Result<(), DurableError> {
        let _one_writer = self.storing.lock();
        *self.inner.lock() = Inner::default();
        self.file.remove()
    }

    /// A file that was not read comes under the gids of `diff`.
    pub(crate) fn forget(&self, diff: &Diff) {
        let key = key(diff);
        let mut inner = self.inner.lock();
        let known = inner.checks.files.remove(&key).is_some();
        let before = inner.checks.damages.len();
        inner.checks.damages.retain(|d| key_of(d) != key);
        inner.dirty |= known || inner.checks.damages.len() != before;
    }

    /// A wdiff was read back, and is well.
    pub(crate) fn checked(&self, diff: &Diff, now_s: u64) {
        let key = key(diff);
        self.change(|c| {
            c.damages.retain(|d| key_of(d) != key);
            c.files.insert(key, now_s);
        });
    }

    /// When a wdiff was read back, if it was since it came, and was well.
    pub(crate) fn read_back_s(&self, diff: &Diff) -> Option<u64> {
        let key = key(diff);
        let inner = self.inner.lock();
        let damaged = inner.checks.damages.iter().any(|d| key_of(d) == key);
        inner.checks.files.get(&key).copied().filter(|_| !damaged)
    }

    /// When each of some wdiffs was read back; one that never was counts from its time, since it
    /// was checked when it came.
    pub(crate) fn checked_s(&self, diffs: &[Diff], now_s: u64) -> Vec<u64> {
        let inner = self.inner.lock();
        let files = &inner.checks.files;
        let of = |d: &Diff| files.get(&key(d)).copied().unwrap_or(d.timestamp.min(now_s));
        diffs.iter().map(of).collect()
    }

    /// A restore has read, and checked, everything up to `gid`.
    pub(crate) fn restored(&self, gid: Gid, now_s: u64) {
        self.change(|c| {
            let passed = |d: &Found| name::parse(&d.file).is_ok_and(|f| f.end().begin() <= gid);
            c.damages.retain(|d| d.kind == Kind::Foreign || !passed(d));
            c.snapshots.entry(gid.to_string()).or_default().restored_s = now_s;
        });
    }

    /// Remembers what is wrong; false when it was known.
    pub(crate) fn found(&self, found: Found) -> bool {
        let key = key_of(&found);
        let mut inner = self.inner.lock();
        let known = inner.checks.damages.iter().any(|d| key_of(d) == key && d.kind == found.kind);
        inner.dirty = true;
        // Read for this time, though in vain.
        inner.checks.files.insert(key.clone(), found.found_s);
        if !known {
            inner.checks.damages.retain(|d| key_of(d) != key);
            inner.checks.damages.push(found);
        }
        !known
    }

    /// What is wrong of these kinds is over.
    pub(crate) fn settle(&self, kinds: &[Kind], file: Option<&str>) {
        let mut inner = self.inner.lock();
        let before = inner.checks.damages.len();
        let over = |d: &Found| kinds.contains(&d.kind) && file.is_none_or(|f| f == d.file);
        inner.checks.damages.retain(|d| !over(d));
        inner.dirty |= inner.checks.damages.len() != before;
    }

    /// Everything that is wrong.
    pub(crate) fn damages(&self) -> Vec<Found> {
        self.inner.lock().checks.damages.clone()
    }

    /// How far the base image was read.
    pub(crate) fn image(&self) -> ImageCheck {
        self.inner.lock().checks.image
    }

    pub(crate) fn set_image(&self, image: ImageCheck) {
        self.change(|c| c.image = image);
    }

    /// When everything was read back, the last time.
    pub(crate) fn through_s(&self) -> u64 {
        self.inner.lock().checks.through_s
    }

    pub(crate) fn set_through(&self, now_s: u64) {
        self.change(|c| c.through_s = now_s);
    }

    /// What is known of all snapshots.
    pub(crate) fn proofs(&self) -> BTreeMap<Gid, Proof> {
        let inner = self.inner.lock();
        let known = inner.checks.snapshots.iter();
        known.filter_map(|(gid, p)| Some((Gid(gid.parse().ok()?), p.clone()))).collect()
    }

    /// Changes what is known of a snapshot.
    pub(crate) fn prove<T>(&self, gid: Gid, change: impl FnOnce(&mut Proof) -> T) -> T {
        self.change(|c| change(c.snapshots.entry(gid.to_string()).or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server_kit::durable::RealDir;

    fn damage(diff: &Diff) -> Found {
        let file = name::to_file_name(diff).unwrap();
        Found { kind: Kind::Wdiff, file, why: "it is broken".into(), found_s: 3 }
    }

    #[test]
    fn what_was_checked_survives_and_a_new_file_under_the_same_gids_is_unread() {
        let tmp = tempfile::tempdir().unwrap();
        let dir: Arc<dyn DurableDir> = Arc::new(RealDir::open(tmp.path()).unwrap());
        let ledger = Ledger::load(dir.clone());
        let mut diff = Diff::clean(Gid(1), Gid(2)).unwrap();
        diff.timestamp = 5;
        assert_eq!(ledger.checked_s(&[diff], 9), [5]);
        ledger.checked(&diff, 7);
        assert!(ledger.found(damage(&Diff::clean(Gid(2), Gid(3)).unwrap())));
        ledger.prove(Gid(2), |p| p.drilled_s = 8);
        ledger.store().unwrap();
        let ledger = Ledger::load(dir.clone());
        // Another flag is another name, and the same diff.
        assert_eq!(ledger.read_back_s(&diff.with_mergeable(true)), Some(7));
        assert_eq!(ledger.damages().len(), 1);
        assert_eq!(ledger.proofs()[&Gid(2)].drilled_s, 8);
        ledger.forget(&diff);
        assert_eq!(ledger.read_back_s(&diff), None);
        ledger.prune(&[diff], &BTreeSet::new());
        assert!(ledger.damages().is_empty() && ledger.proofs().is_empty());
    }

    #[test]
    fn damage_is_told_once_and_over_when_the_file_is_read() {
        let tmp = tempfile::tempdir().unwrap();
        let ledger = Ledger::load(Arc::new(RealDir::open(tmp.path()).unwrap()));
        let diff = Diff::clean(Gid(1), Gid(2)).unwrap();
        assert!(ledger.found(damage(&diff)));
        assert!(!ledger.found(damage(&diff)));
        ledger.checked(&diff, 4);
        assert!(ledger.damages().is_empty());
    }

    #[test]
    fn a_file_that_is_damaged_is_begun_anew() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join(CHECKS_FILE), "nonsense").unwrap();
        let ledger = Ledger::load(Arc::new(RealDir::open(tmp.path()).unwrap()));
        ledger.set_through(5);
        ledger.store().unwrap();
        let again = Ledger::load(Arc::new(RealDir::open(tmp.path()).unwrap()));
        assert_eq!(again.through_s(), 5);
    }
}
