//! Where base images live, and their clones: one small trait, and an implementation for each
//! backend that an operator can choose.
//!
//! A volume has one base image; restores and mounts clone it or, where that cannot be, copy it.
//! Invariants: what a method did is durable when it returns; a half-made image is known by its name
//! and goes at the next start (I9); an image has exactly the size that was asked for, whatever it
//! lies in, and what was not written to it reads as zeroes.

mod block;
mod file;
mod files;
mod lvm_thin;
mod part;

use crate::image::Images;
use block::BlockBackend;
use block_io::device::BlockDevice;
use file::FileBackend;
use lvm_thin::ThinBackend;
use proto::v1::Restored;
use server_kit::durable::DurableDir;
use server_kit::error::RoleError;
use server_kit::volume_name::{ServerId, VolumeName};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use wdiff_format::gid::Gid;
use wlog_format::units::Lb;

/// An image of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// The base image.
    Base,
    /// The half-made image of a restore.
    Restoring(Gid),
    /// A restored image.
    Restored(Gid),
    /// The clone that a mount reads, by the number of the mount. Half-made for ever.
    Mount(u64),
}

/// How a second image comes to the content of the base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloneMethod {
    /// A file that shares its blocks.
    Reflink,
    /// A thin volume that shares its chunks.
    Snapshot,
    /// All that is not zero is copied.
    Copy,
}

impl CloneMethod {
    /// The word for people.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Snapshot => "snapshot",
            Self::Copy => "copy",
        }
    }
}

/// What was not yet written to a base image that is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It reads as zeroes.
    Zeroes,
    /// It may be anything: zeroes have to be written too.
    Unknown,
}

/// The images of one volume. All methods block but [`VolumeImages::room`].
pub(crate) trait VolumeImages: Send + Sync + 'static {
    /// The backend, as it is typed.
    fn backend(&self) -> &'static str;

    /// Where an image is, whether or not it is there.
    fn path(&self, image: Image) -> PathBuf;

    /// Opens an image of this size, for reading and writing in units of 512 bytes.
    fn open(&self, image: Image, size: Lb) -> Result<Arc<dyn BlockDevice>, RoleError>;

    /// As [`VolumeImages::open`], for reading alone: through the page cache where that sees what is
    /// written past it. That of a block device may not, when it reads ahead of a write.
    fn open_cached(&self, image: Image, size: Lb) -> Result<Arc<dyn BlockDevice>, RoleError> {
        self.open(image, size)
    }

    /// Size of the base image in bytes, if there is one.
    fn found(&self) -> Result<Option<u64>, RoleError>;

    /// Makes the base image, or gives the one that is there this size; the first `kept` blocks stay
    /// as they are.
    fn lay_out(&self, kept: Lb, size: Lb) -> Result<Rest, RoleError>;

    /// Makes the base image larger; what is new reads as zeroes. Devices that are open keep the
    /// size that they had.
    fn grow(&self, size: Lb) -> Result<(), RoleError>;

    /// How clones of the base image are made here.
    fn clone_method(&self) -> CloneMethod;

    /// Makes a clone of the base image as it is now, of an image that is not there; false where
    /// clones cannot be.
    fn clone_base(&self, clone: Image) -> Result<bool, RoleError>;

    /// Makes a clone of the base image in a directory that a person chose; false where that cannot
    /// be.
    fn reflink_into(&self, dir: &dyn DurableDir, name: &str) -> bool;

    /// Makes an image that is not there and reads as zeroes, to be copied into.
    fn create(&self, image: Image, size: Lb) -> Result<(), RoleError>;

    /// The image of a restore, whole and flushed, becomes a restored image.
    fn commit_restored(&self, gid: Gid) -> Result<(), RoleError>;

    /// Removes an image; one that is not there is no error.
    fn remove(&self, image: Image) -> Result<(), RoleError>;

    /// The restored images.
    fn restored(&self) -> Result<Vec<Restored>, RoleError>;

    /// Removes the restored images.
    fn remove_restored(&self) -> Result<(), RoleError>;

    /// Whether images stay when the directory of the volume goes.
    fn outlive_the_directory(&self) -> bool;

    /// Removes all images: the volume begins anew, or goes.
    fn clear(&self) -> Result<(), RoleError>;

    /// Takes hold of what the images lie in, and removes what a killed process left half-made;
    /// tells what people should hear of.
    fn begin(&self) -> Result<Vec<String>, RoleError>;

    /// Fails when less than this is left for base images and their clones, where that is another
    /// place than the directory of the volume (I10). Does no I/O.
    fn room(&self, needed: u64) -> Result<(), RoleError>;
}

/// The backend that an operator has chosen, with all that it needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// Sparse files below the base directory.
    #[default]
    File,
    /// A block device for each volume.
    Block(BTreeMap<VolumeName, PathBuf>),
    /// Thin volumes.
    LvmThin {
        /// Their volume group.
        vg: String,
        /// Their pool in it.
        pool: String,
    },
}

/// The backend of an archive.
pub(crate) enum Backends {
    File(FileBackend),
    Block(BlockBackend),
    LvmThin(ThinBackend),
}

impl Backends {
    /// The backend of the archive `id` with this base directory. Blocks.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn open(
        choice: BackendChoice,
        id: &ServerId,
        base: &dyn DurableDir,
        images: Arc<dyn Images>,
    ) -> Result<Self, RoleError> {
        Ok(match choice {
            BackendChoice::File => Self::File(FileBackend::open(base, images)),
            BackendChoice::Block(devices) => Self::Block(BlockBackend::open(devices, images)?),
            BackendChoice::LvmThin { vg, pool } => {
                Self::LvmThin(ThinBackend::open((&vg, &pool), id, base, images)?)
            }
        })
    }

    /// Keeps an eye on it, until the archive ends.
    pub(crate) fn watch(&self, ending: CancellationToken) {
        if let Self::LvmThin(backend) = self {
            backend.watch(ending);
        }
    }

    /// The images of a volume, which has this directory.
    pub(crate) fn of(&self, name: &VolumeName, dir: &Arc<dyn DurableDir>) -> Arc<dyn VolumeImages> {
        match self {
            Self::File(backend) => backend.of(name, dir),
            Self::Block(backend) => backend.of(name, dir),
            Self::LvmThin(backend) => backend.of(name),
        }
    }
}
