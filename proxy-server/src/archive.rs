//! Archive-info: where the wdiffs of a volume go (semantics.md §4.8).
//!
//! Invariant: an [`Archive`] is usable: its name is a path component, its address and compression
//! parse. What comes from the network and what comes from disk goes through the same check.
use proto::v1::ArchiveInfo;
use serde::{Deserialize, Serialize};
use server_kit::error::RoleError;
use server_kit::net::Endpoint;
use server_kit::volume_name::ServerId;
use std::time::Duration;
use wdiff_format::compression::Compression;

/// How the names of records end.
pub(crate) const RECORD_SUFFIX: &str = ".archive";

/// One entry of a volume's list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Archive {
    pub(crate) name: ServerId,
    pub(crate) address: Endpoint,
    pub(crate) compression: Compression,
    pub(crate) send_delay: Duration,
}

/// The entry as it lies in `NAME.archive`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ArchiveRecord {
    name: String,
    address: String,
    compression: String,
    send_delay_ms: u64,
}

impl Archive {
    pub(crate) fn parse(info: &ArchiveInfo) -> Result<Self, RoleError> {
        let bad = |e: &dyn std::fmt::Display| RoleError::bad_request(format!("archive info: {e}"));
        let compression = match info.compression.as_str() {
            "" => Compression::default(),
            text => text.parse().map_err(|e| bad(&e))?,
        };
        Ok(Self {
            name: info.name.parse().map_err(|e| bad(&e))?,
            address: info.address.parse().map_err(|e| bad(&e))?,
            compression,
            send_delay: Duration::from_millis(info.send_delay_ms),
        })
    }

    pub(crate) fn info(&self) -> ArchiveInfo {
        ArchiveInfo {
            name: self.name.to_string(),
            address: self.address.to_string(),
            compression: self.compression.to_string(),
            send_delay_ms: u64::try_from(self.send_delay.as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(crate) fn record_name(name: &ServerId) -> String {
        format!("{name}{RECORD_SUFFIX}")
    }
}

impl From<&Archive> for ArchiveRecord {
    fn from(archive: &Archive) -> Self {
        let ArchiveInfo { name, address, compression, send_delay_ms } = archive.info();
        Self { name, address, compression, send_delay_ms }
    }
}

impl TryFrom<ArchiveRecord> for Archive {
    type Error = RoleError;
    fn try_from(record: ArchiveRecord) -> Result<Self, RoleError> {
        let ArchiveRecord { name, address, compression, send_delay_ms } = record;
        Self::parse(&ArchiveInfo { name, address, compression, send_delay_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, address: &str, compression: &str) -> ArchiveInfo {
        let (name, address, compression) = (name.into(), address.into(), compression.into());
        ArchiveInfo { name, address, compression, send_delay_ms: 7 }
    }

    #[test]
    fn an_entry_survives_wire_and_disk_and_nonsense_becomes_none() {
        let archive = Archive::parse(&info("a0", "unix:/x", "zstd:3")).unwrap();
        assert_eq!(Archive::parse(&archive.info()).unwrap(), archive);
        assert_eq!(Archive::try_from(ArchiveRecord::from(&archive)).unwrap(), archive);
        let default = Archive::parse(&info("a0", "unix:/x", "")).unwrap();
        assert_eq!(default.info().compression, "snappy");
        for bad in [info("../a", "unix:/x", ""), info("a0", "x", ""), info("a0", "h:1", "zip")] {
            assert!(Archive::parse(&bad).is_err(), "{bad:?}");
        }
    }
}
