//! A snapshot as a stream, for those who write it to a device elsewhere.

use crate::archive::Archive;
use crate::faults;
use crate::jobs::{READ, RESYNC};
use crate::view::{self, View};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use proto::v1::{ReadSnapshotRequest, SnapshotBulk};
use server_kit::error::RoleError;
use server_kit::packing::{self, Way};
use server_kit::scan::{self, Bulk, Bulks, Content};
use std::sync::Arc;
use tonic::Status;
use wdiff_format::gid::Gid;

/// Pieces that are compressed at a time.
const PACKING: usize = 4;
/// The longest run of zeroes in one message, so that the reader hears from us.
const ZEROS_MAX: u64 = 1 << 30;

/// The content of a clean snapshot, front to back. Its wdiffs stay until the stream is dropped.
pub(crate) async fn read(
    archive: &Arc<Archive>,
    request: ReadSnapshotRequest,
) -> Result<impl Stream<Item = Result<SnapshotBulk, Status>> + Send + use<>, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active("read")?;
    let name = volume.name.clone();
    let excluded = [view::EXCLUDED.as_slice(), &[RESYNC]].concat();
    let job = volume.jobs.begin(name.as_str(), READ, &excluded)?;
    let gid = Gid(request.gid);
    // A mixture of times is not for anybody.
    volume
        .with(|c| c.diffs.restore_summary(&c.base, gid, 0))
        .map_err(|e| faults::snapshot(name.as_str(), &e))?;
    let size_bytes = volume.size().bytes();
    let view = View::of_snapshot(archive, &volume, gid).await?;
    let cells = view.cells(scan::whole(size_bytes), request.scan_bytes_per_s);
    let token = job.token.clone();
    let messages = joined(cells)
        .map_ok(move |bulk| message(bulk, size_bytes))
        .try_buffered(PACKING)
        .map_err(move |e: RoleError| Status::from(e.with_volume(&name)))
        .take_until(token.cancelled_owned());
    // The job is listed for as long as somebody reads; behind the end it ends.
    let ended = stream::once(async move {
        let error = job.check().err();
        drop(job);
        error.map(|e| Err(Status::from(e)))
    });
    Ok(messages.chain(ended.filter_map(|last| async { last })))
}

async fn message(bulk: Bulk, size_bytes: u64) -> Result<SnapshotBulk, RoleError> {
    let offset_bytes = bulk.offset;
    let (chunk, zeros_bytes) = match bulk.content {
        Content::Zeros(len) => (None, len),
        Content::Data(data) => (Some(packing::pack(data, Way::Compressed).chunk().await?), 0),
    };
    Ok(SnapshotBulk { offset_bytes, chunk, zeros_bytes, size_bytes })
}

/// The same bulks, with neighbouring zeroes in one.
fn joined(cells: Bulks) -> Bulks {
    Box::pin(stream::try_unfold((cells, None::<Bulk>), |(mut cells, held)| async move {
        let Some(mut bulk) = (match held {
            Some(held) => Some(held),
            None => cells.try_next().await?,
        }) else {
            return Ok(None);
        };
        loop {
            let Content::Zeros(len) = &mut bulk.content else {
                return Ok(Some((bulk, (cells, None))));
            };
            let end = bulk.offset + *len;
            match cells.try_next().await? {
                Some(Bulk { offset, content: Content::Zeros(more) })
                    if offset == end && *len < ZEROS_MAX =>
                {
                    *len += more;
                }
                other => return Ok(Some((bulk, (cells, other)))),
            }
        }
    }))
}
