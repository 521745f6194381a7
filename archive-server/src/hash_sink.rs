//! Where a hash sync goes: into a wdiff of the volume, or into the image itself (`semantics.md`
//! §5.12).
//!
//! Invariants: what arrives is checked as a whole before it counts; a wdiff that is not wanted in
//! the end leaves nothing behind; an image that is being resynced is no archive until all of it has
//! arrived and is flushed.

use crate::backend::Image;
use crate::faults;
use crate::image;
use crate::receive::{Origin, write_checked};
use crate::record;
use crate::volume::Volume;
use block_io::device::BlockDevice;
use parking_lot::Mutex;
use proto::v1::{HashSyncEnd, hash_sync_end};
use server_kit::blocking;
use server_kit::chunks::ChunkReceiver;
use server_kit::durable::TmpFile;
use server_kit::error::RoleError;
use server_kit::pace::Pace;
use server_kit::scan::{self, Bulks};
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use wdiff_format::gid::{BaseState, Diff, Gid, GidError, Snapshot};
use wdiff_format::open::WdiffReader;
use wlog_format::units::{Lb, LogUuid};

/// Where what differs goes.
pub(crate) enum Sink {
    /// A hash backup on top of this snapshot.
    Backup { from: Snapshot, started_s: u64 },
    /// A comparison diff from this snapshot.
    Comparison { from: Snapshot },
    /// The image of a resync.
    Image { device: Arc<dyn BlockDevice>, archive_uuid: LogUuid, size: Lb },
}

/// What has arrived as a whole, and does not count yet.
pub(crate) enum Kept {
    Wdiff { sink: Sink, tmp: TmpFile, bytes: u64 },
    Image { archive_uuid: LogUuid, size: Lb },
}

/// The cells of an image that is about to be made equal to another one, and the image as a sink.
pub(crate) async fn image(
    volume: &Arc<Volume>,
    spans: Vec<Range<u64>>,
    bytes_per_s: u64,
    archive_uuid: LogUuid,
    size: Lb,
) -> Result<(Bulks, Sink), RoleError> {
    let device = volume.open_image(Image::Base, size).await?;
    let cells = scan::cells(device.clone(), spans, bytes_per_s);
    Ok((cells, Sink::Image { device, archive_uuid, size }))
}

impl Sink {
    /// Takes what arrives, to its end.
    pub(crate) async fn keep(
        self,
        volume: Arc<Volume>,
        log_uuid: LogUuid,
        input: ChunkReceiver,
        token: CancellationToken,
    ) -> Result<Kept, RoleError> {
        let Self::Image { device, archive_uuid, size } = self else {
            return blocking::run_waiting(move || {
                let mut tmp = volume.dir.create_tmp()?;
                let origin = Origin {
                    sender: "the sender",
                    log_uuid,
                    name: "the wdiff of a hash sync",
                    size: u64::MAX,
                };
                let bytes = write_checked(&volume, &origin, input, &mut tmp)?;
                Ok::<_, RoleError>(Kept::Wdiff { sink: self, tmp, bytes })
            })
            .await;
        };
        let name = volume.name.clone();
        let input = Shared(Arc::new(Mutex::new(input)));
        let mut rest = input.clone();
        let open = move || {
            WdiffReader::from_stream(Box::new(input), "the wdiff of a resync")
                .map_err(|e| faults::wdiff(name.as_str(), e))
        };
        let wdiff = blocking::run_waiting(open).await?;
        // Its source sets the speed.
        let mut free = Pace::new(0);
        let name = volume.name.as_str();
        image::write_merged(device, name, vec![wdiff], &token, &mut free, |_| ()).await?;
        let end = move || match rest.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(RoleError::damaged("bytes follow the end pack of a resync's wdiff")),
            Err(e) => Err(RoleError::unreachable("the sender", e)),
        };
        blocking::run_waiting(end).await?;
        Ok(Kept::Image { archive_uuid, size })
    }
}

/// What arrives, for one who reads records, and then for one who looks for its end.
#[derive(Clone)]
struct Shared(Arc<Mutex<ChunkReceiver>>);

impl Read for Shared {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.lock().read(buf)
    }
}

impl Kept {
    /// Makes it count; the gid that the volume is at then.
    pub(crate) async fn commit(
        self,
        volume: &Arc<Volume>,
        log_uuid: LogUuid,
        end: HashSyncEnd,
    ) -> Result<Gid, RoleError> {
        let (here, result) = (volume.clone(), end.result);
        let bad = |why: &str| RoleError::bad_request(why).with_volume(&here.name);
        let result = result.ok_or_else(|| bad("the end of a hash sync says not what it was"))?;
        let volume = volume.clone();
        match (self, result) {
            (Self::Wdiff { sink, tmp, bytes }, result) => {
                let diff = sink.diff(&here, result, bytes)?;
                let gid = diff.end().begin();
                blocking::run(move || volume.commit_diff(tmp, diff, log_uuid)).await?;
                Ok(gid)
            }
            (Self::Image { archive_uuid, size }, hash_sync_end::Result::Base(base)) => {
                let base = BaseState::try_from(base).map_err(|e| bad(&e.to_string()))?;
                if base.applying_to().is_some() {
                    return Err(bad("the base image that was sent is being applied"));
                }
                let whole = record::Whole { size, log_uuid, archive_uuid, base };
                blocking::run(move || volume.become_archived(&whole)).await?;
                Ok(base.snapshot().begin())
            }
            (Self::Image { .. }, _) => Err(bad("a resync ends with the state of its image")),
        }
    }
}

impl Sink {
    /// The diff that has arrived.
    fn diff(
        &self,
        volume: &Volume,
        end: hash_sync_end::Result,
        bytes: u64,
    ) -> Result<Diff, RoleError> {
        let bad = |why: String| {
            let message = format!("cannot take this hash sync of volume {}: {why}", volume.name);
            RoleError::bad_request(message).with_volume(&volume.name)
        };
        let mut diff = match (self, end) {
            (Self::Backup { from, started_s }, hash_sync_end::Result::Backup(to)) => {
                let to = Snapshot::try_from(to).map_err(|e| bad(e.to_string()))?;
                let mut diff = Diff::new(*from, to).map_err(|e: GidError| bad(e.to_string()))?;
                if to.begin() <= from.end() {
                    return Err(bad(format!("{to} and {from} share gids")));
                }
                // A clean snapshot that was here stays restorable, one that is dirty is of no use.
                diff.mergeable = !from.is_clean();
                diff.timestamp = *started_s;
                diff
            }
            (Self::Comparison { from }, hash_sync_end::Result::Diff(meta)) => {
                let diff = Diff::try_from(meta).map_err(|e| bad(e.to_string()))?;
                if !diff.comparison || diff.begin() != *from {
                    return Err(bad(format!("{diff} was not made by comparing {from}")));
                }
                diff
            }
            _ => return Err(bad("it ends as something else than it began".into())),
        };
        diff.size = bytes;
        Ok(diff)
    }
}
