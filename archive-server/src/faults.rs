//! Errors of the formats and of devices as errors of the role: which volume, which file, where.

use server_kit::error::{Reason, RoleError, is_no_space};
use std::io;
use std::path::Path;
use wdiff_format::diff_set::DiffSetError;
use wdiff_format::error::{InputError, Problem, WdiffError};
use wdiff_format::name;

/// What is wrong with a wdiff, without its name and without advice.
pub(crate) fn what_is_wrong(error: &WdiffError) -> String {
    match error {
        WdiffError::Input(InputError { place, problem: Problem::Damaged(what) }) => {
            format!("at byte {}: {what}", place.offset)
        }
        WdiffError::Input(InputError { place, problem: Problem::Truncated }) => {
            format!("at byte {}: it ends without its end pack", place.offset)
        }
        other => server_kit::error::chain(other),
    }
}

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
    let is_damaged = reason == Reason::Damaged && harmed.is_some();
    let step = match is_damaged {
        true => format!(
            "from an archive that has it: walbc repair ARCHIVE {volume} --from OTHER. Older \
             snapshots are whole: walbc restorable ARCHIVE {volume} --all"
        ),
        false => see_restorable(volume),
    };
    let error = match &error {
        WdiffError::Input(InputError {
            problem: Problem::Damaged(_) | Problem::Truncated, ..
        }) => RoleError::new(reason, format!("{message}: {file}: {}", what_is_wrong(&error))),
        _ => RoleError::new(reason, message).with_source(error),
    };
    error.with_volume(volume).with_file(file).with_next_step(step)
}

/// A device or image file that failed.
pub(crate) fn image(volume: &str, attempt: &str, path: &Path, error: io::Error) -> RoleError {
    RoleError::io(attempt, path, error).with_volume(volume)
}

/// A question that the diffs do not answer.
pub(crate) fn snapshot(volume: &str, error: &DiffSetError) -> RoleError {
    RoleError::unknown_snapshot(volume, format!("volume {volume}: {error}"))
        .with_next_step(see_restorable(volume))
}

/// What to do about a snapshot that is not there.
pub(crate) fn see_restorable(volume: &str) -> String {
    format!("see what can be restored: walbc restorable ARCHIVE {volume} --all")
}
