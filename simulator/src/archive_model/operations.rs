//! What is done to the volume, one thing after the other, or two beside each other.

use super::history::{BLOCKS, BLOCKS_MAX, History, Policy, Snapshot, Steps, compare};
use super::process::{Mount, Process};
use super::wdiffs::{Name, full, scribble, transfer, wdiff};
use super::{EPOCH_S, Run};
use proto::v1::{WdiffResult, WdiffTransferRequest};
use rand::RngExt;

/// Snapshots that are kept at most; then some go.
const SNAPSHOTS_MAX: usize = 9;
/// Mounts at a time.
const MOUNTS_MAX: usize = 2;

/// Policies that are followed for a moment. A snapshot is 1 to 9 s later than the one before.
const POLICIES: [Policy; 3] = [
    Policy { all_s: 15, rules: &[(10, 40)] },
    Policy { all_s: 10, rules: &[(6, 24), (18, 90)] },
    Policy { all_s: 30, rules: &[] },
];

impl Run {
    /// Does one thing.
    pub(super) fn step(&mut self) -> Result<(), String> {
        let passed = self.rng.random_range(1..10);
        self.now_s += passed;
        self.simulation.set_unix_seconds(self.now_s);
        if self.history.snapshots.len() > SNAPSHOTS_MAX {
            return match self.rng.random_range(0..3) {
                0 => self.apply(),
                1 => self.retention(),
                _ => self.merge(),
            };
        }
        match self.rng.random_range(0..100) {
            0..=29 => self.receive(),
            30..=33 => self.receive_merged(),
            34..=36 => self.receive_compared(),
            37 => self.receive_needless(),
            38 | 39 => self.hash_backup(),
            40..=49 => self.merge(),
            50..=55 => self.apply(),
            56..=63 => self.retention(),
            64..=69 => self.set_explicit(),
            70..=72 => self.gc(),
            73..=76 => self.restore(),
            77..=81 => self.beside(),
            82..=88 => self.mount(),
            89 => self.verify(),
            90 | 91 => self.drill(),
            92 => self.resize(),
            93 if self.rng.random_ratio(1, 4) => self.anew(),
            _ => self.kill(),
        }
    }

    /// The next state of the device.
    fn write(&mut self) -> (u64, Snapshot) {
        let mut image = self.history.latest().1.image.clone();
        let blocks = self.history.blocks;
        scribble(&mut image, blocks, &mut self.next_value, &mut self.rng);
        let gid = self.next_gid;
        self.next_gid += self.rng.random_range(1..4);
        (gid, Snapshot { image, time_s: self.now_s, explicit: false, compared: false })
    }

    /// A diff to a new snapshot, from one that is there.
    fn send(&mut self, begin: u64, (compared, from_archive): (bool, bool)) -> Result<(), String> {
        let (end, mut new) = self.write();
        new.compared = compared;
        let keeps = self.rng.random_ratio(1, 5);
        let (time_s, blocks) = (self.now_s, self.history.blocks);
        let name = Name { begin, end, keeps, compared, from_archive, time_s };
        self.what.push_str(&format!("{begin} to {end}"));
        let file = wdiff(&self.history.snapshots[&begin].image, &new.image, blocks, &mut self.rng);
        let after = self.history.received(begin, keeps, (end, new));
        let messages = transfer(name, &file, blocks);
        self.act(after, Steps::One, async |p| p.send(messages, WdiffResult::Stored).await)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<(), String> {
        self.note("receive", "");
        self.send(self.history.latest().0, (false, false))
    }

    /// What another archive has merged: it contains what is here already.
    fn receive_merged(&mut self) -> Result<(), String> {
        self.note("receive of a merged diff", "");
        let begin = self.any();
        self.send(begin, (false, true))
    }

    fn receive_compared(&mut self) -> Result<(), String> {
        self.note("receive of a comparison", "");
        self.send(self.history.latest().0, (true, true))
    }

    /// A hash backup keeps the snapshot that it was compared with.
    fn hash_backup(&mut self) -> Result<(), String> {
        self.note("hash backup", "");
        let (gid, new) = self.write();
        self.what.push_str(&format!("to {gid}"));
        let (image, blocks, now_s) = (new.image.clone(), self.history.blocks, self.now_s);
        let after = self.history.received(self.history.latest().0, true, (gid, new));
        let work = async |p: &Process| p.hash_backup((&image, blocks), (gid, now_s)).await;
        self.act(after, Steps::One, work)?;
        Ok(())
    }

    /// One that is here already, and one that leaves a gap: both are refused.
    fn receive_needless(&mut self) -> Result<(), String> {
        self.note("receive of a needless diff", "");
        let (latest, blocks) = (self.history.latest().0, self.history.blocks);
        let (first, image) = (self.history.gids()[0], self.history.latest().1.image.clone());
        let file = wdiff(&image, &image, blocks, &mut self.rng);
        let mut name = Name {
            begin: first,
            end: latest,
            keeps: false,
            compared: false,
            from_archive: false,
            time_s: self.now_s,
        };
        if first < latest {
            let messages = transfer(name, &file, blocks);
            let process = self.process();
            process.block_on(process.send(messages, WdiffResult::TooOld))?;
        }
        (name.begin, name.end) = (latest + 1, latest + 2);
        let messages: Vec<WdiffTransferRequest> = transfer(name, &file, blocks);
        let process = self.process();
        process.block_on(process.send(messages, WdiffResult::TooNew))
    }

    fn two(&mut self) -> (u64, u64) {
        let (a, b) = (self.any(), self.any());
        (a.min(b), a.max(b))
    }

    fn merge(&mut self) -> Result<(), String> {
        let (begin, end) = self.two();
        self.note("merge", &format!("{begin} to {end}"));
        match self.history.merges(begin, end) {
            Some(true) => {
                let after = self.history.merged(begin, end);
                self.act(after, Steps::Many, async |p| p.merge(begin, end).await)?;
                Ok(())
            }
            _ => {
                let process = self.process();
                match process.block_on(process.merge(begin, end)) {
                    Ok(()) => Err(format!("not refused: {:?}", self.history.lines())),
                    Err(_) => Ok(()),
                }
            }
        }
    }

    fn apply(&mut self) -> Result<(), String> {
        let gid = self.any();
        self.note("apply", &gid.to_string());
        let after = self.history.applied(gid);
        self.act(after, Steps::OldestFirst, async |p| p.apply(gid).await)?;
        Ok(())
    }

    /// A policy is set, is followed when somebody asks for it or by itself, and is taken away.
    fn retention(&mut self) -> Result<(), String> {
        let policy = POLICIES[self.rng.random_range(0..POLICIES.len())];
        let by_hand = self.rng.random();
        self.note("retention", &format!("{} {by_hand}", policy.text()));
        let after = self.history.thinned(&policy, self.now_s);
        let wanted = after.lines();
        let follow = async |p: &Process| {
            p.set_retention(Some(policy.text())).await?;
            if by_hand {
                p.run_retention().await?;
            } else {
                p.until_listed(&wanted).await?;
            }
            p.leave_alone().await
        };
        self.act(after, Steps::Many, follow)?;
        Ok(())
    }

    fn set_explicit(&mut self) -> Result<(), String> {
        let (a, b) = self.two();
        let explicit = self.rng.random_ratio(1, 3);
        self.note("set explicit", &format!("{a} {b} {explicit}"));
        if b == self.history.latest().0 {
            let process = self.process();
            return match process.block_on(process.set_explicit(vec![a, b], explicit)) {
                Ok(_) => Err("the latest one can be given up".into()),
                Err(_) => Ok(()),
            };
        }
        let is_other = |gid: &u64| self.history.snapshots[gid].explicit != explicit;
        let mut changed: Vec<u64> = [a, b].into_iter().filter(is_other).collect();
        changed.dedup();
        let after = self.history.kept(&[a, b], explicit);
        let set = async |p: &Process| p.set_explicit(vec![a, b], explicit).await;
        match self.act(after, Steps::Many, set)? {
            Some(found) if found != changed => Err(format!("{found:?} instead of {changed:?}")),
            _ => Ok(()),
        }
    }

    fn gc(&mut self) -> Result<(), String> {
        self.note("gc", "");
        let after = self.history.clone();
        self.act(after, Steps::One, async |p| p.gc().await)?;
        Ok(())
    }

    /// An image of a snapshot, beside something that makes its diffs needless, or alone.
    fn restore_beside(
        &mut self,
        (after, steps): (History, Steps),
        other: impl AsyncFnOnce(&Process) -> Result<(), String>,
    ) -> Result<(), String> {
        let gid = self.any();
        self.what.push_str(&format!(" restore {gid}"));
        let (image, blocks) = (self.history.snapshots[&gid].image.clone(), self.history.blocks);
        self.restored.insert(gid, (image.clone(), blocks));
        let fs = self.fs.clone();
        let both = async |p: &Process| {
            let restoring = p.begin_restore(gid).await?;
            other(p).await?;
            let path = p.finish(&restoring).await?.path;
            let restored = fs.read(path.as_ref()).map_err(|e| format!("{path}: {e}"))?;
            compare(&restored, &image, blocks).map_err(|e| format!("restored {gid}: {e}"))?;
            p.delete_restored(gid).await
        };
        if self.act(after, steps, both)?.is_some() {
            self.restored.remove(&gid);
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<(), String> {
        self.note("restore", "");
        self.restore_beside((self.history.clone(), Steps::One), async |_| Ok(()))
    }

    fn beside(&mut self) -> Result<(), String> {
        let (begin, end) = self.two();
        if self.history.merges(begin, end) == Some(true) && self.rng.random() {
            self.note("restore beside merge", &format!("{begin} to {end}"));
            let after = self.history.merged(begin, end);
            self.restore_beside((after, Steps::Many), async |p| p.merge(begin, end).await)
        } else {
            self.note("restore beside apply", &end.to_string());
            let after = self.history.applied(end);
            self.restore_beside((after, Steps::OldestFirst), async |p| p.apply(end).await)
        }
    }

    /// A mount begins, and stays; or the oldest one ends.
    fn mount(&mut self) -> Result<(), String> {
        if self.process().mounts.len() == MOUNTS_MAX {
            let process = self.process.as_mut().expect("it runs");
            let Mount { inside, gid, .. } = process.mounts.remove(0);
            process.block_on(inside.end());
            self.note("unmount", &gid.to_string());
            return Ok(());
        }
        let gid = self.any();
        self.note("mount", &gid.to_string());
        let (image, blocks) = (self.history.snapshots[&gid].image.clone(), self.history.blocks);
        let process = self.process.as_mut().expect("it runs");
        let inside = process.block_on(process.open(gid))?;
        process.mounts.push(Mount { inside, gid, image, blocks });
        Ok(())
    }

    /// Everything is read back, and needless files are gone where nobody reads them.
    fn verify(&mut self) -> Result<(), String> {
        self.note("verify", "");
        let fs = self.fs.clone();
        let mounted = !self.process().mounts.is_empty();
        // Longer than what is needless waits.
        self.now_s += 60;
        self.simulation.set_unix_seconds(self.now_s);
        let process = self.process();
        process.block_on(async {
            process.verify().await?;
            if mounted { Ok(()) } else { process.until_tidy(&fs).await }
        })
    }

    fn drill(&mut self) -> Result<(), String> {
        let gid = self.any();
        self.note("drill", &gid.to_string());
        let after = self.history.clone();
        self.act(after, Steps::One, async |p| p.drill(gid).await)?;
        Ok(())
    }

    fn resize(&mut self) -> Result<(), String> {
        let blocks = (self.history.blocks + self.rng.random_range(0..6)).min(BLOCKS_MAX);
        self.note("resize", &blocks.to_string());
        let after = self.history.resized(blocks);
        self.act(after, Steps::One, async |p| p.resize(blocks).await)?;
        Ok(())
    }

    /// The volume goes, and another one of its name comes.
    fn anew(&mut self) -> Result<(), String> {
        self.note("anew", "");
        let process = self.process.as_mut().expect("it runs");
        for mount in std::mem::take(&mut process.mounts) {
            process.block_on(mount.inside.end());
        }
        process.block_on(process.clear())?;
        self.restored.clear();
        self.fill()
    }

    pub(super) fn fill(&mut self) -> Result<(), String> {
        let mut image = vec![0; BLOCKS_MAX];
        for _ in 0..6 {
            scribble(&mut image, BLOCKS, &mut self.next_value, &mut self.rng);
        }
        let gid = self.next_gid;
        self.next_gid += 1;
        let (now_s, process) = (self.now_s.max(EPOCH_S), self.process());
        process.block_on(async {
            let session = process.begin_full(BLOCKS, now_s).await?;
            process.full(full(session, &image[..BLOCKS].to_vec(), gid)).await
        })?;
        self.history = History::full(gid, image, now_s);
        Ok(())
    }

    fn kill(&mut self) -> Result<(), String> {
        self.note("kill", "");
        self.stop();
        self.start()
    }
}
