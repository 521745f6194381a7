//! The `Host` service of every role: who are you, long operations, shutdown.
use crate::error::RoleError;
use crate::operations::Operations;
use crate::shutdown::Shutdown;
use crate::volume_name::ServerId;
use futures::stream::{BoxStream, StreamExt};
use proto::v1::host_server::{Host, HostServer};
use proto::v1::{Empty, HostInfo, Operation, OperationList, OperationRef, Role, ShutdownRequest};
use tonic::{Request, Response, Status};

/// Serves `walb.v1.Host`.
pub struct HostService {
    role: Role,
    id: ServerId,
    operations: Operations,
    shutdown: Shutdown,
}

impl HostService {
    /// The service, ready for `Routes::new` or `add_service`.
    #[must_use]
    pub fn server(
        role: Role,
        id: ServerId,
        operations: Operations,
        shutdown: Shutdown,
    ) -> HostServer<Self> {
        HostServer::new(Self { role, id, operations, shutdown })
    }
}

#[tonic::async_trait]
impl Host for HostService {
    async fn info(&self, _: Request<Empty>) -> Result<Response<HostInfo>, Status> {
        Ok(Response::new(HostInfo {
            role: self.role.into(),
            id: self.id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
        }))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Result<Response<Empty>, Status> {
        let number = request.get_ref().mode;
        let unknown = |_| RoleError::bad_request(format!("there is no stop mode {number}"));
        let mode = number.try_into().map_err(unknown)?;
        tracing::info!(?mode, "a client asks for shutdown");
        self.shutdown.request(mode);
        Ok(Response::new(Empty {}))
    }

    async fn list_operations(&self, _: Request<Empty>) -> Result<Response<OperationList>, Status> {
        Ok(Response::new(OperationList { operations: self.operations.list() }))
    }

    type WatchOperationStream = BoxStream<'static, Result<Operation, Status>>;

    async fn watch_operation(
        &self,
        request: Request<OperationRef>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        let changes = self.operations.watch(&request.get_ref().id)?;
        Ok(Response::new(changes.map(Ok).boxed()))
    }

    async fn cancel_operation(
        &self,
        request: Request<OperationRef>,
    ) -> Result<Response<Operation>, Status> {
        Ok(Response::new(self.operations.cancel(&request.get_ref().id)?))
    }
}
