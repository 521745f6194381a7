//! What an archive that has something gives to one that lacks it: hashes of a snapshot's parts, and
//! the wdiffs that lead over a diff, as one.
//!
//! Invariant: what is given is right for whoever is where the wanted diff begins. A chain that
//! begins earlier or ends later is right too, since it holds the newest of every block that the
//! wanted one holds; one with a comparison in it is right there alone, and says so by its flag.

use crate::archive::Archive;
use crate::faults;
use crate::image;
use crate::leases::Lease;
use crate::mount::inside::Inside;
use crate::replicate::Output;
use crate::volume::{Catalogue, Volume};
use futures::{Stream, StreamExt, stream};
use proto::v1::wdiff_transfer_request::Step;
use proto::v1::{
    HashRangesRequest, RangeHashes, ReadWdiffRequest, WdiffSender, WdiffStart, WdiffTransferRequest,
};
use server_kit::blocking;
use server_kit::chunks::IN_FLIGHT;
use server_kit::error::{Reason, RoleError};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use wdiff_format::compression::{Compression, CompressionKind};
use wdiff_format::gid::{Diff, Gid, walk};
use wdiff_format::header::FileType;
use wdiff_format::open::WdiffReader;
use wdiff_format::split::MaxIo;
use wdiff_format::write::WriteOptions;
use wlog_format::units::{LogUuid, to_usize};

/// Ranges that are hashed for one question, and the longest of them.
pub(super) const RANGES_MAX: usize = 64;
pub(super) const RANGE_BYTES_MAX: u64 = 1 << 20;

/// The hashes of parts of a clean snapshot.
pub(crate) async fn hash_ranges(
    archive: &Arc<Archive>,
    request: HashRangesRequest,
) -> Result<RangeHashes, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active("read")?;
    let fits = |len: u64| len <= RANGE_BYTES_MAX;
    let sound = request.ranges.iter().all(|r| r.end.checked_sub(r.begin).is_some_and(fits));
    if !sound || request.ranges.len() > RANGES_MAX {
        let why = "these ranges are too many, too long, or none";
        return Err(RoleError::bad_request(why).with_volume(&volume.name));
    }
    let ranges: Vec<(u64, u64)> = request.ranges.iter().map(|r| (r.begin, r.end)).collect();
    let hashes = hashes_of(archive, &volume, Gid(request.gid), &ranges).await?;
    Ok(RangeHashes { hashes: hashes.into_iter().map(|h| h.to_vec().into()).collect() })
}

/// The hash of each range of a snapshot; zeroes lie behind its end.
pub(super) async fn hashes_of(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    gid: Gid,
    ranges: &[(u64, u64)],
) -> Result<Vec<[u8; 32]>, RoleError> {
    let inside = Inside::open(archive, volume, gid).await?;
    let mut hashes = Ok(Vec::with_capacity(ranges.len()));
    for (begin, end) in ranges {
        let read = inside.read(*begin, to_usize(end.saturating_sub(*begin))).await;
        hashes = match (hashes, read) {
            (Ok(mut hashes), Ok(data)) => {
                hashes.push(*blake3::hash(&data).as_bytes());
                Ok(hashes)
            }
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
    }
    inside.end().await;
    hashes
}

/// Wdiffs that lead over a wanted one.
struct Cover {
    diff: Diff,
    lease: Lease,
    size_lb: u64,
    log_uuid: LogUuid,
}

/// The wdiff that was asked for, or what leads over it, as the messages of a transfer.
pub(crate) async fn read_wdiff(
    archive: &Arc<Archive>,
    request: ReadWdiffRequest,
) -> Result<impl Stream<Item = Result<WdiffTransferRequest, Status>> + Send + use<>, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active("read")?;
    let name = volume.name.as_str();
    let bad = |why: String| RoleError::bad_request(why).with_volume(name);
    let wanted = request.diff.ok_or_else(|| bad("read which wdiff".into()))?;
    let wanted = Diff::try_from(wanted).map_err(|e| bad(e.to_string()))?;
    let Cover { diff, lease, size_lb, log_uuid } = cover(&volume, &wanted)?;
    let (opened, here) = (lease.clone(), volume.clone());
    let wdiffs = blocking::run(move || {
        let count = opened.len();
        opened.open(0..count, |n| image::open_wdiffs(here.name.as_str(), &*here.dir, n))
    })
    .await?;
    // Made of several logs, or by a file tool: then the log of the volume.
    let last = wdiffs.last().map_or(LogUuid::ZERO, |w: &WdiffReader| w.header().uuid);
    let log_uuid = if last == LogUuid::ZERO { log_uuid } else { last };
    let start = WdiffStart {
        volume: name.to_owned(),
        sender_id: archive.id.to_string(),
        sender: WdiffSender::Archive.into(),
        log_uuid: proto::convert::uuid_bytes(log_uuid),
        size_lb,
        diff: Some(diff.into()),
    };
    let (messages, receiver) = mpsc::channel(IN_FLIGHT);
    let output = Output {
        dir: volume.dir.clone(),
        volume: name.to_owned(),
        messages,
        options: WriteOptions {
            file_type: FileType::Sorted,
            uuid: log_uuid,
            compression: Compression::with_level(CompressionKind::Zstd, 1).unwrap_or_default(),
            max_io: MaxIo::default(),
            threads: blocking::parallelism(),
        },
    };
    let writing = tokio::spawn(blocking::run_waiting(move || {
        let _read = lease;
        output.merge(wdiffs)
    }));
    let first = WdiffTransferRequest { step: Some(Step::Start(start)) };
    // What went wrong is told behind what was sent.
    let end = stream::once(async move {
        let written = writing.await.map_err(|e| RoleError::new(Reason::Io, e.to_string()));
        written.and_then(|w| w).err().map(|e| Err(Status::from(e)))
    });
    let sent = ReceiverStream::new(receiver).map(Ok);
    Ok(stream::once(async { Ok(first) }).chain(sent).chain(end.filter_map(|e| async { e })))
}

/// The same diff, or the shortest walk that leads over it.
fn cover(volume: &Volume, wanted: &Diff) -> Result<Cover, RoleError> {
    let name = volume.name.as_str();
    volume.with(|c| {
        let list = chain_over(c, wanted).ok_or_else(|| {
            let message = format!("volume {name}: no wdiffs here lead over {wanted}");
            RoleError::unknown_snapshot(name, message)
        })?;
        let reached = walk(wanted.begin(), &list);
        let mut diff = reached
            .and_then(|reached| Diff::new(wanted.begin(), reached))
            .map_err(|e| faults::snapshot(name, &e.into()))?;
        diff.comparison = list.iter().any(|d| d.comparison);
        diff.mergeable = list.first().is_some_and(|d| d.mergeable);
        diff.timestamp = list.last().map_or(0, |d| d.timestamp);
        let lease = volume.leases.take(list);
        Ok(Cover { diff, lease, size_lb: c.record.size_lb, log_uuid: c.record.log_uuid })
    })
}

fn chain_over(c: &Catalogue, wanted: &Diff) -> Option<Vec<Diff>> {
    if let Some(same) = c.diffs.get(wanted) {
        return Some(vec![*same]);
    }
    let (mut list, end) = (Vec::new(), wanted.end().begin());
    for (diff, reached) in c.diffs.chain(wanted.begin()) {
        // What is not clean is only ever given as it is.
        if !wanted.is_clean() || !reached.is_clean() {
            return None;
        }
        list.push(diff);
        if reached.begin() >= end {
            return Some(list);
        }
    }
    None
}
