//! Start: from directories to volumes (`semantics.md` §5.5).
//!
//! Invariants: what a killed process left half-made is removed, by its name; the diffs are what the
//! files are called; a wdiff is marked for deletion only when its content is surely elsewhere, or
//! nothing of its volume is left; no failure of one volume reaches another.

use crate::backend::{Backends, Image, VolumeImages};
use crate::deleter::Wake;
use crate::index::INDEX_DIR;
use crate::leases::Leases;
use crate::mount::SOCKET_SUFFIX;
use crate::record::{
    COPY_FILE, Coming, ELSEWHERE_FILE, Elsewhere, Kept, PROGRESS_FILE, Record, STATE_FILE,
};
use crate::repair::place::ASIDE_SUFFIX;
use crate::state::State;
use crate::volume::{Catalogue, Fault, Volume};
use server_kit::blocking;
use server_kit::durable::{DurableDir, StateFile};
use server_kit::error::RoleError;
use server_kit::volume_name::VolumeName;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use wdiff_format::diff_set::DiffSet;
use wdiff_format::gid::{BaseState, Diff, Gid, Snapshot};
use wdiff_format::name;
use wlog_format::units::Lb;

/// Who found a fault at start.
const LOAD: &str = "load";
/// A gap in the history, found at start.
pub(crate) const GAP: &str = "gap";

/// Loads every volume below `base`, several at a time. Blocks.
pub(crate) fn all(
    base: &Arc<dyn DurableDir>,
    backends: &Backends,
    wake: &Wake,
) -> Result<BTreeMap<VolumeName, Arc<Volume>>, RoleError> {
    let names = base.list()?;
    let names = names.into_iter().filter(|n| base.has_dir(n));
    // Directories of other names are not ours.
    let names: Vec<VolumeName> = names.filter_map(|n| n.parse().ok()).collect();
    let load = |part: &[VolumeName]| -> Vec<_> {
        part.iter().map(|name| (name.clone(), volume(&**base, backends, wake, name))).collect()
    };
    let share = names.len().div_ceil(blocking::parallelism()).max(1);
    if share >= names.len() {
        return load(&names).into_iter().map(|(name, v)| v.map(|v| (name, v))).collect();
    }
    let volumes = std::thread::scope(|scope| {
        let load = &load;
        let threads: Vec<_> =
            names.chunks(share).map(|part| scope.spawn(move || load(part))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    let mut found = BTreeMap::new();
    for (name, volume) in volumes.into_iter().flatten() {
        found.insert(name, volume?);
    }
    Ok(found)
}

/// Loads one volume; only a directory that cannot be opened at all is an error. Blocks.
pub(crate) fn volume(
    base: &dyn DurableDir,
    backends: &Backends,
    wake: &Wake,
    name: &VolumeName,
) -> Result<Arc<Volume>, RoleError> {
    let dir = base.open_dir(name.as_str())?;
    let images = backends.of(name, &dir);
    let mut leases = Leases::new(dir.clone(), wake.clone());
    let loaded = load(&dir, &*images, &leases, name);
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::error!(volume = %name, error = error.full_message(), "cannot load the volume");
            let base = BaseState::at(Snapshot::clean(Gid(0)), 0);
            let mut catalogue = Catalogue::new(Record::new(), base);
            catalogue.faults.insert(LOAD, Fault::from(&error));
            let is_whole = |file| StateFile::<Record>::new(dir.clone(), file).load();
            catalogue.rebuildable = !matches!(is_whole(STATE_FILE), Ok(Some(_)))
                && matches!(is_whole(COPY_FILE), Ok(Some(_)));
            // Nothing of a broken volume is deleted.
            leases = Leases::new(dir.clone(), wake.clone());
            (State::Broken, catalogue)
        }
    };
    Ok(Volume::new(name.clone(), dir, images, leases, loaded))
}

fn load(
    dir: &Arc<dyn DurableDir>,
    images: &dyn VolumeImages,
    leases: &Leases,
    name: &VolumeName,
) -> Result<(State, Catalogue), RoleError> {
    let files = clean_up(dir)?;
    let mut mended = images.begin()?;
    if let Err(error) = forget_elsewhere(dir) {
        // Waste in a place that is not ours: no reason not to serve.
        tracing::warn!(volume = %name, error = error.full_message(), "a half-made restore is left");
    }
    let file = StateFile::<Record>::new(dir.clone(), STATE_FILE);
    let lost = || {
        let step = format!("walbc rebuild ARCHIVE {name}");
        let message = format!("{} is missing; {step} makes it anew", file.path().display());
        RoleError::damaged(message).with_volume(name).with_next_step(step)
    };
    let mut record = file.load()?.ok_or_else(lost)?;
    finish_changes(dir, images, &file, &mut record)?;
    leases.find_marked(&files)?;
    leases.mark(&replaced(&**dir, &files)?)?;
    let state = State::from(record.state);
    let at = record.base().map_err(|e| {
        let file = file.path().display().to_string();
        RoleError::damaged(format!("{file} makes no sense: {e}")).with_file(file)
    })?;
    let mut catalogue = Catalogue::new(record, at);
    if catalogue.record.state == Kept::SyncReady {
        // Left by a reset that was interrupted; the image may be a full backup to be resumed.
        let is_wdiff = |name: &String| name.ends_with(name::SUFFIX);
        leases.mark(&files.into_iter().filter(is_wdiff).collect::<Vec<_>>())?;
        images.remove_restored()?;
        dir.remove_dir(INDEX_DIR)?;
        return Ok((state, catalogue));
    }
    dir.remove(PROGRESS_FILE)?;
    check_image(images, Lb(catalogue.record.size_lb))?;
    let fault = read_diffs(&**dir, files, &mut catalogue.diffs)?;
    let waste = catalogue.diffs.superseded(at.snapshot());
    let names: Result<Vec<_>, _> = waste.iter().map(name::to_file_name).collect();
    leases.mark(&names.map_err(|e| RoleError::damaged(e.to_string()))?)?;
    for diff in &waste {
        catalogue.diffs.remove(diff);
        // Those below the base image are left by an apply, which tells of itself.
        if diff.end().begin() > at.snapshot().begin() {
            mended.push(format!("diff {diff} was removed: a merge had put it into another one"));
        }
    }
    catalogue.mended = mended;
    catalogue.latest = catalogue.diffs.latest(&at);
    let gap = gap(&catalogue);
    for (finder, fault) in [(LOAD, fault), (GAP, gap)] {
        if let Some(fault) = fault {
            tracing::error!(volume = %name, fault, "something is wrong with the volume");
            catalogue.faults.insert(finder, Fault::damage(fault));
        }
    }
    Ok((state, catalogue))
}

/// Removes what is half-made, and the sockets of mounts; the names of the files.
fn clean_up(dir: &Arc<dyn DurableDir>) -> Result<Vec<String>, RoleError> {
    dir.remove_tmp_files()?;
    dir.remove_tmp_dirs()?;
    if dir.has_dir(INDEX_DIR) {
        dir.open_dir(INDEX_DIR)?.remove_tmp_files()?;
    }
    let files = dir.list()?;
    let is_socket = |name: &&String| name.ends_with(SOCKET_SUFFIX);
    dir.remove_all(&files.iter().filter(is_socket).cloned().collect::<Vec<_>>())?;
    Ok(files)
}

/// Finishes the changes of the state that a killed process had begun, and brings its copy up to
/// date.
fn finish_changes(
    dir: &Arc<dyn DurableDir>,
    images: &dyn VolumeImages,
    file: &StateFile<Record>,
    record: &mut Record,
) -> Result<(), RoleError> {
    if let Some(Coming { file: name, log_uuid }) = record.coming.take() {
        // Killed while a diff of another log was kept: its file says whether that was done. Written
        // down before the file can go.
        if dir.look_at(&name)?.is_some() {
            record.log_uuid = log_uuid;
        }
        file.store(record)?;
    }
    if let Some(size_lb) = record.growing_lb.take() {
        // Killed while the image was made larger: that is finished, it harms nothing.
        images.grow(Lb(size_lb))?;
        record.size_lb = size_lb;
        file.store(record)?;
    }
    let copy = StateFile::<Record>::new(dir.clone(), COPY_FILE);
    if !copy.load().is_ok_and(|kept| kept.as_ref() == Some(&*record)) {
        copy.store(record)?;
    }
    Ok(())
}

/// The damaged wdiffs that were put aside, and have a sound one in their place.
fn replaced(dir: &dyn DurableDir, files: &[String]) -> Result<Vec<String>, RoleError> {
    let mut replaced = Vec::new();
    for aside in files {
        let Some(name) = aside.strip_suffix(ASIDE_SUFFIX) else { continue };
        if dir.look_at(name)?.is_some() {
            replaced.push(aside.clone());
        }
    }
    Ok(replaced)
}

/// Removes the half-made image of a restore to elsewhere that was killed.
fn forget_elsewhere(dir: &Arc<dyn DurableDir>) -> Result<(), RoleError> {
    let file = StateFile::<Elsewhere>::new(dir.clone(), ELSEWHERE_FILE);
    let Some(Elsewhere { half_made }) = file.load()? else { return Ok(()) };
    // Where a person chose, outside of what is ours: the file system itself.
    match fs::remove_file(&half_made) {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(RoleError::io("remove the half-made", &half_made, e))
        }
        _ => Ok(file.remove()?),
    }
}

fn check_image(images: &dyn VolumeImages, size: Lb) -> Result<(), RoleError> {
    let found = images.found()?;
    if found == Some(size.bytes()) {
        return Ok(());
    }
    let path = images.path(Image::Base);
    let path = path.display();
    let message = match found {
        Some(has) => format!("the base image {path} has {has} bytes, not {}", size.bytes()),
        None => format!("the base image {path} is missing"),
    };
    Err(RoleError::damaged(message).with_file(path.to_string()))
}

/// Reads the catalogue of diffs from the names of the files; the answer is what is wrong with them.
pub(crate) fn read_diffs(
    dir: &dyn DurableDir,
    files: Vec<String>,
    diffs: &mut DiffSet,
) -> Result<Option<String>, RoleError> {
    let mut fault = None;
    for file in files {
        if !file.ends_with(name::SUFFIX) {
            continue;
        }
        let failed = |e| RoleError::io("look at", dir.path().join(&file), e);
        let info = dir.info(&file).map_err(failed)?;
        let read = name::parse(&file).map_err(|e| e.to_string()).and_then(|mut diff| {
            diff.size = info.len_bytes;
            diffs.insert(diff).map_err(|e| format!("{file} is left alone: {e}"))
        });
        fault = fault.or(read.err());
    }
    Ok(fault)
}

/// Beyond every gid.
pub(crate) const GID_MAX: Gid = Gid(u64::MAX);

/// The first diff behind a gap.
pub(crate) fn beyond(catalogue: &Catalogue) -> Option<Diff> {
    catalogue.diffs.range(catalogue.latest.0.begin(), GID_MAX).next().copied()
}

/// What lies behind a gap, in words.
pub(crate) fn gap(catalogue: &Catalogue) -> Option<String> {
    let (reached, beyond) = (catalogue.latest.0, beyond(catalogue)?);
    Some(format!(
        "a wdiff is missing: snapshots end at {reached}, but diff {beyond} is there; bring the \
         missing file back, or make a hash backup"
    ))
}
