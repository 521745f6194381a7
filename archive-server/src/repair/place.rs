//! How a fetched wdiff takes its place, and how a damaged one is put aside.
//!
//! Invariants: a file that has a name in the catalogue has it at every instant, old or new; who
//! reads the old one reads on; what was put aside is not in the catalogue, and is marked for
//! deletion when a start, a gc or the repair itself finds that it is not needed.

use crate::load;
use crate::volume::{Catalogue, Fault, Volume};
use server_kit::durable::TmpFile;
use server_kit::error::RoleError;
use std::io::ErrorKind;
use wdiff_format::gid::Diff;

/// How the name of a file that was put aside ends.
pub(crate) const ASIDE_SUFFIX: &str = ".damaged";

/// What came of it.
pub(crate) struct Installed {
    /// What is in the catalogue now.
    pub(crate) diff: Diff,
    /// The file that was put aside.
    pub(crate) aside: Option<String>,
}

impl Volume {
    /// A sound wdiff takes its place: that of a `damaged` one, or a free one. Blocks.
    pub(crate) fn install(
        &self,
        damaged: Option<Diff>,
        got: Diff,
        tmp: TmpFile,
    ) -> Result<Installed, RoleError> {
        let stored = damaged.and_then(|d| self.with(|c| c.diffs.get(&d).copied()));
        match stored {
            Some(mut stored) if stored == got => {
                stored.size = got.size;
                self.install_instead(stored, tmp)
            }
            Some(stored) => self.install_beside(got.with_mergeable(stored.mergeable), tmp),
            None => self.install_beside(got, tmp),
        }
    }

    fn install_instead(&self, diff: Diff, tmp: TmpFile) -> Result<Installed, RoleError> {
        let name = self.diff_name(&diff)?;
        let aside = format!("{name}{ASIDE_SUFFIX}");
        // Of an earlier attempt.
        self.leases.mark(std::slice::from_ref(&aside))?;
        let commit = || self.dir.commit(tmp, &name);
        let kept = self.leases.set_aside(&name, &aside, commit);
        let kept = kept.map_err(|e| RoleError::from(e).with_volume(&self.name))?;
        self.ledger.forget(&diff);
        let is_wanted = self.with(|c| {
            let replaced = c.diffs.replace(diff).is_some();
            follow(c);
            replaced
        });
        if !is_wanted {
            // Applied or merged away meanwhile.
            self.leases.mark(&[name])?;
        }
        Ok(Installed { diff, aside: kept.then_some(aside) })
    }

    fn install_beside(&self, diff: Diff, tmp: TmpFile) -> Result<Installed, RoleError> {
        let name = self.diff_name(&diff)?;
        self.dir.commit(tmp, &name).map_err(|e| RoleError::from(e).with_volume(&self.name))?;
        self.ledger.forget(&diff);
        let (begin, end) = (diff.begin().begin(), diff.end().begin());
        self.doom(|c| {
            let mut gone = Vec::from_iter(c.put(diff));
            // All of what lies inside is in it.
            gone.extend(c.take_out(c.diffs.garbage_in(begin, end)));
            follow(c);
            gone
        })?;
        Ok(Installed { diff, aside: None })
    }

    /// A damaged wdiff leaves the catalogue, which then ends there. Blocks.
    pub(crate) fn put_aside(&self, diff: &Diff) -> Result<(), RoleError> {
        let Some(stored) = self.with(|c| c.diffs.get(diff).copied()) else { return Ok(()) };
        let name = self.diff_name(&stored)?;
        let aside = format!("{name}{ASIDE_SUFFIX}");
        let moved = self.with(|c| {
            match self.leases.rename(&name, &aside) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            c.diffs.remove(&stored);
            follow(c);
            self.dir.sync()
        });
        let path = self.dir.path().join(&name);
        moved.map_err(|e| RoleError::io("put aside", &path, e).with_volume(&self.name))
    }
}

/// The catalogue has other diffs: where it leads to now, and whether there is a gap.
fn follow(c: &mut Catalogue) {
    c.latest = c.diffs.latest(&c.base);
    match load::gap(c) {
        Some(gap) => c.faults.insert(load::GAP, Fault::damage(gap)),
        None => c.faults.remove(load::GAP),
    };
}
