//! What an archive keeps about a volume in small files: one state file that changes as a whole, and
//! the progress of a full backup that is being received. The diffs are kept by the names of their
//! files alone.
//!
//! Gids are written as text, since TOML has no numbers beyond 63 bits.

use crate::state::State;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use wdiff_format::gid::{BaseState, Gid, GidError, Snapshot};
use wlog_format::units::{Lb, LogUuid};

/// Name of the state file in a volume's directory.
pub(crate) const STATE_FILE: &str = "state";
/// Name of the second copy of the state file, which is never behind it.
pub(crate) const COPY_FILE: &str = "state-copy";
/// Name of the file with the progress of a full backup.
pub(crate) const PROGRESS_FILE: &str = "full-sync";

/// Name of the file that tells of a half-made image outside of the volume's directory.
pub(crate) const ELSEWHERE_FILE: &str = "restoring";

/// The states that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kept {
    SyncReady,
    Archived,
    Stopped,
}

impl From<Kept> for State {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::SyncReady => Self::SyncReady,
            Kept::Archived => Self::Archived,
            Kept::Stopped => Self::Stopped,
        }
    }
}

/// 16 raw bytes as 32 hexadecimal digits.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use wlog_format::units::LogUuid;

    pub(super) fn serialize<S: Serializer>(uuid: &LogUuid, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(uuid)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<LogUuid, D::Error> {
        let text = String::deserialize(d)?;
        let value = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        let value = value.ok_or_else(|| D::Error::custom(format!("{text:?} is no uuid")))?;
        Ok(LogUuid(value.to_be_bytes()))
    }
}

/// A snapshot as `begin,end`.
mod pair {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use wdiff_format::gid::{Gid, Snapshot};

    pub(super) fn serialize<S: Serializer>(at: &Snapshot, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{},{}", at.begin(), at.end()))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<Snapshot, D::Error> {
        let text = String::deserialize(d)?;
        let gids = text.split_once(',').and_then(|(b, e)| Some((b.parse().ok()?, e.parse().ok()?)));
        let (b, e) = gids.ok_or_else(|| D::Error::custom(format!("{text:?} is no snapshot")))?;
        Snapshot::new(Gid(b), Gid(e)).map_err(D::Error::custom)
    }
}

/// A base image's state.
mod base {
    use super::KeptBase;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use wdiff_format::gid::BaseState;

    pub(super) fn serialize<S: Serializer>(base: &BaseState, s: S) -> Result<S::Ok, S::Error> {
        KeptBase::from(*base).serialize(s)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<BaseState, D::Error> {
        KeptBase::deserialize(d)?.state().map_err(D::Error::custom)
    }
}

/// A base image's state, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptBase {
    #[serde(with = "pair")]
    snapshot: Snapshot,
    timestamp_s: u64,
    applying_to: Option<KeptSnapshot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct KeptSnapshot(#[serde(with = "pair")] Snapshot);

impl From<BaseState> for KeptBase {
    fn from(base: BaseState) -> Self {
        let applying_to = base.applying_to().map(KeptSnapshot);
        Self { snapshot: base.snapshot(), timestamp_s: base.timestamp, applying_to }
    }
}

impl KeptBase {
    fn state(self) -> Result<BaseState, GidError> {
        match self.applying_to {
            Some(to) => BaseState::applying(self.snapshot, to.0, self.timestamp_s),
            None => Ok(BaseState::at(self.snapshot, self.timestamp_s)),
        }
    }
}

/// The state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) state: Kept,
    /// Size of the volume in logical blocks; 0 before the first full backup.
    pub(crate) size_lb: u64,
    #[serde(with = "hex")]
    pub(crate) log_uuid: LogUuid,
    #[serde(with = "hex")]
    pub(crate) archive_uuid: LogUuid,
    base: Option<KeptBase>,
    /// A diff of another log than that of `log_uuid` is being kept: as soon as its file is there,
    /// its log is the log of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) coming: Option<Coming>,
    /// The image is being made larger: so many blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) growing_lb: Option<u64>,
    /// The state was made anew, and is not proved since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rebuilt: Option<Rebuilt>,
}

/// What is not proved since a rebuild.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rebuilt {
    /// A person said where the base image is: only content proves that.
    pub(crate) by_hand: bool,
    /// For people.
    pub(crate) note: String,
}

/// A diff that brings its log along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Coming {
    pub(crate) file: String,
    #[serde(with = "hex")]
    pub(crate) log_uuid: LogUuid,
}

/// A base image that has arrived as a whole.
pub(crate) struct Whole {
    pub(crate) size: Lb,
    pub(crate) log_uuid: LogUuid,
    pub(crate) archive_uuid: LogUuid,
    pub(crate) base: BaseState,
}

impl Record {
    /// A volume that waits for its first full backup.
    pub(crate) const fn new() -> Self {
        let (log_uuid, archive_uuid) = (LogUuid::ZERO, LogUuid::ZERO);
        Self {
            state: Kept::SyncReady,
            size_lb: 0,
            log_uuid,
            archive_uuid,
            base: None,
            coming: None,
            growing_lb: None,
            rebuilt: None,
        }
    }

    /// State of the base image; an unused one before the first full backup.
    pub(crate) fn base(&self) -> Result<BaseState, GidError> {
        let Some(kept) = self.base else {
            return Ok(BaseState::at(Snapshot::clean(Gid(0)), 0));
        };
        kept.state()
    }

    pub(crate) fn set_base(&mut self, base: &BaseState) {
        self.base = Some((*base).into());
    }
}

/// How far an unfinished full backup is durable here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    #[serde(with = "hex")]
    pub(crate) log_uuid: LogUuid,
    pub(crate) size_lb: u64,
    pub(crate) durable_bytes: u64,
    /// Of another archive's base image: which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replica: Option<Replica>,
}

/// The base image of another archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replica {
    #[serde(with = "hex")]
    pub(crate) archive_uuid: LogUuid,
    #[serde(with = "base")]
    pub(crate) base: BaseState,
}

/// A restore to a path that a person chose: should it be killed, its half-made file is found again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Elsewhere {
    pub(crate) half_made: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_is_readable() {
        let mut record = Record::new();
        let to = Snapshot::new(Gid(7), Gid(u64::MAX)).unwrap();
        let at = BaseState::applying(Snapshot::new(Gid(0), Gid(4)).unwrap(), to, 5).unwrap();
        record.set_base(&at);
        record.log_uuid = LogUuid([0xab; 16]);
        let coming = Coming { file: "x.wdiff".into(), log_uuid: LogUuid([1; 16]) };
        record.coming = Some(coming);
        (record.state, record.size_lb) = (Kept::Archived, 32_768);
        let dir = tempfile::tempdir().unwrap();
        let dir = std::sync::Arc::new(server_kit::durable::RealDir::open(dir.path()).unwrap());
        let file = server_kit::durable::StateFile::<Record>::new(dir, STATE_FILE);
        file.store(&record).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.contains("snapshot = \"0,4\"\n"), "{text}");
        assert!(text.contains(&format!("log_uuid = \"{}\"\n", "ab".repeat(16))), "{text}");
        let back = file.load().unwrap().unwrap();
        assert_eq!(back, record);
        assert_eq!(back.base().unwrap(), at);
    }
}
