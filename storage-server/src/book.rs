//! What a volume must remember: one small file in its directory, changed as a whole.
//!
//! Invariants: what [`Book::read`] shows is on the disk, so whatever anybody is told about a
//! volume is durable (I6); state, log uuid, `done` and the queue change together or not at all, so
//! no crash can leave them contradicting each other; a directory without the file is no volume.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use server_kit::blocking;
use server_kit::clock::unix_seconds;
use server_kit::durable::{DurableDir, DurableError, StateFile};
use server_kit::error::RoleError;
use tokio::sync::Mutex;
use wdiff_format::gid::Gid;
use wlog_format::units::{LogUuid, Lsid};

use crate::device::address::DeviceAddress;
use crate::ledger::Ledger;
use crate::loss::{Cause, Loss};
use crate::marks::Marks;
use crate::state::Saved;

/// Name of the file.
pub const FILE: &str = "volume";

/// Why the history of a volume is broken (I11).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// Unix seconds when it was noticed.
    pub since_s: u64,
    /// Of what kind it is.
    #[serde(default)]
    pub cause: Cause,
    /// What happened.
    pub why: String,
}

impl Gap {
    /// A gap that is noticed now.
    #[must_use]
    pub fn now(loss: &Loss) -> Self {
        Self { since_s: unix_seconds(), cause: loss.cause, why: loss.why.clone() }
    }
}

/// How a backup finds what the archive has to get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Everything is sent.
    #[default]
    Full,
    /// What differs from the archive's latest snapshot is sent.
    Hash,
}

/// A backup that was begun on the present log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Its kind.
    #[serde(default)]
    pub kind: Kind,
    /// Size of the volume then, in logical blocks.
    pub size_lb: u64,
    /// When it was begun, Unix seconds.
    pub started_s: u64,
    /// The snapshot that makes it whole, once it was taken.
    pub end_gid: Option<u64>,
}

/// The last that a proxy has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// Identity of what holds it there, in hex; another one means that it is gone.
    pub store: String,
    /// The gid that it leads to.
    pub gid: u64,
}

/// A proxy has lost what it was sent, and the archive has to say whether it got it before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doubt {
    /// Address of the proxy.
    pub proxy: String,
    /// Up to here.
    pub gid: u64,
}

/// A log that is followed, and how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// The log's uuid, in hex.
    #[serde(with = "hex_uuid")]
    pub log_uuid: LogUuid,
    /// A backup that has not ended.
    pub backup: Option<Backup>,
    /// What was shipped and what waits.
    pub marks: Marks,
    /// What each proxy, by its address, has acknowledged last.
    #[serde(default)]
    pub sent: BTreeMap<String, Sent>,
    /// What the archive is to be asked about.
    #[serde(default)]
    pub doubt: Option<Doubt>,
}

impl History {
    /// The history right after a log reset.
    #[must_use]
    pub fn after_reset(log_uuid: LogUuid, gid: Gid, now_s: u64) -> Self {
        let (marks, sent) = (Marks::after_reset(gid, now_s), BTreeMap::new());
        Self { log_uuid, backup: None, marks, sent, doubt: None }
    }

    /// A proxy has acknowledged up to `gid`, and holds it in `store` (empty: it does not say).
    /// Whether that shows that it has lost what it was sent before.
    pub fn sent_to(&mut self, proxy: &str, store: String, gid: Gid) -> bool {
        if store.is_empty() {
            return false;
        }
        let now = Sent { store, gid: gid.0 };
        match self.sent.insert(proxy.to_owned(), now.clone()) {
            Some(before) if before.store != now.store => {
                let doubt = Doubt { proxy: proxy.to_owned(), gid: before.gid };
                if self.doubt.as_ref().is_none_or(|known| known.gid < doubt.gid) {
                    self.doubt = Some(doubt);
                }
                true
            }
            _ => false,
        }
    }
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Where the device is.
    pub device: DeviceAddress,
    /// The static state.
    pub state: Saved,
    /// A person has stopped the volume: no backup starts by itself.
    #[serde(default)]
    pub held: bool,
    /// A hash backup has ended on the present log, and archives that follow may not have come
    /// along.
    #[serde(default)]
    pub leads: bool,
    /// The largest gid of former histories: no later one that follows them gives it again.
    #[serde(default)]
    pub former_gid: u64,
    /// Logs were lost, and no backup has ended since.
    pub gap: Option<Gap>,
    /// `None` until the log is reset for the first time.
    pub history: Option<History>,
    /// Where in which log the snapshots lie that the archive may have.
    #[serde(default)]
    pub ledger: Ledger,
}

impl Record {
    /// A volume that was just initialised.
    #[must_use]
    pub fn new(device: DeviceAddress) -> Self {
        Self {
            device,
            state: Saved::SyncReady,
            held: false,
            leads: false,
            former_gid: 0,
            gap: None,
            history: None,
            ledger: Ledger::default(),
        }
    }

    /// The first gid of a history that follows the archive's, which ends with `latest`. Snapshots
    /// may have been told that the archive never got: what was lost keeps its gids (I6).
    #[must_use]
    pub fn following_gid(&self, latest: u64) -> Option<Gid> {
        let own = self.history.as_ref().map_or(0, |history| history.marks.newest().gid.0);
        latest.max(own).max(self.former_gid).checked_add(1).map(Gid)
    }

    /// The log is not followed any more.
    pub fn end_history(&mut self) {
        let own = self.history.take().map_or(0, |history| history.marks.newest().gid.0);
        self.former_gid = self.former_gid.max(own);
    }

    /// The log was reset: a new history begins with `gid`.
    pub fn begin_history(&mut self, log_uuid: LogUuid, gid: Gid, backup: Option<Backup>) {
        self.end_history();
        if backup.as_ref().is_some_and(|backup| backup.kind == Kind::Full) {
            // The archive begins anew, too.
            self.former_gid = 0;
        }
        self.ledger.note(log_uuid, gid, Lsid(0));
        let history = History::after_reset(log_uuid, gid, unix_seconds());
        self.history = Some(History { backup, ..history });
    }

    /// An interrupted backup is not gone on with.
    pub fn forget_backup(&mut self) {
        if let Some(history) = &mut self.history {
            history.backup = None;
        }
    }
}

/// The record of one volume, in memory and on disk.
pub struct Book {
    file: Arc<StateFile<Record>>,
    record: Arc<RwLock<Record>>,
    writer: Arc<Mutex<()>>,
}

impl Book {
    /// Opens the record in `dir`; `None` when there is none. Blocking.
    ///
    /// # Errors
    /// The file is damaged, or cannot be read.
    pub fn open(dir: Arc<dyn DurableDir>) -> Result<Option<Self>, DurableError> {
        dir.remove_tmp_files()?;
        let file = StateFile::new(dir, FILE);
        let Some(record): Option<Record> = file.load()? else { return Ok(None) };
        if let Some(Err(error)) = record.history.as_ref().map(|h| h.marks.validate()) {
            return Err(DurableError::Damaged { file: file.path(), why: error.to_string() });
        }
        Ok(Some(Self::holding(file, record)))
    }

    /// Writes the first record into `dir`. Blocking.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(dir: Arc<dyn DurableDir>, record: Record) -> Result<Self, DurableError> {
        let file = StateFile::new(dir, FILE);
        file.store(&record)?;
        Ok(Self::holding(file, record))
    }

    fn holding(file: StateFile<Record>, record: Record) -> Self {
        Self { file: Arc::new(file), record: Arc::new(RwLock::new(record)), writer: Arc::default() }
    }

    /// The file, for messages.
    #[must_use]
    pub fn path(&self) -> String {
        self.file.path().display().to_string()
    }

    /// Looks at the record.
    pub fn read<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.record.read())
    }

    /// Changes the record: durable when this returns, and only then visible. Nothing changes when
    /// `change` fails. A caller that gives up waiting does not stop a change that is being written.
    ///
    /// # Errors
    /// That of `change`, or the record cannot be written. What is on disk may then be the new
    /// record; nobody was told of it, and the next update replaces it.
    pub async fn update<T>(
        &self,
        change: impl FnOnce(&mut Record) -> Result<T, RoleError>,
    ) -> Result<T, RoleError> {
        let writer = Arc::clone(&self.writer).lock_owned().await;
        let mut next = self.record.read().clone();
        let result = change(&mut next)?;
        if next == *self.record.read() {
            return Ok(result);
        }
        let (file, record) = (Arc::clone(&self.file), Arc::clone(&self.record));
        let written = blocking::run(move || {
            let _writer = writer;
            file.store(&next)?;
            *record.write() = next;
            Ok::<_, DurableError>(())
        });
        written.await?;
        Ok(result)
    }

    /// [`Book::update`] of the static state alone.
    ///
    /// # Errors
    /// The record cannot be written.
    pub async fn set_state(&self, state: Saved) -> Result<(), RoleError> {
        let update = self.update(|record| {
            record.state = state;
            Ok(())
        });
        update.await
    }
}

pub(crate) mod hex_uuid {
    //! A uuid as 32 hex digits.
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use wlog_format::units::LogUuid;

    pub(crate) fn serialize<S: Serializer>(uuid: &LogUuid, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(uuid)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<LogUuid, D::Error> {
        let text = String::deserialize(d)?;
        let number = u128::from_str_radix(&text, 16).map_err(D::Error::custom)?;
        if text.len() != 32 {
            return Err(D::Error::custom("a uuid has 32 hex digits"));
        }
        Ok(LogUuid(number.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server_kit::durable::RealDir;
    use wlog_format::units::Pb;

    #[tokio::test]
    async fn what_is_shown_is_what_a_restart_finds() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Arc::new(RealDir::open(dir.path()).unwrap());
        assert!(Book::open(open()).unwrap().is_none());
        let record = Record::new("/run/d.sock#v".parse().unwrap());
        let book = Book::create(open(), record).unwrap();
        let update = book.update(|r| {
            let backup = Backup { kind: Kind::Hash, size_lb: 1, started_s: 2, end_gid: None };
            r.begin_history(LogUuid::random(), Gid(5), Some(backup));
            let history = r.history.as_mut().unwrap();
            history.marks.take(Lsid(7), true, u64::MAX / 2, Pb(10)).unwrap();
            assert!(!history.sent_to("unix:/p0", "ab".into(), Gid(6)));
            assert!(history.sent_to("unix:/p0", "cd".into(), Gid(7)));
            r.gap = Some(Gap::now(&Loss::new(Cause::ProxyDataLost, "it \"was\" so")));
            r.held = true;
            Ok(())
        });
        update.await.unwrap();
        let found = Book::open(open()).unwrap().unwrap().read(Clone::clone);
        assert_eq!(found, book.read(Clone::clone));

        let refused: Result<(), _> = book
            .update(|r| {
                r.gap = None;
                Err(RoleError::bad_request("no"))
            })
            .await;
        assert!(refused.is_err());
        assert!(book.read(|r| r.gap.is_some()), "a change that fails changes nothing");
    }

    #[test]
    fn gids_that_were_told_are_not_given_again() {
        let mut record = Record::new("/sock#v".parse().unwrap());
        assert_eq!(record.following_gid(7), Some(Gid(8)));
        record.begin_history(LogUuid::random(), Gid(8), None);
        let marks = |record: &mut Record| {
            let marks = &mut record.history.as_mut().unwrap().marks;
            marks.take(Lsid(1), false, 5, Pb(10)).unwrap().gid
        };
        let told = marks(&mut record);
        assert_eq!(record.following_gid(7), Some(Gid(told.0 + 1)), "the archive never got it");
        record.begin_history(LogUuid::random(), Gid(0), None);
        assert_eq!(record.following_gid(7), Some(Gid(told.0 + 1)), "after a reset");
        record.end_history();
        assert_eq!(record.following_gid(7), Some(Gid(told.0 + 1)), "after a standby");
        let backup = Backup { kind: Kind::Full, size_lb: 1, started_s: 2, end_gid: None };
        record.begin_history(LogUuid::random(), Gid(0), Some(backup));
        assert_eq!(record.following_gid(0), Some(Gid(1)), "another history");
        assert_eq!(record.following_gid(u64::MAX), None);
    }

    #[test]
    fn a_record_from_before_there_were_hash_backups_is_understood() {
        #[derive(Serialize, Deserialize)]
        struct OldGap {
            since_s: u64,
            why: String,
        }
        #[derive(Serialize, Deserialize)]
        struct OldBackup {
            size_lb: u64,
            started_s: u64,
        }
        #[derive(Serialize, Deserialize)]
        struct OldHistory {
            log_uuid: String,
            backup: OldBackup,
            marks: Marks,
        }
        #[derive(Serialize, Deserialize)]
        struct Old {
            device: String,
            state: String,
            gap: OldGap,
            history: OldHistory,
        }
        let dir = tempfile::tempdir().unwrap();
        let open = || Arc::new(RealDir::open(dir.path()).unwrap());
        let old = Old {
            device: "/run/d.sock#v".into(),
            state: "Stopped".into(),
            gap: OldGap { since_s: 3, why: "the log overflowed".into() },
            history: OldHistory {
                log_uuid: "0123456789abcdef0123456789abcdef".into(),
                backup: OldBackup { size_lb: 1, started_s: 2 },
                marks: Marks::after_reset(Gid(7), 4),
            },
        };
        StateFile::new(open(), FILE).store(&old).unwrap();
        let found = Book::open(open()).unwrap().unwrap().read(Clone::clone);
        assert_eq!(found.gap.unwrap().since_s, 3);
        let history = found.history.unwrap();
        assert_eq!(history.backup.unwrap().kind, Kind::Full);
        assert_eq!((history.marks.done.gid, found.held), (Gid(7), false));
        assert!(found.ledger.is_empty() && history.sent.is_empty());
    }
}
