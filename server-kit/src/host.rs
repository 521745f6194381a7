//! The `Host` service of every role: who are you, long operations, shutdown.
use crate::error::RoleError;
use crate::operations::Operations;
use crate::shutdown::Shutdown;
use crate::volume_name::ServerId;
use futures::stream::StreamExt;
use nix::sys::statvfs::statvfs;
use proto::v1::host_server::{Host, HostServer};
use proto::v1::{
    Empty, HostInfo, Operation, OperationList, OperationRef, Role, ShutdownRequest, StopMode,
};
use std::path::PathBuf;
use std::time::Duration;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

/// From the answer to a forced shutdown to the end of all connections.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// Serves `walb.v1.Host`.
pub struct HostService {
    /// Which role.
    pub role: Role,
    /// Its id.
    pub id: ServerId,
    /// Where its state lies, if it has any.
    pub base: Option<PathBuf>,
    /// Its long operations.
    pub operations: Operations,
    /// What ends it.
    pub shutdown: Shutdown,
}

impl HostService {
    /// The service, ready for `Routes::new` or `add_service`.
    #[must_use]
    pub fn server(self) -> HostServer<Self> {
        HostServer::new(self)
    }

    /// Space in the base directory that an ordinary process may use; 0 when it cannot be told.
    fn free_bytes(&self) -> u64 {
        let stat = self.base.as_ref().and_then(|base| statvfs(base).ok());
        stat.map_or(0, |s| s.blocks_available().saturating_mul(s.fragment_size()))
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
            base_dir: self.base.iter().map(|base| base.display().to_string()).collect(),
            free_bytes: self.free_bytes(),
        }))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Result<Response<Empty>, Status> {
        let number = request.get_ref().mode;
        let unknown = |_| RoleError::bad_request(format!("there is no stop mode {number}"));
        let mode = number.try_into().map_err(unknown)?;
        tracing::info!(?mode, "a client asks for shutdown");
        if mode == StopMode::Force {
            // It cuts every connection: the answer to this very call goes out first.
            let shutdown = self.shutdown.clone();
            tokio::spawn(async move {
                tokio::time::sleep(ANSWER_TIME).await;
                shutdown.request(mode);
            });
        } else {
            self.shutdown.request(mode);
        }
        Ok(Response::new(Empty {}))
    }

    async fn list_operations(&self, _: Request<Empty>) -> Result<Response<OperationList>, Status> {
        Ok(Response::new(OperationList { operations: self.operations.list() }))
    }

    async fn watch_operation(
        &self,
        request: Request<OperationRef>,
    ) -> Result<Response<BoxStream<Operation>>, Status> {
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
