//! Connections to the servers of a group. A connection is made when a call needs it.

use std::sync::Arc;

use proto::v1;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::host_client::HostClient;
use proto::v1::proxy_client::ProxyClient;
use proto::v1::storage_client::StorageClient;
use server_kit::error::Reason;
use server_kit::net::{Connector, RealConnector};
use server_kit::pages;
use tonic::transport::Channel;

use crate::error::ControlError;
use crate::group::{Group, Server, ServerRole};

/// The entry to all operations: a group and the way to reach its servers.
#[derive(Clone)]
pub struct Controller {
    group: Arc<Group>,
    connector: Arc<dyn Connector>,
}

/// Turns the result of a gRPC call into ours, with the server's name.
pub(crate) trait At<T> {
    fn at(self, server: &Server) -> Result<T, ControlError>;
}

impl<T> At<T> for Result<tonic::Response<T>, tonic::Status> {
    fn at(self, server: &Server) -> Result<T, ControlError> {
        match self {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(ControlError::from_status(server, &status)),
        }
    }
}

/// Takes a list that comes in pages, with the server's name when that fails.
pub(crate) trait All<M> {
    async fn all(self, server: &Server) -> Result<Vec<M>, ControlError>;
}

impl<M> All<M> for tonic::Streaming<M> {
    async fn all(self, server: &Server) -> Result<Vec<M>, ControlError> {
        pages::all(self).await.map_err(|status| ControlError::from_status(server, &status))
    }
}

/// What a server says of a volume, or a blank in state `Clear` where it does not know it.
pub(crate) fn or_clear<T>(answer: Result<T, ControlError>, clear: T) -> Result<T, ControlError> {
    match answer {
        Err(ControlError::Refused { error, .. }) if error.reason() == Reason::UnknownVolume => {
            Ok(clear)
        }
        other => other,
    }
}

impl Controller {
    /// For the servers of `group`, over TCP and Unix sockets.
    #[must_use]
    pub fn new(group: Group) -> Self {
        Self::with_connector(group, Arc::new(RealConnector))
    }

    /// The same with connections made by the caller's means (simulated networks).
    #[must_use]
    pub fn with_connector(group: Group, connector: Arc<dyn Connector>) -> Self {
        Self { group: Arc::new(group), connector }
    }

    /// The servers.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    fn channel(&self, server: &Server) -> Channel {
        self.connector.channel(&server.address)
    }

    pub(crate) fn host(&self, server: &Server) -> HostClient<Channel> {
        HostClient::new(self.channel(server))
    }

    /// The storage server of that name.
    pub(crate) fn storage(
        &self,
        name: &str,
    ) -> Result<(&Server, StorageClient<Channel>), ControlError> {
        let server = self.group.server_of(name, ServerRole::Storage)?;
        Ok((server, StorageClient::new(self.channel(server))))
    }

    /// The proxy of that name.
    pub(crate) fn proxy(
        &self,
        name: &str,
    ) -> Result<(&Server, ProxyClient<Channel>), ControlError> {
        let server = self.group.server_of(name, ServerRole::Proxy)?;
        Ok((server, ProxyClient::new(self.channel(server))))
    }

    /// The archive of that name.
    pub(crate) fn archive(
        &self,
        name: &str,
    ) -> Result<(&Server, ArchiveClient<Channel>), ControlError> {
        let server = self.group.server_of(name, ServerRole::Archive)?;
        Ok((server, ArchiveClient::new(self.channel(server))))
    }

    /// The names of all servers of one role, in order.
    pub(crate) fn names(&self, role: ServerRole) -> Vec<String> {
        self.group.of_role(role).map(|server| server.name.clone()).collect()
    }
}

/// A reference to a volume, as most requests want it.
pub(crate) fn volume_ref(volume: &str) -> v1::VolumeRef {
    v1::VolumeRef { volume: volume.to_owned() }
}
