//! What the clients of a writable mount wrote: a sparse file of its own, and which parts of it
//! count.
//!
//! Invariants: what was written is found here by every later read; I10: writing is refused before
//! it takes the space that incoming wdiffs need. Nothing outlives the mount.

use crate::archive::Archive;
use crate::image;
use crate::volume::Volume;
use block_io::device::BlockDevice;
use block_io::nbd::ExportError;
use bytes::Bytes;
use parking_lot::Mutex;
use server_kit::blocking;
use server_kit::durable::DurableDir;
use server_kit::error::RoleError;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Disjoint ranges that do not touch: start and end.
#[derive(Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn insert(&mut self, mut start: u64, mut end: u64) {
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    /// The range in parts: start, end, and whether the part is in here.
    fn split(&self, start: u64, end: u64) -> Vec<(u64, u64, bool)> {
        let mut parts = Vec::new();
        let mut at = start;
        let first = self.0.range(..=start).next_back().map_or(start, |(&from, _)| from);
        for (&from, &to) in self.0.range(first..end) {
            let (from, to) = (from.max(at), to.min(end));
            if to <= at {
                continue;
            }
            if at < from {
                parts.push((at, from, false));
            }
            parts.push((from, to, true));
            at = to;
        }
        if at < end {
            parts.push((at, end, false));
        }
        parts
    }
}

/// The private layer of a mount.
pub(super) struct Cow {
    dir: Arc<dyn DurableDir>,
    side: Arc<dyn BlockDevice>,
    written: Mutex<Ranges>,
    reserve_bytes: u64,
}

impl Cow {
    /// An empty layer in a new file of the volume's directory.
    pub(super) async fn create(
        archive: &Arc<Archive>,
        volume: &Arc<Volume>,
        file: &str,
    ) -> Result<Self, RoleError> {
        let (dir, name, size) = (volume.dir.clone(), file.to_owned(), volume.size().bytes());
        let path = dir.path().join(file);
        let failed = {
            let path = path.clone();
            move |e| RoleError::io("create", &path, e)
        };
        blocking::run(move || dir.set_len(&name, size).map_err(failed)).await?;
        let side = image::open(&archive.world.images, volume.name.as_str(), path).await?;
        let (dir, reserve_bytes) = (volume.dir.clone(), archive.settings.reserve_bytes);
        Ok(Self { dir, side, written: Mutex::default(), reserve_bytes })
    }

    /// The range in parts: start, end, and whether the part was written.
    pub(super) fn split(&self, offset: u64, len: u64) -> Vec<(u64, u64, bool)> {
        self.written.lock().split(offset, offset + len)
    }

    pub(super) fn side(&self) -> &Arc<dyn BlockDevice> {
        &self.side
    }

    pub(super) async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        let len = data.len() as u64;
        if self.split(offset, len).iter().any(|(_, _, written)| !written) {
            self.check_space(len).await?;
        }
        self.side.write(offset, vec![data]).await?;
        self.written.lock().insert(offset, offset + len);
        Ok(())
    }

    /// Puts data into the file that does not count before [`Self::note`]; zeroes are there already.
    pub(super) async fn store(&self, offset: u64, data: Bytes) -> io::Result<()> {
        if data.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        self.check_space(data.len() as u64).await.map_err(|error| match error {
            ExportError::Io(error) => error,
            other => io::Error::new(io::ErrorKind::StorageFull, other.to_string()),
        })?;
        self.side.write(offset, vec![data]).await
    }

    /// The range counts as written.
    pub(super) fn note(&self, start: u64, end: u64) {
        self.written.lock().insert(start, end);
    }

    /// Makes a range read as zeros.
    pub(super) async fn zero(&self, offset: u64, len: u64) -> Result<(), ExportError> {
        self.side.write_hole(offset, len).await?;
        self.written.lock().insert(offset, offset + len);
        Ok(())
    }

    async fn check_space(&self, len: u64) -> Result<(), ExportError> {
        let dir = self.dir.clone();
        let free = blocking::run(move || dir.free_bytes()).await;
        let free = free.map_err(|e| std::io::Error::other(e.full_message()))?;
        if free >= self.reserve_bytes.saturating_add(len) {
            return Ok(());
        }
        let dir = self.dir.path().display();
        Err(ExportError::NoSpace(format!("{dir} has {free} bytes free, wdiffs need the rest")))
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_what_was_inserted(
            inserted in prop::collection::vec((0_u64..60, 1_u64..20), 0..20),
            (from, len) in (0_u64..60, 1_u64..30),
        ) {
            let (mut ranges, mut model) = (Ranges::default(), vec![false; 100]);
            for (start, len) in inserted {
                ranges.insert(start, start + len);
                model[start as usize..(start + len) as usize].fill(true);
            }
            let mut at = from;
            for (start, end, written) in ranges.split(from, from + len) {
                prop_assert!(start == at && start < end);
                at = end;
                prop_assert!(model[start as usize..end as usize].iter().all(|m| *m == written));
            }
            prop_assert_eq!(at, from + len);
            let mut last = None;
            for (start, end) in &ranges.0 {
                prop_assert!(start < end && last.is_none_or(|last| last < *start));
                last = Some(*end);
            }
        }
    }
}
