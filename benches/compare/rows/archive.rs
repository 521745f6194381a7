//! An archive alone, as its program; what other roles would send it comes from here.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use benches::{LogShape, Payload, payloads};
use bytes::Bytes;
use controller::ops::archive::{self, RestorePoint};
use controller::ops::look;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::full_sync_request::Step as Full;
use proto::v1::wdiff_transfer_request::Step as Wdiff;
use proto::v1::{
    DiffMeta, FullSyncBulk, FullSyncEnd, FullSyncRequest, FullSyncStart, PrepareFullSyncRequest,
    Snapshot, VolumeRef, WdiffEnd, WdiffResult, WdiffStart, WdiffTransferRequest,
};
use server_kit::chunks;
use tests::cluster::Layout;
use tonic::transport::Channel;
use wlog_format::units::LogUuid;

use super::files::{Stored, make_wdiffs};
use super::group::{Group, VOLUME};
use crate::bench::Bench;

/// The log that all wdiffs are of: the one that this crate makes.
pub(super) const UUID: LogUuid = LogUuid([1; 16]);
/// When they were taken.
pub(super) const TIME_S: u64 = 1_767_225_600;
/// Wdiffs that come at a time.
const WDIFFS: u64 = 8;
/// What one message holds.
const PIECE: usize = 1 << 20;
/// A start that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// The archive.
pub(super) struct Archive {
    pub(super) group: Group,
}

impl Archive {
    /// Starts it; `room_bytes` is what it may take.
    pub(super) fn start(bench: &Bench, room_bytes: u64) -> anyhow::Result<Self> {
        let layout = Layout { volumes: Vec::new(), storages: 0, proxies: 0, ..Layout::default() };
        Ok(Self { group: Group::start(bench, layout, room_bytes)? })
    }

    fn client(&self) -> anyhow::Result<ArchiveClient<Channel>> {
        Ok(ArchiveClient::new(self.group.cluster.channel("a0")?))
    }

    /// Ends it as the system does, calls `while_down`, and starts it again: seconds until it shows
    /// the volume with so many wdiffs.
    pub(super) fn restart(
        &mut self,
        diffs: u64,
        while_down: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let dir = self.group.cluster.path("a0").join(VOLUME);
        let cluster = &mut self.group.cluster;
        cluster.role("a0")?.terminate()?;
        while_down(&dir)?;
        let start = Instant::now();
        cluster.role("a0")?.start()?;
        loop {
            let volume = cluster.run(look::archive_volume(cluster.ctl(), "a0", VOLUME));
            match volume {
                Ok(volume) if volume.diffs == diffs => return Ok(start.elapsed().as_secs_f64()),
                Ok(volume) => ensure!(start.elapsed() < PATIENCE, "{} wdiffs", volume.diffs),
                Err(error) => ensure!(start.elapsed() < PATIENCE, "it does not start: {error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Makes the volume, with a base image of these pieces of 1 MiB at most.
    pub(super) fn full_backup(&self, image: &[Bytes]) -> anyhow::Result<()> {
        let mut client = self.client()?;
        let volume = || VOLUME.to_owned();
        let size = image.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.group.cluster.run(async {
            client.init(VolumeRef { volume: volume() }).await?;
            let size_lb = size / 512;
            let request =
                PrepareFullSyncRequest { volume: volume(), size_lb, ..Default::default() };
            let session = client.prepare_full_sync(request).await?.into_inner().session;
            let log_uuid = Bytes::copy_from_slice(&UUID.0);
            let start = FullSyncStart { volume: volume(), session, log_uuid, ..Default::default() };
            let mut steps = vec![Full::Start(start)];
            let mut offset_bytes = 0;
            for piece in image {
                let chunk = Some(chunks::encode(piece.clone()));
                steps.push(Full::Bulk(FullSyncBulk { offset_bytes, chunk, zeros_bytes: 0 }));
                offset_bytes += piece.len() as u64;
            }
            let base = Some(Snapshot { gid_begin: 0, gid_end: 0 });
            steps.push(Full::End(FullSyncEnd { base, timestamp_s: 0 }));
            let steps = steps.into_iter().map(|step| FullSyncRequest { step: Some(step) });
            client.full_sync(futures::stream::iter(steps.collect::<Vec<_>>())).await?;
            Ok(())
        })
    }

    /// Sends the wdiff that leads to `gid`; returns when the archive has said that it is durable.
    pub(super) fn send(&self, gid: u64, size_bytes: u64, wdiff: &Bytes) -> anyhow::Result<()> {
        let clean = |gid| Some(Snapshot { gid_begin: gid, gid_end: gid });
        let total_bytes = wdiff.len() as u64;
        let diff = DiffMeta {
            begin: clean(gid - 1),
            end: clean(gid),
            timestamp_s: TIME_S,
            mergeable: true,
            size_bytes: total_bytes,
            ..DiffMeta::default()
        };
        let start = WdiffStart {
            volume: VOLUME.to_owned(),
            diff: Some(diff),
            size_lb: size_bytes / 512,
            log_uuid: Bytes::copy_from_slice(&UUID.0),
            ..WdiffStart::default()
        };
        let mut steps = vec![Wdiff::Start(start)];
        for at in (0..wdiff.len()).step_by(PIECE) {
            let piece = wdiff.slice(at..wdiff.len().min(at + PIECE));
            steps.push(Wdiff::Chunk(chunks::encode(piece)));
        }
        steps.push(Wdiff::End(WdiffEnd { total_bytes }));
        let steps = steps.into_iter().map(|step| WdiffTransferRequest { step: Some(step) });
        let steps = futures::stream::iter(steps.collect::<Vec<_>>());
        let mut client = self.client()?;
        let reply = self.group.cluster.run(client.wdiff_transfer(steps))?.into_inner();
        ensure!(reply.result() == WdiffResult::Stored, "wdiff {gid}: {}", reply.message);
        Ok(())
    }
}

/// A volume with a base image and wdiffs that come again and again: the same content under the
/// next gids.
pub(super) struct Repeated {
    pub(super) archive: Archive,
    pub(super) wdiffs: Vec<PathBuf>,
    /// Bytes of the wdiffs together.
    pub(super) bytes: u64,
    gid: Cell<u64>,
    image_bytes: u64,
}

impl Repeated {
    /// An image of 1 GiB, and 8 wdiffs of 64 MiB of log each.
    pub(super) fn start(bench: &Bench) -> anyhow::Result<Self> {
        let image_bytes = bench.sized(1 << 30);
        let shape = LogShape {
            io_bytes: (4 << 10, 64 << 10),
            device_bytes: image_bytes,
            total_bytes: usize::try_from(bench.sized(64 << 20))?,
            payload: Payload::Semi,
            seed: 500,
        };
        let stored = Stored { format: "sorted", compression: "snappy" };
        let (wdiffs, bytes) = make_wdiffs(bench, WDIFFS, stored, shape)?;
        let archive = Archive::start(bench, 8 * image_bytes)?;
        let pieces = payloads(Payload::Semi, PIECE, 16);
        let pieces = pieces.iter().cycle().take(usize::try_from(image_bytes)?.div_ceil(PIECE));
        archive.full_backup(&pieces.cloned().collect::<Vec<_>>())?;
        Ok(Self { archive, wdiffs, bytes, gid: 0.into(), image_bytes })
    }

    /// All wdiffs arrive once more: from which gid to which they lead.
    pub(super) fn come(&self) -> anyhow::Result<(u64, u64)> {
        let from = self.gid.get();
        for (wdiff, gid) in self.wdiffs.iter().zip(from + 1..) {
            self.archive.send(gid, self.image_bytes, &std::fs::read(wdiff)?.into())?;
        }
        self.gid.set(from + WDIFFS);
        Ok((from, self.gid.get()))
    }

    /// The base image moves to this gid.
    pub(super) fn apply(&self, gid: u64) -> anyhow::Result<()> {
        let (cluster, point) = (&self.archive.group.cluster, RestorePoint::Gid(gid));
        cluster.run(archive::apply(cluster.ctl(), "a0", VOLUME, point, 0, &mut |_| {}))?;
        Ok(())
    }
}

/// How a wdiff is called that the archive finds when it starts.
pub(super) fn name(gid: u64) -> String {
    format!("20260101000000-M--{}-{gid}.wdiff", gid - 1)
}

/// A name as the catalogue keeps it.
pub(super) fn named(gid: u64) -> anyhow::Result<wdiff_format::gid::Diff> {
    wdiff_format::name::parse(&name(gid)).context("no name of a wdiff")
}
