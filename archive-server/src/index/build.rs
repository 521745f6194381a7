//! From wdiffs to runs. Memory is bounded: entries are sorted [`ENTRIES_MAX`] at a time, and a
//! wdiff that alone has more is read once for each class of entries, which come out sorted.

use super::{INDEX_DIR, failed, wdiff_failed};
use crate::leases::Lease;
use crate::volume::Volume;
use server_kit::error::RoleError;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use wdiff_format::error::{InputError, Place, Problem, WdiffError};
use wdiff_format::gid::Diff;
use wdiff_format::index_run::{Covered, Entry, RunError, RunWriter};
use wdiff_format::io_at::ReadObject;
use wdiff_format::locate::{Location, locate};
use wlog_format::units::to_usize;

/// Entries that are sorted in memory; each takes 48 bytes.
const ENTRIES_MAX: usize = 1 << 19;
/// Memory before the file.
const BUFFER_BYTES: usize = 256 << 10;

/// Where the wdiffs come from: a volume, and those of its files that somebody holds.
pub(crate) struct Source {
    pub(crate) volume: Arc<Volume>,
    pub(crate) lease: Lease,
}

/// Some diffs on their way into a run: what is known of each, and their entries.
#[derive(Default)]
struct Group {
    positions: Vec<u32>,
    covered: Vec<Covered>,
    entries: Vec<Entry>,
}

/// Why a wdiff is not in a group.
enum Left {
    /// There is no room for it.
    Full,
    Failed(WdiffError),
}

impl Source {
    /// One of the wdiffs, and the name that errors use. Blocks.
    pub(crate) fn open(&self, position: u32) -> Result<(ReadObject, Arc<str>), WdiffError> {
        let number = to_usize(position.into());
        let dir = &self.volume.dir;
        let (name, opened) = self.lease.open(number..number + 1, |names| {
            let name = names.first().map_or("", String::as_str);
            let path: Arc<str> = Path::join(dir.path(), name).display().to_string().into();
            (path, dir.open_file(name))
        });
        let place = Place { file: name.clone(), offset: 0 };
        let opened = opened.map_err(|e| InputError { place, problem: Problem::Open(e) })?;
        Ok((opened, name))
    }

    /// The records of a wdiff. Blocks.
    pub(crate) fn locate(
        &self,
        position: u32,
    ) -> Result<impl Iterator<Item = Result<Location, WdiffError>> + use<>, WdiffError> {
        let (input, name) = self.open(position)?;
        locate(input, name)
    }

    fn diff(&self, position: u32) -> Option<&Diff> {
        self.lease.diffs().get(to_usize(position.into()))
    }

    /// Adds a wdiff to a group, of at most `max` entries.
    fn add(&self, group: &mut Group, position: u32, max: usize) -> Result<(), Left> {
        let Some(diff) = self.diff(position) else { return Ok(()) };
        let mut covered = Covered::new(diff);
        let before = group.entries.len();
        let number = u32::try_from(group.covered.len()).unwrap_or(u32::MAX);
        let mut all = || {
            for record in self.locate(position).map_err(Left::Failed)? {
                let record = record.map_err(Left::Failed)?;
                covered.count(&record);
                group.entries.extend(Entry::of(record, number));
                if group.entries.len() > max {
                    return Err(Left::Full);
                }
            }
            Ok(())
        };
        let done = all();
        if done.is_ok() {
            group.covered.push(covered);
            group.positions.push(position);
        } else {
            group.entries.truncate(before);
        }
        done
    }

    /// The run of some wdiffs, which are not many. Blocks.
    pub(super) fn in_memory(&self, positions: &[u32]) -> Result<Vec<u8>, RoleError> {
        let mut group = Group::default();
        for position in positions {
            match self.add(&mut group, *position, usize::MAX) {
                Ok(()) | Err(Left::Full) => {}
                Err(Left::Failed(error)) => return Err(wdiff_failed(&self.volume, error)),
            }
        }
        group.write(Vec::new()).map_err(|e| failed(self.volume.name.as_str(), e))
    }

    /// Covers wdiffs by new runs, for as long as it is `going`. One that cannot be read is left
    /// out: who needs it will say so. Blocks.
    pub(super) fn write_runs(
        &self,
        positions: &[u32],
        going: &dyn Fn() -> bool,
    ) -> Result<(), RoleError> {
        let mut group = Group::default();
        for position in positions {
            if !going() {
                return Ok(());
            }
            let mut added = self.add(&mut group, *position, ENTRIES_MAX);
            if matches!(added, Err(Left::Full)) && !group.covered.is_empty() {
                commit(&self.volume, |output| std::mem::take(&mut group).write(output).map(whole))?;
                added = self.add(&mut group, *position, ENTRIES_MAX);
            }
            match added {
                Ok(()) => {}
                Err(Left::Full) => self.write_large(*position)?,
                Err(Left::Failed(error)) => self.leave_out(error),
            }
        }
        if group.covered.is_empty() {
            return Ok(());
        }
        commit(&self.volume, |output| group.write(output).map(whole)).map(drop)
    }

    fn leave_out(&self, error: WdiffError) {
        let error = wdiff_failed(&self.volume, error).full_message();
        tracing::warn!(volume = %self.volume.name, error, "a wdiff cannot be indexed");
    }

    /// A run of one wdiff with very many records.
    fn write_large(&self, position: u32) -> Result<(), RoleError> {
        let Some(diff) = self.diff(position) else { return Ok(()) };
        let failed_wdiff = |e| wdiff_failed(&self.volume, e);
        let mut covered = Covered::new(diff);
        let mut classes = 0_u32;
        for record in self.locate(position).map_err(failed_wdiff)? {
            let record = record.map_err(failed_wdiff)?;
            covered.count(&record);
            Entry::of(record, 0).for_each(|entry| classes |= entry.blocks());
        }
        let written = commit(&self.volume, |output| {
            let mut writer = RunWriter::new(output);
            for class in (0..32).filter(|class| classes >> class & 1 == 1) {
                // It was read a moment ago: should it fail now, the run is not kept.
                let records = self.locate(position).into_iter().flatten().map_while(Result::ok);
                let entries = records.flat_map(|record| Entry::of(record, 0));
                for entry in entries.filter(|entry| entry.key.class == class) {
                    writer.push(&entry)?;
                }
            }
            writer.finish(&[covered]).map(whole)
        });
        written.map(drop)
    }
}

/// A run was written to its end.
fn whole<W>(_output: W) -> bool {
    true
}

/// A new run, durable under its name, if `write` says that it is whole. An input that it finds
/// damaged is taken away. Blocks.
pub(super) fn commit(
    volume: &Volume,
    write: impl FnOnce(&mut dyn Write) -> Result<bool, RunError>,
) -> Result<bool, RoleError> {
    let name = volume.name.as_str();
    let dir = volume.dir.create_dir(INDEX_DIR)?;
    let mut tmp = dir.create_tmp()?;
    let mut output = BufWriter::with_capacity(BUFFER_BYTES, &mut tmp);
    let written = write(&mut output).and_then(|whole| {
        output.flush().map_err(RunError::Write)?;
        Ok(whole)
    });
    drop(output);
    match written {
        Ok(true) => {
            let file = volume.index.next_name(&*dir)?;
            dir.commit(tmp, &file).map_err(|e| RoleError::from(e).with_volume(name))?;
            Ok(true)
        }
        Ok(false) => Ok(false),
        Err(error) => {
            volume.index.heal(&error)?;
            Err(failed(name, error))
        }
    }
}

impl Group {
    fn write<W: Write>(mut self, output: W) -> Result<W, RunError> {
        // Numbers ascend as the diffs do.
        self.entries.sort_unstable_by_key(|entry| entry.key);
        let mut writer = RunWriter::new(output);
        for entry in &self.entries {
            writer.push(entry)?;
        }
        writer.finish(&self.covered)
    }
}
