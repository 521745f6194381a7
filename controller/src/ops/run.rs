//! Running servers: who is alive, their long operations, shutdown.

use proto::v1;
use tokio_stream::StreamExt;

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

/// Follows an operation until it has ended; `seen` gets every report on the way.
///
/// # Errors
/// [`ControlError::Operation`] unless it ends as done.
pub async fn follow(
    ctl: &Controller,
    server: &Server,
    operation: v1::Operation,
    seen: &mut (dyn FnMut(&v1::Operation) + Send),
) -> Result<v1::Operation, ControlError> {
    let request = v1::OperationRef { id: operation.id.clone() };
    let mut stream = ctl.host(server).watch_operation(request).await.at(server)?;
    let mut last = operation;
    while let Some(report) = stream.next().await {
        last = report.map_err(|status| ControlError::from_status(server, &status))?;
        seen(&last);
    }
    match last.status() {
        v1::OperationStatus::Done => Ok(last),
        v1::OperationStatus::Failed | v1::OperationStatus::Cancelled => {
            Err(ControlError::Operation { server: server.name.clone(), operation: Box::new(last) })
        }
        v1::OperationStatus::Running | v1::OperationStatus::Unspecified => {
            Err(ControlError::Unreachable {
                server: server.name.clone(),
                address: server.address.to_string(),
                message: format!("it stopped reporting on operation {}", last.id),
            })
        }
    }
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
    seen: &mut (dyn FnMut(&v1::Operation) + Send),
) -> Result<v1::Operation, ControlError> {
    let (server, operation) = find(ctl, id).await?;
    follow(ctl, server, operation, seen).await
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
