//! What an archive shall do with a volume by itself, as it is kept in the volume's directory: a
//! small file of its own, since it is not part of what the archive holds.
//!
//! Invariant: numbers stay below 2^63, as TOML has them.

use proto::v1;
use serde::{Deserialize, Serialize};
use server_kit::error::RoleError;
use server_kit::net::Endpoint;
use std::collections::BTreeMap;
use wdiff_format::compression::Compression;
use wdiff_format::retention::Policy;

/// Name of the file.
pub(crate) const UPKEEP_FILE: &str = "upkeep";

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    /// How old the newest restorable point may be, in seconds; 0: as old as it likes.
    pub(crate) age_limit_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retention: Option<Retention>,
    pub(crate) runs: Runs,
    /// By the name of the other archive.
    pub(crate) replications: BTreeMap<String, Replication>,
}

/// How the history is thinned out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retention {
    #[serde(with = "text")]
    pub(crate) policy: Policy,
    pub(crate) bytes_per_s: u64,
    pub(crate) apply_every_s: u64,
    pub(crate) merge_every_s: u64,
    pub(crate) merge_max_bytes: u64,
}

/// When the history was thinned out, and how that went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Runs {
    pub(crate) applied_s: u64,
    pub(crate) merged_s: u64,
    pub(crate) last: Run,
}

/// One run of a task. Times in Unix seconds, 0: never.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Run {
    pub(crate) started_s: u64,
    pub(crate) ended_s: u64,
    pub(crate) done: String,
    pub(crate) error: String,
    pub(crate) next_step: String,
    pub(crate) failures: u64,
}

/// A replication schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replication {
    pub(crate) address: String,
    pub(crate) every_s: u64,
    pub(crate) max_send_bytes: u64,
    pub(crate) compression: String,
    pub(crate) max_merge_bytes: u64,
    pub(crate) dont_merge: bool,
    pub(crate) scan_bytes_per_s: u64,
    pub(crate) paused: bool,
    /// Where the other archive was when it was asked last; 0: not known.
    #[serde(default)]
    pub(crate) gid: u64,
    #[serde(default)]
    pub(crate) last: Run,
}

/// A policy as people write it.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use wdiff_format::retention::Policy;

    pub(super) fn serialize<S: Serializer>(policy: &Policy, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(policy)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<Policy, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

fn bounded(what: &str, numbers: &[u64]) -> Result<(), RoleError> {
    if numbers.iter().all(|n| i64::try_from(*n).is_ok()) {
        return Ok(());
    }
    Err(RoleError::bad_request(format!("a number of the {what} is too large")))
}

/// A policy that somebody sent.
pub(crate) fn policy(text: &str) -> Result<Policy, RoleError> {
    text.parse().map_err(|e: wdiff_format::retention::BadPolicy| {
        RoleError::bad_request(format!("retention: {e}"))
    })
}

impl Retention {
    /// A policy without limits.
    pub(crate) const fn of(policy: Policy) -> Self {
        Self { policy, bytes_per_s: 0, apply_every_s: 0, merge_every_s: 0, merge_max_bytes: 0 }
    }

    pub(crate) fn from_message(m: &v1::Retention) -> Result<Self, RoleError> {
        let &v1::Retention { bytes_per_s, apply_every_s, merge_every_s, merge_max_bytes, .. } = m;
        bounded("policy", &[bytes_per_s, apply_every_s, merge_every_s, merge_max_bytes])?;
        let policy = policy(&m.policy)?;
        Ok(Self { policy, bytes_per_s, apply_every_s, merge_every_s, merge_max_bytes })
    }

    fn message(&self) -> v1::Retention {
        v1::Retention {
            policy: self.policy.to_string(),
            bytes_per_s: self.bytes_per_s,
            apply_every_s: self.apply_every_s,
            merge_every_s: self.merge_every_s,
            merge_max_bytes: self.merge_max_bytes,
        }
    }
}

impl Run {
    /// A run has ended; whether that is worth to be kept.
    pub(crate) fn end(
        &mut self,
        (started_s, ended_s): (u64, u64),
        result: Result<&str, &RoleError>,
    ) {
        (self.started_s, self.ended_s) = (started_s, ended_s);
        match result {
            Ok(done) => {
                let done = done.to_owned();
                *self = Self { started_s, ended_s, done, ..Self::default() };
            }
            Err(error) => {
                self.error = error.full_message();
                self.next_step = error.detail().next_step.clone();
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    fn message(&self, next_s: u64, waits_for: &str) -> v1::TaskStatus {
        v1::TaskStatus {
            started_s: self.started_s,
            ended_s: self.ended_s,
            next_s,
            done: self.done.clone(),
            error: self.error.clone(),
            failures: self.failures,
            next_step: self.next_step.clone(),
            waits_for: waits_for.to_owned(),
        }
    }
}

impl Replication {
    /// The other archive's name, and the schedule.
    pub(crate) fn from_message(m: v1::ReplicationSchedule) -> Result<(String, Self), RoleError> {
        let numbers = [m.every_s, m.max_send_bytes, m.max_merge_bytes, m.scan_bytes_per_s];
        bounded("schedule", &numbers)?;
        let bad = |why: String| RoleError::bad_request(why);
        let to = m.to.ok_or_else(|| bad("replicate to whom: an archive is needed".into()))?;
        let id: server_kit::volume_name::ServerId =
            to.id.parse().map_err(|e| bad(format!("{:?}: {e}", to.id)))?;
        to.address.parse::<Endpoint>().map_err(|e| bad(format!("{id}: {e}")))?;
        if !m.compression.is_empty() {
            m.compression.parse::<Compression>().map_err(|e| bad(format!("compression: {e}")))?;
        }
        if m.every_s == 0 {
            return Err(bad("replicate how often: an interval is needed".into()));
        }
        let schedule = Self {
            address: to.address,
            every_s: m.every_s,
            max_send_bytes: m.max_send_bytes,
            compression: m.compression,
            max_merge_bytes: m.max_merge_bytes,
            dont_merge: m.dont_merge,
            scan_bytes_per_s: m.scan_bytes_per_s,
            paused: m.paused,
            gid: 0,
            last: Run::default(),
        };
        Ok((id.to_string(), schedule))
    }

    pub(crate) fn peer(&self, id: &str) -> v1::Peer {
        v1::Peer { id: id.to_owned(), address: self.address.clone() }
    }

    fn message(&self, id: &str, next_s: u64, waits_for: &str) -> v1::ScheduledReplication {
        let schedule = v1::ReplicationSchedule {
            to: Some(self.peer(id)),
            every_s: self.every_s,
            max_send_bytes: self.max_send_bytes,
            compression: self.compression.clone(),
            max_merge_bytes: self.max_merge_bytes,
            dont_merge: self.dont_merge,
            scan_bytes_per_s: self.scan_bytes_per_s,
            paused: self.paused,
        };
        let next_s = if self.paused { 0 } else { next_s };
        let status = Some(self.last.message(next_s, waits_for));
        v1::ScheduledReplication { schedule: Some(schedule), status, gid: self.gid }
    }
}

impl Kept {
    /// All of it; `next` says of a task when it runs next and what it waits for.
    pub(crate) fn message(
        &self,
        volume: &str,
        mut next: impl FnMut(Option<&str>) -> (u64, String),
    ) -> v1::Upkeep {
        let thinning = self.retention.as_ref().map(|_| {
            let (next_s, waits_for) = next(None);
            self.runs.last.message(next_s, &waits_for)
        });
        let replications = self.replications.iter().map(|(id, schedule)| {
            let (next_s, waits_for) = next(Some(id));
            schedule.message(id, next_s, &waits_for)
        });
        v1::Upkeep {
            volume: volume.to_owned(),
            retention: self.retention.as_ref().map(Retention::message),
            thinning,
            replications: replications.collect(),
            age_limit_s: self.age_limit_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server_kit::durable::{RealDir, StateFile};
    use std::sync::Arc;

    #[test]
    fn what_is_kept_comes_back_and_is_readable() {
        let mut kept = Kept { age_limit_s: 60, ..Kept::default() };
        kept.retention = Some(Retention {
            merge_max_bytes: i64::MAX.cast_unsigned(),
            ..Retention::of("all 1h, every 1m 1d".parse().unwrap())
        });
        let schedule = v1::ReplicationSchedule {
            to: Some(v1::Peer { id: "a1".into(), address: "127.0.0.1:1".into() }),
            every_s: 3600,
            compression: "zstd:3".into(),
            ..Default::default()
        };
        let (id, replication) = Replication::from_message(schedule.clone()).unwrap();
        kept.replications.insert(id, replication);
        let error = RoleError::no_space("full").with_next_step("free space");
        kept.runs.last.end((1, 2), Ok("made 3 wdiffs of 9"));
        kept.runs.last.end((3, 4), Err(&error));
        let dir = tempfile::tempdir().unwrap();
        let dir = Arc::new(RealDir::open(dir.path()).unwrap());
        let file = StateFile::<Kept>::new(dir, UPKEEP_FILE);
        file.store(&kept).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.contains("policy = \"keep all 1h, every 1m 1d\"\n"), "{text}");
        assert_eq!(file.load().unwrap().unwrap(), kept);
        let shown = kept.message("v", |_| (9, String::new()));
        assert_eq!(shown.replications[0].schedule, Some(schedule));
        let thinning = shown.thinning.unwrap();
        assert_eq!((thinning.started_s, thinning.next_s, thinning.failures), (3, 9, 1));
        assert_eq!(thinning.done, "made 3 wdiffs of 9", "what the last good run did stays");
        assert_eq!(thinning.next_step, "free space");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let peer =
            |id: &str, address: &str| Some(v1::Peer { id: id.into(), address: address.into() });
        let good = v1::ReplicationSchedule {
            to: peer("a1", "127.0.0.1:1"),
            every_s: 1,
            ..Default::default()
        };
        assert!(Replication::from_message(good.clone()).is_ok());
        for bad in [
            v1::ReplicationSchedule { to: None, ..good.clone() },
            v1::ReplicationSchedule { to: peer("../a", "127.0.0.1:1"), ..good.clone() },
            v1::ReplicationSchedule { to: peer("a1", "nowhere"), ..good.clone() },
            v1::ReplicationSchedule { compression: "rar".into(), ..good.clone() },
            v1::ReplicationSchedule { every_s: 0, ..good.clone() },
            v1::ReplicationSchedule { max_send_bytes: u64::MAX, ..good.clone() },
        ] {
            assert!(Replication::from_message(bad.clone()).is_err(), "{bad:?}");
        }
        for (policy, bytes_per_s) in [("some 1h", 0), ("all 1h", u64::MAX)] {
            let message =
                v1::Retention { policy: policy.into(), bytes_per_s, ..Default::default() };
            assert!(Retention::from_message(&message).is_err(), "{policy}");
        }
    }
}
