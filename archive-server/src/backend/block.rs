//! Base images on block devices that an operator gives, one for each volume; what is restored goes
//! to files of the volume's directory.
//!
//! Invariants: a device that serves is open exclusively, so that nobody else mounts it or uses it
//! as an image; which device holds the image, and how much of it, is in the volume's directory
//! ([`Claim`]) before the first block is written; another device under that name is not touched. A
//! device is taken only while its beginning is zero, which a clear makes it again.

use super::files::Files;
use super::part::{Holes, Part};
use super::{CloneMethod, Image, Rest, VolumeImages};
use crate::faults;
use crate::image::Images;
use block_io::OpenOptions;
use block_io::device::BlockDevice;
use parking_lot::Mutex;
use proto::v1::Restored;
use serde::{Deserialize, Serialize};
use server_kit::blocking::wait;
use server_kit::durable::{DurableDir, StateFile};
use server_kit::error::{Reason, RoleError};
use server_kit::volume_name::VolumeName;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wdiff_format::gid::Gid;
use wlog_format::units::Lb;

/// Name of the file that says which device has the base image.
const CLAIM_FILE: &str = "image-device";
/// So much of a device must be zero before it is taken.
const BLANK_BYTES: u64 = 1 << 20;
/// Where the kernel says which device this is, below `/sys/dev/block/MAJOR:MINOR`.
const IDENTITIES: [&str; 6] =
    ["dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "loop/backing_file"];

/// The device of a base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    /// As the kernel tells it from others; empty where it does not.
    identity: String,
    /// Size of the image.
    size_lb: u64,
}

/// The block backend of an archive.
pub(crate) struct BlockBackend {
    devices: BTreeMap<VolumeName, PathBuf>,
    images: Arc<dyn Images>,
}

struct BlockVolume {
    files: Files,
    device: Option<PathBuf>,
    claim: StateFile<Claim>,
    /// Open for as long as the volume is, so that nobody else uses the device.
    held: Mutex<Option<Arc<dyn BlockDevice>>>,
}

impl BlockBackend {
    /// Fails when a device is given to two volumes.
    pub(super) fn open(
        devices: BTreeMap<VolumeName, PathBuf>,
        images: Arc<dyn Images>,
    ) -> Result<Self, RoleError> {
        let mut numbers = BTreeMap::new();
        for (name, path) in &devices {
            // One that is missing is found when its volume is loaded.
            let Ok(found) = fs::metadata(path) else { continue };
            if let Some(other) = numbers.insert(found.rdev(), name) {
                let path = path.display();
                let message = format!("{path} is given to volume {other} and to volume {name}");
                return Err(RoleError::bad_request(message).with_volume(name));
            }
        }
        Ok(Self { devices, images })
    }

    pub(super) fn of(&self, name: &VolumeName, dir: &Arc<dyn DurableDir>) -> Arc<dyn VolumeImages> {
        let device = self.devices.get(name).cloned();
        let files = Files { name: name.clone(), dir: dir.clone(), images: self.images.clone() };
        let claim = StateFile::new(dir.clone(), CLAIM_FILE);
        Arc::new(BlockVolume { files, device, claim, held: Mutex::default() })
    }
}

/// What the kernel calls the device, apart from its name.
fn identity(device: &Path) -> String {
    let Ok(found) = fs::metadata(device) else { return String::new() };
    let (major, minor) = (nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev()));
    let place = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let read = |file: &str| fs::read_to_string(place.join(file)).ok();
    let own = IDENTITIES.iter().find_map(|file| read(file));
    // A partition is known by its disk and its number.
    let part = || {
        let disk = IDENTITIES.iter().find_map(|file| read(&format!("../{file}")))?;
        Some(format!("{} {}", disk.trim(), read("partition")?.trim()))
    };
    own.or_else(part).unwrap_or_default().trim().to_owned()
}

impl BlockVolume {
    fn name(&self) -> &str {
        self.files.name.as_str()
    }

    fn device(&self) -> Result<&Path, RoleError> {
        self.device.as_deref().ok_or_else(|| {
            let name = self.name();
            let message = format!("volume {name} has no device for its base image");
            let step = format!("start the archive with --image {name}=DEVICE");
            RoleError::bad_request(message).with_volume(name).with_next_step(step)
        })
    }

    fn refused(&self, device: &Path, why: &str, step: &str) -> RoleError {
        let (name, device) = (self.name(), device.display().to_string());
        RoleError::bad_request(format!("cannot use {device} for the image of volume {name}: {why}"))
            .with_volume(name)
            .with_file(device)
            .with_next_step(step)
    }

    fn failed(&self, attempt: &str, device: &Path, error: io::Error) -> RoleError {
        faults::image(self.name(), attempt, device, error)
    }

    /// Keeps others from using the device.
    fn hold(&self) -> Result<(&Path, Arc<dyn BlockDevice>), RoleError> {
        let device = self.device()?;
        let mut held = self.held.lock();
        if let Some(open) = &*held {
            return Ok((device, open.clone()));
        }
        let probe = block_io::probe(device).map_err(|e| self.failed("look at", device, e))?;
        if probe.kind != block_io::Kind::BlockDevice {
            let step = "give a block device, or use --backend file";
            return Err(self.refused(device, "it is no block device", step));
        }
        let options = OpenOptions { exclusive: true, ..OpenOptions::default() };
        let open = block_io::open(device, options).map_err(|e| {
            if matches!(e.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock) {
                let step = "unmount it, or end who uses it, and start the archive again";
                return self.refused(device, "it is in use", step);
            }
            self.failed("open", device, e)
        })?;
        *held = Some(open.clone());
        Ok((device, open))
    }

    /// The device that was claimed.
    fn claimed(&self) -> Result<Option<Claim>, RoleError> {
        let Some(claim) = self.claim.load()? else { return Ok(None) };
        let (device, _) = self.hold()?;
        let now = identity(device);
        if now == claim.identity {
            return Ok(Some(claim));
        }
        let why = format!("its image is on {:?}, and this is {now:?}", claim.identity);
        let step = format!("give the right one: --image {}=DEVICE", self.name());
        Err(self.refused(device, &why, &step))
    }

    /// Makes the device the volume's, with an image of this size.
    fn take(&self, size: Lb) -> Result<(), RoleError> {
        let known = self.claimed()?.is_some();
        let (device, open) = self.hold()?;
        let now = wait(open.refresh_size()).map_err(|e| self.failed("measure", device, e))?;
        if now < size.bytes() {
            let why = format!("it has {now} bytes, the volume {}", size.bytes());
            let name = self.name();
            let message = format!("{} is too small for volume {name}: {why}", device.display());
            return Err(RoleError::wrong_size(message)
                .with_volume(name)
                .with_file(device.display().to_string())
                .with_next_step("make the device larger"));
        }
        if !known {
            let len = wlog_format::units::to_usize(BLANK_BYTES.min(now));
            let begin = wait(open.read(0, len)).map_err(|e| self.failed("read", device, e))?;
            if begin.iter().any(|byte| *byte != 0) {
                let step = format!(
                    "if nobody needs what is on it: blkdiscard -z {0}, or dd if=/dev/zero of={0} \
                     bs=1M count=1",
                    device.display()
                );
                return Err(self.refused(device, "there is something on it", &step));
            }
        }
        self.remember(device, size)
    }

    fn remember(&self, device: &Path, size: Lb) -> Result<(), RoleError> {
        let claim = Claim { identity: identity(device), size_lb: size.0 };
        self.claim.store(&claim).map_err(|e| RoleError::from(e).with_volume(self.name()))
    }

    /// Makes a range of the device read as zeroes, for good.
    fn zero(&self, from: u64, to: u64) -> Result<(), RoleError> {
        let (device, _) = self.hold()?;
        let zeroed = self.files.images.open(device).and_then(|open| {
            wait(async {
                open.write_hole(from, to.saturating_sub(from)).await?;
                open.flush().await
            })
        });
        zeroed.map_err(|e| self.failed("zero a part of", device, e))
    }
}

impl VolumeImages for BlockVolume {
    fn backend(&self) -> &'static str {
        "block"
    }

    fn path(&self, image: Image) -> PathBuf {
        match (image, &self.device) {
            (Image::Base, Some(device)) => device.clone(),
            _ => self.files.path(image),
        }
    }

    fn open(&self, image: Image, size: Lb) -> Result<Arc<dyn BlockDevice>, RoleError> {
        if image != Image::Base {
            return self.files.open(image);
        }
        let (device, _) = self.hold()?;
        let part = |open| Part::new(open, size, Holes::Zeroing);
        let part = self.files.images.open(device).and_then(part);
        Ok(Arc::new(part.map_err(|e| self.failed("open", device, e))?))
    }

    fn found(&self) -> Result<Option<u64>, RoleError> {
        Ok(self.claimed()?.map(|claim| Lb(claim.size_lb).bytes()))
    }

    fn lay_out(&self, _kept: Lb, size: Lb) -> Result<Rest, RoleError> {
        self.take(size)?;
        // To zero all of a slow disk before a backup would take as long as the backup.
        Ok(Rest::Unknown)
    }

    fn grow(&self, size: Lb) -> Result<(), RoleError> {
        let has = self.claimed()?.map_or(Lb(0), |claim| Lb(claim.size_lb));
        if has >= size {
            return Ok(());
        }
        let (device, open) = self.hold()?;
        let now = wait(open.refresh_size()).map_err(|e| self.failed("measure", device, e))?;
        if now >= size.bytes() {
            self.zero(has.bytes(), size.bytes())?;
        }
        self.take(size)
    }

    fn clone_method(&self) -> CloneMethod {
        CloneMethod::Copy
    }

    fn clone_base(&self, _clone: Image) -> Result<bool, RoleError> {
        Ok(false)
    }

    fn reflink_into(&self, _dir: &dyn DurableDir, _name: &str) -> bool {
        false
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
        true
    }

    fn clear(&self) -> Result<(), RoleError> {
        self.files.remove_restored()?;
        match self.claimed() {
            Ok(Some(claim)) => self.zero(0, BLANK_BYTES.min(Lb(claim.size_lb).bytes()))?,
            // Without the device, or with another one, there is nothing that may be wiped.
            Ok(None) => {}
            Err(e) if e.reason() == Reason::BadRequest => {}
            Err(e) => return Err(e),
        }
        self.claim.remove()?;
        *self.held.lock() = None;
        Ok(())
    }

    fn begin(&self) -> Result<Vec<String>, RoleError> {
        let mended = self.files.mend()?;
        self.hold()?;
        self.claimed()?;
        Ok(mended)
    }

    fn room(&self, _needed: u64) -> Result<(), RoleError> {
        Ok(())
    }
}
