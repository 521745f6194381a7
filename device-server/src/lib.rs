//! device-server: the logging block device.
#![forbid(unsafe_code)]

mod admin;
mod checkpoint;
mod commit;
mod config;
mod control;
mod core;
mod data_writer;
mod error;
mod flusher;
mod format;
mod frontend;
mod log_reader;
mod options;
mod overlay;
mod plan;
mod positions;
mod redo;
mod request;
mod serve;
mod volume;
mod zeros;

pub use admin::{FreezeTicket, MAX_FREEZE};
pub use config::{ServeArgs, VolumeSpec};
pub use control::{ControlService, Served, ServedVolumes};
pub use core::Status;
pub use error::{OpenError, VolumeError};
pub use format::{DeviceRole, format_devices, format_ldev, open_device};
pub use frontend::VolumeExport;
pub use options::{MIN_PENDING_BYTES, OverflowPolicy, VolumeOptions};
pub use positions::Positions;
pub use redo::{RedoOptions, RedoReport, StaleSearch, read_super_block, redo};
pub use serve::serve;
pub use volume::{ReadPiece, Volume};
