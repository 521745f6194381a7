//! Which snapshots are kept: explicit ones survive merges (`semantics.md` §2.12), and diffs that no
//! snapshot needs go (§2.13).
//!
//! Invariants: whether a snapshot is explicit is in the name of the file that starts at it, so a
//! change is a rename; every gid is checked before any is changed; a diff that `gc` removes is out
//! of the catalogue before its file is marked for deletion (I12).

use crate::jobs::{APPLY, GC, KEEP, MERGE};
use crate::load::GAP;
use crate::repair::place::ASIDE_SUFFIX;
use crate::state::State;
use crate::volume::Volume;
use server_kit::error::RoleError;
use std::collections::BTreeSet;
use wdiff_format::gid::{Diff, Gid};

/// Makes snapshots explicit, or gives them up; the gids that were something else before. Blocks.
pub(crate) fn set_explicit(
    volume: &Volume,
    gids: &[u64],
    is_explicit: bool,
) -> Result<Vec<u64>, RoleError> {
    volume.require_active("change the snapshots of")?;
    let _job = volume.jobs.begin(volume.name.as_str(), KEEP, &[APPLY, MERGE, KEEP, GC])?;
    let gids: BTreeSet<Gid> = gids.iter().copied().map(Gid).collect();
    let changes = gids.into_iter().map(|gid| Ok((gid, changes(volume, gid, is_explicit)?)));
    let changes: Vec<_> = changes.collect::<Result<_, RoleError>>()?;
    let mut changed = Vec::new();
    for (gid, renames) in changes.into_iter().filter(|(_, renames)| !renames.is_empty()) {
        for (old, new) in renames {
            volume.rename_diff(&old, new)?;
        }
        changed.push(gid.0);
    }
    Ok(changed)
}

/// The diffs that start at `gid` and say otherwise: as they are, as they shall be.
fn changes(volume: &Volume, gid: Gid, keep: bool) -> Result<Vec<(Diff, Diff)>, RoleError> {
    volume.with(|c| {
        c.diffs.keep_changes(gid, keep).map_err(|_| {
            let name = &volume.name;
            let cannot = format!("cannot change snapshot {gid} of volume {name}");
            if c.latest.0.begin() == gid {
                let message = format!("{cannot}: it is the latest one, which is always kept");
                return RoleError::unknown_snapshot(name, message)
                    .with_next_step("wait until there is a later snapshot");
            }
            let message = format!("{cannot}: no diff starts there");
            let step = format!("see the snapshots: walbc restorable ARCHIVE {name} --all");
            RoleError::unknown_snapshot(name, message).with_next_step(step)
        })
    })
}

/// Removes the diffs that the walk from the base image does not use: what merges left, and what
/// lies behind a gap. The names of their files. Blocks.
pub(crate) fn gc(volume: &Volume) -> Result<Vec<String>, RoleError> {
    let allowed = [State::Archived, State::WdiffRecv, State::Stopped];
    volume.require(&allowed, "remove needless diffs of")?;
    let _job = volume.jobs.begin_alone(volume.name.as_str(), GC)?;
    let mut names = volume.doom(|c| {
        c.faults.remove(GAP);
        c.take_out(c.diffs.garbage(c.base.snapshot()))
    })?;
    let mut aside = volume.dir.list()?;
    aside.retain(|name| name.ends_with(ASIDE_SUFFIX));
    volume.leases.mark(&aside)?;
    names.extend(aside);
    tracing::info!(volume = %volume.name, files = names.len(), "removed needless diffs");
    Ok(names)
}
