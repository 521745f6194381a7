//! Running servers: who is alive, their long operations, shutdown.

use std::time::Duration;

use proto::v1;
use server_kit::error::Reason;
use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt;

use super::{Event, Watch};
use crate::client::{At, Controller};
use crate::error::ControlError;
use crate::group::Server;

/// A long job of one server.
#[derive(Clone, Debug)]
pub struct RunningOperation {
    /// The server that works on it.
    pub server: String,
    /// What it is.
    pub operation: v1::Operation,
}

/// How long a server that runs an operation may be out of reach before we give up watching it.
const LOST_LIMIT: Duration = Duration::from_secs(30);

/// Pause before a server that was out of reach is asked again.
const LOST_PAUSE: Duration = Duration::from_millis(500);

/// Follows an operation until it has ended; `watch` gets every report on the way. A connection that
/// breaks is made anew.
///
/// # Errors
/// [`ControlError::Operation`] unless it ends as done; [`ControlError::Forgotten`] when the server
/// was restarted meanwhile; [`ControlError::Unreachable`] when it stays out of reach.
pub async fn follow(
    ctl: &Controller,
    server: &Server,
    operation: v1::Operation,
    watch: Watch<'_>,
) -> Result<v1::Operation, ControlError> {
    let mut last = operation;
    let mut heard = Instant::now();
    loop {
        let seen = &mut |report: &v1::Operation| {
            heard = Instant::now();
            watch(Event::Progress(report));
        };
        let broken = match reports(ctl, server, &mut last, seen).await {
            Ok(()) => None,
            Err(error @ ControlError::Unreachable { .. }) => Some(error),
            Err(ControlError::Refused { error, .. }) if error.reason() == Reason::BadRequest => {
                let server = server.name.clone();
                return Err(ControlError::Forgotten { server, operation: Box::new(last) });
            }
            Err(error) => return Err(error),
        };
        match (last.status(), broken) {
            (v1::OperationStatus::Done, _) => return Ok(last),
            (v1::OperationStatus::Failed | v1::OperationStatus::Cancelled, _) => {
                let server = server.name.clone();
                return Err(ControlError::Operation { server, operation: Box::new(last) });
            }
            (_, Some(error)) if heard.elapsed() >= LOST_LIMIT => return Err(error),
            (_, None) if heard.elapsed() >= LOST_LIMIT => {
                return Err(ControlError::Unreachable {
                    server: server.name.clone(),
                    address: server.address.to_string(),
                    message: format!("it stopped reporting on operation {}", last.id),
                });
            }
            _ => sleep(LOST_PAUSE).await,
        }
    }
}

/// The reports of one connection, the newest in `last`.
async fn reports(
    ctl: &Controller,
    server: &Server,
    last: &mut v1::Operation,
    seen: &mut (dyn FnMut(&v1::Operation) + Send),
) -> Result<(), ControlError> {
    let request = v1::OperationRef { id: last.id.clone() };
    let mut stream = ctl.host(server).watch_operation(request).await.at(server)?;
    while let Some(report) = stream.next().await {
        *last = report.map_err(|status| ControlError::from_status(server, &status))?;
        seen(last);
    }
    Ok(())
}

/// What a server says of itself.
///
/// # Errors
/// Unknown or unreachable server.
pub async fn info(ctl: &Controller, server: &Server) -> Result<v1::HostInfo, ControlError> {
    ctl.host(server).info(v1::Empty {}).await.at(server)
}

/// The operations of all servers that answer, newest last.
///
/// # Errors
/// The first server that cannot be reached, when none can.
pub async fn operations(ctl: &Controller) -> Result<Vec<RunningOperation>, ControlError> {
    let (mut found, mut failed, mut answered) = (Vec::new(), None, false);
    for server in ctl.group().servers() {
        match ctl.host(server).list_operations(v1::Empty {}).await.at(server) {
            Ok(list) => {
                answered = true;
                found.extend(
                    list.operations.into_iter().map(|operation| RunningOperation {
                        server: server.name.clone(),
                        operation,
                    }),
                );
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    found.sort_by_key(|entry| entry.operation.started_s);
    match failed {
        Some(error) if !answered => Err(error),
        _ => Ok(found),
    }
}

/// The operation of that id, at whichever server it runs.
async fn find<'a>(
    ctl: &'a Controller,
    id: &str,
) -> Result<(&'a Server, v1::Operation), ControlError> {
    let found = operations(ctl).await?.into_iter().find(|entry| entry.operation.id == id);
    let Some(entry) = found else {
        return Err(ControlError::Precondition {
            message: format!("no server knows an operation {id:?}"),
            next_step: "`walbc operations` lists them; a restart forgets what had ended".to_owned(),
        });
    };
    Ok((ctl.group().server(&entry.server)?, entry.operation))
}

/// Waits until the operation has ended.
///
/// # Errors
/// No such operation, or it ends otherwise than done.
pub async fn wait(
    ctl: &Controller,
    id: &str,
    watch: Watch<'_>,
) -> Result<v1::Operation, ControlError> {
    let (server, operation) = find(ctl, id).await?;
    follow(ctl, server, operation, watch).await
}

/// Asks the server of the operation to end it; returns its last report.
///
/// # Errors
/// No such operation; the server cannot be reached.
pub async fn cancel(ctl: &Controller, id: &str) -> Result<v1::Operation, ControlError> {
    let (server, operation) = find(ctl, id).await?;
    let request = v1::OperationRef { id: operation.id };
    ctl.host(server).cancel_operation(request).await.at(server)
}

/// Stops a server's process; graceful lets what runs finish.
///
/// # Errors
/// Unknown or unreachable server.
pub async fn shutdown(
    ctl: &Controller,
    name: &str,
    mode: v1::StopMode,
) -> Result<(), ControlError> {
    let server = ctl.group().server(name)?;
    let request = v1::ShutdownRequest { mode: mode.into() };
    ctl.host(server).shutdown(request).await.at(server).map(drop)
}
