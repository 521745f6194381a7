//! What an archive does with its volumes by itself: it thins histories out by their policies
//! (`thinning`), replicates on schedule (`replicating`), and watches how old the newest restorable
//! point is (`freshness`). It replaces the original's worker (`semantics.md` §6.7).
//!
//! One task looks at all volumes every second and starts what is due, a bounded number of things at
//! a time, as operations like those that people start: they exclude each other by the same rules
//! (`jobs`), are listed and can be cancelled. Invariants: what shall be done is durable before it
//! is answered; nothing of a run is kept while it goes on, so that one that was killed is planned
//! anew; none of it keeps the archive from ending; what fails is told and tried again after a pause
//! that grows; what somebody else keeps from starting has not failed.

mod freshness;
mod kept;
mod replicating;
mod thinning;

use crate::archive::Archive;
use crate::volume::Volume;
use freshness::Freshness;
use kept::{Kept, Retention, UPKEEP_FILE};
use parking_lot::Mutex;
use proto::v1;
use server_kit::blocking;
use server_kit::durable::{DurableDir, StateFile};
use server_kit::error::RoleError;
use server_kit::retry::Backoff;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use wdiff_format::retention::Policy;

pub(crate) use freshness::{complete, heard, message as complete_message};
pub(crate) use kept::policy;
pub(crate) use thinning::{plan_message, start as run_retention};

/// Pause between two looks at all volumes.
const LOOK: Duration = Duration::from_secs(1);
/// Longest pause after failures.
const FAILED_MAX: Duration = Duration::from_secs(3600);
/// Name of the task that thins out, among those of a volume; the others are called like archives.
const THINNING: &str = "";

/// Turns of what runs by itself.
pub(crate) struct Turns {
    thinning: Arc<Semaphore>,
    replications: Arc<Semaphore>,
}

impl Turns {
    pub(crate) fn new(thinning: usize, replications: usize) -> Self {
        let turns = |n: usize| Arc::new(Semaphore::new(n));
        Self { thinning: turns(thinning), replications: turns(replications) }
    }
}

/// When a task runs next.
struct Next {
    at: Instant,
    backoff: Backoff,
    running: bool,
    /// The operation that it is, or was.
    operation: String,
    /// What kept it from starting.
    waits_for: String,
}

impl Next {
    fn new(pause: Duration) -> Self {
        let backoff = Backoff::new(pause, FAILED_MAX);
        Self {
            at: Instant::now(),
            backoff,
            running: false,
            operation: String::new(),
            waits_for: String::new(),
        }
    }
}

/// The upkeep of one volume.
pub(crate) struct Upkeep {
    file: StateFile<Kept>,
    storing: Mutex<()>,
    kept: Mutex<Kept>,
    tasks: Mutex<BTreeMap<String, Next>>,
    freshness: Mutex<Freshness>,
    /// What is wrong with the file; then nothing is done.
    unreadable: Mutex<Option<String>>,
}

impl Upkeep {
    /// As the file in `dir` says. Blocks.
    pub(crate) fn load(dir: Arc<dyn DurableDir>) -> Self {
        let file = StateFile::<Kept>::new(dir, UPKEEP_FILE);
        let (kept, unreadable) = match file.load() {
            Ok(kept) => (kept.unwrap_or_default(), None),
            // The volume itself is whole.
            Err(error) => (Kept::default(), Some(RoleError::from(error).full_message())),
        };
        Self {
            file,
            storing: Mutex::default(),
            kept: Mutex::new(kept),
            tasks: Mutex::default(),
            freshness: Mutex::default(),
            unreadable: Mutex::new(unreadable),
        }
    }

    /// What shall be done.
    pub(crate) fn kept(&self) -> Kept {
        self.kept.lock().clone()
    }

    /// How fast merges and applies may write; 0: as fast as it goes.
    pub(crate) fn bytes_per_s(&self) -> u64 {
        self.kept.lock().retention.as_ref().map_or(0, |r| r.bytes_per_s)
    }

    fn freshness<T>(&self, change: impl FnOnce(&mut Freshness) -> T) -> T {
        change(&mut self.freshness.lock())
    }

    /// Changes what shall be done, or what was: on the disk, then here. Blocks.
    fn store(&self, change: impl FnOnce(&mut Kept)) -> Result<(), RoleError> {
        let _one_writer = self.storing.lock();
        let mut kept = self.kept();
        change(&mut kept);
        self.file.store(&kept)?;
        *self.kept.lock() = kept;
        *self.unreadable.lock() = None;
        Ok(())
    }

    /// Looks at when a task runs next, or changes it.
    fn task<T>(&self, task: &str, pause: Duration, change: impl FnOnce(&mut Next) -> T) -> T {
        let mut tasks = self.tasks.lock();
        change(tasks.entry(task.to_owned()).or_insert_with(|| Next::new(pause)))
    }

    /// A task shall run at once, or when it has ended.
    fn kick(&self, task: &str) {
        if let Some(next) = self.tasks.lock().get_mut(task) {
            next.at = Instant::now();
            next.backoff.reset();
        }
    }

    /// A task that was taken is this operation.
    fn began(&self, task: &str, operation: &v1::Operation) {
        if let Some(next) = self.tasks.lock().get_mut(task) {
            next.operation.clone_from(&operation.id);
        }
    }

    /// The operations that run.
    fn operations(&self) -> Vec<String> {
        let tasks = self.tasks.lock();
        tasks.values().filter(|next| next.running).map(|next| next.operation.clone()).collect()
    }

    /// Takes a task that is due: it runs until it is `rested`.
    fn take(&self, task: &str, pause: Duration) -> bool {
        self.task(task, pause, |next| {
            let due = !next.running && next.at <= Instant::now();
            next.running |= due;
            due
        })
    }

    fn is_due(&self, task: &str, pause: Duration) -> bool {
        self.task(task, pause, |next| !next.running && next.at <= Instant::now())
    }

    /// A task has ended, or could not start: it comes again after `pause`, after failures later.
    fn rest(&self, task: &str, pause: Duration, ended: Ended) {
        self.task(task, pause, |next| {
            next.running = false;
            next.waits_for.clear();
            let pause = match ended {
                Ended::Well => {
                    next.backoff.reset();
                    pause
                }
                Ended::Failed => next.backoff.next_delay().max(pause),
                Ended::Full => pause,
                Ended::Waits(what) => {
                    next.waits_for = what;
                    pause
                }
            };
            next.at = Instant::now() + pause;
        });
    }

    /// All of it as a message.
    pub(crate) fn message(&self, volume: &str, now_s: u64) -> v1::Upkeep {
        let kept = self.kept();
        let tasks = self.tasks.lock();
        let mut message = kept.message(volume, |task| match tasks.get(task.unwrap_or(THINNING)) {
            Some(next) => {
                let left = next.at.saturating_duration_since(Instant::now());
                (now_s + left.as_secs(), next.waits_for.clone())
            }
            None => (now_s, String::new()),
        });
        drop(tasks);
        if let Some(why) = self.unreadable.lock().clone() {
            let next_step = format!("set it anew: walbc retention ARCHIVE {volume} POLICY");
            message.thinning =
                Some(v1::TaskStatus { error: why, next_step, ..v1::TaskStatus::default() });
        }
        message
    }
}

/// How a run of a task ended.
enum Ended {
    Well,
    Failed,
    /// There was no space, and may be any time.
    Full,
    /// Something else is in the way, which ends by itself.
    Waits(String),
}

/// Gives the directory of a new volume the policy that the archive was started with. Blocks.
pub(crate) fn equip(dir: Arc<dyn DurableDir>, policy: Option<&Policy>) -> Result<(), RoleError> {
    let Some(policy) = policy else { return Ok(()) };
    let retention = Some(Retention::of(policy.clone()));
    let kept = Kept { retention, ..Kept::default() };
    Ok(StateFile::new(dir, UPKEEP_FILE).store(&kept)?)
}

/// A failure as it is kept.
fn retold(error: &RoleError) -> RoleError {
    RoleError::new(error.reason(), error.full_message())
        .with_next_step(error.detail().next_step.clone())
}

/// Begins to look after all volumes, until the archive ends.
pub(crate) fn begin(archive: &Arc<Archive>) {
    let archive = archive.clone();
    tokio::spawn(async move {
        let begun_s = (archive.world.now)();
        loop {
            tokio::select! {
                () = tokio::time::sleep(archive.settings.upkeep_pause.min(LOOK)) => {}
                () = archive.ending.cancelled() => return give_up(&archive),
            }
            let now_s = (archive.world.now)();
            for volume in archive.volumes() {
                freshness::watch(&volume, now_s.saturating_sub(begun_s), now_s);
            }
            thinning::look(&archive);
            replicating::look(&archive);
        }
    });
}

/// The archive ends: what it began by itself does not keep it waiting, and goes on after a start.
fn give_up(archive: &Archive) {
    for id in archive.volumes().iter().flat_map(|v| v.upkeep.operations()) {
        // It may have ended meanwhile.
        let _ = archive.operations.cancel(&id);
    }
}

fn answer(archive: &Archive, volume: &Volume) -> v1::Upkeep {
    volume.upkeep.message(volume.name.as_str(), (archive.world.now)())
}

/// How a volume's upkeep stands.
pub(crate) fn get(archive: &Archive, name: &str) -> Result<v1::Upkeep, RoleError> {
    Ok(answer(archive, &*archive.volume(name)?))
}

/// Changes what shall be done with a volume, and lets a task look at it at once.
async fn set(
    archive: &Archive,
    name: &str,
    task: Option<String>,
    change: impl FnOnce(&mut Kept) + Send + 'static,
) -> Result<v1::Upkeep, RoleError> {
    let volume = archive.volume(name)?;
    let stored = volume.clone();
    let store = move || stored.upkeep.store(change);
    blocking::run(store).await.map_err(|e| e.with_volume(&volume.name))?;
    if let Some(task) = task {
        volume.upkeep.kick(&task);
    }
    Ok(answer(archive, &volume))
}

/// Sets the policy of a volume, or takes it away.
pub(crate) async fn set_retention(
    archive: &Archive,
    request: v1::SetRetentionRequest,
) -> Result<v1::Upkeep, RoleError> {
    let retention = request.retention.as_ref().map(Retention::from_message).transpose();
    let retention = retention.map_err(|e| e.with_volume(&request.volume))?;
    let change = move |kept: &mut Kept| {
        kept.retention = retention;
        kept.runs.last.error.clear();
        kept.runs.last.failures = 0;
    };
    set(archive, &request.volume, Some(THINNING.into()), change).await
}

/// Sets a replication schedule of a volume; what is known of the other archive stays.
pub(crate) async fn set_replication(
    archive: &Archive,
    request: v1::SetReplicationRequest,
) -> Result<v1::Upkeep, RoleError> {
    let schedule =
        request.schedule.ok_or_else(|| RoleError::bad_request("there is no schedule"))?;
    let (id, mut schedule) =
        kept::Replication::from_message(schedule).map_err(|e| e.with_volume(&request.volume))?;
    let task = id.clone();
    let change = move |kept: &mut Kept| {
        if let Some(old) = kept.replications.remove(&id) {
            (schedule.gid, schedule.last) = (old.gid, old.last);
        }
        kept.replications.insert(id, schedule);
    };
    set(archive, &request.volume, Some(task), change).await
}

/// Takes a replication schedule away.
pub(crate) async fn drop_replication(
    archive: &Archive,
    request: v1::DropReplicationRequest,
) -> Result<v1::Upkeep, RoleError> {
    let v1::DropReplicationRequest { volume, to } = request;
    let known = archive.volume(&volume)?.upkeep.kept().replications.contains_key(&to);
    if !known {
        let why = format!("volume {volume} is not replicated to {to} by a schedule");
        let step = format!("see what there is: walbc replication-schedule ARCHIVE {volume}");
        return Err(RoleError::bad_request(why).with_volume(volume).with_next_step(step));
    }
    let change = move |kept: &mut Kept| drop(kept.replications.remove(&to));
    set(archive, &volume, None, change).await
}

/// Sets how old the newest restorable point of a volume may be.
pub(crate) async fn set_age_limit(
    archive: &Archive,
    request: v1::SetAgeLimitRequest,
) -> Result<v1::Upkeep, RoleError> {
    let v1::SetAgeLimitRequest { volume, age_limit_s } = request;
    if i64::try_from(age_limit_s).is_err() {
        return Err(RoleError::bad_request("the limit is too large").with_volume(volume));
    }
    set(archive, &volume, None, move |kept| kept.age_limit_s = age_limit_s).await
}

/// What a volume's status says of it.
pub(crate) fn describe(archive: &Archive, volume: &Volume, status: &mut v1::ArchiveVolume) {
    let upkeep = answer(archive, volume);
    status.complete_s = complete(volume).map_or(0, |(_, at_s)| at_s);
    status.age_limit_s = upkeep.age_limit_s;
    status.stale_since_s = volume.upkeep.freshness(|f| f.stale_since_s);
    status.upkeep = Some(upkeep);
}
