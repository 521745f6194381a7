//! The state of one volume at one role, and who may change it (semantics.md §1.6, style: a table of
//! states lives in each role; the rules of changing live here).
//!
//! A change is a transaction: static state -> transient state -> static state. Invariants: at most
//! one transaction is open; a transaction that is dropped goes back to where it came from; while a
//! stop is in progress only the stopper can begin one; a stop flag falls back when the last stopper
//! has let go. Waiting is by notification, never by polling.
use crate::error::{Reason, RoleError};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

/// Static and transient states of a role: a small enum with names for people.
pub trait State: Copy + Eq + fmt::Display + Send + Sync + 'static {}
impl<S: Copy + Eq + fmt::Display + Send + Sync + 'static> State for S {}

/// How urgently a volume is being stopped; a later variant is more urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopFlag {
    /// Nobody stops it.
    NotStopping,
    /// Nothing new is taken, queues are sent first.
    WaitingForEmpty,
    /// What runs is finished, nothing starts.
    Stopping,
    /// What runs is aborted at the next block.
    ForceStopping,
}

/// What a [`StateCell`] holds at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View<S> {
    /// The state, static or transient.
    pub state: S,
    /// A transaction is open, so `state` is transient.
    pub changing: bool,
    /// Whether somebody stops the volume.
    pub stop: StopFlag,
    stoppers: u32,
}

/// A transaction was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the state is {state}{}, needed is {}",
    if *stopping { " and it is being stopped" } else { "" }, allowed.join(" or "))]
pub struct WrongState {
    /// The state that was met.
    pub state: String,
    /// The states that would have done.
    pub allowed: Vec<String>,
    /// A transaction was open.
    pub changing: bool,
    /// A stop was in progress.
    pub stopping: bool,
}

impl WrongState {
    /// The error to answer with: stopping, busy (a transaction is open) or wrong state.
    #[must_use]
    pub fn into_error(self, volume: impl AsRef<str>, attempt: &str) -> RoleError {
        let volume = volume.as_ref();
        if !self.stopping && !self.changing {
            return RoleError::wrong_state(volume, attempt, &self.state, &self.allowed);
        }
        let reason = if self.stopping { Reason::Stopping } else { Reason::Busy };
        RoleError::new(reason, format!("cannot {attempt} volume {volume}: {self}"))
            .with_volume(volume)
            .with_state(&self.state, &self.allowed)
    }
}

/// The state of one volume. Clones share it.
pub struct StateCell<S>(Arc<watch::Sender<View<S>>>);

impl<S> Clone for StateCell<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: State> StateCell<S> {
    /// A cell in this static state.
    #[must_use]
    pub fn new(state: S) -> Self {
        let view = View { state, changing: false, stop: StopFlag::NotStopping, stoppers: 0 };
        Self(Arc::new(watch::Sender::new(view)))
    }

    /// What holds now.
    #[must_use]
    pub fn view(&self) -> View<S> {
        *self.0.borrow()
    }

    /// The state now, static or transient.
    #[must_use]
    pub fn state(&self) -> S {
        self.view().state
    }

    /// A receiver that sees every later change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<View<S>> {
        self.0.subscribe()
    }

    /// Waits, without a limit of its own, until `condition` holds.
    pub async fn wait_until(&self, mut condition: impl FnMut(&View<S>) -> bool) {
        // The sender is ours, so the channel cannot close.
        let _ = self.subscribe().wait_for(|v| condition(v)).await;
    }

    /// Begins a transaction from one of `from`, showing `via` until it ends.
    ///
    /// # Errors
    /// [`WrongState`] when the state is another one, a transaction is open or a stop in progress.
    pub fn begin(&self, from: &[S], via: S) -> Result<Transition<S>, WrongState> {
        self.begin_as(from, via, false)
    }

    fn begin_as(&self, from: &[S], via: S, stopper: bool) -> Result<Transition<S>, WrongState> {
        let mut result = Err(None);
        self.0.send_if_modified(|view| {
            let stopped = view.stop != StopFlag::NotStopping && !stopper;
            if stopped || view.changing || !from.contains(&view.state) {
                result = Err(Some(*view));
                return false;
            }
            result = Ok(view.state);
            (view.state, view.changing) = (via, true);
            true
        });
        let refused = |view: Option<View<S>>| WrongState {
            state: view.map(|v| v.state.to_string()).unwrap_or_default(),
            allowed: from.iter().map(ToString::to_string).collect(),
            changing: view.is_some_and(|v| v.changing),
            stopping: view.is_some_and(|v| v.stop != StopFlag::NotStopping) && !stopper,
        };
        let back = result.map_err(refused)?;
        Ok(Transition { cell: self.clone(), back, open: true })
    }

    /// Raises the stop flag; it falls when the guard is dropped. A more urgent stop may join one
    /// that is in progress.
    ///
    /// # Errors
    /// The flag that is up already, when it is as urgent or more.
    pub fn begin_stop(&self, flag: StopFlag) -> Result<StopGuard<S>, StopFlag> {
        let mut result = Ok(());
        self.0.send_if_modified(|view| {
            if view.stop >= flag {
                result = Err(view.stop);
                return false;
            }
            view.stop = flag;
            view.stoppers += 1;
            true
        });
        result.map(|()| StopGuard { cell: self.clone() })
    }
}

/// An open transaction. Dropped without [`Transition::commit`] it goes back.
#[must_use = "dropping it goes back to the old state"]
pub struct Transition<S: State> {
    cell: StateCell<S>,
    back: S,
    open: bool,
}

impl<S: State> Transition<S> {
    /// Ends in the static state `to`.
    pub fn commit(mut self, to: S) {
        self.close(to);
    }

    /// Ends in the static state `to` and begins the next transaction from there in one step, so
    /// that nobody else gets in between.
    pub fn commit_and_begin(mut self, to: S, via: S) -> Self {
        self.open = false;
        self.cell.0.send_modify(|view| view.state = via);
        Self { cell: self.cell.clone(), back: to, open: true }
    }

    /// The state that it goes back to when dropped.
    #[must_use]
    pub fn came_from(&self) -> S {
        self.back
    }

    fn close(&mut self, state: S) {
        if std::mem::take(&mut self.open) {
            self.cell.0.send_modify(|view| (view.state, view.changing) = (state, false));
        }
    }
}

impl<S: State> Drop for Transition<S> {
    fn drop(&mut self) {
        self.close(self.back);
    }
}

/// A stop in progress.
#[must_use = "dropping it takes the stop back"]
pub struct StopGuard<S: State> {
    cell: StateCell<S>,
}

impl<S: State> StopGuard<S> {
    /// As [`StateCell::begin`], for the one who stops.
    ///
    /// # Errors
    /// [`WrongState`].
    pub fn begin(&self, from: &[S], via: S) -> Result<Transition<S>, WrongState> {
        self.cell.begin_as(from, via, true)
    }
}

impl<S: State> Drop for StopGuard<S> {
    fn drop(&mut self) {
        self.cell.0.send_modify(|view| {
            view.stoppers -= 1;
            if view.stoppers == 0 {
                view.stop = StopFlag::NotStopping;
            }
        });
    }
}
