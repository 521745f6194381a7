//! The gRPC service: checks what a request names, and hands on. Changes run to their end even when
//! the client goes away; waiting (stop, receiving) ends with the client.
use crate::archive::Archive;
use crate::complete::hand_on;
use crate::proxy::Proxy;
use crate::receive::{Announced, first_step, receive};
use proto::v1::proxy_server::Proxy as ProxyRpc;
use proto::v1::{
    ArchiveInfoRef, ArchiveInfoRequest, CompleteRequest, Empty, KickProxyReply, KickProxyRequest,
    ProxyVolume, ProxyVolumeList, StopRequest, VolumeRef, WlogTransferReply, WlogTransferRequest,
};
use server_kit::error::{Reason, RoleError};
use server_kit::volume_name::{ServerId, VolumeName};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// Serves `walb.v1.Proxy`.
pub(crate) struct ProxyService(pub(crate) Arc<Proxy>);

fn volume_name(text: &str) -> Result<VolumeName, RoleError> {
    text.parse().map_err(|e| RoleError::bad_request(format!("{e}")))
}

fn archive_name(text: &str) -> Result<ServerId, RoleError> {
    text.parse().map_err(|e| RoleError::bad_request(format!("{e}")))
}

fn archive(request: &ArchiveInfoRequest) -> Result<(VolumeName, Archive), RoleError> {
    let missing = || RoleError::bad_request("the request has no archive info");
    let info = request.info.as_ref().ok_or_else(missing)?;
    Ok((volume_name(&request.volume)?, Archive::parse(info)?))
}

/// Runs `change` to its end, whatever becomes of the client.
async fn completed<T, F>(change: F) -> Result<Response<T>, Status>
where
    T: Send + 'static,
    F: Future<Output = Result<T, RoleError>> + Send + 'static,
{
    let broke = |e| RoleError::new(Reason::Io, "the change broke off").with_source(e);
    let done: Result<T, RoleError> = tokio::spawn(change).await.map_err(broke)?;
    Ok(Response::new(done?))
}

#[tonic::async_trait]
impl ProxyRpc for ProxyService {
    async fn wlog_transfer(
        &self,
        request: Request<Streaming<WlogTransferRequest>>,
    ) -> Result<Response<WlogTransferReply>, Status> {
        let mut stream = request.into_inner();
        let start = first_step(&mut stream).await?;
        let volume = self.0.volume(&volume_name(&start.volume)?)?;
        let reply = receive(volume, Announced::parse(&start)?, stream).await?;
        Ok(Response::new(reply))
    }

    async fn add_archive(
        &self,
        request: Request<ArchiveInfoRequest>,
    ) -> Result<Response<Empty>, Status> {
        let (volume, archive) = archive(request.get_ref())?;
        let proxy = Arc::clone(&self.0);
        completed(async move { proxy.add_archive(volume, archive).await.map(|()| Empty {}) }).await
    }

    async fn update_archive(
        &self,
        request: Request<ArchiveInfoRequest>,
    ) -> Result<Response<Empty>, Status> {
        let (name, archive) = archive(request.get_ref())?;
        let volume = self.0.volume(&name)?;
        completed(async move { volume.update_archive(archive).await.map(|()| Empty {}) }).await
    }

    async fn delete_archive(
        &self,
        request: Request<ArchiveInfoRef>,
    ) -> Result<Response<Empty>, Status> {
        let request = request.get_ref();
        let (volume, archive) = (volume_name(&request.volume)?, archive_name(&request.name)?);
        let proxy = Arc::clone(&self.0);
        completed(async move { proxy.delete_archive(volume, archive).await.map(|()| Empty {}) })
            .await
    }

    async fn clear(&self, request: Request<VolumeRef>) -> Result<Response<Empty>, Status> {
        let (proxy, name) = (Arc::clone(&self.0), volume_name(&request.get_ref().volume)?);
        completed(async move { proxy.clear(name).await.map(|()| Empty {}) }).await
    }

    async fn start(&self, request: Request<VolumeRef>) -> Result<Response<Empty>, Status> {
        let volume = self.0.volume(&volume_name(&request.get_ref().volume)?)?;
        completed(async move { volume.start().await.map(|()| Empty {}) }).await
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<Empty>, Status> {
        let StopRequest { volume, mode } = request.into_inner();
        let unknown = |_| RoleError::bad_request(format!("there is no stop mode {mode}"));
        let mode = mode.try_into().map_err(unknown)?;
        self.0.volume(&volume_name(&volume)?)?.stop(mode).await?;
        Ok(Response::new(Empty {}))
    }

    async fn get(&self, request: Request<VolumeRef>) -> Result<Response<ProxyVolume>, Status> {
        Ok(Response::new(self.0.status(&volume_name(&request.get_ref().volume)?)))
    }

    async fn list(&self, _: Request<Empty>) -> Result<Response<ProxyVolumeList>, Status> {
        let volumes = self.0.volumes().iter().map(|volume| volume.status()).collect();
        Ok(Response::new(ProxyVolumeList { volumes }))
    }

    async fn kick(
        &self,
        request: Request<KickProxyRequest>,
    ) -> Result<Response<KickProxyReply>, Status> {
        let KickProxyRequest { volume, archive } = request.into_inner();
        let volume = (!volume.is_empty()).then(|| volume_name(&volume)).transpose()?;
        let archive = (!archive.is_empty()).then(|| archive_name(&archive)).transpose()?;
        if volume.is_none() && archive.is_some() {
            return Err(RoleError::bad_request("an archive to kick needs its volume").into());
        }
        let kicked = self.0.kick(volume, archive).await?;
        Ok(Response::new(KickProxyReply { kicked }))
    }

    async fn complete(&self, request: Request<CompleteRequest>) -> Result<Response<Empty>, Status> {
        hand_on(&self.0, request.into_inner().volumes).await;
        Ok(Response::new(Empty {}))
    }
}
