//! Images in sparse files of the volume's directory: `base.img`, `restored/GID.img` and what is
//! half-made. The block backend has its restored images here too.

use super::Image;
use crate::faults;
use crate::image::Images;
use block_io::device::BlockDevice;
use proto::v1::Restored;
use server_kit::durable::{DurableDir, TMP_SUFFIX};
use server_kit::error::RoleError;
use server_kit::volume_name::VolumeName;
use std::path::PathBuf;
use std::sync::Arc;
use wdiff_format::gid::Gid;
use wlog_format::units::Lb;

/// Name of the base image in a volume's directory.
const IMAGE_FILE: &str = "base.img";
/// Directory of restored images in a volume's directory.
const RESTORED_DIR: &str = "restored";
/// How the names of restored images end.
const SUFFIX: &str = ".img";

/// The image files of one volume.
pub(super) struct Files {
    pub(super) name: VolumeName,
    pub(super) dir: Arc<dyn DurableDir>,
    pub(super) images: Arc<dyn Images>,
}

impl Files {
    fn name_of(image: Image) -> String {
        match image {
            Image::Base => IMAGE_FILE.to_owned(),
            Image::Restored(gid) => format!("{gid}{SUFFIX}"),
            Image::Restoring(gid) => format!("{gid}{SUFFIX}{TMP_SUFFIX}"),
            Image::Mount(number) => format!("mount-{number}{SUFFIX}{TMP_SUFFIX}"),
        }
    }

    const fn is_restored(image: Image) -> bool {
        matches!(image, Image::Restored(_) | Image::Restoring(_))
    }

    fn io(&self, attempt: &str, image: Image, error: std::io::Error) -> RoleError {
        faults::image(self.name.as_str(), attempt, &self.path(image), error)
    }

    pub(super) fn path(&self, image: Image) -> PathBuf {
        let name = Self::name_of(image);
        match Self::is_restored(image) {
            true => self.dir.path().join(RESTORED_DIR).join(name),
            false => self.dir.path().join(name),
        }
    }

    /// The directory that an image is to be made in.
    fn dir_for(&self, image: Image) -> Result<Arc<dyn DurableDir>, RoleError> {
        match Self::is_restored(image) {
            true => Ok(self.dir.create_dir(RESTORED_DIR)?),
            false => Ok(self.dir.clone()),
        }
    }

    pub(super) fn open(&self, image: Image) -> Result<Arc<dyn BlockDevice>, RoleError> {
        self.images.open(&self.path(image)).map_err(|e| self.io("open", image, e))
    }

    pub(super) fn open_cached(&self, image: Image) -> Result<Arc<dyn BlockDevice>, RoleError> {
        self.images.open_cached(&self.path(image)).map_err(|e| self.io("open", image, e))
    }

    /// Length of an image in bytes, if there is one.
    pub(super) fn found(&self, image: Image) -> Result<Option<u64>, RoleError> {
        Ok(self.dir.look_at(&Self::name_of(image))?.map(|info| info.len_bytes))
    }

    /// Gives an image this length, durable once its directory is synced.
    pub(super) fn set_len(&self, image: Image, size: Lb) -> Result<(), RoleError> {
        let (dir, name) = (self.dir_for(image)?, Self::name_of(image));
        dir.set_len(&name, size.bytes()).map_err(|e| self.io("give its size to", image, e))
    }

    pub(super) fn sync(&self, image: Image) -> Result<(), RoleError> {
        let (dir, name) = (self.dir_for(image)?, Self::name_of(image));
        dir.sync_file(&name).map_err(|e| self.io("sync", image, e))
    }

    /// A clone of the base image's file; false where that cannot be.
    pub(super) fn reflink(&self, clone: Image) -> Result<bool, RoleError> {
        let (dir, name) = (self.dir_for(clone)?, Self::name_of(clone));
        Ok(self.reflink_into(&*dir, &name))
    }

    pub(super) fn reflink_into(&self, dir: &dyn DurableDir, name: &str) -> bool {
        self.dir.reflink(IMAGE_FILE, dir, name).is_ok()
    }

    pub(super) fn commit_restored(&self, gid: Gid) -> Result<(), RoleError> {
        self.sync(Image::Restoring(gid))?;
        let dir = self.dir_for(Image::Restored(gid))?;
        let (tmp, name) = (Image::Restoring(gid), Image::Restored(gid));
        Ok(dir.commit_dir(&Self::name_of(tmp), &Self::name_of(name))?)
    }

    pub(super) fn remove(&self, image: Image) -> Result<(), RoleError> {
        let name = Self::name_of(image);
        if !Self::is_restored(image) {
            return Ok(self.dir.remove(&name)?);
        }
        if self.dir.has_dir(RESTORED_DIR) {
            self.dir.open_dir(RESTORED_DIR)?.remove(&name)?;
        }
        Ok(())
    }

    pub(super) fn restored(&self) -> Result<Vec<Restored>, RoleError> {
        if !self.dir.has_dir(RESTORED_DIR) {
            return Ok(Vec::new());
        }
        let dir = self.dir.open_dir(RESTORED_DIR)?;
        let mut found = Vec::new();
        for name in dir.list()? {
            let gid = name.strip_suffix(SUFFIX).and_then(|gid| gid.parse().ok());
            let Some(gid) = gid else { continue };
            let Some(info) = dir.look_at(&name)? else { continue };
            let path = dir.path().join(&name).display().to_string();
            let (size_bytes, created_s) = (info.len_bytes, info.modified_s);
            found.push(Restored { gid, path, size_bytes, created_s });
        }
        found.sort_by_key(|r| r.gid);
        Ok(found)
    }

    pub(super) fn remove_restored(&self) -> Result<(), RoleError> {
        Ok(self.dir.remove_dir(RESTORED_DIR)?)
    }

    /// Removes the images of restores that were killed; what they were.
    pub(super) fn mend(&self) -> Result<Vec<String>, RoleError> {
        if !self.dir.has_dir(RESTORED_DIR) {
            return Ok(Vec::new());
        }
        let restored = self.dir.open_dir(RESTORED_DIR)?;
        let names = restored.names().map_err(|e| RoleError::io("list", restored.path(), e))?;
        restored.remove_tmp_files()?;
        let half_made = names.into_iter().filter(|name| name.ends_with(TMP_SUFFIX));
        Ok(half_made.map(|name| format!("{name} was removed: a restore had not ended")).collect())
    }
}
