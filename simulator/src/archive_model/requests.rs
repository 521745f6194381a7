//! The requests to the archive, each to its end.

use super::history::Line;
use super::process::{Process, VOLUME, said, volume};
use crate::fs::Fs;
use proto::v1::apply_request::Point;
use proto::v1::merge_request::Until;
use proto::v1::restore_request::Point as RestorePoint;
use proto::v1::{
    ApplyRequest, DrillRequest, FullSyncRequest, MergeRequest, Operation, PrepareFullSyncRequest,
    ResizeRequest, RestoreRequest, Retention, SetExplicitRequest, SetRetentionRequest, SnapshotRef,
    StopMode, StopRequest, VerifyRequest, WdiffResult, WdiffTransferRequest,
};
use server_kit::pages;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// Looks until what the archive does by itself is not done.
const LOOKS: u32 = 2000;
const LOOK: Duration = Duration::from_millis(250);

type Answer<T> = Result<T, String>;

fn refused(status: tonic::Status) -> String {
    said(&status)
}

impl Process {
    /// Waits until `done` answers true; simulated time passes meanwhile.
    async fn until<F: Future<Output = Answer<bool>>>(
        &self,
        what: &str,
        done: impl Fn() -> F,
    ) -> Answer<()> {
        for _ in 0..LOOKS {
            if self.is_dead() {
                return Err("it died".into());
            }
            if done().await? {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("stuck: {what}"))
    }

    pub(super) async fn send(
        &self,
        messages: Vec<WdiffTransferRequest>,
        wanted: WdiffResult,
    ) -> Answer<()> {
        let sent = self.client.clone().wdiff_transfer(futures::stream::iter(messages)).await;
        let reply = sent.map_err(refused)?.into_inner();
        let wrong = || format!("{:?} instead of {wanted:?}: {}", reply.result(), reply.message);
        if reply.result() == wanted { Ok(()) } else { Err(wrong()) }
    }

    pub(super) async fn merge(&self, gid_begin: u64, end: u64) -> Answer<()> {
        let (volume, until) = (VOLUME.into(), Some(Until::GidEnd(end)));
        let request = MergeRequest { volume, gid_begin, until, ..MergeRequest::default() };
        let begun = self.client.clone().merge(request).await.map_err(refused)?;
        self.finish(begun.get_ref()).await.map(drop)
    }

    pub(super) async fn apply(&self, gid: u64) -> Answer<()> {
        let (volume, point) = (VOLUME.into(), Some(Point::Gid(gid)));
        let request = ApplyRequest { volume, point, ..ApplyRequest::default() };
        let begun = self.client.clone().apply(request).await.map_err(refused)?;
        self.finish(begun.get_ref()).await.map(drop)
    }

    pub(super) async fn set_retention(&self, policy: Option<String>) -> Answer<()> {
        let retention = policy.map(|policy| Retention { policy, ..Retention::default() });
        let request = SetRetentionRequest { volume: VOLUME.into(), retention };
        self.client.clone().set_retention(request).await.map(drop).map_err(refused)
    }

    /// Follows the policy that is set.
    pub(super) async fn run_retention(&self) -> Answer<()> {
        let begun = self.client.clone().run_retention(volume()).await.map_err(refused)?;
        self.finish(begun.get_ref()).await.map(drop)
    }

    /// Takes the policy away, and waits until nothing runs.
    pub(super) async fn leave_alone(&self) -> Answer<()> {
        self.set_retention(None).await?;
        self.idle().await
    }

    pub(super) async fn until_listed(&self, wanted: &[Line]) -> Answer<()> {
        let what = format!("a history of {wanted:?}");
        self.until(&what, || async { Ok(self.list().await? == wanted) }).await
    }

    pub(super) async fn set_explicit(&self, gids: Vec<u64>, is_explicit: bool) -> Answer<Vec<u64>> {
        let request = SetExplicitRequest { volume: VOLUME.into(), gids, is_explicit };
        let done = self.client.clone().set_explicit(request).await.map_err(refused)?;
        Ok(done.into_inner().changed)
    }

    pub(super) async fn gc(&self) -> Answer<()> {
        let removed = self.client.clone().gc(volume()).await.map_err(refused)?;
        pages::all(removed.into_inner()).await.map(drop).map_err(refused)
    }

    pub(super) async fn begin_restore(&self, gid: u64) -> Answer<Operation> {
        let (volume, point) = (VOLUME.into(), Some(RestorePoint::Gid(gid)));
        let request = RestoreRequest { volume, point, ..RestoreRequest::default() };
        let reply = self.client.clone().restore(request).await.map_err(refused)?.into_inner();
        reply.operation.ok_or_else(|| "a restore without an operation".into())
    }

    /// Gids and paths of the images that are restored.
    pub(super) async fn restored(&self) -> Answer<Vec<(u64, String)>> {
        let list = self.client.clone().list_restored(volume()).await.map_err(refused)?;
        Ok(list.into_inner().restored.into_iter().map(|r| (r.gid, r.path)).collect())
    }

    pub(super) async fn delete_restored(&self, gid: u64) -> Answer<()> {
        let restored = SnapshotRef { volume: VOLUME.into(), gid };
        self.client.clone().delete_restored(restored).await.map(drop).map_err(refused)
    }

    /// Reads everything back: there is no damage.
    pub(super) async fn verify(&self) -> Answer<()> {
        let request = VerifyRequest { volume: VOLUME.into(), ..VerifyRequest::default() };
        let begun = self.client.clone().verify(request).await.map_err(refused)?;
        self.finish(begun.get_ref()).await?;
        match self.get().await?.damages.first() {
            None => Ok(()),
            Some(damage) => Err(format!("damage: {damage:?}")),
        }
    }

    pub(super) async fn drill(&self, gid: u64) -> Answer<()> {
        let request =
            DrillRequest { volume: VOLUME.into(), gid: Some(gid), ..DrillRequest::default() };
        let begun = self.client.clone().drill(request).await.map_err(refused)?;
        self.finish(begun.get_ref()).await.map(drop)
    }

    pub(super) async fn resize(&self, blocks: usize) -> Answer<()> {
        let request = ResizeRequest { volume: VOLUME.into(), size_lb: blocks as u64 };
        self.client.clone().resize(request).await.map(drop).map_err(refused)
    }

    /// Removes the volume.
    pub(super) async fn clear(&self) -> Answer<()> {
        let mut client = self.client.clone();
        let request = StopRequest { volume: VOLUME.into(), mode: StopMode::Graceful.into() };
        client.stop(request).await.map_err(refused)?;
        client.clear(volume()).await.map(drop).map_err(refused)
    }

    /// Makes a volume, and announces a full backup; its session.
    pub(super) async fn begin_full(&self, blocks: usize, started_s: u64) -> Answer<String> {
        let mut client = self.client.clone();
        client.init(volume()).await.map_err(refused)?;
        let (volume, size_lb) = (VOLUME.into(), blocks as u64);
        let request = PrepareFullSyncRequest { volume, size_lb, started_s, ..Default::default() };
        Ok(client.prepare_full_sync(request).await.map_err(refused)?.into_inner().session)
    }

    pub(super) async fn full(&self, messages: Vec<FullSyncRequest>) -> Answer<()> {
        let sent = self.client.clone().full_sync(futures::stream::iter(messages)).await;
        sent.map(drop).map_err(refused)
    }

    /// Waits until only the wdiffs that are listed are there, and nothing half-made.
    pub(super) async fn until_tidy(&self, fs: &Fs) -> Answer<()> {
        let tidy = || async {
            let wanted: BTreeSet<String> =
                self.diffs().await?.into_iter().map(|d| d.file).collect();
            let names = fs.names(Path::new(super::process::DIR)).map_err(|e| e.to_string())?;
            let is_needless = |name: &String| name.contains(".wdiff") || name.ends_with(".tmp");
            let found: BTreeSet<String> = names.into_iter().filter(is_needless).collect();
            Ok(found == wanted)
        };
        self.until("needless files lie about", tidy).await
    }
}
