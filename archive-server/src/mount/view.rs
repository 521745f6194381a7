//! The image of a snapshot, read anywhere: the base image under the records of the wdiffs.
//!
//! Invariants: what is read was checked (I8); files are opened through the lease, a bounded number
//! at a time; what was uncompressed is kept for the next reader, within [`CACHE_BYTES`].

use crate::archive::Archive;
use crate::backend::Image;
use crate::faults;
use crate::leases::Lease;
use crate::restore::Selected;
use crate::volume::Volume;
use block_io::device::{BlockDevice, Extent};
use bytes::Bytes;
use parking_lot::Mutex;
use server_kit::blocking;
use server_kit::durable::DurableDir;
use server_kit::error::RoleError;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::error::{InputError, Place, Problem, WdiffError};
use wdiff_format::io_at::ReadObject;
use wdiff_format::layers::{Layers, LayersError, Piece};
use wdiff_format::locate::locate;
use wdiff_format::record::RecordKind;
use wlog_format::units::{Lb, to_usize};

/// Uncompressed data that is kept for the next reader.
pub(super) const CACHE_BYTES: usize = 32 << 20;

/// What a part of the image is made of; offset and length in bytes.
pub(super) enum Part {
    Base { offset: u64, len: u64 },
    Zeros { len: u64 },
    Data { piece: Piece },
}

/// A snapshot.
pub(super) struct View {
    volume: String,
    size_bytes: u64,
    base: Arc<dyn BlockDevice>,
    layers: Layers,
    files: Wdiffs,
    cache: Mutex<Cache<(u32, u64), Bytes>>,
    codecs: Mutex<Vec<Codec>>,
}

impl View {
    /// Opens the snapshot and reads the index of its wdiffs; with their number.
    pub(super) async fn open(
        archive: &Arc<Archive>,
        volume: &Arc<Volume>,
        (base, size): (Image, Lb),
        selected: Selected,
    ) -> Result<(Self, u64), RoleError> {
        let name = volume.name.to_string();
        let base = volume.open_image(base, size).await?;
        // Of the image that is read: the volume may grow meanwhile.
        let size = Lb::from_bytes(base.size_bytes());
        let count = selected.diffs.len();
        let (max_open, max) = (archive.settings.max_open, archive.settings.mount_records_max);
        let files = Wdiffs {
            dir: volume.dir.clone(),
            lease: selected.lease,
            open: Mutex::new(Cache::new(max_open)),
        };
        let volume = name.clone();
        let index = move || -> Result<_, RoleError> {
            let number = u32::try_from(count).unwrap_or(u32::MAX);
            let layers = Layers::build(number, blocking::parallelism(), max, |file| {
                let (input, name) = files.get(file)?;
                locate(input, name)
            });
            let layers = layers.map_err(|e| no_index(&volume, e))?;
            let end = layers.within(Lb(0), Lb(u64::MAX)).last().map_or(Lb(0), |p| p.end());
            if end > size {
                let (address, image_blocks) = (size.0, size.0);
                let beyond = WdiffError::BeyondEnd { address, end: end.0, image_blocks };
                return Err(faults::wdiff(&volume, beyond));
            }
            Ok((layers, files))
        };
        let (layers, files) = blocking::run(index).await?;
        let (cache, codecs) = (Mutex::new(Cache::new(CACHE_BYTES)), Mutex::default());
        let size_bytes = size.bytes();
        let view = Self { volume: name, size_bytes, base, layers, files, cache, codecs };
        Ok((view, count as u64))
    }

    pub(super) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Records in the index.
    pub(super) fn records(&self) -> usize {
        self.layers.len()
    }

    /// What a range is made of, in order.
    pub(super) fn parts(&self, offset: u64, len: u64) -> Vec<Part> {
        let end = offset + len;
        let mut parts = Vec::new();
        let mut at = offset;
        for piece in self.layers.within(Lb::from_bytes(offset), Lb::from_bytes(end)) {
            let start = piece.start.bytes();
            if at < start {
                parts.push(Part::Base { offset: at, len: start - at });
            }
            at = piece.end().bytes();
            parts.push(match piece.record.kind {
                RecordKind::Normal => Part::Data { piece },
                RecordKind::AllZero | RecordKind::Discard => Part::Zeros { len: at - start },
            });
        }
        if at < end {
            parts.push(Part::Base { offset: at, len: end - at });
        }
        parts
    }

    /// A part of the base image.
    pub(super) async fn base(&self, offset: u64, len: u64) -> std::io::Result<Bytes> {
        self.base.read(offset, to_usize(len)).await
    }

    /// What of a part of the base image is a hole; may end before the part does.
    pub(super) async fn base_extents(&self, offset: u64, len: u64) -> std::io::Result<Vec<Extent>> {
        self.base.extents(offset, len).await
    }

    /// The data of a piece.
    pub(super) async fn data(self: &Arc<Self>, piece: Piece) -> Result<Bytes, RoleError> {
        let key = (piece.file, piece.record.offset);
        let kept = self.cache.lock().get(&key);
        let data = match kept {
            Some(data) => data,
            None => {
                let view = self.clone();
                blocking::run(move || view.read_record(piece)).await?
            }
        };
        let from = to_usize((piece.start.0 - piece.record.address.0) * 512);
        let len = to_usize(Lb(piece.blocks.into()).bytes());
        Ok(data.slice(from..from + len))
    }

    /// The record that a piece is of. Blocks.
    fn read_record(&self, piece: Piece) -> Result<Bytes, RoleError> {
        let codec = self.codecs.lock().pop();
        let mut codec = codec.unwrap_or_else(|| Codec::new(Compression::default()));
        let (input, name) = self.files.get(piece.file).map_err(|e| self.failed(e))?;
        let data = piece.record.read(&input, &name, &mut codec).map_err(|e| self.failed(e))?;
        self.codecs.lock().push(codec);
        let key = (piece.file, piece.record.offset);
        self.cache.lock().insert(key, data.clone(), data.len());
        Ok(data)
    }

    fn failed(&self, error: WdiffError) -> RoleError {
        faults::wdiff(&self.volume, error)
    }
}

fn no_index(volume: &str, error: LayersError) -> RoleError {
    match error {
        LayersError::Wdiff(error) => faults::wdiff(volume, error),
        other => RoleError::bad_request(format!("cannot mount a snapshot of volume {volume}"))
            .with_volume(volume)
            .with_source(other)
            .with_next_step("merge or apply first, or restore the snapshot"),
    }
}

/// The wdiffs of a mount, opened when they are needed.
struct Wdiffs {
    dir: Arc<dyn DurableDir>,
    lease: Lease,
    open: Mutex<Cache<u32, (ReadObject, Arc<str>)>>,
}

impl Wdiffs {
    /// A file, and the name that errors use. Blocks.
    fn get(&self, file: u32) -> Result<(ReadObject, Arc<str>), WdiffError> {
        if let Some(found) = self.open.lock().get(&file) {
            return Ok(found);
        }
        let number = to_usize(file.into());
        let which = number..number + 1;
        let opened = self.lease.open(which, |names| {
            let name = names.first().map_or("", String::as_str);
            (path(&*self.dir, name), self.dir.open_file(name))
        });
        let (name, opened) = opened;
        let input = opened.map_err(|e| {
            let place = Place { file: name.clone(), offset: 0 };
            InputError { place, problem: Problem::Open(e) }
        })?;
        let found = (input, name);
        self.open.lock().insert(file, found.clone(), 1);
        Ok(found)
    }
}

fn path(dir: &dyn DurableDir, name: &str) -> Arc<str> {
    let path: &Path = dir.path();
    path.join(name).display().to_string().into()
}

/// What was used lately, within a weight; the oldest goes first.
struct Cache<K, V> {
    found: HashMap<K, (V, usize)>,
    order: VecDeque<K>,
    weight: usize,
    max: usize,
}

impl<K: Copy + Eq + std::hash::Hash, V: Clone> Cache<K, V> {
    fn new(max: usize) -> Self {
        Self { found: HashMap::new(), order: VecDeque::new(), weight: 0, max }
    }

    fn get(&self, key: &K) -> Option<V> {
        self.found.get(key).map(|(value, _)| value.clone())
    }

    fn insert(&mut self, key: K, value: V, weight: usize) {
        if weight > self.max || self.found.insert(key, (value, weight)).is_some() {
            return;
        }
        self.order.push_back(key);
        self.weight += weight;
        while self.weight > self.max {
            let Some(oldest) = self.order.pop_front() else { return };
            self.weight -= self.found.remove(&oldest).map_or(0, |(_, weight)| weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_keeps_the_newest_within_its_weight() {
        let mut cache = Cache::new(10);
        for key in 0..5 {
            cache.insert(key, key * 10, 3);
        }
        assert_eq!((0..5).filter_map(|k| cache.get(&k)).collect::<Vec<_>>(), [20, 30, 40]);
        cache.insert(9, 90, 11);
        cache.insert(4, 40, 3);
        assert_eq!((cache.get(&9), cache.weight, cache.order.len()), (None, 9, 3));
    }
}
