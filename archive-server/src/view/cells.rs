//! A view from front to back, in cells: what is compared with another image, or sent.
//!
//! The base image is read ahead, and several cells are patched at a time. Memory is bounded by the
//! number of cells under way.

use super::{Part, View};
use bytes::BytesMut;
use futures::stream::{StreamExt, TryStreamExt};
use server_kit::blocking;
use server_kit::error::RoleError;
use server_kit::scan::{self, Bulk, Bulks, Content};
use std::ops::Range;
use std::sync::Arc;
use wlog_format::units::to_usize;

impl View {
    /// The cells of `spans`, no faster than `bytes_per_s` (0: as fast as it goes).
    pub(crate) fn cells(self, spans: Vec<Range<u64>>, bytes_per_s: u64) -> Bulks {
        let cells = scan::cells(self.base.clone(), spans, bytes_per_s);
        let view = Arc::new(self);
        let patch = move |cell| {
            let view = view.clone();
            async move { view.over(cell).await }
        };
        Box::pin(cells.map_ok(patch).try_buffered(blocking::parallelism() + 1).boxed())
    }

    /// A cell of the base image with the wdiffs over it.
    async fn over(self: Arc<Self>, cell: Bulk) -> Result<Bulk, RoleError> {
        let parts = self.parts(cell.offset, cell.len()).await?;
        if parts.iter().all(|part| matches!(part, Part::Base { .. })) {
            return Ok(cell);
        }
        let mut data = BytesMut::with_capacity(to_usize(cell.len()));
        for part in parts {
            match (part, &cell.content) {
                (Part::Data(part), _) => data.extend_from_slice(&part),
                (Part::Zeros { len }, _) | (Part::Base { len, .. }, Content::Zeros(_)) => {
                    data.resize(data.len() + to_usize(len), 0);
                }
                (Part::Base { len, .. }, Content::Data(base)) => {
                    let base = base.slice(data.len()..data.len() + to_usize(len));
                    data.extend_from_slice(&base);
                }
            }
        }
        let content = if data.iter().all(|b| *b == 0) {
            Content::Zeros(data.len() as u64)
        } else {
            Content::Data(data.freeze())
        };
        Ok(Bulk { offset: cell.offset, content })
    }
}
