//! Reading back one thing: a wdiff, or a piece of the base image.
//!
//! Invariants: what is read is leased, so that nothing is called missing because it was deleted
//! meanwhile (I12); a failure is damage only if the catalogue still wants the file afterwards; what
//! is found goes into the ledger and is logged once.

use super::ledger::{Found, ImageCheck, Kind};
use crate::backend::Image;
use crate::faults;
use crate::jobs::check;
use crate::volume::Volume;
use block_io::device::BlockDevice;
use futures::TryStreamExt;
use server_kit::blocking;
use server_kit::error::{Reason, RoleError};
use server_kit::pace::Pace;
use server_kit::scan::{self, CELL_BYTES};
use server_kit::{clock, units};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;
use wdiff_format::error::WdiffError;
use wdiff_format::gid::Diff;
use wdiff_format::io_at::{ReadAt, ReadObject};
use wdiff_format::name;
use wdiff_format::open::WdiffReader;
use wlog_format::units::Lb;

/// Bytes of the base image between two looks at whether something else has to be done.
pub(super) const PIECE_BYTES: u64 = 64 << 20;

/// How something is read back.
pub(super) struct Reading {
    pub(super) token: CancellationToken,
    pub(super) pace: Pace,
    pub(super) threads: usize,
    /// Hears of the bytes that were read.
    pub(super) advance: Arc<dyn Fn(u64) + Send + Sync>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Well,
    Damaged,
    /// Nobody wants it any more.
    Gone,
}

/// A file that tells how much of it was read.
struct Counted {
    file: ReadObject,
    bytes: Arc<AtomicU64>,
}

impl ReadAt for Counted {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)?;
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.file.size_bytes()
    }
}

/// Reads back a wdiff, and writes into the ledger what came of it.
///
/// # Errors
/// Cancelled, or the thread died; damage is none.
pub(super) async fn wdiff(
    volume: &Arc<Volume>,
    diff: Diff,
    reading: &mut Reading,
) -> Result<Outcome, RoleError> {
    let leased = volume.with(|c| {
        let stored = c.diffs.get(&diff).copied();
        stored.map(|d| (d, volume.leases.take([d])))
    });
    let Some((stored, lease)) = leased else { return Ok(Outcome::Gone) };
    let here = volume.clone();
    let Reading { token, pace, threads, advance } = reading;
    let (token, threads, advance) = (token.clone(), *threads, advance.clone());
    let mut held = std::mem::replace(pace, Pace::new(0));
    let (found, held) = blocking::run_waiting(move || {
        let found = read_wdiff(&here, &lease, stored, (&token, &mut held, threads, &*advance));
        Ok::<_, RoleError>((found?, held))
    })
    .await?;
    *pace = held;
    let wanted = volume.with(|c| c.diffs.get(&stored).is_some_and(|d| d.size == stored.size));
    let now_s = clock::unix_seconds();
    Ok(match found {
        _ if !wanted => Outcome::Gone,
        None => {
            volume.ledger.checked(&stored, now_s);
            Outcome::Well
        }
        Some((kind, why)) => {
            let file = volume.diff_name(&stored)?;
            tell(volume, Found { kind, file, why, found_s: now_s });
            Outcome::Damaged
        }
    })
}

/// Whoever read a wdiff in vain met damage: it is known from now on. Blocks for as long as a look
/// at a file takes.
pub(crate) fn met(volume: &Volume, error: &RoleError) {
    let path = error.detail().file.as_str();
    let named = name::parse(path.rsplit('/').next().unwrap_or_default()).ok();
    let stored = named.and_then(|diff| volume.with(|c| c.diffs.get(&diff).copied()));
    let file = stored.and_then(|diff| volume.diff_name(&diff).ok());
    let Some(file) = file.filter(|_| error.reason() == Reason::Damaged) else { return };
    let found_s = clock::unix_seconds();
    let (kind, why) = match volume.dir.look_at(&file) {
        Ok(None) => (Kind::Missing, "is missing".to_owned()),
        _ => {
            let message = error.full_message();
            let why = message.rsplit_once(&format!("{path}: ")).map_or(&*message, |(_, why)| why);
            (Kind::Wdiff, format!("is damaged: {why}"))
        }
    };
    tell(volume, Found { kind, file, why, found_s });
}

/// Remembers damage, and logs it when it is new.
pub(super) fn tell(volume: &Volume, found: Found) {
    let (file, why) = (found.file.clone(), found.why.clone());
    if volume.ledger.found(found) {
        tracing::error!(volume = %volume.name, file, why, "found damage");
    }
}

type How<'a> = (&'a CancellationToken, &'a mut Pace, usize, &'a (dyn Fn(u64) + Send + Sync));

/// What is wrong with a file, if anything; an error when that cannot be told. Blocks.
fn read_wdiff(
    volume: &Volume,
    lease: &crate::leases::Lease,
    diff: Diff,
    (token, pace, threads, advance): How<'_>,
) -> Result<Option<(Kind, String)>, RoleError> {
    let bytes = Arc::new(AtomicU64::new(0));
    let opened = lease.open(0..1, |names| {
        let name = names.first().cloned().unwrap_or_default();
        (volume.dir.path().join(&name).display().to_string(), volume.dir.open_file(&name))
    });
    let (path, opened) = opened;
    let file = match opened {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            advance(diff.size);
            return Ok(Some((Kind::Missing, "is missing".into())));
        }
        other => other.map_err(|e| RoleError::io("open", &path, e).with_volume(&volume.name))?,
    };
    let size = file.size_bytes().map_err(|e| RoleError::io("look at", &path, e))?;
    if size != diff.size {
        advance(diff.size);
        let why = format!("has {size} bytes, not {} as it came", diff.size);
        return Ok(Some((Kind::WrongSize, why)));
    }
    let counted = Arc::new(Counted { file, bytes: bytes.clone() });
    let mut told = 0;
    let checked = records(counted, &path, volume.size(), threads, || {
        let read = bytes.load(Ordering::Relaxed);
        let more = read.saturating_sub(told).min(size - told.min(size));
        told = read;
        advance(more);
        blocking::wait(pace.wait_or(more, token.cancelled()));
        check(token)
    });
    advance(size.saturating_sub(told));
    match checked {
        Ok(()) => Ok(None),
        Err(Stopped::Asked(error)) => Err(error),
        Err(Stopped::Damage(error)) => {
            Ok(Some((Kind::Wdiff, format!("is damaged: {}", faults::what_is_wrong(&error)))))
        }
    }
}

enum Stopped {
    Asked(RoleError),
    Damage(WdiffError),
}

/// Checks that every record can be read; `step` is called after each.
fn records(
    file: ReadObject,
    path: &str,
    size: Lb,
    threads: usize,
    mut step: impl FnMut() -> Result<(), RoleError>,
) -> Result<(), Stopped> {
    let reader = WdiffReader::from_file(file, path).map_err(Stopped::Damage)?;
    for range in wdiff_format::check::check(reader, threads) {
        let Range { start, end } = range.map_err(Stopped::Damage)?;
        if end > size {
            let (address, end, image_blocks) = (start.0, end.0, size.0);
            return Err(Stopped::Damage(WdiffError::BeyondEnd { address, end, image_blocks }));
        }
        step().map_err(Stopped::Asked)?;
    }
    Ok(())
}

/// What damage of the base image is called.
fn image_file(volume: &Volume) -> String {
    let path = volume.images.path(Image::Base);
    path.file_name().map_or_else(|| "base image".into(), |n| n.to_string_lossy().into_owned())
}

/// Opens the base image, if it has its size; otherwise that is damage, and all there is to read.
pub(super) async fn open_image(volume: &Volume) -> Result<Option<Arc<dyn BlockDevice>>, RoleError> {
    let wrong = |why: String| {
        let (file, found_s) = (image_file(volume), clock::unix_seconds());
        tell(volume, Found { kind: Kind::Image, file, why, found_s });
        volume.ledger.set_image(ImageCheck { done_bytes: 0, checked_s: found_s });
        Ok(None)
    };
    let device = match volume.open_image(Image::Base, volume.size()).await {
        Ok(device) => device,
        // Nothing is wrong with what is on it.
        Err(error) if error.is_read_only() => return Err(error),
        Err(error) => return wrong(format!("cannot be opened: {}", error.full_message())),
    };
    let (has, size) = (device.size_bytes(), volume.size().bytes());
    if has >= size {
        return Ok(Some(device));
    }
    wrong(format!("has {}, not {}", units::format_size(has), units::format_size(size)))
}

/// What came of a piece of the base image.
pub(super) struct Piece {
    pub(super) last: bool,
    pub(super) damaged: bool,
}

/// Reads the next piece of the base image, from where the ledger says.
pub(super) async fn image_piece(
    volume: &Volume,
    device: &Arc<dyn BlockDevice>,
    reading: &mut Reading,
) -> Result<Piece, RoleError> {
    let mut damaged = false;
    let (at, size) = (volume.ledger.image(), volume.size().bytes());
    let begin = at.done_bytes.min(size);
    let end = size.min(begin.saturating_add(PIECE_BYTES));
    let mut pieces = scan::bulks(device.clone(), begin, end, CELL_BYTES);
    loop {
        check(&reading.token)?;
        match pieces.try_next().await {
            Ok(Some(piece)) => {
                if let scan::Content::Data(_) = piece.content {
                    reading.pace.wait_or(piece.len(), reading.token.cancelled()).await;
                }
                (reading.advance)(piece.len());
            }
            Ok(None) => break,
            Err(error) if error.reason() == Reason::Cancelled => return Err(error),
            Err(error) => {
                let why = format!("cannot be read: {}", error.full_message());
                let (file, found_s) = (image_file(volume), clock::unix_seconds());
                tell(volume, Found { kind: Kind::Image, file, why, found_s });
                damaged = true;
                break;
            }
        }
    }
    let last = end >= size;
    let checked_s = if last { clock::unix_seconds() } else { at.checked_s };
    let done_bytes = if last { 0 } else { end };
    volume.ledger.set_image(ImageCheck { done_bytes, checked_s });
    Ok(Piece { last, damaged })
}
