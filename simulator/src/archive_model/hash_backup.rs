//! A hash backup: the one transfer that is driven by the product's own sender, over a connection.

use super::history::{Image, block};
use super::process::{Process, VOLUME, said};
use super::wdiffs::LOG;
use block_io::sim::SimDisk;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use proto::v1::hash_sync_end::Result as End;
use proto::v1::{HashSyncStart, PrepareHashSyncRequest, Snapshot};
use server_kit::hash_sync::{self, Sending};
use server_kit::net::{Endpoint, Io, Listener, serve, tuned};
use server_kit::operations::{OperationHandle, Operations, Outcome};
use server_kit::scan;
use server_kit::shutdown::Shutdown;
use std::io;
use tokio::sync::{mpsc, oneshot};
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint as Target, Uri};

/// Bytes under way in one direction.
const WINDOW_BYTES: usize = 1 << 16;

/// A connection to the archive, whose server ends with the other value.
fn connect(routes: Routes) -> (Channel, tokio::task::JoinHandle<()>) {
    let (incoming, queue) = mpsc::unbounded_channel::<Box<dyn Io>>();
    let listener = Listener::handed(Endpoint::Unix("/sim/a0".into()), queue);
    let serving = tokio::spawn(async move {
        let _ = serve(listener, routes, &Shutdown::new()).await;
    });
    let connect = move |_: Uri| {
        let (here, there) = tokio::io::duplex(WINDOW_BYTES);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let connected = incoming.send(Box::new(there)).map(|()| TokioIo::new(here));
        async { connected.map_err(|_| refused) }
    };
    let target = tuned(Target::from_static("http://simulated.invalid"));
    (target.connect_with_connector_lazy(tower::service_fn(connect)), serving)
}

async fn progress() -> Result<OperationHandle, String> {
    let (started, handle) = oneshot::channel();
    Operations::new().start("hash-backup", VOLUME, |handle| async move {
        let _ = started.send(handle);
        Ok(Outcome::default())
    });
    handle.await.map_err(|e| e.to_string())
}

impl Process {
    /// Makes the archive come to the snapshot `gid` by comparing it with the image.
    pub(super) async fn hash_backup(
        &self,
        (image, blocks): (&Image, usize),
        (gid, started_s): (u64, u64),
    ) -> Result<(), String> {
        let request =
            PrepareHashSyncRequest { volume: VOLUME.into(), size_lb: blocks as u64, started_s };
        let prepared = self.client.clone().prepare_hash_sync(request).await;
        let session = prepared.map_err(|s| said(&s))?.into_inner().session;
        let start = HashSyncStart {
            volume: VOLUME.into(),
            session,
            log_uuid: Bytes::copy_from_slice(&LOG.0),
            size_lb: blocks as u64,
            ..HashSyncStart::default()
        };
        let content = image.iter().take(blocks).flat_map(|value| block(*value)).collect();
        let device = SimDisk::from_image("data", content, 512);
        let spans = hash_sync::spans(&start).map_err(|e| e.full_message())?;
        let (cells, progress) = (scan::cells(device, spans, 0), progress().await?);
        let (channel, serving) = connect(self.routes());
        let archive = proto::v1::archive_client::ArchiveClient::new(channel);
        let compression = wdiff_format::compression::Compression::default();
        let sending = Sending { peer: "a0", start, cells, compression, progress: &progress };
        let end = async { Ok(End::Backup(Snapshot { gid_begin: gid, gid_end: gid })) };
        let sent = hash_sync::send(archive, sending, end).await;
        serving.abort();
        sent.map_err(|e| e.full_message())?;
        self.idle().await
    }
}
