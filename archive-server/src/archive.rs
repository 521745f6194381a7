//! The archive as a whole: its volumes, and how they come and go.
//!
//! Invariants: a volume that cannot be loaded is listed with its reason and does not keep the
//! others from serving; a volume appears and disappears as a whole (its directory takes its name,
//! or loses it, in one step); creating and removing volumes is done by one at a time.

use crate::backend::{BackendChoice, Backends};
use crate::deleter::{self, Deleter, Wake};
use crate::index::{INDEX_DIR, Indexer, Reading, Wishes};
use crate::jobs::Job;
use crate::leases::Leases;
use crate::load;
use crate::record::{Kept, Record, STATE_FILE};
use crate::sessions::Sessions;
use crate::state::State;
use crate::upkeep::{self, Turns};
use crate::verify::scrub::{self, Scrub};
use crate::volume::{Catalogue, Volume};
use crate::world::World;
use parking_lot::Mutex;
use proto::v1::StopMode;
use server_kit::blocking;
use server_kit::durable::{DurableDir, StateFile, claim_base};
use server_kit::error::RoleError;
use server_kit::operations::Operations;
use server_kit::state_machine::StopFlag;
use server_kit::volume_name::{ServerId, VolumeName};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use wdiff_format::compression::{Compression, CompressionKind};
use wdiff_format::gid::GidError;
use wdiff_format::retention::Policy;

/// Applies and restores that work at a time; the others wait for their turn. Bounds open files.
const WRITERS_MAX: usize = 4;
/// Wdiffs that are received at a time; each has a thread.
const RECEIVERS_MAX: usize = 32;

/// States that come to `Archived` by themselves, so that a stop can wait for that.
const STOPPABLE: [State; 7] = [
    State::Archived,
    State::WdiffRecv,
    State::FullSync,
    State::HashSync,
    State::ReplSync,
    State::Resync,
    State::Start,
];

/// What can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes that must stay free for a wdiff to be accepted, on top of its own size.
    pub reserve_bytes: u64,
    /// What is needless is deleted after so many whole seconds, or earlier when space is short.
    pub grace: Duration,
    /// A full backup is made durable, and can be resumed, every so many bytes.
    pub flush_bytes: u64,
    /// Wdiffs that one job has open at a time.
    pub max_open: usize,
    /// A peer that says nothing for so long is given up.
    pub silence: Duration,
    /// How merged diffs are compressed.
    pub merge_compression: Compression,
    /// Wdiffs that the index takes in at a time.
    pub index_batch: usize,
    /// Mounts may listen where others reach them, without TLS.
    pub insecure: bool,
    /// Pause between two runs of what a volume's policy asks for, and after a failure.
    pub upkeep_pause: Duration,
    /// Histories that are thinned out at a time, by themselves.
    pub thinning_max: usize,
    /// Scheduled replications that run at a time.
    pub replications_max: usize,
    /// How volumes are verified in the background; `None`: not at all.
    pub scrub: Option<Scrub>,
    /// A program with its arguments that looks at each snapshot that is drilled; empty: none.
    pub drill_command: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            reserve_bytes: 32 << 20,
            grace: Duration::from_secs(30),
            flush_bytes: 1 << 30,
            max_open: 256,
            silence: Duration::from_secs(60),
            merge_compression: Compression::with_level(CompressionKind::Zstd, 1)
                .unwrap_or_default(),
            index_batch: 64,
            insecure: false,
            upkeep_pause: Duration::from_secs(60),
            thinning_max: 1,
            replications_max: 1,
            scrub: None,
            drill_command: Vec::new(),
        }
    }
}

/// The archive.
pub(crate) struct Archive {
    pub(crate) base: Arc<dyn DurableDir>,
    pub(crate) settings: Settings,
    pub(crate) operations: Operations,
    pub(crate) world: World,
    /// The name of this archive.
    pub(crate) id: ServerId,
    pub(crate) sessions: Sessions<crate::full_sync::Prepared>,
    pub(crate) hash_sessions: Sessions<crate::hash_sync::Prepared>,
    /// Cancelled when the server is asked to end: nothing is tried again then.
    pub(crate) ending: CancellationToken,
    /// Turns of applies and restores. Taken before an image gate, never after it.
    pub(crate) writers: Arc<Semaphore>,
    /// Turns of wdiffs that are received.
    pub(crate) receivers: Semaphore,
    /// What those who read snapshots share.
    pub(crate) reading: Arc<Reading>,
    /// Asks for the index of a volume to follow its diffs.
    pub(crate) indexer: Wishes,
    /// Deletes what is needless.
    pub(crate) deleter: Deleter,
    pub(crate) backends: Backends,
    /// Turns of what is done without being asked.
    pub(crate) turns: Turns,
    /// The policy of new volumes.
    pub(crate) retention: Option<Policy>,
    volumes: Mutex<BTreeMap<VolumeName, Arc<Volume>>>,
    lifecycle: tokio::sync::Mutex<()>,
}

impl Archive {
    /// Opens the base directory, which is made when it is missing, cleans up what a killed process
    /// left, loads all volumes, and goes on with the applies that were interrupted.
    ///
    /// # Errors
    /// When the base directory itself cannot be used.
    pub(crate) async fn open(
        base: &Path,
        id: ServerId,
        (settings, retention): (Settings, Option<Policy>),
        operations: Operations,
        (backend, world): (BackendChoice, World),
        ending: CancellationToken,
    ) -> Result<Arc<Self>, RoleError> {
        let (base, open_dir) = (base.to_owned(), world.open_dir.clone());
        let (images, name) = (world.images.clone(), id.clone());
        let deleter = Deleter::new(Wake::default(), ending.clone());
        let wake = deleter.wake.clone();
        let load = move || -> Result<_, RoleError> {
            let base = open_dir(&base)?;
            claim_base(&base, "archive")?;
            base.remove_tmp_dirs()?;
            base.remove_tmp_files()?;
            let backends = Backends::open(backend, &name, &*base, images)?;
            let volumes = load::all(&base, &backends, &wake)?;
            Ok((base, backends, volumes))
        };
        let (base, backends, volumes) = blocking::run(load).await?;
        let turns = Turns::new(settings.thinning_max, settings.replications_max);
        let reading = Arc::new(Reading::new(settings.max_open, settings.index_batch));
        let indexer = Indexer { reading: reading.clone(), ending: ending.clone() }.start();
        let archive = Arc::new(Self {
            base,
            settings,
            operations,
            world,
            id,
            sessions: Sessions::default(),
            hash_sessions: Sessions::default(),
            ending,
            writers: Arc::new(Semaphore::new(WRITERS_MAX)),
            receivers: Semaphore::new(RECEIVERS_MAX),
            reading,
            indexer,
            deleter,
            backends,
            turns,
            retention,
            volumes: Mutex::new(volumes),
            lifecycle: tokio::sync::Mutex::default(),
        });
        archive.backends.watch(archive.ending.clone());
        for volume in archive.volumes() {
            crate::apply::mend(&archive, &volume);
            // Of an older version, or removed by somebody.
            if volume.with(|c| c.diffs.len() >= archive.settings.index_batch)
                && !volume.dir.has_dir(INDEX_DIR)
            {
                archive.indexer.tend(&volume);
            }
        }
        deleter::start(&archive);
        upkeep::begin(&archive);
        scrub::start(&archive);
        Ok(archive)
    }

    /// All volumes, by name.
    pub(crate) fn volumes(&self) -> Vec<Arc<Volume>> {
        self.volumes.lock().values().cloned().collect()
    }

    /// A volume by its name, if there is one.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Arc<Volume>>, RoleError> {
        let name = parse_name(name)?;
        Ok(self.volumes.lock().get(&name).cloned())
    }

    /// A volume by its name.
    pub(crate) fn volume(&self, name: &str) -> Result<Arc<Volume>, RoleError> {
        self.find(name)?.ok_or_else(|| RoleError::unknown_volume(name))
    }

    /// Makes a volume that waits for a full backup.
    pub(crate) async fn init(&self, name: &str) -> Result<(), RoleError> {
        let name = parse_name(name)?;
        let _one = self.lifecycle.lock().await;
        if let Some(volume) = self.find(name.as_str())? {
            let allowed = [State::Clear.to_string()];
            return Err(RoleError::wrong_state(&name, "init", volume.cell.state(), &allowed));
        }
        let (base, new, policy) = (self.base.clone(), name.clone(), self.retention.clone());
        let dir = blocking::run(move || make(&*base, &new, policy.as_ref())).await?;
        let images = self.backends.of(&name, &dir);
        let (base, new, begun) = (self.base.clone(), name.clone(), images.clone());
        let begin = move || {
            let done = begun.begin();
            if done.is_err() {
                base.remove_dir(new.as_str())?;
            }
            done
        };
        blocking::run(begin).await?;
        let (record, damaged) = (Record::new(), |e: GidError| RoleError::damaged(e.to_string()));
        let catalogue = Catalogue::new(record.clone(), record.base().map_err(damaged)?);
        let new = name.clone();
        let leases = Leases::new(dir.clone(), self.deleter.wake.clone());
        let load = move || -> Result<_, RoleError> {
            Ok(Volume::new(new, dir, images, leases, (State::SyncReady, catalogue)))
        };
        let volume = blocking::run(load).await?;
        self.volumes.lock().insert(name, volume);
        Ok(())
    }

    /// Removes a volume with all that it has.
    pub(crate) async fn clear(&self, name: &str) -> Result<(), RoleError> {
        let _one = self.lifecycle.lock().await;
        let volume = self.volume(name)?;
        volume.jobs.none(name, "clear")?;
        volume.mounts.none(name, "clear")?;
        let from = [State::SyncReady, State::Stopped, State::Broken];
        let change = volume.cell.begin(&from, State::ClearVol);
        let change = change.map_err(|e| e.into_error(name, "clear"))?;
        let (base, doomed) = (self.base.clone(), volume.clone());
        let remove = move || -> Result<(), RoleError> {
            if doomed.images.outlive_the_directory() {
                // From the first step on the rest is known to be waste.
                doomed.store(|record| *record = Record::new())?;
                doomed.images.clear()?;
            }
            Ok(base.remove_dir(doomed.name.as_str())?)
        };
        blocking::run(remove).await?;
        self.volumes.lock().remove(&volume.name);
        change.commit(State::Clear);
        Ok(())
    }

    /// Empties a volume: clear and init in one.
    pub(crate) async fn reset(&self, name: &str) -> Result<(), RoleError> {
        let volume = self.volume(name)?;
        volume.jobs.none(name, "reset")?;
        volume.mounts.none(name, "reset")?;
        let change = volume.cell.begin(&[State::Stopped, State::SyncReady], State::ResetVol);
        let change = change.map_err(|e| refused(&volume, e, "reset"))?;
        let emptied = volume.clone();
        let empty = move || -> Result<(), RoleError> {
            // From the first step on the rest is known to be waste.
            emptied.store(|record| *record = Record::new())?;
            let base = emptied.with(|c| c.base);
            emptied.with(|c| *c = Catalogue::new(Record::new(), base));
            emptied.ledger.clear()?;
            emptied.remove_content()
        };
        blocking::run(empty).await?;
        change.commit(State::SyncReady);
        Ok(())
    }

    /// Makes the state of a broken volume anew by `make`, and loads it.
    pub(crate) async fn anew<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        make: impl FnOnce(&Volume) -> Result<T, RoleError> + Send + 'static,
    ) -> Result<(Arc<Volume>, T), RoleError> {
        let _one = self.lifecycle.lock().await;
        let broken = self.volume(name)?;
        broken.jobs.none(name, "rebuild")?;
        if broken.cell.state() != State::Broken {
            let allowed = [State::Broken.to_string()];
            return Err(RoleError::wrong_state(name, "rebuild", broken.cell.state(), &allowed));
        }
        let here = self.clone();
        let load = move || {
            let made = make(&broken)?;
            let wake = &here.deleter.wake;
            let volume = load::volume(&*here.base, &here.backends, wake, &broken.name)?;
            Ok::<_, RoleError>((volume, made))
        };
        let (volume, made) = blocking::run(load).await?;
        self.volumes.lock().insert(volume.name.clone(), volume.clone());
        Ok((volume, made))
    }

    /// Lets a stopped volume go on.
    pub(crate) async fn start(self: &Arc<Self>, name: &str) -> Result<(), RoleError> {
        let volume = self.volume(name)?;
        volume.jobs.none(name, "start")?;
        let change = volume.cell.begin(&[State::Stopped], State::Start);
        let change = change.map_err(|e| refused(&volume, e, "start"))?;
        let stored = volume.clone();
        blocking::run(move || stored.store_state(Kept::Archived)).await?;
        change.commit(State::Archived);
        crate::apply::mend(self, &volume);
        Ok(())
    }

    /// Stops a volume: waits for what runs on it, or asks it to give up.
    pub(crate) async fn stop(&self, name: &str, mode: StopMode) -> Result<(), RoleError> {
        let flag = match mode {
            StopMode::Graceful => StopFlag::Stopping,
            StopMode::Force => StopFlag::ForceStopping,
            StopMode::Empty => {
                let message = "an archive has nothing to empty: stop it graceful or force";
                return Err(RoleError::bad_request(message).with_volume(name));
            }
        };
        let volume = self.volume(name)?;
        volume.require(&STOPPABLE, "stop")?;
        let stop = volume.cell.begin_stop(flag).map_err(|_| {
            let message = format!("cannot stop volume {name}: it is being stopped already");
            RoleError::stopping(message).with_volume(name)
        })?;
        if flag == StopFlag::ForceStopping {
            volume.jobs.cancel();
        }
        self.sessions.drop_session(&volume.name);
        self.hash_sessions.drop_session(&volume.name);
        volume.jobs.idle().await;
        volume.cell.wait_until(|view| !view.changing).await;
        let change = stop.begin(&[State::Archived], State::Stop);
        let change = change.map_err(|e| refused(&volume, e, "stop"))?;
        let stored = volume.clone();
        blocking::run(move || stored.store_state(Kept::Stopped)).await?;
        change.commit(State::Stopped);
        Ok(())
    }
}

/// A turn, unless the job shall give up before.
pub(crate) async fn turn(
    writers: &Arc<Semaphore>,
    job: &Job,
) -> Result<OwnedSemaphorePermit, RoleError> {
    tokio::select! {
        turn = writers.clone().acquire_owned() => {
            turn.map_err(|e| RoleError::cancelled(e.to_string()))
        }
        () = job.token.cancelled() => Err(RoleError::cancelled("given up as asked")),
    }
}

/// The refusal of a transaction; a volume that is broken says why.
pub(crate) fn refused(
    volume: &Volume,
    error: server_kit::state_machine::WrongState,
    attempt: &str,
) -> RoleError {
    if volume.cell.state() == State::Broken {
        return volume.broken(attempt);
    }
    error.into_error(&volume.name, attempt)
}

pub(crate) fn parse_name(name: &str) -> Result<VolumeName, RoleError> {
    name.parse()
        .map_err(|e: server_kit::volume_name::BadName| RoleError::bad_request(e.to_string()))
}

/// Makes the directory of a volume. Blocks.
fn make(
    base: &dyn DurableDir,
    name: &VolumeName,
    policy: Option<&Policy>,
) -> Result<Arc<dyn DurableDir>, RoleError> {
    let tmp = format!("{name}{}", server_kit::durable::TMP_SUFFIX);
    let half_made = base.create_dir(&tmp)?;
    StateFile::new(half_made.clone(), STATE_FILE).store(&Record::new())?;
    upkeep::equip(half_made, policy)?;
    base.commit_dir(&tmp, name.as_str()).map_err(|e| RoleError::from(e).with_volume(name))?;
    Ok(base.open_dir(name.as_str())?)
}
