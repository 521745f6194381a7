//! Answers that were lost: the server may have done what was asked.
//!
//! Invariant: nothing that must happen once is asked for twice without a look whether it has
//! happened; a server that is plainly down is reported within a second.

use std::time::Duration;

use proto::v1;
use tokio::time::sleep;

use super::{Watch, run};
use crate::client::{At, Controller};
use crate::error::ControlError;
use crate::group::Server;

/// How often a call is made whose answer does not come.
const TRIES: usize = 3;

/// Pause before another try: what broke may be back.
const PAUSE: Duration = Duration::from_millis(200);

/// Calls until there is an answer; after a lost one, `happened` looks whether it is done already.
pub(crate) async fn surely<T>(
    mut call: impl AsyncFnMut() -> Result<T, ControlError>,
    mut happened: impl AsyncFnMut() -> Result<Option<T>, ControlError>,
) -> Result<T, ControlError> {
    let mut answer = call().await;
    for _ in 1..TRIES {
        let Err(ControlError::Unreachable { .. }) = &answer else { break };
        sleep(PAUSE).await;
        match happened().await {
            Ok(Some(done)) => return Ok(done),
            Ok(None) => answer = call().await,
            Err(error) => answer = Err(error),
        }
    }
    answer
}

/// Calls until there is an answer what may be done more than once.
pub(crate) async fn again<T>(
    call: impl AsyncFnMut() -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    surely(call, async || Ok(None)).await
}

/// The operations of one kind on a volume that a server remembers.
pub(crate) async fn operations_of(
    ctl: &Controller,
    server: &Server,
    kind: &str,
    volume: &str,
) -> Result<Vec<v1::Operation>, ControlError> {
    let list = ctl.host(server).list_operations(v1::Empty {}).await.at(server)?;
    let ours = |op: &v1::Operation| op.kind == kind && op.volume == volume;
    Ok(list.operations.into_iter().filter(ours).collect())
}

/// Starts a long job of a server by `call` and follows it to its end. When the answer to `call` is
/// lost, the job is recognised as the one that was not there before.
pub(crate) async fn start_and_follow(
    ctl: &Controller,
    server: &Server,
    (kind, volume): (&str, &str),
    watch: Watch<'_>,
    call: impl AsyncFnMut() -> Result<v1::Operation, ControlError>,
) -> Result<v1::Operation, ControlError> {
    let before = operations_of(ctl, server, kind, volume).await?;
    let started = surely(call, async || {
        let now = operations_of(ctl, server, kind, volume).await?;
        Ok(now.into_iter().rev().find(|op| before.iter().all(|old| old.id != op.id)))
    });
    let operation = started.await?;
    run::follow(ctl, server, operation, watch).await
}
