//! From a verb to the operation and its report.

use proto::v1;

use super::args::Verb;
use super::output::{self, Report};
use super::progress::Progress;
use super::values::{InfoChange, InfoEntry, Snapshots};
use crate::client::Controller;
use crate::error::{ControlError, Exit};
use crate::group::ServerRole;
use crate::ops::{
    Event, archive, backup, device, hash, look, peers, recover, replicate, resize, run as running,
    setup, sync,
};

type Answer = Result<(Report, Exit), ControlError>;

fn done(report: Report) -> Answer {
    Ok((report, Exit::Done))
}

/// "true" with exit 0, "false" with exit 3.
fn yes_no(key: &str, yes: bool) -> Answer {
    Ok((Report::value(key, yes), if yes { Exit::Done } else { Exit::No }))
}

/// Runs a verb.
pub(super) async fn run(ctl: &Controller, verb: &Verb, json: bool) -> Answer {
    match verb {
        Verb::Status { .. }
        | Verb::State(_)
        | Verb::GetAlive
        | Verb::ListVolumes { .. }
        | Verb::IsOverflow(_)
        | Verb::IsWdiffSendError { .. }
        | Verb::IsSynchronizing(_)
        | Verb::LogUsage { .. }
        | Verb::Lag { .. }
        | Verb::Progress(_) => look_verb(ctl, verb).await,
        Verb::InitStorage { .. }
        | Verb::Clear(_)
        | Verb::Reset(_)
        | Verb::Start(_)
        | Verb::Stop { .. }
        | Verb::GoStandby(_) => setup_verb(ctl, verb).await,
        Verb::FullBackup { .. } | Verb::HashBackup { .. } | Verb::Snapshot { .. } => {
            backup_verb(ctl, verb, json).await
        }
        Verb::Restorable { .. }
        | Verb::Restore { .. }
        | Verb::Restored(_)
        | Verb::DelRestored { .. }
        | Verb::Diffs(_)
        | Verb::Apply { .. } => archive_verb(ctl, verb, json).await,
        Verb::Merge { .. }
        | Verb::EnableSnapshot(_)
        | Verb::DisableSnapshot(_)
        | Verb::Gc(_)
        | Verb::Resize { .. }
        | Verb::RestoreToDevice { .. } => reshape_verb(ctl, verb, json).await,
        Verb::Replicate { .. } | Verb::Promote { .. } | Verb::SetPeers { .. } => {
            peers_verb(ctl, verb, json).await
        }
        Verb::StartSynchronizing(_)
        | Verb::StopSynchronizing(_)
        | Verb::ArchiveInfo { .. }
        | Verb::CopyArchiveInfo { .. }
        | Verb::KickAll { .. }
        | Verb::Kick { .. } => sync_verb(ctl, verb).await,
        Verb::Shutdown { .. } | Verb::Operations | Verb::Wait { .. } | Verb::Cancel { .. } => {
            run_verb(ctl, verb, json).await
        }
        Verb::Mount(args) => super::mount::mount(ctl, args).await,
        Verb::Mounts(args) => super::mount::mounts(ctl, args).await,
        Verb::Unmount(args) => super::mount::unmount(ctl, args).await,
        Verb::Retention(args) => super::upkeep::retention(ctl, args, json).await,
        Verb::ReplicationSchedule(args) => super::upkeep::schedule(ctl, args).await,
        Verb::Freshness(args) => super::upkeep::freshness(ctl, args).await,
        Verb::Verify(args) => super::verify::verify(ctl, args, json).await,
        Verb::Drill(args) => super::verify::drill(ctl, args, json).await,
        Verb::Repair(args) => super::verify::repair(ctl, args, json).await,
        Verb::Rebuild(args) => super::verify::rebuild(ctl, args).await,
        Verb::Doctor(args) => super::doctor::run(ctl, args, json).await,
        Verb::Completions { .. } => done(Report::done()),
    }
}

async fn look_verb(ctl: &Controller, verb: &Verb) -> Answer {
    match verb {
        Verb::Status { volume } => {
            let status = look::status(ctl, volume.as_deref()).await;
            Ok((output::status(&status), status.exit()))
        }
        Verb::Lag { volume } => {
            let status = look::status(ctl, volume.as_deref()).await;
            let reached = status.unreachable.is_empty();
            let exit = if reached { Exit::Done } else { Exit::Unreachable };
            Ok((output::lag(&status), exit))
        }
        Verb::State(t) => {
            let state = setup::state(ctl, &t.server, &t.volume).await?;
            done(Report::value("state", state))
        }
        Verb::GetAlive => {
            let servers = look::alive(ctl).await;
            let all = servers.iter().all(|s| s.problem.is_none());
            Ok((output::alive(&servers), if all { Exit::Done } else { Exit::Unreachable }))
        }
        Verb::ListVolumes { server } => {
            done(Report::lines("volumes", &look::volumes(ctl, server).await?))
        }
        Verb::IsOverflow(t) => {
            yes_no("overflow", look::is_overflow(ctl, &t.server, &t.volume).await?)
        }
        Verb::IsWdiffSendError { proxy, volume, archive } => {
            let error = look::is_wdiff_send_error(ctl, proxy, volume, archive).await?;
            yes_no("send_error", error)
        }
        Verb::IsSynchronizing(t) => {
            yes_no("synchronizing", sync::is_synchronizing(ctl, &t.server, &t.volume).await?)
        }
        Verb::LogUsage { server, volume } => {
            done(output::log_usage(&look::log_usage(ctl, server, volume.as_deref()).await?))
        }
        Verb::Progress(t) => {
            let running = look::progress(ctl, &t.server, &t.volume).await?;
            let rows: Vec<_> = running.into_iter().map(|op| (t.server.clone(), op)).collect();
            done(output::operations(&rows))
        }
        _ => done(Report::done()),
    }
}

async fn setup_verb(ctl: &Controller, verb: &Verb) -> Answer {
    match verb {
        Verb::InitStorage { target: t, device } => {
            setup::init_storage(ctl, &t.server, &t.volume, device).await?;
        }
        Verb::Clear(t) => setup::clear(ctl, &t.server, &t.volume).await?,
        Verb::Reset(t) => setup::reset(ctl, &t.server, &t.volume).await?,
        Verb::Start(t) => setup::start(ctl, &t.server, &t.volume).await?,
        Verb::Stop { target: t, mode } => {
            setup::stop(ctl, &t.server, &t.volume, (*mode).into()).await?;
        }
        Verb::GoStandby(t) => setup::go_standby(ctl, &t.server, &t.volume).await?,
        _ => {}
    }
    done(Report::done())
}

async fn backup_verb(ctl: &Controller, verb: &Verb, json: bool) -> Answer {
    match verb {
        Verb::FullBackup { target: t, bulk } => {
            let mut progress = Progress::new(json);
            let options = backup::FullBackupOptions { bulk_bytes: bulk.unwrap_or_default() };
            let seen = &mut |event: Event<'_>| progress.show(event);
            let gid = backup::full_backup(ctl, &t.server, &t.volume, options, seen).await?;
            done(progress.noted(Report::value("gid", gid)))
        }
        Verb::HashBackup { target: t, everything, scan_rate } => {
            let mut progress = Progress::new(json);
            let options = hash::HashBackupOptions {
                everything: *everything,
                scan_bytes_per_s: scan_rate.unwrap_or_default(),
            };
            let seen = &mut |event: Event<'_>| progress.show(event);
            let gid = hash::hash_backup(ctl, &t.server, &t.volume, options, seen).await?;
            done(progress.noted(Report::value("gid", gid)))
        }
        Verb::Snapshot { target: t, wait } => {
            for archive in wait {
                ctl.group().server_of(archive, ServerRole::Archive)?;
            }
            let taken = backup::snapshot(ctl, &t.server, &t.volume).await?;
            for archive in wait {
                backup::wait_restorable(ctl, archive, &t.volume, taken.gid).await?;
            }
            let json = serde_json::json!({
                "gid": taken.gid, "lsid": taken.lsid, "timestamp_s": taken.timestamp_s,
            });
            done(Report { text: taken.gid.to_string(), json })
        }
        _ => done(Report::done()),
    }
}

async fn archive_verb(ctl: &Controller, verb: &Verb, json: bool) -> Answer {
    match verb {
        Verb::Restorable { target: t, all } => {
            done(output::restorable(&archive::restorable(ctl, &t.server, &t.volume, *all).await?))
        }
        Verb::Restore { target: t, point, to, dry_run: true } => {
            let (point, to) = (point.point(), to.clone());
            let plan = archive::plan_restore(ctl, &t.server, &t.volume, point, to).await?;
            done(output::plan(&plan, true))
        }
        Verb::Restore { target: t, point, to, dry_run: false } => {
            let mut progress = Progress::new(json);
            let seen = &mut |event: Event<'_>| progress.show(event);
            let (point, to) = (point.point(), to.clone());
            let plan = archive::restore(ctl, &t.server, &t.volume, point, to, seen).await?;
            done(output::plan(&plan, false))
        }
        Verb::Restored(t) => {
            done(output::restored(&archive::restored(ctl, &t.server, &t.volume).await?))
        }
        Verb::DelRestored { target: t, gid } => {
            archive::delete_restored(ctl, &t.server, &t.volume, *gid).await?;
            done(Report::done())
        }
        Verb::Diffs(t) => done(output::diffs(&archive::diffs(ctl, &t.server, &t.volume).await?)),
        Verb::Apply { target: t, point, rate } => {
            let mut progress = Progress::new(json);
            let seen = &mut |event: Event<'_>| progress.show(event);
            let (point, rate) = (point.point(), rate.unwrap_or_default());
            archive::apply(ctl, &t.server, &t.volume, point, rate, seen).await?;
            done(Report::done())
        }
        _ => done(Report::done()),
    }
}

/// Verbs that change what an archive holds, or a device.
async fn reshape_verb(ctl: &Controller, verb: &Verb, json: bool) -> Answer {
    let mut progress = Progress::new(json);
    let seen = &mut |event: Event<'_>| progress.show(event);
    match verb {
        Verb::Merge { target: t, begin, end, rate } => {
            let (range, rate) = ((*begin, *end), rate.unwrap_or_default());
            archive::merge(ctl, &t.server, &t.volume, range, rate, seen).await?;
            done(Report::done())
        }
        Verb::EnableSnapshot(snapshots) => set_explicit(ctl, snapshots, true).await,
        Verb::DisableSnapshot(snapshots) => set_explicit(ctl, snapshots, false).await,
        Verb::Gc(t) => {
            done(Report::lines("removed", &archive::gc(ctl, &t.server, &t.volume).await?))
        }
        Verb::Resize { volume, size } => {
            done(output::resized(&resize::resize(ctl, volume, *size).await?))
        }
        Verb::RestoreToDevice { target: t, gid, storage, device: name } => {
            let snapshot = (t.server.as_str(), t.volume.as_str(), *gid);
            device::restore_to_device(ctl, snapshot, storage, name, seen).await?;
            done(Report::done())
        }
        _ => done(Report::done()),
    }
}

async fn set_explicit(ctl: &Controller, s: &Snapshots, is_explicit: bool) -> Answer {
    let t = &s.target;
    let changed = archive::set_explicit(ctl, &t.server, &t.volume, &s.gids, is_explicit).await?;
    let text = changed.iter().map(u64::to_string).collect::<Vec<_>>().join("\n");
    done(Report { text, json: serde_json::json!({ "changed": changed }) })
}

/// Verbs about who is whose archive.
async fn peers_verb(ctl: &Controller, verb: &Verb, json: bool) -> Answer {
    let mut progress = Progress::new(json);
    let seen = &mut |event: Event<'_>| progress.show(event);
    match verb {
        Verb::Replicate { target: t, to, synchronizing, resync, gid, dont_merge, scan_rate } => {
            let options = replicate::ReplicateOptions {
                synchronizing: *synchronizing,
                resync: *resync,
                gid: *gid,
                dont_merge: *dont_merge,
                scan_bytes_per_s: scan_rate.unwrap_or_default(),
            };
            let gid = replicate::replicate(ctl, &t.server, &t.volume, to, options, seen).await?;
            done(progress.noted(Report::value("gid", gid)))
        }
        Verb::Promote { archive } => {
            let told = peers::promote(ctl, archive, seen).await?;
            done(progress.noted(output::peers(&told)))
        }
        Verb::SetPeers { storages, archive, proxies } => {
            let told = peers::set_peers(ctl, storages, archive.as_deref(), proxies).await?;
            done(output::peers(&told))
        }
        _ => done(Report::done()),
    }
}

fn info_of(ctl: &Controller, entry: &InfoEntry) -> Result<v1::ArchiveInfo, ControlError> {
    let server = ctl.group().server_of(&entry.archive, ServerRole::Archive)?;
    Ok(v1::ArchiveInfo {
        name: server.name.clone(),
        address: server.address.to_string(),
        compression: entry.compression.clone(),
        send_delay_ms: u64::try_from(entry.send_delay.as_millis()).unwrap_or(u64::MAX),
    })
}

async fn sync_verb(ctl: &Controller, verb: &Verb) -> Answer {
    match verb {
        Verb::StartSynchronizing(t) => {
            sync::start_synchronizing(ctl, &t.server, &t.volume).await?;
            done(Report::done())
        }
        Verb::StopSynchronizing(t) => {
            sync::stop_synchronizing(ctl, &t.server, &t.volume).await?;
            done(Report::done())
        }
        Verb::ArchiveInfo { target: t, change } => {
            match change {
                Some(InfoChange::Add(entry) | InfoChange::Update(entry)) => {
                    let info = info_of(ctl, entry)?;
                    sync::put_archive_info(ctl, &t.server, &t.volume, &info).await?;
                }
                Some(InfoChange::Delete { archive }) => {
                    sync::delete_archive_info(ctl, &t.server, &t.volume, archive).await?;
                }
                None => {}
            }
            done(output::archive_infos(&sync::archive_infos(ctl, &t.server, &t.volume).await?))
        }
        Verb::CopyArchiveInfo { target: t, to } => {
            let copied = sync::copy_archive_info(ctl, &t.server, &t.volume, to).await?;
            done(Report::value("copied", copied))
        }
        Verb::KickAll { servers } => {
            let kicked = recover::kick_all(ctl, servers).await?;
            let lines = kicked
                .iter()
                .flat_map(|s| s.kicked.iter().map(|what| format!("{} {what}", s.server)));
            let text = lines.collect::<Vec<_>>().join("\n");
            done(Report { text, json: serde_json::json!({ "kicked": kicked }) })
        }
        Verb::Kick { target: t, archive } => {
            let kicked = recover::kick_proxy(ctl, &t.server, &t.volume, archive).await?;
            done(Report::lines("kicked", &kicked))
        }
        _ => done(Report::done()),
    }
}

async fn run_verb(ctl: &Controller, verb: &Verb, json: bool) -> Answer {
    match verb {
        Verb::Shutdown { server, mode } => {
            running::shutdown(ctl, server, (*mode).into()).await?;
            done(Report::done())
        }
        Verb::Operations => {
            let list = running::operations(ctl).await?;
            let rows: Vec<_> = list.into_iter().map(|e| (e.server, e.operation)).collect();
            done(output::operations(&rows))
        }
        Verb::Wait { id } => {
            let mut progress = Progress::new(json);
            let ended = running::wait(ctl, id, &mut |event| progress.show(event)).await?;
            done(output::operations(&[(String::new(), ended)]))
        }
        Verb::Cancel { id } => {
            let operation = running::cancel(ctl, id).await?;
            done(output::operations(&[(String::new(), operation)]))
        }
        _ => done(Report::done()),
    }
}
