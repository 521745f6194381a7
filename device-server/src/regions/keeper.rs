//! Keeps the map of a volume in its state directory. See the module above for when it is stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use server_kit::blocking;
use server_kit::durable::DurableDir;
use wlog_format::superblock::SuperBlock;
use wlog_format::units::Lsid;

use super::file::{decode, encode};
use super::{Position, Regions};

/// The name of the file.
const FILE: &str = "regions";

/// The file of one volume.
pub(crate) struct RegionKeeper {
    dir: Arc<dyn DurableDir>,
    volume: String,
    /// The last attempt to store failed: said once, not every ten seconds.
    failing: AtomicBool,
}

/// A map that goes on where it was stored.
pub(crate) struct Resumed {
    pub(crate) regions: Regions,
    /// The file as it is, when it was of use.
    file: Vec<u8>,
    covered: Position,
}

impl RegionKeeper {
    /// The map of the volume `volume` in its state directory `dir`.
    pub(crate) fn new(dir: Arc<dyn DurableDir>, volume: &str) -> Self {
        Self { dir, volume: volume.to_owned(), failing: AtomicBool::new(false) }
    }

    /// The map as it was stored, as far as it goes with the log that is there; else a new one.
    pub(crate) async fn resume(&self, super_block: &SuperBlock) -> Resumed {
        let path = self.dir.path().join(FILE);
        let anew = |why: String| {
            tracing::warn!(volume = %self.volume, %why, "the map of written regions begins anew");
            let regions = Regions::begin(super_block, why);
            Resumed { regions, file: Vec::new(), covered: Position(0) }
        };
        let dir = Arc::clone(&self.dir);
        let file = match blocking::run(move || dir.read(FILE)).await {
            Ok(Some(file)) => file,
            Ok(None) => return anew(format!("there was no {}", path.display())),
            Err(error) => return anew(error.full_message()),
        };
        match decode(&self.volume, &file) {
            Ok(stored) => {
                let covered = stored.covered;
                let regions = Regions::resume(stored, super_block);
                Resumed { regions, file, covered }
            }
            Err(why) => anew(format!("{}: {why}", path.display())),
        }
    }

    /// Redo has marked what it found, up to `written`: the map goes into service, stored if that
    /// changed anything.
    pub(crate) async fn settle(&self, resumed: Resumed, super_block: &SuperBlock) -> Regions {
        let Resumed { mut regions, file, covered } = resumed;
        regions.settle(super_block.device_size, super_block.written, covered);
        let reached = regions.history.position(super_block.written);
        let next = encode(&self.volume, &regions, reached);
        if next != file {
            self.write(next).await;
        }
        regions
    }

    /// Stores the map. It holds every write before `covered` of the present log.
    ///
    /// A failure is said in the log and nothing else: the file is behind the super block then, and
    /// the next start sees that.
    pub(crate) async fn store(&self, regions: &Regions, covered: Lsid) {
        let covered = regions.history.position(covered);
        self.write(encode(&self.volume, regions, covered)).await;
    }

    /// Stores the map before a log reset: `next` knows the new log already.
    pub(crate) async fn announce(&self, next: &Regions) {
        self.store(next, Lsid(0)).await;
    }

    async fn write(&self, content: Vec<u8>) {
        let dir = Arc::clone(&self.dir);
        let written: Result<(), _> = blocking::run(move || dir.write_atomic(FILE, &content)).await;
        let failed = written.is_err();
        let failed_before = self.failing.swap(failed, Ordering::Relaxed);
        match written {
            Err(error) if !failed_before => tracing::error!(
                volume = %self.volume, error = error.full_message(),
                "the map of written regions cannot be stored: after a restart of the device role \
                 a hash backup will have to compare the whole volume"
            ),
            Ok(()) if failed_before => {
                tracing::info!(volume = %self.volume, "the map of written regions is stored again");
            }
            _ => {}
        }
    }
}
