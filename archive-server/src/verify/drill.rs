//! Drills: a snapshot is opened through the view of a mount, all of it is read, and its hash is
//! compared with the one that the first drill of it recorded.
//!
//! Invariant: the content of a snapshot never changes, so a hash that differs from the recorded
//! one is damage, whatever the files say of themselves. The hash is that of the hashes of 1 MiB
//! cells up to the last one that is not all zeroes, so it stays when the volume grows.
//!
//! A command of the operator's (from the configuration alone, never from the network) may look at
//! the snapshot too: it is run without a shell, and finds a read-only NBD export in its
//! environment.

use super::ledger::{Found, Kind, Proof};
use super::store;
use crate::archive::Archive;
use crate::faults;
use crate::jobs::{DRILL, FULL_SYNC, Job, RESYNC};
use crate::mount::{self, inside::Inside};
use crate::volume::Volume;
use proto::v1::{DrillList, DrillRequest, DrillResult, MountRequest, Operation, mount_request};
use server_kit::error::{Reason, RoleError};
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::pace::Pace;
use server_kit::{blocking, clock};
use std::process::Stdio;
use std::sync::Arc;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use wdiff_format::gid::Gid;
use wlog_format::units::{LogUuid, to_usize};

/// What is hashed at a time.
const CELL_BYTES: u64 = 1 << 20;
/// Of what a command says so much is told when it fails.
const SAID_MAX: usize = 500;

/// Starts a drill.
pub(crate) fn start(
    archive: &Arc<Archive>,
    request: &DrillRequest,
) -> Result<Operation, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active(DRILL)?;
    let gid = pick(&volume, request.gid.map(Gid))?;
    begin(archive, &volume, gid, Pace::new(request.scan_bytes_per_s))
}

/// A drill of a random snapshot, when nobody asked for one; waits for its end.
pub(super) async fn by_itself(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    pace: Pace,
) -> Result<(), RoleError> {
    volume.require_active(DRILL)?;
    let gid = pick(volume, None)?;
    let job = take(volume)?;
    let none = |_| ();
    run(archive, volume, gid, (&job.token, pace, &none)).await.map(drop)
}

fn take(volume: &Volume) -> Result<Job, RoleError> {
    volume.jobs.begin(volume.name.as_str(), DRILL, &[DRILL, RESYNC, FULL_SYNC])
}

fn begin(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    gid: Gid,
    pace: Pace,
) -> Result<Operation, RoleError> {
    let job = take(volume)?;
    let (archive, volume) = (archive.clone(), volume.clone());
    let name = volume.name.clone();
    Ok(archive.operations.clone().start(DRILL, name, |handle: OperationHandle| async move {
        handle.set_total(volume.size().bytes());
        let advance = |bytes| handle.advance(bytes);
        let work = run(&archive, &volume, gid, (&job.token, pace, &advance));
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = handle.cancelled() => job.token.cancel(),
        }
        work.await
    }))
}

/// The snapshot that was asked for, or a random one.
fn pick(volume: &Volume, gid: Option<Gid>) -> Result<Gid, RoleError> {
    let name = volume.name.as_str();
    volume.with(|c| {
        if let Some(gid) = gid {
            c.diffs.restore_summary(&c.base, gid, 0).map_err(|e| faults::snapshot(name, &e))?;
            return Ok(gid);
        }
        let points = c.diffs.restorable(&c.base, true);
        let random = LogUuid::random().0;
        let number =
            random.iter().fold(0_usize, |n, b| n.wrapping_mul(251).wrapping_add((*b).into()));
        let found = number.checked_rem(points.len()).and_then(|n| points.get(n));
        found.map(|p| p.gid).ok_or_else(|| {
            RoleError::unknown_snapshot(name, format!("volume {name}: nothing can be restored yet"))
        })
    })
}

type How<'a> = (&'a CancellationToken, Pace, &'a (dyn Fn(u64) + Send + Sync));

async fn run(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    gid: Gid,
    how: How<'_>,
) -> Result<Outcome, RoleError> {
    let token = how.0.clone();
    let inside = Inside::open(archive, volume, gid).await?;
    let hashed = hash(&inside, how).await;
    inside.end().await;
    let hash = hashed?;
    if compare(volume, gid, &hash)? {
        let here = volume.clone();
        blocking::run(move || here.proved(true)).await?;
    }
    command(archive, volume, gid, &token).await?;
    volume.ledger.prove(gid, |proof| proof.drilled_s = clock::unix_seconds());
    store(volume).await?;
    Ok(Outcome { gid: Some(gid.0), path: None })
}

/// The hash of all that the snapshot holds.
async fn hash(inside: &Inside, (token, mut pace, advance): How<'_>) -> Result<String, RoleError> {
    let cell = |data: &[u8]| *blake3::hash(data).as_bytes();
    let zeroes = cell(&vec![0; to_usize(CELL_BYTES)]);
    let (mut all, mut waiting, mut at) = (blake3::Hasher::new(), 0_u64, 0);
    while at < inside.size_bytes() {
        crate::jobs::check(token)?;
        let skipped = inside.zeroes(at).await? / CELL_BYTES;
        if skipped > 0 {
            waiting += skipped;
            at += skipped * CELL_BYTES;
            advance(skipped * CELL_BYTES);
            continue;
        }
        pace.wait_or(CELL_BYTES, token.cancelled()).await;
        let here = cell(&inside.read(at, to_usize(CELL_BYTES)).await?);
        at += CELL_BYTES;
        advance(CELL_BYTES);
        if here == zeroes {
            waiting += 1;
            continue;
        }
        for _ in 0..std::mem::take(&mut waiting) {
            all.update(&zeroes);
        }
        all.update(&here);
    }
    Ok(all.finalize().to_hex().to_string())
}

/// Records the hash of a snapshot, or compares it with the recorded one (true).
fn compare(volume: &Volume, gid: Gid, hash: &str) -> Result<bool, RoleError> {
    let now_s = clock::unix_seconds();
    let mut first = false;
    let Proof { hash: recorded, hashed_s, .. } = volume.ledger.prove(gid, |proof| {
        if proof.hash.is_empty() {
            first = true;
            (proof.hash, proof.hashed_s) = (hash.to_owned(), now_s);
        }
        proof.clone()
    });
    let file = gid.to_string();
    if recorded == hash {
        volume.ledger.settle(&[Kind::Content], Some(&file));
        return Ok(!first);
    }
    let why =
        format!("reads as another content (hash {hash}) than at {hashed_s} (hash {recorded})");
    let name = &volume.name;
    let message = format!("volume {name}: snapshot {gid} {why}");
    super::check::tell(volume, Found { kind: Kind::Content, file, why, found_s: now_s });
    let step = format!("find out what is damaged: walbc verify ARCHIVE {name}");
    Err(RoleError::new(Reason::Damaged, message).with_volume(name).with_next_step(step))
}

/// Has the operator's command look at the snapshot, if there is one.
async fn command(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    gid: Gid,
    token: &CancellationToken,
) -> Result<(), RoleError> {
    let Some((program, arguments)) = archive.settings.drill_command.split_first() else {
        return Ok(());
    };
    let name = volume.name.to_string();
    let point = Some(mount_request::Point::Gid(gid.0));
    let request = MountRequest { volume: name.clone(), point, ..MountRequest::default() };
    let mounted = mount::start(archive, request).await?;
    let socket = mounted.uri.split_once("socket=").map_or("", |(_, path)| path);
    let running = Command::new(program)
        .args(arguments)
        .env("WALB_VOLUME", &name)
        .env("WALB_GID", gid.to_string())
        .env("WALB_NBD_URI", &mounted.uri)
        .env("WALB_NBD_SOCKET", socket)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::select! {
        output = running => Some(output),
        () = token.cancelled() => None,
    };
    volume.mounts.end(&name, &mounted.id).await?;
    let given_up = || RoleError::cancelled("given up as asked");
    let failed = |why: String| {
        let message = format!("the drill command {program} does not accept snapshot {gid}: {why}");
        RoleError::new(Reason::Damaged, message).with_volume(&name)
    };
    let output = output.ok_or_else(given_up)?.map_err(|e| {
        let message = format!("cannot run the drill command {program}");
        RoleError::new(Reason::Io, message).with_volume(&name).with_source(e)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(SAID_MAX).collect();
    Err(failed(format!("{}: {said}", output.status)))
}

/// What drills found, by snapshot.
pub(crate) fn list(volume: &Volume) -> DrillList {
    let drilled = volume.ledger.proofs().into_iter().filter(|(_, p)| !p.hash.is_empty());
    let result = |(gid, p): (Gid, Proof)| DrillResult {
        gid: gid.0,
        hash: p.hash,
        drilled_s: p.drilled_s,
        recorded_s: p.hashed_s,
    };
    DrillList { drills: drilled.map(result).collect() }
}
