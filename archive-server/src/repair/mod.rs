//! Repair: what is damaged or missing here is fetched from an archive of the same lineage.
//!
//! ```text
//!  damages --> is it the same history? (lineage, spot check of a whole snapshot)
//!     +--> each: fetch --> checked as it is written --> the damaged file put aside --> read back
//!     +--> what the other one has not got: put aside, a gap that a replication bridges
//!  --> spot check of the newest snapshot --> what was put aside is deleted
//! ```
//! Invariants: a file is replaced by one that was checked as a whole, in one step, and who reads
//! the old one reads on (I12); gids prove nothing, so the lineage, the logs of the wdiffs and the
//! content of a snapshot that both have must be equal (I13); a snapshot that was not harmed before
//! is not harmed by it.

pub(crate) mod place;
pub(crate) mod serve;

use crate::archive::Archive;
use crate::jobs::{APPLY, GC, Job, KEEP, MERGE, REPAIR, RESYNC};
use crate::receive::{self, Origin, write_checked};
use crate::replica::needs_resync;
use crate::verify::{self, damage};
use crate::volume::Volume;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::wdiff_transfer_request::Step;
use proto::v1::{
    ByteRange, Damage, DamageKind, HashRangesRequest, Operation, ReadWdiffRequest, RepairRequest,
    RestorableRequest, VolumeRef,
};
use server_kit::blocking;
use server_kit::chunks::bridge;
use server_kit::error::{Reason, RoleError};
use server_kit::net::Endpoint;
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::pages;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};
use wdiff_format::diff_set::DiffSet;
use wdiff_format::gid::{Diff, Gid};
use wdiff_format::open::WdiffReader;
use wlog_format::units::LogUuid;

/// What must not run beside it.
const EXCLUDED: [&str; 6] = [REPAIR, APPLY, MERGE, KEEP, GC, RESYNC];
/// Ranges of a snapshot that are compared, and the length of each.
const SPOTS: usize = 32;
const SPOT_BYTES: u64 = 64 << 10;

/// A repair that runs.
struct Repair {
    archive: Arc<Archive>,
    volume: Arc<Volume>,
    job: Job,
    handle: OperationHandle,
    peer: String,
    client: ArchiveClient<Channel>,
    /// Where the base image of the other archive is: what lies before is gone there.
    base_there: Gid,
}

/// Starts to repair a volume.
pub(crate) fn start(
    archive: &Arc<Archive>,
    request: RepairRequest,
) -> Result<Operation, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active(REPAIR)?;
    let bad = |why: String| RoleError::bad_request(why).with_volume(&volume.name);
    let from = request.from.ok_or_else(|| bad("repair from whom: an archive is needed".into()))?;
    let address: Endpoint = from.address.parse().map_err(|e| bad(format!("{}: {e}", from.id)))?;
    let job = volume.jobs.begin(volume.name.as_str(), REPAIR, &EXCLUDED)?;
    let client = ArchiveClient::new(archive.world.connector.channel(&address));
    let (archive, name) = (archive.clone(), volume.name.clone());
    Ok(archive.operations.clone().start(REPAIR, name, move |handle| {
        handle.set_peer(&from.id);
        async move {
            let (peer, base_there) = (from.id, Gid(0));
            let repair = Repair { archive, volume, job, handle, peer, client, base_there };
            repair.run().await
        }
    }))
}

/// Whether it is about a wdiff of the history, and which.
fn wanted(damage: &Damage) -> Option<Diff> {
    let kinds = [DamageKind::Wdiff, DamageKind::Missing, DamageKind::WrongSize];
    let diff = damage.diff.filter(|_| kinds.contains(&damage.kind()))?;
    Diff::try_from(diff).ok()
}

impl Repair {
    async fn run(mut self) -> Result<Outcome, RoleError> {
        let (token, handle) = (self.job.token.clone(), self.handle.clone());
        let done = tokio::select! {
            done = self.steps() => done,
            () = token.cancelled() => Err(RoleError::stopping("broken off by a stop")),
            () = handle.cancelled() => Err(RoleError::cancelled("given up as asked")),
        };
        let Self { archive, volume, job, .. } = self;
        drop(job);
        // What it needed may be here now.
        crate::apply::mend(&archive, &volume);
        done.map_err(|e| e.with_volume(&volume.name))
    }

    async fn steps(&mut self) -> Result<Outcome, RoleError> {
        let mut damages = damage::list(&self.volume);
        damages.retain(|d| wanted(d).is_some());
        self.handle.set_total(damages.iter().filter_map(wanted).map(|d| d.size).sum());
        self.same_lineage().await?;
        self.spot_check().await?;
        let (mut fetched, mut aside) = (Vec::new(), Vec::new());
        for damage in &damages {
            let Some(diff) = wanted(damage) else { continue };
            if damage.file.is_empty() {
                for piece in self.pieces(&diff).await? {
                    fetched.extend(self.fetch(piece, None, &mut aside).await?);
                }
                continue;
            }
            match self.fetch(diff, Some(diff), &mut aside).await? {
                Some(new) => fetched.push(new),
                None => self.give_up(diff).await?,
            }
        }
        for diff in fetched {
            verify::read_back(&self.volume, diff, &self.job.token).await?;
        }
        self.spot_check().await?;
        self.settle(aside).await?;
        let gid = self.volume.with(|c| c.latest.0.begin().0);
        Ok(Outcome { gid: Some(gid), path: None })
    }

    /// Fails unless both archives have the same lineage (I13).
    async fn same_lineage(&mut self) -> Result<(), RoleError> {
        let of = VolumeRef { volume: self.volume.name.to_string() };
        let answer = self.client.get(of).await;
        let there = answer.map_err(|s| RoleError::from_status(&self.peer, &s))?.into_inner();
        let here = self.volume.with(|c| c.record.archive_uuid);
        if there.archive_uuid == proto::convert::uuid_bytes(here) {
            let base = there.base.and_then(|base| base.begin);
            self.base_there = base.map_or(Gid(0), |base| Gid(base.gid_begin));
            return Ok(());
        }
        let why = format!("{} has another history of it, or none", self.peer);
        Err(self.forked(&why))
    }

    /// All messages of a list of the other archive.
    async fn list<M>(
        &self,
        answer: Result<Response<Streaming<M>>, Status>,
    ) -> Result<Vec<M>, RoleError> {
        let failed = |s| RoleError::from_status(&self.peer, &s);
        pages::all(answer.map_err(failed)?.into_inner()).await.map_err(failed)
    }

    fn forked(&self, why: &str) -> RoleError {
        needs_resync(&self.volume, why, (&self.peer, self.archive.id.as_str()))
    }

    /// Compares parts of the newest snapshot that both can restore, and that is not harmed here.
    async fn spot_check(&mut self) -> Result<(), RoleError> {
        let name = self.volume.name.to_string();
        let request = RestorableRequest { volume: name.clone(), all: true };
        let answer = self.client.list_restorable(request).await;
        let there = self.list(answer).await?.into_iter().flat_map(|page| page.snapshots);
        let there: BTreeSet<u64> = there.map(|s| s.gid).collect();
        let harmed = damage::list(&self.volume).into_iter().filter(|d| d.harmed > 0);
        let first = harmed.map(|d| d.first_gid).min().unwrap_or(u64::MAX);
        let here = self.volume.with(|c| c.diffs.restorable(&c.base, true));
        let both = here.iter().rev().find(|p| p.gid.0 < first && there.contains(&p.gid.0));
        let Some(gid) = both.map(|p| p.gid) else {
            tracing::warn!(volume = name, peer = self.peer, "no whole snapshot is at both");
            return Ok(());
        };
        let ranges = spots(self.volume.size().bytes());
        let ours = serve::hashes_of(&self.archive, &self.volume, gid, &ranges).await?;
        let ranges = ranges.iter().map(|(begin, end)| ByteRange { begin: *begin, end: *end });
        let request = HashRangesRequest { volume: name, gid: gid.0, ranges: ranges.collect() };
        let answer = self.client.hash_ranges(request).await;
        let theirs = answer.map_err(|s| RoleError::from_status(&self.peer, &s))?.into_inner();
        let same = theirs.hashes.len() == ours.len()
            && theirs.hashes.iter().zip(&ours).all(|(t, o)| t.as_ref() == o.as_slice());
        if !same {
            return Err(self.forked(&format!("snapshot {gid} differs at the two")));
        }
        let here = self.volume.clone();
        blocking::run(move || here.proved(true)).await
    }

    /// The wdiffs of the other archive that lead over a gap, one by one; none: it has them not all.
    async fn pieces(&mut self, gap: &Diff) -> Result<Vec<Diff>, RoleError> {
        let of = VolumeRef { volume: self.volume.name.to_string() };
        let answer = self.client.list_diffs(of).await;
        let there = self.list(answer).await?.into_iter().flat_map(|page| page.diffs);
        let mut set = DiffSet::new();
        for diff in there.filter_map(|e| Diff::try_from(e.diff?).ok()) {
            // Each of a list is another one.
            let _ = set.insert(diff);
        }
        let mut pieces = Vec::new();
        for (diff, reached) in set.chain(gap.begin()) {
            pieces.push(diff);
            if reached.begin() >= gap.end().begin() {
                return Ok(pieces);
            }
        }
        Ok(Vec::new())
    }

    /// Fetches what leads over `diff`, and puts it into the place of `damaged`; `None`: the other
    /// archive has it not.
    async fn fetch(
        &mut self,
        diff: Diff,
        damaged: Option<Diff>,
        aside: &mut Vec<String>,
    ) -> Result<Option<Diff>, RoleError> {
        let volume = self.volume.name.to_string();
        let request = ReadWdiffRequest { volume, diff: Some(diff.into()) };
        let mut stream = match self.client.read_wdiff(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let error = RoleError::from_status(&self.peer, &status);
                let gone = error.reason() == Reason::UnknownSnapshot;
                return if gone { Ok(None) } else { Err(error) };
            }
        };
        let first = stream.next().await.transpose();
        let first = first.map_err(|s| RoleError::from_status(&self.peer, &s))?;
        let strange = |why: &str| RoleError::wrong_peer(format!("{} {why}", self.peer));
        let Some(Step::Start(start)) = first.and_then(|m| m.step) else {
            return Err(strange("does not say what it sends"));
        };
        let got = start.diff.and_then(|d| Diff::try_from(d).ok());
        let got = got.filter(|got| {
            let (end, needed) = (got.end(), diff.end());
            got.begin() == diff.begin()
                && (end == needed || (end.is_clean() && end.begin() > needed.begin()))
        });
        let mut got = got.ok_or_else(|| strange("sends another wdiff than was asked for"))?;
        let log_uuid =
            proto::convert::uuid(&start.log_uuid).map_err(|e| strange(&e.to_string()))?;
        self.same_log(&diff, log_uuid).await?;
        let name = self.volume.diff_name(&got)?;
        let (feeder, input) = bridge();
        let (here, peer) = (self.volume.clone(), self.peer.clone());
        let keeper = tokio::spawn(blocking::run_waiting(move || {
            let mut tmp = here.dir.create_tmp()?;
            let origin = Origin { sender: &peer, log_uuid, name: &name, size: u64::MAX };
            let bytes = write_checked(&here, &origin, input, &mut tmp)?;
            Ok::<_, RoleError>((tmp, bytes))
        }));
        let fed = receive::feed(&self.archive, &mut stream, feeder).await;
        let kept = keeper.await.map_err(|e| RoleError::new(Reason::Io, e.to_string()))?;
        let (tmp, bytes) = match (fed, kept) {
            (Ok(()), Ok(kept)) => kept,
            (Err(fed), Err(kept)) if fed.reason() == Reason::Cancelled => return Err(kept),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        self.handle.advance(diff.size);
        got.size = bytes;
        let here = self.volume.clone();
        let installed = blocking::run(move || here.install(damaged, got, tmp)).await?;
        tracing::info!(volume = %self.volume.name, diff = %got, peer = self.peer, "fetched");
        aside.extend(installed.aside);
        Ok(Some(installed.diff))
    }

    /// Fails when the log of what is fetched is none that the history here has there (I13).
    async fn same_log(&self, diff: &Diff, log_uuid: LogUuid) -> Result<(), RoleError> {
        let (here, diff) = (self.volume.clone(), *diff);
        let known = blocking::run(move || Ok::<_, RoleError>(logs_around(&here, &diff))).await?;
        if known.is_empty() || log_uuid == LogUuid::ZERO || known.contains(&log_uuid) {
            return Ok(());
        }
        Err(self
            .forked(&format!("{diff} is of log {log_uuid} at {}, and of another here", self.peer)))
    }

    /// What is gone at the other archive is put aside here, which leaves a gap: a comparison with
    /// what it has leads over that. What it only has not got yet stays.
    async fn give_up(&self, diff: Diff) -> Result<(), RoleError> {
        let applying = self.volume.with(|c| c.base.applying_to().is_some());
        if applying || self.base_there <= diff.begin().begin() {
            return Ok(());
        }
        tracing::warn!(volume = %self.volume.name, %diff, peer = self.peer, "not to be had there");
        let here = self.volume.clone();
        blocking::run(move || here.put_aside(&diff)).await
    }

    /// What was put aside goes, and what was wrong is over.
    async fn settle(&self, aside: Vec<String>) -> Result<(), RoleError> {
        verify::store(&self.volume).await?;
        let here = self.volume.clone();
        blocking::run(move || here.leases.mark(&aside)).await
    }
}

/// The logs of the wdiff itself, if its header can be read, or else of its neighbours. Blocks.
fn logs_around(volume: &Volume, diff: &Diff) -> Vec<LogUuid> {
    let (own, neighbours) = volume.with(|c| {
        let own = c.diffs.get(diff).copied();
        let before = c.diffs.range(Gid(0), diff.begin().begin()).last().copied();
        let after = c.diffs.range(diff.end().begin(), crate::load::GID_MAX).next().copied();
        (own, [before, after])
    });
    let log = |diff: Diff| {
        let name = volume.diff_name(&diff).ok()?;
        let wdiff = WdiffReader::from_opened(volume.dir.open_file(&name), name).ok()?;
        Some(wdiff.header().uuid).filter(|uuid| *uuid != LogUuid::ZERO)
    };
    match own.and_then(log) {
        Some(uuid) => vec![uuid],
        None => neighbours.into_iter().flatten().filter_map(log).collect(),
    }
}

/// Random ranges of an image.
fn spots(size_bytes: u64) -> Vec<(u64, u64)> {
    let room = size_bytes / SPOT_BYTES;
    let spot = |_| {
        let random = u128::from_be_bytes(LogUuid::random().0);
        let number = random.checked_rem(u128::from(room)).unwrap_or_default();
        let begin = u64::try_from(number).unwrap_or_default() * SPOT_BYTES;
        (begin, begin + SPOT_BYTES)
    };
    (0..SPOTS).map(spot).collect()
}
