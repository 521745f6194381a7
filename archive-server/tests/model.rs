//! Random histories against a plain model: whatever is received, merged, applied, kept, given up,
//! collected, mounted and killed in whatever order, exactly the snapshots that should be there are,
//! and each is what it was.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use archive_server::{Settings, World};
use block_io::nbd::Client as Nbd;
use common::{Archive, Client, Device, VOLUME, messages, meta, reason, same, start_of};
use proto::v1::merge_request::Until;
use proto::v1::mount_request::Point;
use proto::v1::{
    MountRequest, Mounted, OperationStatus, Retention, SetExplicitRequest, SetRetentionRequest,
    UnmountRequest, WdiffResult,
};
use server_kit::error::Reason;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const BLOCKS: usize = 1024;
const MOUNTS: usize = 2;

/// The snapshots that should be there: the base image's, then those at the ends of diffs. The value
/// says whether it is explicit.
type Snapshots = BTreeMap<u64, bool>;

struct Run {
    dir: TempDir,
    archive: Option<Archive>,
    client: Client,
    device: Device,
    kept: Snapshots,
    mounts: Vec<(Mounted, Nbd)>,
    /// What the archive takes for now.
    clock: Arc<AtomicU64>,
    what: String,
}

/// Seconds of the policy: all of `ALL_S`, one of each `EVERY_S` of `FOR_S`. A gid is 10 s later
/// than the one before.
const ALL_S: u64 = 50;
const EVERY_S: u64 = 40;
const FOR_S: u64 = 150;

/// The time of a gid, as `common::meta` has it.
fn time(gid: u64) -> u64 {
    1_700_000_000 + gid * 10
}

fn start(dir: &TempDir, clock: &Arc<AtomicU64>) -> Archive {
    let pause = Duration::from_millis(5);
    let settings =
        Settings { max_open: 3, index_batch: 3, upkeep_pause: pause, ..common::settings() };
    let clock = clock.clone();
    let now = Arc::new(move || clock.load(Ordering::SeqCst));
    Archive::within(dir, settings, World { now, ..World::real() })
}

impl Run {
    async fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Device::new(BLOCKS, seed);
        let clock = Arc::new(AtomicU64::new(time(0)));
        let archive = start(&dir, &clock);
        let mut client = archive.client();
        client.init().await;
        client.full_sync(&device.history[0], 0).await.unwrap();
        let kept = Snapshots::from([(0, false)]);
        let (archive, mounts) = (Some(archive), Vec::new());
        Self { dir, archive, client, device, kept, mounts, clock, what: String::new() }
    }

    fn latest(&self) -> u64 {
        self.device.gid()
    }

    /// One of the snapshots that are there.
    fn any(&mut self) -> u64 {
        let nth = self.device.random(self.kept.len());
        *self.kept.keys().nth(nth).unwrap()
    }

    async fn receive(&mut self) {
        self.device.write(15);
        let (gid, explicit) = (self.latest(), self.kept[&(self.latest() - 1)]);
        let mut diff = meta(gid - 1, gid);
        diff.mergeable = !explicit;
        let file = self.device.wdiff(gid);
        let sent = messages(start_of(diff, self.device.size_lb()), &file, 3000);
        assert_eq!(self.client.send(sent).await.unwrap().result(), WdiffResult::Stored);
        self.clock.store(time(gid), Ordering::SeqCst);
        // Whether the next diff says that this snapshot was taken on purpose.
        let explicit = self.device.random(5) == 0;
        self.kept.insert(gid, explicit);
    }

    async fn merge(&mut self) {
        let (a, b) = (self.any(), self.any());
        let (begin, end) = (a.min(b), a.max(b));
        self.what = format!("merge {begin} to {end}");
        let inside: Vec<_> = self.kept.range(begin + 1..end.max(begin + 1)).collect();
        let allowed = !inside.is_empty() && inside.iter().all(|(_, explicit)| !**explicit);
        let until = Some(Until::GidEnd(end));
        let request = common::merge_of(begin, until);
        match self.client.archive.merge(request).await {
            Ok(operation) => {
                assert!(allowed, "{}: {:?}", self.what, self.kept);
                let done = self.client.finish(&operation.into_inner().id).await;
                assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
                self.kept.retain(|gid, _| *gid <= begin || *gid >= end);
            }
            Err(refused) => assert!(!allowed, "{}: {refused:?} {:?}", self.what, self.kept),
        }
    }

    async fn set_explicit(&mut self) {
        let (a, b, explicit) = (self.any(), self.any(), self.device.random(2) == 0);
        self.what = format!("set {a} and {b} to {explicit}");
        let gids = vec![a, b];
        let request = SetExplicitRequest { volume: VOLUME.into(), gids, is_explicit: explicit };
        let answer = self.client.archive.set_explicit(request).await;
        if a == self.latest() || b == self.latest() {
            assert_eq!(reason(&answer.unwrap_err()), Reason::UnknownSnapshot);
            return;
        }
        let mut changed: Vec<u64> =
            [a, b].into_iter().filter(|gid| self.kept[gid] != explicit).collect();
        changed.sort_unstable();
        changed.dedup();
        assert_eq!(answer.unwrap().into_inner().changed, changed, "{}", self.what);
        for gid in changed {
            self.kept.insert(gid, explicit);
        }
    }

    async fn apply(&mut self) {
        let gid = self.any();
        self.what = format!("apply {gid}");
        // Mounts of older snapshots stay as they are.
        let done = self.client.apply(gid).await.unwrap();
        assert_eq!(done.status(), OperationStatus::Done, "{}: {done:?}", self.what);
        self.kept.retain(|kept, _| *kept >= gid);
    }

    /// What the policy keeps now.
    fn thinned(&self) -> Snapshots {
        let now = time(self.latest());
        let old = self.kept.keys().rev().find(|gid| time(**gid) + FOR_S <= now);
        let old = old.copied().unwrap_or_else(|| *self.kept.first_key_value().unwrap().0);
        let held = self.kept.iter().find(|(gid, explicit)| **explicit && **gid < old);
        let base = held.map_or(old, |(gid, _)| *gid);
        let ends = |gid: u64| (time(gid) / EVERY_S + 1) * EVERY_S;
        let rest: Vec<u64> = self.kept.range(base..).map(|(gid, _)| *gid).collect();
        let stays = |(gid, explicit): (&u64, &bool)| {
            let later = rest.iter().any(|other| other > gid && ends(*other) == ends(*gid));
            let left = *gid == base || *explicit || !later || ends(*gid) + ALL_S > now;
            (*gid >= base && left).then_some((*gid, *explicit))
        };
        self.kept.iter().filter_map(stays).collect()
    }

    /// The policy is set, does its work by itself, over a kill or not, and is taken away.
    async fn retention(&mut self) {
        let killed = self.device.random(2) == 0;
        self.what = if killed { "retention over a kill".into() } else { "retention".into() };
        let policy = format!("all {ALL_S}s, every {EVERY_S}s {FOR_S}s");
        let retention = Some(Retention { policy, ..Retention::default() });
        let set = |retention| SetRetentionRequest { volume: VOLUME.into(), retention };
        self.client.archive.set_retention(set(retention)).await.unwrap();
        if killed {
            self.mounts.clear();
            self.archive.take().unwrap().kill();
            let archive = start(&self.dir, &self.clock);
            self.client = archive.client();
            self.archive = Some(archive);
        }
        let wanted = self.thinned();
        let gids: Vec<u64> = wanted.keys().copied().collect();
        common::until(&format!("{}: {gids:?}", self.what), || {
            let mut client = self.client.clone();
            let gids = &gids;
            async move { (listed(&mut client).await == *gids).then_some(()) }
        })
        .await;
        self.client.archive.set_retention(set(None)).await.unwrap();
        common::until("the run to end", || {
            let mut client = self.client.clone();
            async move { client.get().await.running.is_empty().then_some(()) }
        })
        .await;
        self.kept = wanted;
    }

    async fn mount(&mut self) {
        if self.mounts.len() == MOUNTS {
            let (mounted, nbd) = self.mounts.remove(0);
            self.what = format!("unmount {}", mounted.gid);
            drop(nbd);
            let request = UnmountRequest { volume: VOLUME.into(), id: mounted.id };
            self.client.archive.unmount(request).await.unwrap();
            return;
        }
        let gid = self.any();
        self.what = format!("mount {gid}");
        let (volume, point) = (VOLUME.into(), Some(Point::Gid(gid)));
        let request = MountRequest { volume, point, ..MountRequest::default() };
        let mounted = self.client.archive.mount(request).await.unwrap().into_inner();
        let (_, socket) = mounted.uri.split_once("socket=").unwrap();
        let nbd = Nbd::unix(socket, VOLUME).await.unwrap();
        self.mounts.push((mounted, nbd));
    }

    /// Everything stops where it is, in the middle of something or not.
    async fn kill(&mut self) {
        self.what = "kill".into();
        let begun = self.device.random(3);
        let (a, b) = (self.any(), self.any());
        let (begin, end) = (a.min(b), a.max(b));
        if begun == 0 {
            let until = Some(Until::GidEnd(end));
            let request = common::merge_of(begin, until);
            if self.client.archive.merge(request).await.is_ok() {
                self.what = format!("kill in the merge {begin} to {end}");
            }
        } else if begun == 1 && self.client.archive.apply(common::apply_to(end)).await.is_ok() {
            self.what = format!("kill in the apply to {end}");
        }
        self.mounts.clear();
        self.archive.take().unwrap().kill();
        let archive = start(&self.dir, &self.clock);
        self.client = archive.client();
        self.archive = Some(archive);
        // What was begun is finished or was not.
        common::until("the apply to be finished", || {
            let mut client = self.client.clone();
            async move { client.get().await.running.is_empty().then_some(()) }
        })
        .await;
        let listed = self.listed().await;
        if self.what.contains("merge") {
            // Some of its passes may have been done.
            self.kept.retain(|gid, _| *gid <= begin || *gid >= end || listed.contains(gid));
        } else if self.what.contains("apply") {
            // It may have come to any snapshot on the way.
            let first = listed.first().copied().unwrap_or_default().min(end);
            self.kept.retain(|gid, _| *gid >= first);
        }
    }

    async fn listed(&mut self) -> Vec<u64> {
        listed(&mut self.client).await
    }

    async fn check(&mut self) {
        let kept: Vec<u64> = self.kept.keys().copied().collect();
        assert_eq!(self.listed().await, kept, "after {}", self.what);
        assert_eq!(self.client.get().await.error, "", "after {}", self.what);
        let gid = self.any();
        let what = format!("restore of {gid} after {}", self.what);
        same(&self.client.restored(gid).await, &self.device.history[gid as usize], &what);
        for (mounted, nbd) in &self.mounts {
            let len = (BLOCKS * 512) as u32;
            let read = nbd.read(0, len).await.unwrap();
            let what = format!("mount of {} after {}", mounted.gid, self.what);
            same(&read, &self.device.history[mounted.gid as usize], &what);
        }
    }
}

async fn listed(client: &mut Client) -> Vec<u64> {
    client.restorable(true).await.into_iter().map(|s| s.gid).collect()
}

async fn history(seed: u64, steps: usize) {
    let mut run = Run::new(seed).await;
    for step in 0..steps {
        run.what = "receive".into();
        match run.device.random(18) {
            0..=6 => run.receive().await,
            7..=8 => run.merge().await,
            9 => run.apply().await,
            10..=11 => run.set_explicit().await,
            12..=13 => run.mount().await,
            14 => run.retention().await,
            15 => drop(run.client.gc().await),
            _ => run.kill().await,
        }
        run.what = format!("{} (seed {seed}, step {step})", run.what);
        run.check().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_keep_exactly_what_they_should() {
    for seed in 4..=6 {
        history(seed, 30).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; run it by hand after changes of the archive"]
async fn long_random_histories() {
    for seed in 100..200 {
        history(seed, 100).await;
    }
}
