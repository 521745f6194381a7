//! Base images in sparse files, cloned by reflink where the file system can (XFS, btrfs).

use super::files::Files;
use super::{CloneMethod, Image, Rest, VolumeImages};
use crate::image::Images;
use block_io::device::BlockDevice;
use proto::v1::Restored;
use server_kit::durable::DurableDir;
use server_kit::error::RoleError;
use server_kit::volume_name::VolumeName;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use wdiff_format::gid::Gid;
use wlog_format::units::Lb;

/// The file backend of an archive.
pub(crate) struct FileBackend {
    images: Arc<dyn Images>,
    reflinks: bool,
}

struct FileVolume {
    files: Files,
    reflinks: bool,
}

impl FileBackend {
    /// Looks whether the file system of this directory clones files. Blocks.
    pub(super) fn open(base: &dyn DurableDir, images: Arc<dyn Images>) -> Self {
        Self { images, reflinks: can_reflink(base) }
    }

    pub(super) fn of(&self, name: &VolumeName, dir: &Arc<dyn DurableDir>) -> Arc<dyn VolumeImages> {
        let (name, dir, images) = (name.clone(), dir.clone(), self.images.clone());
        Arc::new(FileVolume { files: Files { name, dir, images }, reflinks: self.reflinks })
    }
}

/// Whether files can be cloned in this directory. Blocks.
fn can_reflink(dir: &dyn DurableDir) -> bool {
    let names = ["reflink-from.tmp".to_owned(), "reflink-to.tmp".to_owned()];
    let [from, to] = &names;
    let written = dir.create(from).and_then(|mut file| file.write_all(&[1; 4096]));
    let cloned = written.and_then(|()| dir.reflink(from, dir, to));
    // Half-made by their names: what cannot be removed now goes at the next start.
    let _ = dir.remove_all(&names);
    cloned.is_ok()
}

impl VolumeImages for FileVolume {
    fn backend(&self) -> &'static str {
        "file"
    }

    fn path(&self, image: Image) -> PathBuf {
        self.files.path(image)
    }

    fn open(&self, image: Image, _size: Lb) -> Result<Arc<dyn BlockDevice>, RoleError> {
        self.files.open(image)
    }

    fn open_cached(&self, image: Image, _size: Lb) -> Result<Arc<dyn BlockDevice>, RoleError> {
        self.files.open_cached(image)
    }

    fn found(&self) -> Result<Option<u64>, RoleError> {
        self.files.found(Image::Base)
    }

    fn lay_out(&self, kept: Lb, size: Lb) -> Result<Rest, RoleError> {
        self.files.set_len(Image::Base, kept)?;
        self.files.set_len(Image::Base, size)?;
        self.files.sync(Image::Base)?;
        let dir = &self.files.dir;
        dir.sync()
            .map_err(|e| RoleError::io("sync", dir.path(), e).with_volume(&self.files.name))?;
        Ok(Rest::Zeroes)
    }

    fn grow(&self, size: Lb) -> Result<(), RoleError> {
        self.files.set_len(Image::Base, size)?;
        self.files.sync(Image::Base)
    }

    fn clone_method(&self) -> CloneMethod {
        if self.reflinks { CloneMethod::Reflink } else { CloneMethod::Copy }
    }

    fn clone_base(&self, clone: Image) -> Result<bool, RoleError> {
        self.files.reflink(clone)
    }

    fn reflink_into(&self, dir: &dyn DurableDir, name: &str) -> bool {
        self.files.reflink_into(dir, name)
    }

    fn create(&self, image: Image, size: Lb) -> Result<(), RoleError> {
        self.files.set_len(image, size)
    }

    fn commit_restored(&self, gid: Gid) -> Result<(), RoleError> {
        self.files.commit_restored(gid)
    }

    fn remove(&self, image: Image) -> Result<(), RoleError> {
        self.files.remove(image)
    }

    fn restored(&self) -> Result<Vec<Restored>, RoleError> {
        self.files.restored()
    }

    fn remove_restored(&self) -> Result<(), RoleError> {
        self.files.remove_restored()
    }

    fn outlive_the_directory(&self) -> bool {
        false
    }

    fn clear(&self) -> Result<(), RoleError> {
        self.files.remove(Image::Base)?;
        self.files.remove_restored()
    }

    fn begin(&self) -> Result<Vec<String>, RoleError> {
        self.files.mend()
    }

    fn room(&self, _needed: u64) -> Result<(), RoleError> {
        Ok(())
    }
}
