//! The seams of the archive: everything outside of the process that it touches, in one place
//! (`ARCHITECTURE.md`, Seams). The real world is thin; tests and the simulator bring their own.

use crate::image::{FileImages, Images};
use server_kit::durable::{OpenDir, real_dirs};
use server_kit::net::{Connector, RealConnector};
use std::sync::Arc;

/// The world outside, as an archive sees it.
#[derive(Clone)]
pub struct World {
    /// How its base directory is opened, and with it everything below.
    pub open_dir: OpenDir,
    /// How images in there are opened.
    pub images: Arc<dyn Images>,
    /// How other servers are reached.
    pub connector: Arc<dyn Connector>,
    /// The wall clock in Unix seconds, against which the ages of snapshots are held.
    pub now: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl World {
    /// The real one.
    #[must_use]
    pub fn real() -> Self {
        Self {
            open_dir: real_dirs(),
            images: Arc::new(FileImages),
            connector: Arc::new(RealConnector),
            now: Arc::new(server_kit::clock::unix_seconds),
        }
    }

    /// The real one with other images.
    #[must_use]
    pub fn with_images(images: Arc<dyn Images>) -> Self {
        Self { images, ..Self::real() }
    }
}
