//! Base images on thin volumes of LVM, cloned by thin snapshots.
//!
//! Names: `walb.VOLUME.base`, `walb.VOLUME.restored-GID`, and half-made `walb.VOLUME.restoring-GID`
//! and `walb.VOLUME.mount-N` (a volume's name has no dot). Tags: `walb.archive=ID` says whose a
//! volume is, `walb.size=BLOCKS` how much of it is the image, since LVM rounds up. Invariants: only
//! volumes with the tag of this archive are touched; what is half-made goes at the start, a base
//! image never, even if nothing else is left of its volume; a pool that does not zero new chunks or
//! ignores discards is refused.

mod commands;

use super::part::{Holes, Part};
use super::{CloneMethod, Image, Rest, VolumeImages};
use crate::faults;
use crate::image::Images;
use block_io::device::BlockDevice;
use commands::{Lv, Lvm, Pool};
use parking_lot::Mutex;
use proto::v1::Restored;
use server_kit::blocking::{self, wait};
use server_kit::durable::DurableDir;
use server_kit::error::RoleError;
use server_kit::volume_name::{ServerId, VolumeName};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use wdiff_format::gid::Gid;
use wlog_format::units::Lb;

/// How all our names begin.
const PREFIX: &str = "walb.";
/// The tag that says whose a volume is.
const ARCHIVE: &str = "walb.archive";
/// The tag that says how many blocks the image has.
const SIZE: &str = "walb.size";
/// How often the pool is looked at.
const WATCH: Duration = Duration::from_secs(5);
/// A pool whose metadata is fuller than this counts as full: LVM makes no new volumes then.
const METADATA_FULL_PERCENT: f64 = 90.0;

/// The pool of an archive, as all its volumes share it.
struct Shared {
    lvm: Lvm,
    id: ServerId,
    images: Arc<dyn Images>,
    /// As it was found last.
    pool: Mutex<Pool>,
    /// What the start removed, by volume.
    mended: Mutex<HashMap<String, Vec<String>>>,
}

/// The thin backend of an archive.
pub(crate) struct ThinBackend(Arc<Shared>);

struct ThinVolume {
    shared: Arc<Shared>,
    name: VolumeName,
}

impl ThinBackend {
    /// Looks at the pool, removes what is half-made and activates the rest. Blocks.
    pub(super) fn open(
        (vg, pool): (&str, &str),
        id: &ServerId,
        base: &dyn DurableDir,
        images: Arc<dyn Images>,
    ) -> Result<Self, RoleError> {
        let lvm = Lvm::new(vg, pool, commands::real());
        let found = lvm.pool()?;
        let unfit = |what: &str, step: String| {
            let name = format!("{vg}/{pool}");
            let message = format!("thin pool {name} cannot have base images: it {what}");
            Err(RoleError::bad_request(message).with_file(name).with_next_step(step))
        };
        if !found.zeroes {
            return unfit("does not zero new chunks", format!("lvchange -Zy {vg}/{pool}"));
        }
        if !found.discards {
            let step = format!("lvchange --discards passdown {vg}/{pool}");
            return unfit("ignores discards", step);
        }
        let (pool, mended) = (Mutex::new(found), Mutex::default());
        let shared = Shared { lvm, id: id.clone(), images, pool, mended };
        shared.tidy(base)?;
        Ok(Self(Arc::new(shared)))
    }

    pub(super) fn of(&self, name: &VolumeName) -> Arc<dyn VolumeImages> {
        Arc::new(ThinVolume { shared: self.0.clone(), name: name.clone() })
    }

    /// Looks at the pool again and again, until the archive ends.
    pub(super) fn watch(&self, ending: CancellationToken) {
        let shared = self.0.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = ending.cancelled() => return,
                    () = tokio::time::sleep(WATCH) => {}
                }
                let looked = shared.clone();
                if let Err(error) = blocking::run(move || looked.look()).await {
                    let error = error.full_message();
                    tracing::warn!(error, "cannot see how full the thin pool is");
                }
            }
        });
    }
}

/// Volume and kind of a logical volume of ours: `walb.VOLUME.KIND`.
fn split(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(PREFIX)?.split_once('.')
}

impl Shared {
    fn look(&self) -> Result<(), RoleError> {
        let found = self.lvm.pool()?;
        *self.pool.lock() = found;
        Ok(())
    }

    /// The logical volumes of this archive.
    fn ours(&self) -> Result<Vec<Lv>, RoleError> {
        let mut all = self.lvm.list()?;
        all.retain(|lv| lv.tag(ARCHIVE) == Some(self.id.as_str()) && split(&lv.name).is_some());
        Ok(all)
    }

    /// After a crash or a start of the host (I9). Trouble with one volume is not another's.
    fn tidy(&self, base: &dyn DurableDir) -> Result<(), RoleError> {
        for lv in self.ours()? {
            let Some((volume, kind)) = split(&lv.name) else { continue };
            let half_made = kind.starts_with("restoring-") || kind.starts_with("mount-");
            let done = if half_made {
                self.lvm.remove(&lv.name)
            } else if lv.active {
                Ok(())
            } else {
                self.lvm.activate(&lv.name)
            };
            if let Err(error) = done {
                tracing::warn!(volume, error = error.full_message(), "a thin volume is left");
            } else if kind.starts_with("restoring-") {
                let told = format!("{} was removed: a restore had not ended", lv.name);
                self.mended.lock().entry(volume.to_owned()).or_default().push(told);
            }
            if !half_made && !base.has_dir(volume) {
                let (vg, lv) = (&self.lvm.vg, &lv.name);
                tracing::warn!(
                    "{vg}/{lv} belongs to volume {volume}, which is not known here: it is left \
                     alone; if nobody needs it: lvremove {vg}/{lv}"
                );
            }
        }
        Ok(())
    }
}

impl ThinVolume {
    fn lvm(&self) -> &Lvm {
        &self.shared.lvm
    }

    fn prefix(&self) -> String {
        format!("{PREFIX}{}.", self.name)
    }

    fn lv_name(&self, image: Image) -> String {
        let prefix = self.prefix();
        match image {
            Image::Base => format!("{prefix}base"),
            Image::Restoring(gid) => format!("{prefix}restoring-{gid}"),
            Image::Restored(gid) => format!("{prefix}restored-{gid}"),
            Image::Mount(number) => format!("{prefix}mount-{number}"),
        }
    }

    fn tags(&self, size: Lb) -> Vec<String> {
        vec![format!("{ARCHIVE}={}", self.shared.id), size_tag(size)]
    }

    /// The logical volumes of this volume.
    fn list(&self) -> Result<Vec<Lv>, RoleError> {
        let mut ours = self.shared.ours().map_err(|e| e.with_volume(&self.name))?;
        let prefix = self.prefix();
        ours.retain(|lv| lv.name.starts_with(&prefix));
        Ok(ours)
    }

    fn find(&self, image: Image) -> Result<Option<Lv>, RoleError> {
        let name = self.lv_name(image);
        Ok(self.list()?.into_iter().find(|lv| lv.name == name))
    }

    /// Runs a step and names the volume in its error.
    fn step(&self, done: Result<(), RoleError>) -> Result<(), RoleError> {
        done.map_err(|e| e.with_volume(&self.name))
    }

    fn part(&self, image: Image, size: Lb) -> Result<Part, RoleError> {
        let path = self.path(image);
        let holes = Holes::Discard { unit: self.shared.pool.lock().chunk_bytes };
        let open = self.shared.images.open(&path);
        let part = open.and_then(|open| Part::new(open, size, holes));
        part.map_err(|e| faults::image(self.name.as_str(), "open", &path, e))
    }

    /// Makes a base image that is there this large, and says so in its tag.
    fn enlarge(&self, lv: &Lv, size: Lb) -> Result<(), RoleError> {
        if lv.size_bytes < size.bytes() {
            self.step(self.lvm().extend(&lv.name, size.bytes()))?;
        }
        let new = size_tag(size);
        match lv.tags.iter().find(|tag| tag.starts_with(SIZE)) {
            Some(old) if *old == new => Ok(()),
            old => {
                let old = old.unwrap_or(&new);
                self.step(self.lvm().retag(&lv.name, old, &new))
            }
        }
    }
}

fn size_tag(size: Lb) -> String {
    format!("{SIZE}={}", size.0)
}

fn image_bytes(lv: &Lv) -> u64 {
    let blocks = lv.tag(SIZE).and_then(|size| size.parse().ok());
    blocks.map_or(lv.size_bytes, |blocks| Lb(blocks).bytes())
}

impl VolumeImages for ThinVolume {
    fn backend(&self) -> &'static str {
        "lvm-thin"
    }

    fn path(&self, image: Image) -> PathBuf {
        PathBuf::from(format!("/dev/{}/{}", self.lvm().vg, self.lv_name(image)))
    }

    fn open(&self, image: Image, size: Lb) -> Result<Arc<dyn BlockDevice>, RoleError> {
        Ok(Arc::new(self.part(image, size)?))
    }

    fn found(&self) -> Result<Option<u64>, RoleError> {
        Ok(self.find(Image::Base)?.map(|lv| image_bytes(&lv)))
    }

    fn lay_out(&self, kept: Lb, size: Lb) -> Result<Rest, RoleError> {
        let name = self.lv_name(Image::Base);
        let found = self.find(Image::Base)?;
        match found {
            Some(lv) if kept > Lb(0) => {
                self.enlarge(&lv, size)?;
                let part = self.part(Image::Base, size)?;
                let zeroed = wait(async {
                    part.write_hole(kept.bytes(), size.bytes() - kept.bytes()).await?;
                    part.flush().await
                });
                let path = self.path(Image::Base);
                zeroed.map_err(|e| faults::image(self.name.as_str(), "lay out", &path, e))?;
            }
            found => {
                if found.is_some() {
                    self.step(self.lvm().remove(&name))?;
                }
                self.step(self.lvm().create(&name, size.bytes(), &self.tags(size)))?;
            }
        }
        Ok(Rest::Zeroes)
    }

    fn grow(&self, size: Lb) -> Result<(), RoleError> {
        match self.find(Image::Base)? {
            Some(lv) if image_bytes(&lv) < size.bytes() => self.enlarge(&lv, size),
            Some(_) => Ok(()),
            None => {
                let name = self.lv_name(Image::Base);
                self.step(self.lvm().create(&name, size.bytes(), &self.tags(size)))
            }
        }
    }

    fn clone_method(&self) -> CloneMethod {
        CloneMethod::Snapshot
    }

    fn clone_base(&self, clone: Image) -> Result<bool, RoleError> {
        let missing = || {
            let path = self.path(Image::Base).display().to_string();
            RoleError::damaged(format!("the base image {path} is missing"))
                .with_volume(&self.name)
                .with_file(path)
        };
        let base = self.find(Image::Base)?.ok_or_else(missing)?;
        let tags = self.tags(Lb::from_bytes(image_bytes(&base)));
        self.step(self.lvm().snapshot(&base.name, &self.lv_name(clone), &tags))?;
        Ok(true)
    }

    fn reflink_into(&self, _dir: &dyn DurableDir, _name: &str) -> bool {
        false
    }

    fn create(&self, image: Image, size: Lb) -> Result<(), RoleError> {
        self.step(self.lvm().create(&self.lv_name(image), size.bytes(), &self.tags(size)))
    }

    fn commit_restored(&self, gid: Gid) -> Result<(), RoleError> {
        let (from, to) = (Image::Restoring(gid), Image::Restored(gid));
        self.step(self.lvm().rename(&self.lv_name(from), &self.lv_name(to)))
    }

    fn remove(&self, image: Image) -> Result<(), RoleError> {
        match self.find(image)? {
            Some(lv) => self.step(self.lvm().remove(&lv.name)),
            None => Ok(()),
        }
    }

    fn restored(&self) -> Result<Vec<Restored>, RoleError> {
        let prefix = format!("{}restored-", self.prefix());
        let restored = self.list()?.into_iter().filter_map(|lv| {
            let gid = Gid(lv.name.strip_prefix(&prefix)?.parse().ok()?);
            let path = self.path(Image::Restored(gid)).display().to_string();
            let (size_bytes, created_s) = (image_bytes(&lv), lv.created_s);
            Some(Restored { gid: gid.0, path, size_bytes, created_s })
        });
        let mut restored: Vec<_> = restored.collect();
        restored.sort_by_key(|r| r.gid);
        Ok(restored)
    }

    fn remove_restored(&self) -> Result<(), RoleError> {
        for Restored { gid, .. } in self.restored()? {
            self.step(self.lvm().remove(&self.lv_name(Image::Restored(Gid(gid)))))?;
        }
        Ok(())
    }

    fn outlive_the_directory(&self) -> bool {
        true
    }

    fn clear(&self) -> Result<(), RoleError> {
        for lv in self.list()? {
            self.step(self.lvm().remove(&lv.name))?;
        }
        Ok(())
    }

    fn begin(&self) -> Result<Vec<String>, RoleError> {
        Ok(self.shared.mended.lock().remove(self.name.as_str()).unwrap_or_default())
    }

    fn room(&self, needed: u64) -> Result<(), RoleError> {
        let pool = *self.shared.pool.lock();
        let (vg, free) = (&self.lvm().vg, pool.free_bytes());
        let place = format!("thin pool {vg}/{}", self.lvm().pool);
        let message = if pool.metadata_percent > METADATA_FULL_PERCENT {
            format!("the metadata of {place} is full to {} percent", pool.metadata_percent)
        } else if free < needed {
            format!("{place} has {free} bytes free, needed are {needed}")
        } else {
            return Ok(());
        };
        Err(self.lvm().full_pool(message).with_volume(&self.name))
    }
}
