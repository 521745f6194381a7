//! Replication between archives (semantics.md §5.13, §6.5).
//!
//! Invariant: an archive that is put on the proxies' lists gets everything: what the proxies take
//! in from then on waits for it there, and what they took in before is known to be at the source
//! before the last round of replication. Proxies are not held up for it.

use proto::v1;

use super::drain::queues;
use super::{Event, Watch, archive, look, lost, recover, resize, run, setup, sync, wait_for};
use crate::client::{At, Controller};
use crate::error::ControlError;
use crate::group::ServerRole;

/// The verb, which is the kind of the archive's operation too.
const KIND: &str = "replicate";

/// How long the source may take to get what the proxies still hold for it.
const ARRIVE_LIMIT: std::time::Duration = std::time::Duration::from_secs(600);

/// Options of [`replicate`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplicateOptions {
    /// The destination shall follow the volume from then on, as the source does.
    pub synchronizing: bool,
    /// Another history at the destination may be thrown away.
    pub resync: bool,
    /// At least up to this snapshot; `None`: the last explicit one of the source.
    pub gid: Option<u64>,
    /// Every wdiff is sent as it is.
    pub dont_merge: bool,
    /// Bytes per second that are read for a comparison; 0: as fast as it goes.
    pub scan_bytes_per_s: u64,
}

/// Brings `to` up to date with `from`; returns the gid that it has reached at least.
///
/// One that was interrupted goes on where it was; one that runs is waited for first.
///
/// # Errors
/// Different histories without `resync`; a larger image at the destination; a server in the wrong
/// state or unreachable; each names the next step.
pub async fn replicate(
    ctl: &Controller,
    from: &str,
    volume: &str,
    to: &str,
    options: ReplicateOptions,
    watch: Watch<'_>,
) -> Result<u64, ControlError> {
    ctl.archive(to)?;
    if from == to {
        return Err(ControlError::Precondition {
            message: format!("{from} cannot replicate to itself"),
            next_step: "name another archive".to_owned(),
        });
    }
    if options.synchronizing && !sync::is_synchronizing(ctl, from, volume).await? {
        return Err(ControlError::Precondition {
            message: format!("{volume} is not sent to {from}, so {to} could not follow it"),
            next_step: format!("`walbc start-synchronizing {from} {volume}` first"),
        });
    }
    let gid = replicate_once(ctl, from, volume, to, options, watch).await?;
    if !options.synchronizing {
        return Ok(gid);
    }
    sync::start_synchronizing(ctl, to, volume).await?;
    let reached = wait_for_queues(ctl, from, volume).await?;
    // The histories are one by now.
    let rest = ReplicateOptions { gid: Some(reached.max(gid)), resync: false, ..options };
    let gid = replicate_once(ctl, from, volume, to, rest, watch).await?;
    for proxy in ctl.names(ServerRole::Proxy) {
        recover::kick_proxy(ctl, &proxy, volume, to).await?;
    }
    Ok(gid)
}

/// Waits until the source has everything that the proxies hold for it now; returns its newest gid.
async fn wait_for_queues(ctl: &Controller, from: &str, volume: &str) -> Result<u64, ControlError> {
    let held = queues(ctl, volume, from).await?;
    let last = held.iter().filter_map(|(_, queue)| queue.last_gid).max().unwrap_or_default();
    let what = format!("{from} getting snapshot {last} of {volume} from the proxies");
    let next_step = format!("`walbc status {volume}` shows what keeps it; then type this again");
    wait_for(&what, &next_step, ARRIVE_LIMIT, async || {
        let latest = latest(&look::archive_volume(ctl, from, volume).await?);
        Ok((latest >= last).then_some(latest))
    })
    .await
}

fn latest(volume: &v1::ArchiveVolume) -> u64 {
    volume.latest.map_or(0, |latest| latest.gid_begin)
}

/// What the destination needs before the source sends to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    /// It does not know the volume.
    Init,
    /// Its image is smaller.
    Grow,
    /// Nothing.
    Ready,
}

/// The decision about the two sides.
fn decide(
    (from, source): (&str, &v1::ArchiveVolume),
    (to, dest): (&str, &v1::ArchiveVolume),
    volume: &str,
    resync: bool,
) -> Result<Destination, ControlError> {
    let no =
        |message: String, next_step: String| Err(ControlError::Precondition { message, next_step });
    let see = format!("`walbc status {volume}` shows what runs or is wrong there");
    if !matches!(source.state.as_str(), "Archived" | "WdiffRecv") {
        let step = if source.state == "Stopped" {
            format!("`walbc start {from} {volume}` first")
        } else {
            see
        };
        return no(format!("{volume} is {} at {from}", source.state), step);
    }
    match dest.state.as_str() {
        look::CLEAR => return Ok(Destination::Init),
        "SyncReady" | "Archived" | "WdiffRecv" => {}
        "Stopped" => {
            let step = format!("`walbc start {to} {volume}` first");
            return no(format!("{volume} is Stopped at {to}"), step);
        }
        other => return no(format!("{volume} is {other} at {to}"), see),
    }
    if dest.state != "SyncReady" && dest.archive_uuid != source.archive_uuid && !resync {
        return no(
            format!("{to} holds another history of {volume} than {from}"),
            format!(
                "`walbc replicate {from} {volume} {to} --resync` throws it away and compares the \
                 images"
            ),
        );
    }
    if dest.size_lb > source.size_lb {
        return no(
            format!(
                "the image of {volume} has {} bytes at {to} and {} at {from}",
                dest.size_lb * 512,
                source.size_lb * 512
            ),
            format!(
                "images do not shrink: `walbc resize {volume} {}` if the volume has grown, or \
                 `walbc clear {to} {volume}`",
                dest.size_lb * 512
            ),
        );
    }
    let grow = dest.size_lb > 0 && dest.size_lb < source.size_lb;
    Ok(if grow { Destination::Grow } else { Destination::Ready })
}

async fn replicate_once(
    ctl: &Controller,
    from: &str,
    volume: &str,
    to: &str,
    options: ReplicateOptions,
    watch: Watch<'_>,
) -> Result<u64, ControlError> {
    let (server, client) = ctl.archive(from)?;
    let (destination, _) = ctl.archive(to)?;
    finish_earlier(ctl, from, volume, watch).await?;
    let source = look::archive_volume(ctl, from, volume).await?;
    let dest = look::archive_volume(ctl, to, volume).await?;
    match decide((from, &source), (to, &dest), volume, options.resync)? {
        Destination::Init => setup::init_archive(ctl, to, volume).await?,
        Destination::Grow => resize::resize_archive(ctl, to, volume, source.size_lb).await?,
        Destination::Ready => {}
    }
    let gid = match options.gid {
        Some(gid) => gid,
        None => last_explicit(ctl, from, volume).await?,
    };
    let request = v1::ReplicateRequest {
        volume: volume.to_owned(),
        to: Some(v1::Peer {
            id: destination.name.clone(),
            address: destination.address.to_string(),
        }),
        resync: options.resync,
        until: Some(v1::replicate_request::Until::Gid(gid)),
        dont_merge: options.dont_merge,
        scan_bytes_per_s: options.scan_bytes_per_s,
        ..Default::default()
    };
    let call = async || client.clone().replicate(request.clone()).await.at(server);
    lost::start_and_follow(ctl, server, (KIND, volume), watch, call).await?;
    let reached = latest(&look::archive_volume(ctl, to, volume).await?);
    if reached >= gid {
        return Ok(reached);
    }
    Err(ControlError::Precondition {
        message: format!("{from} has replicated {volume}, but {to} is at {reached}, not at {gid}"),
        next_step: "type it again: it goes on".to_owned(),
    })
}

/// A replication of the volume that runs already, of this command killed before or of another, is
/// waited for, however it ends.
async fn finish_earlier(
    ctl: &Controller,
    from: &str,
    volume: &str,
    watch: Watch<'_>,
) -> Result<(), ControlError> {
    let (server, _) = ctl.archive(from)?;
    let known = lost::operations_of(ctl, server, KIND, volume).await?;
    for running in known.into_iter().filter(|o| o.status() == v1::OperationStatus::Running) {
        watch(Event::Note(&format!("waiting for {}, which runs already", running.id)));
        match run::follow(ctl, server, running, watch).await {
            Ok(_) | Err(ControlError::Operation { .. } | ControlError::Forgotten { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn last_explicit(ctl: &Controller, from: &str, volume: &str) -> Result<u64, ControlError> {
    let list = archive::restorable(ctl, from, volume, false).await?;
    list.last().map(|snapshot| snapshot.gid).ok_or_else(|| ControlError::Precondition {
        message: format!("{from} has no snapshot of {volume} that could be restored"),
        next_step: format!("`walbc status {volume}` shows what is missing"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(state: &str, lineage: u8, size_lb: u64) -> v1::ArchiveVolume {
        let archive_uuid = vec![lineage; 16].into();
        v1::ArchiveVolume { state: state.to_owned(), archive_uuid, size_lb, ..Default::default() }
    }

    fn verdict(
        source: &v1::ArchiveVolume,
        dest: &v1::ArchiveVolume,
        resync: bool,
    ) -> Result<Destination, String> {
        decide(("a0", source), ("a1", dest), "v", resync).map_err(|error| error.to_string())
    }

    #[test]
    fn the_destination_is_prepared_by_what_it_has() {
        let source = held("Archived", 1, 100);
        for (dest, resync, expected) in [
            (held("Clear", 0, 0), false, Destination::Init),
            (held("SyncReady", 0, 0), false, Destination::Ready),
            (held("Archived", 1, 100), false, Destination::Ready),
            (held("WdiffRecv", 1, 100), false, Destination::Ready),
            (held("Archived", 1, 80), false, Destination::Grow),
            (held("Archived", 2, 100), true, Destination::Ready),
        ] {
            assert_eq!(verdict(&source, &dest, resync), Ok(expected), "{dest:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_command_that_helps() {
        let source = held("Archived", 1, 100);
        for (dest, part) in [
            (held("Archived", 2, 100), "--resync"),
            (held("Archived", 1, 200), "walbc resize v 102400"),
            (held("Stopped", 1, 100), "walbc start a1 v"),
            (held("FullSync", 1, 100), "walbc status v"),
        ] {
            let error = verdict(&source, &dest, false).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let stopped = verdict(&held("Stopped", 1, 100), &held("Clear", 0, 0), false).unwrap_err();
        assert!(stopped.contains("walbc start a0 v"), "{stopped}");
        assert!(verdict(&held("SyncReady", 0, 0), &held("Clear", 0, 0), true).is_err());
    }
}
