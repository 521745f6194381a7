//! Devices that our device role serves, through its control service (`device.proto`).
//!
//! Watching is one stream of events per device that reconnects by itself; nothing polls.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use block_io::device::BlockDevice;
use block_io::{OpenOptions, open};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proto::convert;
use proto::v1::device_control_client::DeviceControlClient;
use proto::v1::{
    DeviceEvent, DeviceVolume, LogPositions, RegionsReply, RegionsRequest, ResizeRequest,
    SetOldestRequest, VolumeRef,
};
use server_kit::error::RoleError;
use server_kit::net::{Connector, Endpoint};
use server_kit::retry::Backoff;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Response, Status as RpcStatus};
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid, Pb, Salt};

use super::address::DeviceAddress;
use super::{Devices, Info, Positions, Regions, Seen, Status, WalbDevice};

/// The device role is on this host: it answers soon, or something is wrong. A log reset waits for
/// its backlog, so it has no limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between attempts to watch again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Finds devices of our device role. One connection per control socket.
pub struct ControlDevices {
    connector: Arc<dyn Connector>,
    channels: Mutex<HashMap<String, Channel>>,
}

impl ControlDevices {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new(connector: Arc<dyn Connector>) -> Self {
        Self { connector, channels: Mutex::default() }
    }
}

impl Devices for ControlDevices {
    fn find(&self, address: &DeviceAddress) -> Arc<dyn WalbDevice> {
        let mut channels = self.channels.lock();
        let channel = channels
            .entry(address.socket.clone())
            .or_insert_with(|| self.connector.channel(&Endpoint::Unix((&address.socket).into())));
        let client = DeviceControlClient::new(channel.clone());
        Arc::new(ControlDevice { address: address.clone(), client })
    }
}

/// One volume of a device role.
#[derive(Clone)]
struct ControlDevice {
    address: DeviceAddress,
    client: DeviceControlClient<Channel>,
}

impl ControlDevice {
    fn volume(&self) -> VolumeRef {
        VolumeRef { volume: self.address.name.clone() }
    }

    fn peer(&self) -> String {
        format!("the device role at {}", self.address.socket)
    }

    /// The answer, when it comes in time.
    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, RpcStatus>>,
    ) -> Result<T, RoleError> {
        match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(RoleError::from_status(self.peer(), &status)),
            Err(_) => Err(RoleError::unreachable(self.peer(), "no answer in time")),
        }
    }

    fn parsed(&self, volume: DeviceVolume) -> Result<Info, RoleError> {
        info(volume).ok_or_else(|| self.nonsense())
    }

    fn nonsense(&self) -> RoleError {
        RoleError::wrong_peer(format!("{} tells nonsense about {}", self.peer(), self.address))
    }

    /// Shows events until nobody looks any more.
    async fn follow(self, shown: watch::Sender<Seen>) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let error = tokio::select! {
                error = self.follow_stream(&shown, &mut backoff) => error,
                () = shown.closed() => return,
            };
            shown.send_replace(Seen::Down(Arc::new(error)));
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = shown.closed() => return,
            }
        }
    }

    /// Shows the events of one stream; why it ended.
    async fn follow_stream(&self, shown: &watch::Sender<Seen>, backoff: &mut Backoff) -> RoleError {
        let mut client = self.client.clone();
        let mut events = match self.answer(client.watch(self.volume())).await {
            Ok(events) => events,
            Err(error) => return error,
        };
        loop {
            match events.message().await {
                Ok(Some(event)) => match status(event) {
                    Some(status) => {
                        backoff.reset();
                        shown.send_replace(Seen::Up(status));
                    }
                    None => return self.nonsense(),
                },
                Ok(None) => return RoleError::unreachable(self.peer(), "it ended the watch"),
                Err(status) => return RoleError::from_status(self.peer(), &status),
            }
        }
    }
}

impl WalbDevice for ControlDevice {
    fn address(&self) -> &DeviceAddress {
        &self.address
    }

    fn info(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        let mut client = self.client.clone();
        Box::pin(async move { self.parsed(self.answer(client.get(self.volume())).await?) })
    }

    fn set_oldest(&self, oldest: Lsid) -> BoxFuture<'_, Result<Positions, RoleError>> {
        let mut client = self.client.clone();
        let request = SetOldestRequest { volume: self.address.name.clone(), oldest: oldest.0 };
        Box::pin(async move { Ok(positions(self.answer(client.set_oldest(request)).await?)) })
    }

    fn take_checkpoint(&self) -> BoxFuture<'_, Result<Positions, RoleError>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let reply = client.take_checkpoint(self.volume()).await;
            let reply = reply.map_err(|s| RoleError::from_status(self.peer(), &s))?;
            Ok(positions(reply.into_inner()))
        })
    }

    fn reset_log(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let reply = client.reset_log(self.volume()).await;
            let reply = reply.map_err(|s| RoleError::from_status(self.peer(), &s))?;
            self.parsed(reply.into_inner())
        })
    }

    fn resize(&self, size: Lb) -> BoxFuture<'_, Result<Info, RoleError>> {
        let mut client = self.client.clone();
        let request = ResizeRequest { volume: self.address.name.clone(), size_lb: size.0 };
        Box::pin(async move { self.parsed(self.answer(client.resize(request)).await?) })
    }

    fn regions(&self, log: LogUuid, since: Lsid) -> BoxFuture<'_, Result<Regions, RoleError>> {
        let mut client = self.client.clone();
        let request = RegionsRequest {
            volume: self.address.name.clone(),
            log_uuid: convert::uuid_bytes(log),
            since_lsid: since.0,
        };
        Box::pin(async move {
            let reply = self.answer(client.list_regions(request)).await?;
            regions(reply).ok_or_else(|| self.nonsense())
        })
    }

    fn begin_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let reply = client.begin_overwrite(self.volume()).await;
            let reply = reply.map_err(|s| RoleError::from_status(self.peer(), &s))?;
            self.parsed(reply.into_inner())
        })
    }

    fn end_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let reply = client.end_overwrite(self.volume()).await;
            let reply = reply.map_err(|s| RoleError::from_status(self.peer(), &s))?;
            self.parsed(reply.into_inner())
        })
    }

    fn watch(&self) -> watch::Receiver<Seen> {
        let (shown, receiver) = watch::channel(Seen::Nothing);
        tokio::spawn(self.clone().follow(shown));
        receiver
    }

    fn open_log(&self, info: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        open(&info.log_path, OpenOptions::read_only())
            .map_err(|e| RoleError::io("open the log device", &info.log_path, e))
    }

    fn open_data_for_writing(&self, info: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        open(&info.data_path, OpenOptions::default())
            .map_err(|e| RoleError::io("open the data device", &info.data_path, e))
    }

    fn open_data(&self, info: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        open(&info.data_path, OpenOptions::read_only())
            .map_err(|e| RoleError::io("open the data device", &info.data_path, e))
    }
}

fn positions(p: LogPositions) -> Positions {
    Positions {
        oldest: Lsid(p.oldest),
        prev_written: Lsid(p.prev_written),
        permanent: Lsid(p.permanent),
        latest: Lsid(p.latest),
    }
}

fn status(event: DeviceEvent) -> Option<Status> {
    Some(Status {
        positions: positions(event.positions?),
        overflow: event.overflow,
        size: Lb(event.size_lb),
        log_uuid: convert::uuid(&event.log_uuid).ok()?,
    })
}

fn regions(reply: RegionsReply) -> Option<Regions> {
    if !reply.known {
        return Some(Regions::Unknown(reply.why_unknown));
    }
    let mut ranges: Vec<_> = reply.ranges.iter().map(|r| r.begin..r.end).collect();
    ranges.retain(|r| !r.is_empty());
    let ordered = ranges.is_sorted_by(|a, b| a.end <= b.start);
    (ordered && ranges.len() == reply.ranges.len()).then_some(Regions::Known(ranges))
}

fn info(volume: DeviceVolume) -> Option<Info> {
    let failure = Some(volume.failure).filter(|text| !text.is_empty());
    Some(Info {
        status: Status {
            positions: positions(volume.positions?),
            overflow: volume.overflow,
            size: Lb(volume.size_lb),
            log_uuid: convert::uuid(&volume.log_uuid).ok()?,
        },
        block_size: BlockSize::new(volume.physical_block_bytes)?,
        salt: Salt(volume.salt),
        ring_size: Pb(volume.ring_size_pb),
        log_path: volume.log_path,
        data_path: volume.data_path,
        overwriting: volume.overwriting,
        failure,
    })
}
