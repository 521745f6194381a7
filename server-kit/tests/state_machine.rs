//! Transactions on states: one at a time, all or nothing, and stops that outrank each other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
use proptest::prelude::*;
use server_kit::error::Reason;
use server_kit::state_machine::{StateCell, StopFlag};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum S {
    Stopped,
    Started,
    Start,
    Stop,
}
impl fmt::Display for S {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Begin,
    Commit,
    Drop,
    Chain,
    Stop(StopFlag),
    EndStop,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        Just(Act::Begin),
        Just(Act::Commit),
        Just(Act::Drop),
        Just(Act::Chain),
        Just(Act::Stop(StopFlag::WaitingForEmpty)),
        Just(Act::Stop(StopFlag::ForceStopping)),
        Just(Act::EndStop),
    ];
    prop::collection::vec(act, 0..40)
}

proptest! {
    /// Any order of acts agrees with a model of two variables: the last static state, and whether a
    /// transaction is open.
    #[test]
    fn the_cell_agrees_with_a_naive_model(acts in acts()) {
        let cell = StateCell::new(S::Stopped);
        let (mut resting, mut open, mut stops) = (S::Stopped, None, Vec::new());
        for act in acts {
            let target = if resting == S::Stopped { S::Started } else { S::Stopped };
            match act {
                Act::Begin => {
                    let begun = cell.begin(&[S::Stopped, S::Started], S::Start);
                    prop_assert_eq!(begun.is_ok(), open.is_none() && stops.is_empty());
                    open = begun.ok().or(open);
                }
                Act::Commit => if let Some(t) = open.take() { t.commit(target); resting = target },
                Act::Drop => drop(open.take()),
                Act::Chain => if let Some(t) = open.take() {
                    open = Some(t.commit_and_begin(target, S::Start));
                    resting = target;
                },
                Act::Stop(flag) => {
                    let up = stops.iter().map(|(f, _)| *f).max().unwrap_or(StopFlag::NotStopping);
                    let guard = cell.begin_stop(flag);
                    prop_assert_eq!(guard.is_ok(), flag > up);
                    if let Ok(g) = guard { stops.push((flag, g)) }
                }
                Act::EndStop => stops.clear(),
            }
            let view = cell.view();
            prop_assert_eq!(view.changing, open.is_some());
            prop_assert_eq!(view.state, if open.is_some() { S::Start } else { resting });
            prop_assert_eq!(view.stop == StopFlag::NotStopping, stops.is_empty());
        }
        drop(open);
        prop_assert_eq!(cell.state(), resting, "what was not committed goes back");
    }
}

#[test]
fn a_refusal_tells_state_and_what_would_do() {
    let cell = StateCell::new(S::Stopped);
    let refused = cell.begin(&[S::Started], S::Stop).err().unwrap().into_error("v0", "stop");
    assert_eq!(refused.reason(), Reason::WrongState);
    assert_eq!(refused.detail().state, "Stopped");
    assert_eq!(refused.detail().allowed_states, ["Started"]);
    let _open = cell.begin(&[S::Stopped], S::Start).unwrap();
    let busy = cell.begin(&[S::Stopped], S::Start).err().unwrap().into_error("v0", "start");
    assert_eq!(busy.reason(), Reason::Busy);
}

#[test]
fn the_stopper_may_change_the_state_and_others_may_not() {
    let cell = StateCell::new(S::Started);
    let guard = cell.begin_stop(StopFlag::Stopping).ok().unwrap();
    let refused = cell.begin(&[S::Started], S::Start).err().unwrap().into_error("v0", "x");
    assert_eq!(refused.reason(), Reason::Stopping);
    guard.begin(&[S::Started], S::Stop).unwrap().commit(S::Stopped);
    let urgent = cell.begin_stop(StopFlag::ForceStopping).ok().unwrap();
    drop(guard);
    assert_eq!(cell.view().stop, StopFlag::ForceStopping, "the last stopper holds the flag");
    drop(urgent);
    assert_eq!(cell.view().stop, StopFlag::NotStopping);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_with_the_change_and_not_before() {
    let cell = StateCell::new(S::Started);
    let open = cell.begin(&[S::Started], S::Stop).unwrap();
    let waiter = cell.clone();
    let task = tokio::spawn(async move { waiter.wait_until(|v| v.state == S::Stopped).await });
    tokio::task::yield_now().await;
    assert!(!task.is_finished());
    open.commit(S::Stopped);
    task.await.unwrap();
}
