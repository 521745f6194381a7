//! The logging block device: the only role of walb in the I/O path.
//!
//! A volume is a *data device* (the plain image of the volume) and a *log device* (a ring of
//! logpacks). Every write goes to the log first; from there the storage role ships it, and from
//! there it reaches the data device.
//!
//! ```text
//!  NBD client          frontend            volume                    control (gRPC)
//!      |  write           |                  |                            | lsids, oldest, reset,
//!      v                  v                  v                            v resize, freeze, watch
//!   +----------------------------------------------+   +--------------------------------------+
//!   | request: checksum, a place in pending memory |   | admin, checkpoint: the super block   |
//!   +----------------------+-----------------------+   +--------------------------------------+
//!                          | queue                                        ^
//!   +----------------------v-----------------------+                      | prev_written
//!   | commit: the order of all writes; plan -> log |  completed           |
//!   +----------------------+-----------------------+                      |
//!        log device  <-----+---> overlay (pending writes, for reads)      |
//!   +----------------------v-----------------------+                      |
//!   | flusher: one flush for many writes           |  permanent           |
//!   +----------------------+-----------------------+                      |
//!   +----------------------v-----------------------+                      |
//!   | data_writer: sum, sort, coalesce             |  written ------------+
//!   +----------------------+-----------------------+
//!        data device <-----+
//! ```
//!
//! # The life of one write
//!
//! 1. NBD receives the payload into page-aligned memory. It is never copied again: the same buffer
//!    goes to the log write, to readers, and to the data write.
//! 2. [`Volume::write`] waits for a place in the memory for pending data (bounded; beyond it
//!    writers wait), computes the checksum, and queues the request.
//! 3. `commit` takes whatever queued while log writes were in flight, plans packs for it (`plan`),
//!    and writes header and payload in one vectored write. Up to four are in flight. Before that,
//!    the plan is admitted: the volume is not frozen, and the ring has room (I4).
//! 4. Completions are taken in order: the write enters the overlay of pending data and is
//!    acknowledged (I2); with FUA only after the next flush.
//! 5. `flusher` flushes the log device: at once when somebody waits or is about to (clients that
//!    flush after every so many writes), else some milliseconds later.
//!    Now the write is *permanent*: the storage role may ship it, and the data writer may write it
//!    (I1).
//! 6. `data_writer` lets permanent packs gather for some milliseconds, brings them to the data
//!    device and takes them out of the overlay. Until then reads find it in the overlay (I3).
//! 7. `checkpoint` flushes the data device and records `written_lsid`: redo will not look at it
//!    again.
//!
//! All of this, and the NBD connections of the volume, happens on one thread (`io_threads`), so
//! that no step wakes another thread.
//!
//! # Positions
//!
//! Seven log sequence ids say how far all this is ([`Positions`]); each task moves its own, and
//! they are always in this order:
//!
//! ```text
//!  oldest <= prev_written <= written <= permanent <= flush <= completed <= latest
//!  control    checkpoint    data_writer  flusher     flusher   commit       commit
//! ```
//!
//! # What holds
//!
//! | rule | where | which test breaks without it |
//! |---|---|---|
//! | I1 log before data | `data_writer` stops at `permanent` | `power_cut`, `faults` |
//! | I2 acknowledged in order | `commit`, `flusher` | `power_cut`, `faults` |
//! | I3 read your writes | overlay before device, batches in log order | `read_your_writes` |
//! | I4 the ring is not reused early | `commit` admits a plan | `overflow`, `power_cut` |
//! | every stop is repaired | [`redo()`] before the volume serves | `power_cut`, `stale_packs` |
//! | no answer after an error | `Core::fail` | `faults` |
//!
//! The log and the data device are locked against other processes; the storage role reads both.
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
mod io_threads;
mod log_reader;
mod options;
mod overlay;
mod overwrite;
mod plan;
mod positions;
mod redo;
mod regions;
mod request;
mod serve;
mod take_over;
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
pub use regions::{Unknown, WrittenRegions};
pub use serve::serve;
pub use take_over::{EndOverwriteArgs, end_overwrite};
pub use volume::{ReadPiece, Volume};
