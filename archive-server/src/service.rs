//! The gRPC face of the archive: messages in, messages out, every failure a typed status.
//!
//! Transfers run in tasks of their own: a client that goes away ends them in order, instead of
//! having them vanish half-way.

use crate::archive::Archive;
use crate::backend::Image;
use crate::jobs::RESTORE;
use crate::state::State;
use crate::volume::Volume;
use crate::{
    apply, full_sync, hash_sync, history, merge, mount, read_snapshot, rebuild, receive, repair,
    replica, replicate, resize, restore, upkeep, verify,
};
use proto::v1::archive_server::Archive as ArchiveRpc;
use proto::v1::{
    ApplyRequest, ArchiveVolume, ArchiveVolumeList, DiffEntry, DiffList, Empty, FullSyncReply,
    FullSyncRequest, GcReply, HashSyncReply, HashSyncRequest, MergeRequest, Operation,
    PrepareFullSyncReply, PrepareFullSyncRequest, PrepareHashSyncReply, PrepareHashSyncRequest,
    PrepareReplicationReply, PrepareReplicationRequest, ReadSnapshotRequest, ReplicateRequest,
    ResetArchiveRequest, ResizeRequest, RestorableList, RestorableRequest, RestoreReply,
    RestoreRequest, RestoredList, SetExplicitReply, SetExplicitRequest, SnapshotBulk, SnapshotRef,
    StopRequest, VolumeRef, WdiffTransferReply, WdiffTransferRequest,
};
use proto::v1::{
    CompleteRequest, DropReplicationRequest, PlanRetentionRequest, RetentionPlan,
    SetAgeLimitRequest, SetReplicationRequest, SetRetentionRequest, Upkeep,
};
use proto::v1::{
    DamageList, DrillList, DrillRequest, HashRangesRequest, MountRequest, Mounted, MountedList,
    RangeHashes, ReadWdiffRequest, RebuildReply, RebuildRequest, RepairRequest, UnmountRequest,
    VerifyRequest,
};
use server_kit::blocking;
use server_kit::error::{Reason, RoleError};
use server_kit::pages::pages;
use std::sync::Arc;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};
use wdiff_format::gid::Gid;
use wlog_format::units::LogUuid;

/// Serves `walb.v1.Archive`.
pub(crate) struct Service(pub(crate) Arc<Archive>);

type Answer<T> = Result<Response<T>, Status>;

/// Runs `work` to its end, whether or not the client still waits.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, RoleError>> + Send + 'static,
) -> Answer<T> {
    let broken = |e| RoleError::new(Reason::Io, format!("the transfer broke: {e}"));
    let done = tokio::spawn(work).await.map_err(broken)?;
    Ok(Response::new(done?))
}

fn empty<E: Into<Status>>(done: Result<(), E>) -> Answer<Empty> {
    done.map(|()| Response::new(Empty {})).map_err(Into::into)
}

/// How a volume stands.
fn describe(archive: &Archive, volume: &Volume) -> ArchiveVolume {
    let newest = volume.newest_restorable();
    let state = volume.cell.state();
    let has_image = volume.with(|c| c.record.state != crate::record::Kept::SyncReady);
    let newest = newest.filter(|_| has_image);
    let running = volume.jobs.kinds().into_iter().map(str::to_owned).collect();
    let (error_reason, error) = volume.fault_text();
    let damages = verify::damage::list(volume);
    let doomed = volume.leases.waiting();
    let mut status = volume.with(|c| ArchiveVolume {
        volume: volume.name.to_string(),
        state: state.to_string(),
        size_lb: c.record.size_lb,
        log_uuid: proto::convert::uuid_bytes(c.record.log_uuid),
        archive_uuid: proto::convert::uuid_bytes(c.record.archive_uuid),
        base: has_image.then(|| c.base.into()),
        latest: has_image.then(|| c.latest.0.into()),
        diffs: c.diffs.len() as u64,
        diff_bytes: c.diffs.total_bytes(),
        newest_restorable_s: newest.map_or(0, |p| p.timestamp),
        newest_restorable_gid: newest.map_or(0, |p| p.gid.0),
        last_received_s: c.last_received_s,
        running,
        error,
        error_reason: error_reason.into(),
        rebuildable: c.rebuildable,
        // Its image was an archive once, and is a mixture now.
        needs_resync: !has_image && c.record.archive_uuid != LogUuid::ZERO,
        mended: c.mended.clone(),
        backend: volume.images.backend().to_owned(),
        image: volume.images.path(Image::Base).display().to_string(),
        damages,
        doomed_files: doomed.files,
        doomed_bytes: doomed.bytes,
        unchecked_wdiffs: volume.overdue(),
        rebuilt: c.record.rebuilt.as_ref().map(|r| r.note.clone()).unwrap_or_default(),
        ..ArchiveVolume::default()
    });
    upkeep::describe(archive, volume, &mut status);
    status
}

/// States that have a base image.
const WITH_IMAGE: [State; 6] = [
    State::Archived,
    State::WdiffRecv,
    State::HashSync,
    State::ReplSync,
    State::Stopped,
    State::Stop,
];

#[tonic::async_trait]
impl ArchiveRpc for Service {
    async fn init(&self, request: Request<VolumeRef>) -> Answer<Empty> {
        let (archive, name) = (self.0.clone(), request.into_inner().volume);
        to_its_end(async move { archive.init(&name).await.map(|()| Empty {}) }).await
    }

    async fn clear(&self, request: Request<VolumeRef>) -> Answer<Empty> {
        let (archive, name) = (self.0.clone(), request.into_inner().volume);
        to_its_end(async move { archive.clear(&name).await.map(|()| Empty {}) }).await
    }

    async fn reset(&self, request: Request<ResetArchiveRequest>) -> Answer<Empty> {
        let (archive, name) = (self.0.clone(), request.into_inner().volume);
        to_its_end(async move { archive.reset(&name).await.map(|()| Empty {}) }).await
    }

    async fn start(&self, request: Request<VolumeRef>) -> Answer<Empty> {
        empty(self.0.start(&request.get_ref().volume).await)
    }

    /// Waits for what runs; a client that stops waiting takes the stop back.
    async fn stop(&self, request: Request<StopRequest>) -> Answer<Empty> {
        let request = request.get_ref();
        let unknown = |_| RoleError::bad_request(format!("there is no stop mode {}", request.mode));
        let mode = request.mode.try_into().map_err(unknown)?;
        empty(self.0.stop(&request.volume, mode).await)
    }

    async fn prepare_full_sync(
        &self,
        request: Request<PrepareFullSyncRequest>,
    ) -> Answer<PrepareFullSyncReply> {
        Ok(Response::new(full_sync::prepare(&self.0, request.into_inner()).await?))
    }

    async fn full_sync(
        &self,
        request: Request<Streaming<FullSyncRequest>>,
    ) -> Answer<FullSyncReply> {
        let (archive, stream) = (self.0.clone(), request.into_inner());
        to_its_end(async move { full_sync::receive(&archive, stream).await }).await
    }

    async fn prepare_hash_sync(
        &self,
        request: Request<PrepareHashSyncRequest>,
    ) -> Answer<PrepareHashSyncReply> {
        let (archive, request) = (self.0.clone(), request.into_inner());
        to_its_end(async move { hash_sync::prepare(&archive, request).await }).await
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Answer<Empty> {
        let (archive, request) = (self.0.clone(), request.into_inner());
        to_its_end(async move { resize::resize(&archive, request).await.map(|()| Empty {}) }).await
    }

    async fn replicate(&self, request: Request<ReplicateRequest>) -> Answer<Operation> {
        Ok(Response::new(replicate::start(&self.0, request.into_inner(), std::future::ready)?))
    }

    async fn prepare_replication(
        &self,
        request: Request<PrepareReplicationRequest>,
    ) -> Answer<PrepareReplicationReply> {
        let (archive, request) = (self.0.clone(), request.into_inner());
        to_its_end(async move { replica::prepare(&archive, request).await }).await
    }

    async fn read_snapshot(
        &self,
        request: Request<ReadSnapshotRequest>,
    ) -> Answer<BoxStream<SnapshotBulk>> {
        let stream = read_snapshot::read(&self.0, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn hash_sync(
        &self,
        request: Request<Streaming<HashSyncRequest>>,
    ) -> Answer<BoxStream<HashSyncReply>> {
        let (archive, stream) = (self.0.clone(), request.into_inner());
        let begun = to_its_end(async move { hash_sync::receive(&archive, stream).await }).await?;
        Ok(Response::new(Box::pin(begun.into_inner())))
    }

    async fn wdiff_transfer(
        &self,
        request: Request<Streaming<WdiffTransferRequest>>,
    ) -> Answer<WdiffTransferReply> {
        let (archive, stream) = (self.0.clone(), request.into_inner());
        to_its_end(async move { receive::receive(&archive, stream).await }).await
    }

    /// A volume that is not known is Clear (semantics.md, appendix A).
    async fn get(&self, request: Request<VolumeRef>) -> Answer<ArchiveVolume> {
        let name = &request.get_ref().volume;
        let clear = || ArchiveVolume {
            volume: name.clone(),
            state: State::Clear.to_string(),
            ..ArchiveVolume::default()
        };
        Ok(Response::new(
            self.0.find(name)?.map_or_else(clear, |volume| describe(&self.0, &volume)),
        ))
    }

    async fn list(&self, _: Request<Empty>) -> Answer<ArchiveVolumeList> {
        let volumes = self.0.volumes().iter().map(|v| describe(&self.0, v)).collect();
        Ok(Response::new(ArchiveVolumeList { volumes }))
    }

    async fn list_restorable(
        &self,
        request: Request<RestorableRequest>,
    ) -> Answer<BoxStream<RestorableList>> {
        let request = request.get_ref();
        let volume = self.0.volume(&request.volume)?;
        volume.require(&WITH_IMAGE, "list the snapshots of")?;
        let snapshots = verify::restorable(&volume, request.all);
        Ok(Response::new(pages(snapshots, |snapshots| RestorableList { snapshots })))
    }

    async fn restore(&self, request: Request<RestoreRequest>) -> Answer<RestoreReply> {
        Ok(Response::new(restore::start(&self.0, request.into_inner()).await?))
    }

    async fn list_restored(&self, request: Request<VolumeRef>) -> Answer<RestoredList> {
        let volume = self.0.volume(&request.get_ref().volume)?;
        let restored = blocking::run(move || volume.images.restored()).await?;
        Ok(Response::new(RestoredList { restored }))
    }

    async fn delete_restored(&self, request: Request<SnapshotRef>) -> Answer<Empty> {
        let SnapshotRef { volume, gid } = request.into_inner();
        let volume = self.0.volume(&volume)?;
        let name = volume.name.clone();
        let job = volume.jobs.begin(name.as_str(), "delete-restored", &[RESTORE])?;
        let work = move || {
            let _job = job;
            restore::delete(&volume, Gid(gid))
        };
        empty(blocking::run(work).await)
    }

    async fn list_diffs(&self, request: Request<VolumeRef>) -> Answer<BoxStream<DiffList>> {
        let volume = self.0.volume(&request.get_ref().volume)?;
        volume.require(&WITH_IMAGE, "list the diffs of")?;
        let diffs: Vec<_> = volume.with(|c| c.diffs.iter().copied().collect());
        let entry = |diff| -> Result<DiffEntry, RoleError> {
            let file = volume.diff_name(&diff)?;
            Ok(DiffEntry { diff: Some(diff.into()), file })
        };
        let diffs = diffs.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        Ok(Response::new(pages(diffs, |diffs| DiffList { diffs })))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<Operation> {
        Ok(Response::new(apply::start(&self.0, request.get_ref())?))
    }

    async fn merge(&self, request: Request<MergeRequest>) -> Answer<Operation> {
        Ok(Response::new(merge::start(&self.0, request.get_ref())?))
    }

    async fn get_upkeep(&self, request: Request<VolumeRef>) -> Answer<Upkeep> {
        Ok(Response::new(upkeep::get(&self.0, &request.get_ref().volume)?))
    }

    async fn set_retention(&self, request: Request<SetRetentionRequest>) -> Answer<Upkeep> {
        Ok(Response::new(upkeep::set_retention(&self.0, request.into_inner()).await?))
    }

    async fn plan_retention(
        &self,
        request: Request<PlanRetentionRequest>,
    ) -> Answer<BoxStream<RetentionPlan>> {
        let mut plan = upkeep::plan_message(&self.0, request.get_ref())?;
        let dropped = std::mem::take(&mut plan.dropped);
        // Only the first message says more.
        let message = |dropped| RetentionPlan { dropped, ..std::mem::take(&mut plan) };
        Ok(Response::new(pages(dropped, message)))
    }

    async fn run_retention(&self, request: Request<VolumeRef>) -> Answer<Operation> {
        Ok(Response::new(upkeep::run_retention(&self.0, &request.get_ref().volume)?))
    }

    async fn set_replication(&self, request: Request<SetReplicationRequest>) -> Answer<Upkeep> {
        Ok(Response::new(upkeep::set_replication(&self.0, request.into_inner()).await?))
    }

    async fn drop_replication(&self, request: Request<DropReplicationRequest>) -> Answer<Upkeep> {
        Ok(Response::new(upkeep::drop_replication(&self.0, request.into_inner()).await?))
    }

    async fn set_age_limit(&self, request: Request<SetAgeLimitRequest>) -> Answer<Upkeep> {
        Ok(Response::new(upkeep::set_age_limit(&self.0, request.into_inner()).await?))
    }

    async fn complete(&self, request: Request<CompleteRequest>) -> Answer<Empty> {
        empty(upkeep::heard(&self.0, &request.get_ref().volumes))
    }

    async fn mount(&self, request: Request<MountRequest>) -> Answer<Mounted> {
        let (archive, request) = (self.0.clone(), request.into_inner());
        to_its_end(async move { mount::start(&archive, request).await }).await
    }

    async fn list_mounts(&self, request: Request<VolumeRef>) -> Answer<MountedList> {
        let name = &request.get_ref().volume;
        let volumes = if name.is_empty() { self.0.volumes() } else { vec![self.0.volume(name)?] };
        let mounts = volumes.iter().flat_map(|v| v.mounts.list()).collect();
        Ok(Response::new(MountedList { mounts }))
    }

    async fn unmount(&self, request: Request<UnmountRequest>) -> Answer<Empty> {
        let UnmountRequest { volume, id } = request.into_inner();
        let volume = self.0.volume(&volume)?;
        empty(volume.mounts.end(volume.name.as_str(), &id).await)
    }

    async fn set_explicit(&self, request: Request<SetExplicitRequest>) -> Answer<SetExplicitReply> {
        let request = request.into_inner();
        let volume = self.0.volume(&request.volume)?;
        let change = move || history::set_explicit(&volume, &request.gids, request.is_explicit);
        let changed = blocking::run(change).await?;
        Ok(Response::new(SetExplicitReply { changed }))
    }

    async fn gc(&self, request: Request<VolumeRef>) -> Answer<BoxStream<GcReply>> {
        let volume = self.0.volume(&request.get_ref().volume)?;
        let here = volume.clone();
        let removed = blocking::run(move || history::gc(&here)).await?;
        self.0.indexer.tend(&volume);
        Ok(Response::new(pages(removed, |removed| GcReply { removed })))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Answer<Operation> {
        Ok(Response::new(verify::start(&self.0, request.get_ref())?))
    }

    async fn list_damage(&self, request: Request<VolumeRef>) -> Answer<DamageList> {
        let volume = self.0.volume(&request.get_ref().volume)?;
        volume.require(&WITH_IMAGE, "list the damage of")?;
        Ok(Response::new(verify::damages(&volume)))
    }

    async fn drill(&self, request: Request<DrillRequest>) -> Answer<Operation> {
        Ok(Response::new(verify::drill::start(&self.0, request.get_ref())?))
    }

    async fn list_drills(&self, request: Request<VolumeRef>) -> Answer<DrillList> {
        let volume = self.0.volume(&request.get_ref().volume)?;
        Ok(Response::new(verify::drill::list(&volume)))
    }

    async fn repair(&self, request: Request<RepairRequest>) -> Answer<Operation> {
        Ok(Response::new(repair::start(&self.0, request.into_inner())?))
    }

    async fn hash_ranges(&self, request: Request<HashRangesRequest>) -> Answer<RangeHashes> {
        let (archive, request) = (self.0.clone(), request.into_inner());
        to_its_end(async move { repair::serve::hash_ranges(&archive, request).await }).await
    }

    async fn read_wdiff(
        &self,
        request: Request<ReadWdiffRequest>,
    ) -> Answer<BoxStream<WdiffTransferRequest>> {
        let stream = repair::serve::read_wdiff(&self.0, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn rebuild(&self, request: Request<RebuildRequest>) -> Answer<RebuildReply> {
        let (archive, request) = (self.0.clone(), request.into_inner());
        to_its_end(async move { rebuild::rebuild(&archive, request).await }).await
    }
}
