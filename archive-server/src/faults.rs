//! Errors of the formats and of devices as errors of the role: which volume, which file, where.

use server_kit::error::{Reason, RoleError, is_no_space};
use std::io;
use std::path::Path;
use wdiff_format::diff_set::DiffSetError;
use wdiff_format::error::{Problem, WdiffError};
use wdiff_format::name;

/// A wdiff that cannot be read, or an image that its records do not fit.
pub(crate) fn wdiff(volume: &str, error: WdiffError) -> RoleError {
    let file = match &error {
        WdiffError::Input(input) => input.place.file.to_string(),
        _ => String::new(),
    };
    let harmed = name::parse(file.rsplit('/').next().unwrap_or_default()).ok();
    let message = match harmed.as_ref().map(|diff| diff.begin().begin()) {
        Some(gid) => format!(
            "cannot read a wdiff of volume {volume} that every snapshot after gid {gid} needs"
        ),
        None => format!("cannot read the wdiffs of volume {volume}"),
    };
    let reason = match &error {
        WdiffError::Input(input) => match &input.problem {
            Problem::Io(e) if is_no_space(e) => Reason::NoSpace,
            Problem::Io(e) | Problem::Open(e) if e.kind() != io::ErrorKind::NotFound => Reason::Io,
            _ => Reason::Damaged,
        },
        WdiffError::BeyondEnd { .. } => Reason::WrongSize,
        WdiffError::Output { source, .. } if is_no_space(source) => Reason::NoSpace,
        WdiffError::Output { .. } => Reason::Io,
        _ => Reason::Damaged,
    };
    let step = match (reason, harmed) {
        (Reason::Damaged, Some(_)) => format!(
            "bring the file back from another archive; or take it away, restart this archive, and \
             run: walbc hash-backup STORAGE {volume}. Older snapshots are whole: \
             walbc restorable ARCHIVE {volume} --all"
        ),
        _ => format!("see what can be restored: walbc restorable ARCHIVE {volume} --all"),
    };
    let error = RoleError::new(reason, message).with_volume(volume).with_source(error);
    error.with_file(file).with_next_step(step)
}

/// A device or image file that failed.
pub(crate) fn image(volume: &str, attempt: &str, path: &Path, error: io::Error) -> RoleError {
    RoleError::io(attempt, path, error).with_volume(volume)
}

/// A question that the diffs do not answer.
pub(crate) fn snapshot(volume: &str, error: &DiffSetError) -> RoleError {
    RoleError::unknown_snapshot(volume, format!("volume {volume}: {error}")).with_next_step(
        format!("see what can be restored: walbc restorable ARCHIVE {volume} --all"),
    )
}
