//! Blocking work in a simulation: it has a thread, for its stack, but runs only while the task that
//! drives it is polled. So it never runs beside anything else, and a seed gives one order of
//! events.
//!
//! Invariants: of the driver and the thread one has the turn; a driver that is dropped (its process
//! is killed) has the thread unwound where it waits, before the drop returns.
use crate::simulation::Simulation;
use parking_lot::{Condvar, Mutex};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::runtime::Handle;

thread_local! {
    /// The coroutine that this thread is.
    static CURRENT: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Driver,
    Work,
    Ended,
}

struct State {
    turn: Turn,
    killed: bool,
    waker: Waker,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// What a killed coroutine unwinds with.
struct Killed;

impl Shared {
    /// Gives the turn to the work, and takes it back; whether the work has ended.
    fn run(&self) -> bool {
        let mut state = self.state.lock();
        if state.turn == Turn::Driver {
            state.turn = Turn::Work;
            self.changed.notify_all();
        }
        self.changed.wait_while(&mut state, |s| s.turn == Turn::Work);
        state.turn == Turn::Ended
    }

    /// The work waits until it is polled again.
    fn pause(&self) {
        let mut state = self.state.lock();
        if state.killed && std::thread::panicking() {
            // A destructor waits during the unwinding, which would end the process: the thread
            // stays as it is, for good, as after a kill.
            state.turn = Turn::Ended;
            self.changed.notify_all();
            drop(state);
            loop {
                std::thread::park();
            }
        }
        state.turn = Turn::Driver;
        self.changed.notify_all();
        self.await_turn(state);
    }

    fn await_turn(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        self.changed.wait_while(&mut state, |s| s.turn == Turn::Driver);
        let killed = state.killed;
        drop(state);
        if killed {
            resume_unwind(Box::new(Killed));
        }
    }
}

/// The driver: ready when the work has ended.
pub(super) struct Coroutine<T> {
    shared: Arc<Shared>,
    result: Arc<Mutex<Option<std::thread::Result<T>>>>,
}

impl<T: Send + 'static> Coroutine<T> {
    /// Starts the thread, which waits for its first turn. Needs a tokio runtime.
    pub(super) fn new(
        simulation: Simulation,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<Self> {
        let state = State { turn: Turn::Driver, killed: false, waker: Waker::noop().clone() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let result = Arc::new(Mutex::new(None));
        let (here, answer, runtime) = (shared.clone(), result.clone(), Handle::current());
        std::thread::Builder::new().name("simulated".into()).spawn(move || {
            let _simulated = simulation.enter();
            let _runtime = runtime.enter();
            CURRENT.set(Some(here.clone()));
            let done = catch_unwind(AssertUnwindSafe(|| {
                here.await_turn(here.state.lock());
                work()
            }));
            *answer.lock() = Some(done);
            CURRENT.set(None);
            here.state.lock().turn = Turn::Ended;
            here.changed.notify_all();
        })?;
        Ok(Self { shared, result })
    }
}

impl<T> Future for Coroutine<T> {
    type Output = std::thread::Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.shared.state.lock().waker.clone_from(cx.waker());
        if !self.shared.run() {
            return Poll::Pending;
        }
        let result = self.result.lock().take();
        result.map_or(Poll::Pending, Poll::Ready)
    }
}

impl<T> Drop for Coroutine<T> {
    fn drop(&mut self) {
        self.shared.state.lock().killed = true;
        while !self.shared.run() {}
    }
}

/// In a coroutine: waits for `future` without keeping others from running. `Err` elsewhere.
pub(super) fn wait<F: Future>(future: F) -> Result<F::Output, F> {
    let Some(shared) = CURRENT.with_borrow(Clone::clone) else { return Err(future) };
    let mut future = pin!(future);
    loop {
        let waker = shared.state.lock().waker.clone();
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Ok(output);
        }
        shared.pause();
    }
}
