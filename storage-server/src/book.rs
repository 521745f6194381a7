//! What a volume must remember: one small file in its directory, changed as a whole.
//!
//! Invariants: what [`Book::read`] shows is on the disk, so whatever anybody is told about a
//! volume is durable (I6); state, log uuid, `done` and the queue change together or not at all, so
//! no crash can leave them contradicting each other; a directory without the file is no volume.

use std::sync::Arc;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use server_kit::blocking;
use server_kit::durable::{DurableDir, DurableError, StateFile};
use server_kit::error::RoleError;
use tokio::sync::Mutex;
use wdiff_format::gid::Gid;
use wlog_format::units::LogUuid;

use crate::device::address::DeviceAddress;
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
    /// What happened.
    pub why: String,
}

/// A full backup that was begun on the present log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Size of the volume then, in logical blocks.
    pub size_lb: u64,
    /// When it was begun, Unix seconds.
    pub started_s: u64,
    /// The snapshot that makes it whole, once it was taken.
    pub end_gid: Option<u64>,
}

/// A log that is followed, and how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// The log's uuid, in hex.
    #[serde(with = "hex_uuid")]
    pub log_uuid: LogUuid,
    /// A full backup that has not ended.
    pub backup: Option<Backup>,
    /// What was shipped and what waits.
    pub marks: Marks,
}

impl History {
    /// The history right after a log reset.
    #[must_use]
    pub fn after_reset(log_uuid: LogUuid, gid: Gid, now_s: u64) -> Self {
        Self { log_uuid, backup: None, marks: Marks::after_reset(gid, now_s) }
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
    /// Logs were lost, and no backup has ended since.
    pub gap: Option<Gap>,
    /// `None` until the log is reset for the first time.
    pub history: Option<History>,
}

impl Record {
    /// A volume that was just initialised.
    #[must_use]
    pub fn new(device: DeviceAddress) -> Self {
        Self { device, state: Saved::SyncReady, gap: None, history: None }
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

mod hex_uuid {
    //! A uuid as 32 hex digits.
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use wlog_format::units::LogUuid;

    pub(super) fn serialize<S: Serializer>(uuid: &LogUuid, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(uuid)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<LogUuid, D::Error> {
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
    use wlog_format::units::{Lsid, Pb};

    #[tokio::test]
    async fn what_is_shown_is_what_a_restart_finds() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Arc::new(RealDir::open(dir.path()).unwrap());
        assert!(Book::open(open()).unwrap().is_none());
        let record = Record::new("/run/d.sock#v".parse().unwrap());
        let book = Book::create(open(), record).unwrap();
        let update = book.update(|r| {
            let mut history = History::after_reset(LogUuid::random(), Gid(5), 99);
            history.marks.take(Lsid(7), true, 100, Pb(10)).unwrap();
            history.backup = Some(Backup { size_lb: 1, started_s: 2, end_gid: None });
            r.history = Some(history);
            r.gap = Some(Gap { since_s: 3, why: "it \"was\" so".into() });
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
}
