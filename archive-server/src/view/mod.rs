//! The image of a snapshot, read anywhere without making it: the base image, and over it what the
//! diffs up to the snapshot say (`semantics.md` §5.16), found through the volume's index.
//!
//! Invariants: what is read was checked (I8); the wdiffs are leased for as long as a view lives
//! (I12), and opened through the lease when they are needed; a record that the index misplaces is
//! found again in its wdiff. Memory: what [`Reading`] keeps for all views together, and for each
//! diff of a view its place in the catalogue and in the index, about 150 bytes.

mod cells;

use crate::archive::Archive;
use crate::backend::Image;
use crate::faults;
use crate::index::{Index, Layers, Reading, Source};
use crate::jobs::{APPLY, RESIZE};
use crate::leases::Lease;
use crate::verify::check;
use crate::volume::Volume;
use block_io::device::{BlockDevice, Extent};
use bytes::Bytes;
use parking_lot::Mutex;
use server_kit::blocking;
use server_kit::error::RoleError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wdiff_format::codec::Codec;
use wdiff_format::error::WdiffError;
use wdiff_format::gid::Gid;
use wdiff_format::index_run::{Piece, Reach, RunError};
use wdiff_format::record::RecordKind;
use wlog_format::units::{Lb, to_usize};

/// What must not run while the base image is read as it is.
pub(crate) const EXCLUDED: [&str; 2] = [APPLY, RESIZE];
/// How often an index that is found to be wrong is made again before the reader gives up.
const MENDED_MAX: usize = 3;

/// Longer ranges are looked up away from the async threads, wherever it is that they are found.
const AT_ONCE_BYTES: u64 = 256 << 10;

/// What a part of the image is made of; offset and length in bytes.
pub(crate) enum Part {
    Base { offset: u64, len: u64 },
    Zeros { len: u64 },
    Data(Bytes),
}

/// Whose a part of the image is; lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Base { offset: u64, len: u64 },
    Zeros { len: u64 },
    Wdiff { len: u64 },
}

impl Owner {
    pub(crate) const fn len(self) -> u64 {
        match self {
            Self::Base { len, .. } | Self::Zeros { len } | Self::Wdiff { len } => len,
        }
    }
}

/// The image of a snapshot.
pub(crate) struct View {
    size_bytes: u64,
    base: Arc<dyn BlockDevice>,
    source: Source,
    reading: Arc<Reading>,
    layers: Mutex<Arc<Layers>>,
    /// Tells what this view reads from what others do.
    number: u64,
}

/// Why the pieces of a range cannot be had.
enum Failed {
    Index(RunError),
    /// The index says that a wdiff has what it has not.
    Misplaced {
        position: u32,
    },
    Wdiff(WdiffError),
}

impl View {
    /// The image that the leased diffs lead to from the base image, or a clone of it.
    pub(crate) async fn open(
        archive: &Archive,
        volume: &Arc<Volume>,
        base: Arc<dyn BlockDevice>,
        lease: Lease,
    ) -> Result<Self, RoleError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = volume.name.as_str();
        // Of the image that is read: the volume may grow meanwhile.
        let size_bytes = base.size_bytes();
        let layers = Index::layers(volume, &archive.reading, &lease).await;
        if let Err(error) = &layers {
            check::met(volume, error);
        }
        let layers = layers?;
        let (end, image_blocks) = (layers.end().0, Lb::from_bytes(size_bytes).0);
        if end > image_blocks {
            let beyond = WdiffError::BeyondEnd { address: image_blocks, end, image_blocks };
            return Err(faults::wdiff(name, beyond));
        }
        let source = Source { volume: volume.clone(), lease };
        let (reading, layers) = (archive.reading.clone(), Mutex::new(Arc::new(layers)));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { size_bytes, base, source, reading, layers, number })
    }

    /// The snapshot that begins at `gid`, clean or not, over the base image as it is: nothing of
    /// [`EXCLUDED`] may run beside it.
    pub(crate) async fn of_snapshot(
        archive: &Archive,
        volume: &Arc<Volume>,
        gid: Gid,
    ) -> Result<Self, RoleError> {
        let name = volume.name.as_str();
        let lease = volume.with(|c| {
            let list = c.diffs.scan_list(&c.base, gid).map_err(|e| faults::snapshot(name, &e))?;
            Ok::<_, RoleError>(volume.leases.take(list))
        })?;
        let base = volume.open_image(Image::Base, volume.size()).await?;
        Self::open(archive, volume, base, lease).await
    }

    pub(crate) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Number of wdiffs.
    pub(crate) fn wdiffs(&self) -> usize {
        self.source.lease.len()
    }

    /// Records of the wdiffs.
    pub(crate) fn records(&self) -> u64 {
        self.layers.lock().records()
    }

    /// What a range, which lies in the image, is made of, in order. Data of wdiffs comes at once.
    pub(crate) async fn parts(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Part>, RoleError> {
        // In memory it takes less time than the way to a thread that may wait. What is not all
        // there, or wrong, is seen to there.
        if len <= AT_ONCE_BYTES
            && let Ok(parts) = self.read_parts(offset, len, Reach::Memory)
        {
            return Ok(parts);
        }
        self.mending(move |view| view.read_parts(offset, len, Reach::Disk)).await
    }

    /// Whose the beginning of a range is, up to all of it: at least one part.
    pub(crate) async fn owners(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Owner>, RoleError> {
        self.mending(move |view| view.find_owners(offset, len)).await
    }

    /// A part of the base image.
    pub(crate) async fn base(&self, offset: u64, len: u64) -> std::io::Result<Bytes> {
        self.base.read(offset, to_usize(len)).await
    }

    /// What of a part of the base image is a hole; may end before the part does.
    pub(crate) async fn base_extents(&self, offset: u64, len: u64) -> std::io::Result<Vec<Extent>> {
        self.base.extents(offset, len).await
    }

    /// Looks, and looks again whenever the index turns out to be wrong and is made again.
    async fn mending<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl Fn(&Self) -> Result<T, Failed> + Send + Sync + 'static,
    ) -> Result<T, RoleError> {
        let look = Arc::new(look);
        let mut mended = 0;
        loop {
            let (view, look) = (self.clone(), look.clone());
            let looked = blocking::run(move || Ok::<_, RoleError>(look(&view))).await?;
            let name = self.source.volume.name.as_str();
            let failed = match looked {
                Ok(found) => return Ok(found),
                Err(Failed::Wdiff(error)) => {
                    let error = faults::wdiff(name, error);
                    check::met(&self.source.volume, &error);
                    return Err(error);
                }
                Err(failed) => failed,
            };
            mended += 1;
            if mended > MENDED_MAX {
                let message = format!("the index of volume {name} was made again, and is wrong");
                return Err(RoleError::damaged(message).with_volume(name));
            }
            self.mend(failed).await?;
        }
    }

    async fn mend(self: &Arc<Self>, failed: Failed) -> Result<(), RoleError> {
        let view = self.clone();
        blocking::run(move || {
            let Source { volume, lease } = &view.source;
            match failed {
                Failed::Index(error) => volume.index.heal(&error),
                Failed::Misplaced { position } => {
                    let diff = lease.diffs().get(to_usize(position.into()));
                    diff.map_or(Ok(()), |diff| volume.index.forget(&view.reading, diff))
                }
                Failed::Wdiff(_) => Ok(()),
            }
        })
        .await?;
        let Source { volume, lease } = &self.source;
        let layers = Index::layers(volume, &self.reading, lease).await?;
        *self.layers.lock() = Arc::new(layers);
        Ok(())
    }

    fn pieces(&self, offset: u64, len: u64, reach: Reach) -> Result<Vec<Piece>, Failed> {
        let layers = self.layers.lock().clone();
        let (from, to) = (Lb::from_bytes(offset), Lb::from_bytes(offset + len));
        layers.pieces(from, to, reach).map_err(Failed::Index)
    }

    /// Blocks when it may use the disk.
    fn read_parts(&self, offset: u64, len: u64, reach: Reach) -> Result<Vec<Part>, Failed> {
        let end = offset + len;
        let (mut parts, mut at) = (Vec::new(), offset);
        for piece in self.pieces(offset, len, reach)? {
            let start = piece.start.bytes();
            if at < start {
                parts.push(Part::Base { offset: at, len: start - at });
            }
            at = piece.end().bytes();
            parts.push(match piece.kind {
                RecordKind::Normal => Part::Data(self.data(&piece, reach)?),
                RecordKind::AllZero | RecordKind::Discard => Part::Zeros { len: at - start },
            });
        }
        if at < end {
            parts.push(Part::Base { offset: at, len: end - at });
        }
        Ok(parts)
    }

    /// Looks in steps, larger ones where there is little: a range may be gigabytes. Blocks.
    fn find_owners(&self, offset: u64, len: u64) -> Result<Vec<Owner>, Failed> {
        const OWNERS: usize = 512;
        let end = offset + len;
        let (mut owners, mut at, mut step) = (Vec::new(), offset, 1_u64 << 20);
        while at < end && owners.len() < OWNERS {
            let step_end = end.min(at.saturating_add(step));
            let pieces = self.pieces(at, step_end - at, Reach::Disk)?;
            step = if pieces.len() < OWNERS / 8 { step * 2 } else { 1 << 20 };
            for piece in pieces {
                let start = piece.start.bytes();
                if at < start {
                    join(&mut owners, Owner::Base { offset: at, len: start - at });
                }
                at = piece.end().bytes();
                join(
                    &mut owners,
                    match piece.kind {
                        RecordKind::Normal => Owner::Wdiff { len: at - start },
                        RecordKind::AllZero | RecordKind::Discard => {
                            Owner::Zeros { len: at - start }
                        }
                    },
                );
            }
            if at < step_end {
                join(&mut owners, Owner::Base { offset: at, len: step_end - at });
                at = step_end;
            }
        }
        Ok(owners)
    }

    /// The data of a piece. Blocks when it may use the disk.
    fn data(&self, piece: &Piece, reach: Reach) -> Result<Bytes, Failed> {
        let key = (self.number, piece.position);
        let read = |codec: &mut Codec| {
            let (input, name) = self.reading.file(key, || self.source.open(piece.position))?;
            piece.image.read(&input, &name, codec)
        };
        let image = match reach {
            Reach::Memory => {
                let kept = self.reading.data_kept(key, piece.image.offset);
                kept.ok_or(Failed::Index(RunError::OutOfReach))?
            }
            Reach::Disk => {
                let image = self.reading.data(key, piece.image.offset, read);
                image.map_err(|error| self.judge(piece, error))?
            }
        };
        let from = to_usize(Lb(piece.skip.into()).bytes());
        let len = to_usize(Lb(piece.blocks).bytes());
        // An entry lies inside of its image.
        Ok(image.slice(from..from + len))
    }

    /// Whether the wdiff is damaged, or the index wrong.
    fn judge(&self, piece: &Piece, error: WdiffError) -> Failed {
        let position = piece.position;
        let has = |records: Vec<_>| {
            records.iter().any(|r: &wdiff_format::locate::Location| r.image == piece.image)
        };
        let located = self.source.locate(position).and_then(Iterator::collect);
        match located.map(has) {
            Ok(false) => Failed::Misplaced { position },
            Ok(true) | Err(_) => Failed::Wdiff(error),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.reading.forget(self.number);
    }
}

/// Adds an owner, or lengthens the last one.
fn join(owners: &mut Vec<Owner>, next: Owner) {
    match (owners.last_mut(), next) {
        (Some(Owner::Base { len, .. }), Owner::Base { len: more, .. })
        | (Some(Owner::Zeros { len }), Owner::Zeros { len: more })
        | (Some(Owner::Wdiff { len }), Owner::Wdiff { len: more }) => *len += more,
        _ => owners.push(next),
    }
}
