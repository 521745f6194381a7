//! One volume of the proxy: its state, its list of archives, its queues (semantics.md §4.1, §4.7).
//!
//! | from | via | to | by |
//! |---|---|---|---|
//! | Clear | | Stopped | the first archive is added |
//! | Stopped | AddArchiveInfo | Stopped | an archive is added or changed |
//! | Stopped | DeleteArchiveInfo | Stopped, Clear | one is deleted; Clear with the last one |
//! | Stopped | ClearVol | Clear | clear |
//! | Stopped | Start | Started | start, or boot if it was started |
//! | Started | WlogRecv | Started | a wlog is received |
//! | Started | Stop | Stopped | stop, graceful or forced |
//! | Started | WaitForEmpty | Stopped | stop, when the queues are empty |
//!
//! Invariants: Started and Stopped survive a restart; Stopped means that nothing runs; a stop has
//! no time limit, its caller may give it up, and a more urgent one may overtake it.
use crate::archive::Archive;
use crate::disk::{Staged, VolumeDir, VolumeState};
use crate::env::Env;
use crate::queue::{Mark, Queue};
use crate::sender::Sender;
use bytes::Bytes;
use parking_lot::Mutex;
use proto::convert::uuid_bytes;
use proto::v1::{ProxyVolume, StopMode};
use server_kit::blocking;
use server_kit::clock::unix_seconds;
use server_kit::durable::{DurableDir, TmpFile};
use server_kit::error::{Reason, RoleError};
use server_kit::state_machine::{StateCell, StopFlag, StopGuard, Transition, View};
use server_kit::volume_name::{ServerId, VolumeName};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use tokio::time::Instant;

/// States of a volume; those after `Started` are transient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Clear,
    Stopped,
    Started,
    AddArchiveInfo,
    DeleteArchiveInfo,
    ClearVol,
    Start,
    Stop,
    WaitForEmpty,
    WlogRecv,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One volume.
pub(crate) struct Volume {
    pub(crate) name: VolumeName,
    pub(crate) cell: StateCell<State>,
    dir: Option<VolumeDir>,
    env: Arc<Env>,
    queues: Mutex<BTreeMap<ServerId, Arc<Queue>>>,
    facts: Mutex<Facts>,
}

/// What is known about a volume besides its state.
#[derive(Default)]
struct Facts {
    stored: VolumeState,
    received: Option<(Instant, u64)>,
    error: String,
}

impl Volume {
    /// A volume that does not exist yet, with its first archive.
    pub(crate) fn create(
        base: &dyn DurableDir,
        name: &VolumeName,
        archive: Archive,
        env: &Arc<Env>,
    ) -> Result<Arc<Self>, RoleError> {
        let (dir, stored) = VolumeDir::create(base, name, &archive)?;
        let queue_dir = dir.queue_dir(&archive.name)?;
        let facts = Facts { stored, ..Facts::default() };
        let volume = Self::assemble(name, Some(dir), State::Stopped, facts, env);
        volume.add_queue(Queue::new(archive, queue_dir, &env.limits));
        Ok(volume)
    }

    /// The volume as it was left. One that cannot be read is there all the same, stopped, with the
    /// reason: others must not suffer from it.
    pub(crate) fn load(base: &dyn DurableDir, name: &VolumeName, env: &Arc<Env>) -> Arc<Self> {
        Self::try_load(base, name, env).unwrap_or_else(|error| {
            let error = error.full_message();
            tracing::error!(volume = %name, error, "the volume cannot be used");
            let facts = Facts { error, ..Facts::default() };
            Self::assemble(name, None, State::Stopped, facts, env)
        })
    }

    fn try_load(
        base: &dyn DurableDir,
        name: &VolumeName,
        env: &Arc<Env>,
    ) -> Result<Arc<Self>, RoleError> {
        let (dir, stored) = VolumeDir::open(base, name)?;
        let mut queues = Vec::new();
        for archive in dir.archives()? {
            let queue = Queue::new(archive.clone(), dir.queue_dir(&archive.name)?, &env.limits);
            queue.load()?;
            queues.push(queue);
        }
        let started = stored.started && !env.limits.stopped;
        let state = if started { State::Started } else { State::Stopped };
        let facts = Facts { stored, ..Facts::default() };
        let volume = Self::assemble(name, Some(dir), state, facts, env);
        queues.into_iter().for_each(|queue| volume.add_queue(queue));
        Ok(volume)
    }

    fn assemble(
        name: &VolumeName,
        dir: Option<VolumeDir>,
        state: State,
        facts: Facts,
        env: &Arc<Env>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: name.clone(),
            cell: StateCell::new(state),
            dir,
            env: Arc::clone(env),
            queues: Mutex::default(),
            facts: Mutex::new(facts),
        })
    }

    fn add_queue(self: &Arc<Self>, queue: Queue) {
        let queue = Arc::new(queue);
        self.queues.lock().insert(queue.name.clone(), Arc::clone(&queue));
        Sender::spawn(&self.env, self, &queue);
    }

    /// Its directory, unless the volume could not be read.
    pub(crate) fn dir(&self) -> Result<&VolumeDir, RoleError> {
        self.dir.as_ref().ok_or_else(|| {
            let why = self.facts.lock().error.clone();
            RoleError::damaged(format!("volume {} cannot be used: {why}", self.name))
                .with_volume(&self.name)
                .with_next_step("mend the file and restart the proxy, or clear the volume")
        })
    }

    pub(crate) fn env(&self) -> &Arc<Env> {
        &self.env
    }

    pub(crate) fn queues(&self) -> Vec<Arc<Queue>> {
        self.queues.lock().values().cloned().collect()
    }

    /// The identity of its directory, as messages have it.
    pub(crate) fn store_uuid(&self) -> Bytes {
        self.facts.lock().stored.store_uuid().map(uuid_bytes).unwrap_or_default()
    }

    pub(crate) fn size_lb(&self) -> u64 {
        self.facts.lock().stored.size_lb
    }

    /// May a transfer to an archive begin (semantics.md §4.1)?
    pub(crate) fn may_send(view: &View<State>) -> bool {
        let stop = matches!(view.stop, StopFlag::NotStopping | StopFlag::WaitingForEmpty);
        stop && matches!(view.state, State::Started | State::WlogRecv | State::WaitForEmpty)
    }

    /// A wlog was received since the server started, and the last one long ago.
    pub(crate) fn is_quiet(&self) -> bool {
        let received = self.facts.lock().received;
        received.is_some_and(|(at, _)| at.elapsed() > self.env.limits.give_up_after)
    }

    pub(crate) fn note_error(&self, error: &RoleError) {
        self.facts.lock().error = error.full_message();
    }

    /// Begins to receive a wlog.
    pub(crate) fn begin_receive(&self) -> Result<Transition<State>, RoleError> {
        self.dir()?;
        let begun = self.cell.begin(&[State::Started], State::WlogRecv);
        begun.map_err(|wrong| wrong.into_error(&self.name, "receive a wlog for"))
    }

    /// The wdiff becomes durable in every queue (I5), and every queue knows it. Blocks.
    pub(crate) fn stage(
        &self,
        tmp: TmpFile,
        new: Staged,
        name: &str,
        size_lb: u64,
    ) -> Result<(), RoleError> {
        let dir = self.dir()?;
        self.grow(dir, size_lb)?;
        let queues = self.queues();
        if queues.is_empty() {
            return Err(self.cannot("receive a wlog for", &[State::Started]));
        }
        // In the order of names everywhere, so two of these cannot wait for each other.
        let _files: Vec<_> = queues.iter().map(|queue| queue.lock_files()).collect();
        let places = queues.iter().map(|queue| queue.place(new, name));
        let into: Vec<_> = places.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        if let Err(error) = dir.publish(tmp, name, &into) {
            // Not acknowledged and in no queue: what was linked already must not stay.
            for place in into {
                let _ = place.unlink(name);
            }
            return Err(error);
        }
        queues.iter().for_each(|queue| queue.received(new));
        let mut facts = self.facts.lock();
        facts.received = Some((Instant::now(), unix_seconds()));
        facts.error.clear();
        Ok(())
    }

    fn grow(&self, dir: &VolumeDir, size_lb: u64) -> Result<(), RoleError> {
        let mut stored = self.facts.lock().stored.clone();
        if size_lb <= stored.size_lb {
            return Ok(());
        }
        stored.size_lb = size_lb;
        dir.store(&stored)?;
        self.facts.lock().stored = stored;
        Ok(())
    }

    fn store_started(&self, started: bool) -> Result<(), RoleError> {
        let stored = VolumeState { started, ..self.facts.lock().stored.clone() };
        self.dir()?.store(&stored)?;
        self.facts.lock().stored = stored;
        Ok(())
    }

    /// Stopped -> Started.
    pub(crate) async fn start(self: Arc<Self>) -> Result<(), RoleError> {
        self.dir()?;
        let begun = self.cell.begin(&[State::Stopped], State::Start);
        let transition = begun.map_err(|wrong| wrong.into_error(&self.name, "start"))?;
        let volume = Arc::clone(&self);
        blocking::run(move || {
            volume.store_started(true)?;
            volume.queues().iter().try_for_each(|queue| queue.resume())
        })
        .await?;
        transition.commit(State::Started);
        Ok(())
    }

    /// Started -> Stopped; answers when it has stopped.
    pub(crate) async fn stop(self: Arc<Self>, mode: StopMode) -> Result<(), RoleError> {
        let (flag, via) = match mode {
            StopMode::Graceful => (StopFlag::Stopping, State::Stop),
            StopMode::Force => (StopFlag::ForceStopping, State::Stop),
            StopMode::Empty => (StopFlag::WaitingForEmpty, State::WaitForEmpty),
        };
        let guard = self.begin_stop(flag)?;
        self.cell.wait_until(|v| !v.changing).await;
        let transition = match guard.begin(&[State::Started], via) {
            Ok(transition) => transition,
            // A less urgent stop got there first.
            Err(_) if self.cell.state() == State::Stopped => return Ok(()),
            Err(wrong) => return Err(wrong.into_error(&self.name, "stop")),
        };
        if flag == StopFlag::WaitingForEmpty {
            self.kick(None).await?;
        }
        self.wait_for_sends(flag).await?;
        let volume = Arc::clone(&self);
        let stored = blocking::run(move || {
            volume.store_started(false)?;
            // Here, so that a caller who went away in between does not leave it half stopped.
            transition.commit(State::Stopped);
            Ok::<_, RoleError>(())
        });
        stored.await
    }

    fn begin_stop(&self, flag: StopFlag) -> Result<StopGuard<State>, RoleError> {
        let view = self.cell.view();
        let stoppable = [State::Started, State::WlogRecv, State::WaitForEmpty, State::Stop];
        if !stoppable.contains(&view.state) {
            let allowed = [State::Started.to_string(), State::WlogRecv.to_string()];
            return Err(RoleError::wrong_state(&self.name, "stop", view.state, &allowed));
        }
        self.cell.begin_stop(flag).map_err(|up| {
            RoleError::stopping(format!("volume {} is being stopped already ({up:?})", self.name))
                .with_volume(&self.name)
        })
    }

    async fn wait_for_sends(&self, flag: StopFlag) -> Result<(), RoleError> {
        let empty = flag == StopFlag::WaitingForEmpty;
        let settled = async {
            for queue in self.queues() {
                queue.settle(|s| !s.sending && (s.empty || !empty)).await;
            }
        };
        let requested = self.env.shutdown.requested();
        let given_up = |why: &str| {
            let message = format!("volume {} is not stopped: {why}", self.name);
            RoleError::cancelled(message).with_volume(&self.name)
        };
        tokio::select! {
            () = settled => Ok(()),
            () = self.cell.wait_until(|v| empty && v.stop > flag) => {
                Err(given_up("a more urgent stop overtakes this one"))
            }
            // Nothing is sent from then on, so the queues will not become empty.
            () = requested.cancelled(), if empty => Err(given_up("the proxy is shutting down")),
        }
    }

    /// Adds an archive; one of that name must not be there.
    pub(crate) async fn add_archive(self: Arc<Self>, archive: Archive) -> Result<(), RoleError> {
        let transition = self.begin_change(State::AddArchiveInfo, "add an archive to")?;
        if self.queues.lock().contains_key(&archive.name) {
            let message = format!("volume {} has an archive {} already", self.name, archive.name);
            return Err(RoleError::already_exists(message)
                .with_volume(&self.name)
                .with_next_step("update it, or delete it first"));
        }
        let volume = Arc::clone(&self);
        let queue = blocking::run(move || {
            let dir = volume.dir()?.add_archive(&archive)?;
            Ok::<_, RoleError>(Queue::new(archive, dir, &volume.env.limits))
        });
        self.add_queue(queue.await?);
        transition.commit(State::Stopped);
        Ok(())
    }

    /// Changes an archive's address, compression or delay; its queue stays.
    pub(crate) async fn update_archive(self: Arc<Self>, archive: Archive) -> Result<(), RoleError> {
        let transition = self.begin_change(State::AddArchiveInfo, "change an archive of")?;
        let queue = self.queue(&archive.name)?;
        let volume = Arc::clone(&self);
        blocking::run(move || {
            volume.dir()?.store_archive(&archive)?;
            queue.set_archive(archive);
            Ok::<_, RoleError>(())
        })
        .await?;
        transition.commit(State::Stopped);
        Ok(())
    }

    /// Deletes an archive with its queue. With the last one the volume is to be cleared instead.
    pub(crate) async fn delete_archive(self: Arc<Self>, name: ServerId) -> Result<(), RoleError> {
        let transition = self.begin_change(State::DeleteArchiveInfo, "delete an archive of")?;
        let queue = self.queue(&name)?;
        let volume = Arc::clone(&self);
        blocking::run(move || volume.dir()?.delete_archive(&queue.name)).await?;
        if let Some(queue) = self.queues.lock().remove(&name) {
            queue.end.cancel();
        }
        transition.commit(State::Stopped);
        Ok(())
    }

    fn begin_change(&self, via: State, attempt: &str) -> Result<Transition<State>, RoleError> {
        self.dir()?;
        let begun = self.cell.begin(&[State::Stopped], via);
        begun.map_err(|wrong| wrong.into_error(&self.name, attempt))
    }

    /// Stopped -> Clear: everything of it is removed.
    pub(crate) async fn clear(self: Arc<Self>, base: Arc<dyn DurableDir>) -> Result<(), RoleError> {
        let begun = self.cell.begin(&[State::Stopped], State::ClearVol);
        let transition = begun.map_err(|wrong| wrong.into_error(&self.name, "clear"))?;
        let name = self.name.clone();
        blocking::run(move || base.remove_dir(name.as_str())).await?;
        std::mem::take(&mut *self.queues.lock()).values().for_each(|queue| queue.end.cancel());
        transition.commit(State::Clear);
        Ok(())
    }

    /// The queue of an archive on the list.
    pub(crate) fn queue(&self, name: &ServerId) -> Result<Arc<Queue>, RoleError> {
        self.queues.lock().get(name).cloned().ok_or_else(|| {
            RoleError::bad_request(format!("volume {} has no archive {name}", self.name))
                .with_volume(&self.name)
                .with_next_step("list them: walbc archive-info PROXY VOL")
        })
    }

    /// Clears marks and back-off of its queues, or of one; the names of those.
    pub(crate) async fn kick(&self, archive: Option<&ServerId>) -> Result<Vec<String>, RoleError> {
        let queues = match archive {
            Some(name) => vec![self.queue(name)?],
            None => self.queues(),
        };
        let names = queues.iter().map(|queue| format!("{}/{}", self.name, queue.name)).collect();
        blocking::run(move || queues.iter().try_for_each(|queue| queue.resume())).await?;
        Ok(names)
    }

    pub(crate) fn status(&self) -> ProxyVolume {
        let queues: Vec<_> = self.queues();
        let damaged = queues.iter().any(|queue| queue.mark() == Mark::Damaged);
        let facts = self.facts.lock();
        let error = match damaged && facts.error.is_empty() {
            true => "a staged wdiff is damaged, see the queues".to_owned(),
            false => facts.error.clone(),
        };
        ProxyVolume {
            volume: self.name.to_string(),
            state: self.cell.state().to_string(),
            size_lb: facts.stored.size_lb,
            last_received_s: facts.received.map_or(0, |(_, s)| s),
            queues: queues.iter().map(|queue| queue.status()).collect(),
            error,
            store_uuid: facts.stored.store_uuid().map(uuid_bytes).unwrap_or_default(),
        }
    }

    /// The error for requests that this state does not allow.
    pub(crate) fn cannot(&self, attempt: &str, allowed: &[State]) -> RoleError {
        let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        RoleError::wrong_state(&self.name, attempt, self.cell.state(), &allowed)
    }

    /// Whether `error` tells about this volume's disk rather than about the peer.
    pub(crate) fn is_own_failure(error: &RoleError) -> bool {
        matches!(error.reason(), Reason::NoSpace | Reason::Io | Reason::Damaged)
    }
}
