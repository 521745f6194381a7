//! Scrub: everything is read back once in a cycle, by itself, in the background.
//!
//! Of all volumes what was read back the longest time ago comes first; a wdiff that never was
//! counts from its time, since it was checked when it came. Invariants: no faster than the rate;
//! what people wait for goes first (`idle`); what was read is written down every [`STORE_EVERY`]
//! and at the end, so that the next run of the process goes on there; when nothing
//! is due it sleeps until something is.

use super::check::{self, Reading};
use super::{STORE_EVERY, VERIFIABLE, drill, image, store};
use crate::archive::Archive;
use crate::background::idle;
use crate::jobs::{DRILL, VERIFY};
use crate::volume::Volume;
use server_kit::clock;
use server_kit::error::RoleError;
use server_kit::pace::Pace;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wdiff_format::gid::Diff;

/// How the archive verifies by itself.
#[derive(Debug, Clone)]
pub struct Scrub {
    /// Everything is read back once in such a time.
    pub cycle: Duration,
    /// Bytes that are read in a second; 0: as fast as it goes.
    pub bytes_per_s: u64,
    /// A snapshot of each volume is drilled once in a cycle.
    pub drill: bool,
}

impl Default for Scrub {
    fn default() -> Self {
        let cycle = Duration::from_secs(14 * 24 * 3600);
        Self { cycle, bytes_per_s: 16 << 20, drill: false }
    }
}

/// Sleeps no longer than this: volumes come, and clocks are set.
const SLEEP_MAX: Duration = Duration::from_secs(3600);
/// Sleeps no shorter than this, or a part of the cycle: what comes due meanwhile goes together.
const SLEEP_MIN: Duration = Duration::from_secs(60);
const CYCLE_PARTS: u32 = 64;
/// Things that one round reads back at most, before it looks what is due now.
const ROUND_MAX: usize = 4096;

/// What is read back at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Wdiff(Diff),
    Image,
    Drill,
}

/// An item of a volume, and when it was read back the last time.
struct Due {
    since_s: u64,
    volume: Arc<Volume>,
    item: Item,
}

/// Scrubs for as long as the archive serves, if it shall.
pub(crate) fn start(archive: &Arc<Archive>) {
    let Some(scrub) = archive.settings.scrub.clone() else { return };
    let archive = archive.clone();
    tokio::spawn(async move {
        let ending = archive.ending.clone();
        tokio::select! {
            () = rounds(&archive, &scrub) => {}
            () = ending.cancelled() => {}
        }
    });
}

async fn rounds(archive: &Arc<Archive>, scrub: &Scrub) {
    let mut reading = Reading {
        token: archive.ending.clone(),
        pace: Pace::new(scrub.bytes_per_s),
        threads: 1,
        advance: Arc::new(|_| ()),
    };
    loop {
        let now_s = clock::unix_seconds();
        let mut all = candidates(archive, scrub, now_s);
        let cycle_s = scrub.cycle.as_secs();
        let is_due = |due: &Due| due.since_s.saturating_add(cycle_s) <= now_s;
        all.sort_by_key(|due| due.since_s);
        let next_s = all.iter().find(|due| !is_due(due)).map(|due| due.since_s + cycle_s);
        all.retain(is_due);
        let more = all.len() > ROUND_MAX;
        all.truncate(ROUND_MAX);
        round(archive, all, &mut reading).await;
        if !more {
            let wait = next_s.map_or(SLEEP_MAX, |at| Duration::from_secs(at.saturating_sub(now_s)));
            let least = SLEEP_MIN.min(scrub.cycle / CYCLE_PARTS);
            tokio::time::sleep(wait.min(SLEEP_MAX).max(least)).await;
        }
    }
}

/// Everything that is to be read back at some time.
fn candidates(archive: &Archive, scrub: &Scrub, now_s: u64) -> Vec<Due> {
    let mut all = Vec::new();
    for volume in archive.volumes() {
        if !VERIFIABLE.contains(&volume.cell.state()) {
            continue;
        }
        let (diffs, base_s) =
            volume.with(|c| (c.diffs.iter().copied().collect::<Vec<_>>(), c.base.timestamp));
        let since = volume.ledger.checked_s(&diffs, now_s);
        let due = |(diff, since_s): (Diff, u64)| Due {
            since_s,
            volume: volume.clone(),
            item: Item::Wdiff(diff),
        };
        let overdue = since.iter().filter(|s| *s + scrub.cycle.as_secs() <= now_s).count();
        volume.set_overdue(overdue as u64);
        all.extend(diffs.into_iter().zip(since).map(due));
        let checked_s = volume.ledger.image().checked_s;
        let since_s = if checked_s > 0 { checked_s } else { base_s.min(now_s) };
        all.push(Due { since_s, volume: volume.clone(), item: Item::Image });
        if scrub.drill {
            let drilled = volume.ledger.proofs().into_values().map(|p| p.drilled_s).max();
            let since_s = drilled.unwrap_or_default();
            all.push(Due { since_s, volume, item: Item::Drill });
        }
    }
    all
}

/// Reads back what is due, the longest unread first.
async fn round(archive: &Arc<Archive>, due: Vec<Due>, reading: &mut Reading) {
    let mut touched: BTreeMap<String, Arc<Volume>> = BTreeMap::new();
    let mut stored = Instant::now();
    for Due { volume, item, .. } in due {
        idle(archive, &[VERIFY, DRILL]).await;
        if !VERIFIABLE.contains(&volume.cell.state()) {
            continue;
        }
        let done = match item {
            Item::Wdiff(diff) => wdiff(&volume, diff, reading).await,
            Item::Image => image(archive, &volume, reading, true).await,
            Item::Drill => drill::by_itself(archive, &volume, reading.pace.clone()).await,
        };
        if let Err(error) = done {
            tracing::warn!(volume = %volume.name, error = error.full_message(), "cannot scrub");
        }
        touched.insert(volume.name.to_string(), volume);
        if stored.elapsed() >= STORE_EVERY {
            write_down(&mut touched).await;
            stored = Instant::now();
        }
    }
    write_down(&mut touched).await;
}

async fn wdiff(volume: &Arc<Volume>, diff: Diff, reading: &mut Reading) -> Result<(), RoleError> {
    let known = volume.ledger.damages().len();
    let outcome = check::wdiff(volume, diff, reading).await?;
    volume.one_less_overdue();
    if outcome == check::Outcome::Damaged && volume.ledger.damages().len() > known {
        // Told again after a restart, not after the next reading.
        store(volume).await?;
    }
    Ok(())
}

async fn write_down(touched: &mut BTreeMap<String, Arc<Volume>>) {
    for (name, volume) in std::mem::take(touched) {
        if let Err(error) = store(&volume).await {
            let error = error.full_message();
            tracing::warn!(volume = name, error, "what was checked cannot be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendChoice;
    use crate::record::{Kept, Record, STATE_FILE};
    use crate::verify::ledger::Ledger;
    use crate::{Settings, World};
    use server_kit::durable::{DurableDir, RealDir, StateFile};
    use server_kit::operations::Operations;
    use server_kit::simulation::Simulation;
    use std::path::Path;
    use tokio_util::sync::CancellationToken;
    use wdiff_format::codec::Codec;
    use wdiff_format::compression::Compression;
    use wdiff_format::gid::{BaseState, Gid, Snapshot};
    use wdiff_format::name::to_file_name;
    use wdiff_format::record::DiffRecord;
    use wdiff_format::sorted_writer::SortedWriter;
    use wlog_format::units::LogUuid;

    const BEGUN_S: u64 = 1_700_000_000;
    const DAY_S: u64 = 24 * 3600;
    /// Each takes a minute at the rate of the test.
    const WDIFF_BYTES: usize = 64 << 10;

    fn diffs() -> Vec<Diff> {
        let diff = |gid: u64| {
            let mut diff = Diff::clean(Gid(gid - 1), Gid(gid)).unwrap();
            diff.timestamp = BEGUN_S + gid;
            diff
        };
        (1..=6).map(diff).collect()
    }

    /// A volume of six wdiffs.
    fn make(base: &Path) {
        let dir = base.join("vol0");
        std::fs::create_dir(&dir).unwrap();
        let mut record = Record::new();
        (record.state, record.size_lb) = (Kept::Archived, 4096);
        record.set_base(&BaseState::at(Snapshot::clean(Gid(0)), BEGUN_S + 100));
        let real = Arc::new(RealDir::open(&dir).unwrap());
        StateFile::<Record>::new(real, STATE_FILE).store(&record).unwrap();
        std::fs::File::create(dir.join("base.img")).unwrap().set_len(4096 * 512).unwrap();
        for diff in diffs() {
            let bytes = (0..=250_u8).cycle().step_by(31).map(|byte| byte | 1);
            let data: Vec<u8> = bytes.take(WDIFF_BYTES).collect();
            let record = DiffRecord::from_raw(wlog_format::units::Lb(0), data.into()).unwrap();
            let mut writer = SortedWriter::new(Vec::new(), LogUuid([7; 16])).unwrap();
            let mut codec = Codec::new(Compression::NONE);
            writer.write(&record.encode(&mut codec).unwrap()).unwrap();
            let name = to_file_name(&diff).unwrap();
            std::fs::write(dir.join(name), writer.finish().unwrap()).unwrap();
        }
    }

    /// An archive that runs for so long, and is killed; when each wdiff was read, as is durable.
    async fn life(base: &Path, run_for: Duration) -> Vec<Option<u64>> {
        let cycle = Duration::from_secs(DAY_S);
        let scrub = Some(Scrub { cycle, bytes_per_s: 1024, drill: false });
        let settings = Settings { scrub, ..Settings::default() };
        let (id, ending) = ("a0".parse().unwrap(), CancellationToken::new());
        let (operations, world) = (Operations::new(), (BackendChoice::File, World::real()));
        let settings = (settings, None);
        let archive = Archive::open(base, id, settings, operations, world, ending.clone());
        let archive = archive.await.unwrap();
        tokio::time::sleep(run_for).await;
        ending.cancel();
        drop(archive);
        // Who was in the middle of it goes away.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if !base.join("vol0").exists() {
            return Vec::new();
        }
        let dir: Arc<dyn DurableDir> = Arc::new(RealDir::open(base.join("vol0")).unwrap());
        let ledger = Ledger::load(dir);
        diffs().iter().map(|diff| ledger.read_back_s(diff)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_scrub_goes_on_where_it_was_killed_and_reads_nothing_that_is_not_due() {
        let simulation = Simulation::default();
        let _simulated = simulation.enter();
        let dir = tempfile::tempdir().unwrap();
        simulation.set_unix_seconds(BEGUN_S);
        life(dir.path(), Duration::from_secs(1)).await;
        make(dir.path());
        let minutes = |n: u64| Duration::from_secs(n * 60);
        assert_eq!(life(dir.path(), minutes(60)).await, [None; 6], "they have just come");
        // All are due: there is time for some of them.
        let first_s = BEGUN_S + 2 * DAY_S;
        simulation.set_unix_seconds(first_s);
        let first = life(dir.path(), minutes(4)).await;
        let done = first.iter().filter(|at| **at == Some(first_s)).count();
        assert!((1..6).contains(&done), "{first:?}");
        assert!(first[..done].iter().all(Option::is_some), "the oldest first: {first:?}");
        let second_s = first_s + 1000;
        simulation.set_unix_seconds(second_s);
        let second = life(dir.path(), minutes(60)).await;
        let expected = |done: usize, before: u64, after: u64| -> Vec<Option<u64>> {
            (0..6).map(|n| Some(if n < done { before } else { after })).collect()
        };
        assert_eq!(second, expected(done, first_s, second_s), "it goes on behind those");
        simulation.set_unix_seconds(second_s + 1000);
        assert_eq!(life(dir.path(), minutes(600)).await, second, "nothing is due");
        let third_s = first_s + DAY_S;
        simulation.set_unix_seconds(third_s);
        let third = life(dir.path(), minutes(60)).await;
        assert_eq!(third, expected(done, third_s, second_s), "the least recently read first");
    }
}
