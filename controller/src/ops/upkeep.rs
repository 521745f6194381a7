//! What an archive does with a volume by itself: its retention, its replication schedules, the
//! limit of its age.

use proto::v1;
use server_kit::error::Reason;

use super::{Event, Watch, lost, run};
use crate::client::{All, At, Controller, volume_ref};
use crate::error::ControlError;
use crate::group::ServerRole;

/// The kind of the operations that thin out.
const RETENTION: &str = "retention";

/// What an archive does with a volume by itself, and how that stands.
///
/// # Errors
/// Unknown or unreachable archive, unknown volume.
pub async fn get(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<v1::Upkeep, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    client.get_upkeep(volume_ref(volume)).await.at(server)
}

/// What a policy would do with a volume now; an empty one is the one that is kept.
///
/// # Errors
/// No policy at all; unknown or unreachable archive, a volume without an image.
pub async fn plan(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    policy: &str,
    watch: Watch<'_>,
) -> Result<v1::RetentionPlan, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let (volume, policy) = (volume.to_owned(), policy.to_owned());
    let request = v1::PlanRetentionRequest { volume: volume.clone(), policy };
    let mut pages = client.plan_retention(request).await.at(server)?.all(server).await?.into_iter();
    // The first message has everything, but for more snapshots that go.
    let mut plan = pages.next().unwrap_or_default();
    plan.dropped.extend(pages.flat_map(|page| page.dropped));
    if let Some(gid) = plan.held_by {
        watch(Event::Note(&format!(
            "explicit snapshot {gid} is older than the policy and keeps all that follows it; give \
             it up: walbc disable-snapshot {archive} {volume} {gid}"
        )));
    }
    Ok(plan)
}

/// Sets how a volume's history is thinned out, or that it is not.
///
/// # Errors
/// A policy that makes no sense; unknown or unreachable archive, unknown volume.
pub async fn set_retention(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    retention: Option<v1::Retention>,
) -> Result<v1::Upkeep, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let request = v1::SetRetentionRequest { volume: volume.to_owned(), retention };
    lost::again(async || client.clone().set_retention(request.clone()).await.at(server)).await
}

/// Runs the policy that is kept, and waits for the end of the run. One that cannot start is no
/// error: the archive starts it as soon as it can.
///
/// # Errors
/// The run failed: no space, damage.
pub async fn run_retention(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    watch: Watch<'_>,
) -> Result<(), ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let call = async || client.clone().run_retention(volume_ref(volume)).await.at(server);
    let followed = lost::start_and_follow(ctl, server, (RETENTION, volume), &mut *watch, call);
    let busy = match followed.await {
        Ok(_) => return Ok(()),
        Err(error) if is_busy(&error) => error,
        Err(error) => return Err(error),
    };
    // It has begun by itself already?
    let all = lost::operations_of(ctl, server, RETENTION, volume).await?;
    let runs = all.into_iter().rfind(|o| o.status() == v1::OperationStatus::Running);
    let Some(operation) = runs else {
        watch(Event::Note(&format!("{archive} does it as soon as it can: {busy}")));
        return Ok(());
    };
    match run::follow(ctl, server, operation, &mut *watch).await {
        Err(error) if is_busy(&error) => {
            watch(Event::Note(&format!("{archive} does the rest as soon as it can: {error}")));
            Ok(())
        }
        done => done.map(drop),
    }
}

fn is_busy(error: &ControlError) -> bool {
    match error {
        ControlError::Refused { error, .. } => error.reason() == Reason::Busy,
        ControlError::Operation { operation, .. } => {
            operation.detail.as_ref().is_some_and(|d| d.reason() == v1::Reason::Busy)
        }
        _ => false,
    }
}

/// Sets when a volume is replicated to another archive of the group; its peer is filled in here.
///
/// # Errors
/// Either archive is unknown, the first is unreachable, does not know the volume, or refuses.
pub async fn set_replication(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    to: &str,
    schedule: v1::ReplicationSchedule,
) -> Result<v1::Upkeep, ControlError> {
    let other = ctl.group().server_of(to, ServerRole::Archive)?;
    if archive == to {
        return Err(ControlError::Precondition {
            message: format!("{archive} cannot replicate to itself"),
            next_step: "name another archive".to_owned(),
        });
    }
    let (server, client) = ctl.archive(archive)?;
    let peer = v1::Peer { id: other.name.clone(), address: other.address.to_string() };
    let schedule = Some(v1::ReplicationSchedule { to: Some(peer), ..schedule });
    let request = v1::SetReplicationRequest { volume: volume.to_owned(), schedule };
    lost::again(async || client.clone().set_replication(request.clone()).await.at(server)).await
}

/// Keeps a schedule as it is, and does not follow it from then on.
///
/// # Errors
/// There is none; unknown or unreachable archive, unknown volume.
pub async fn pause_replication(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    to: &str,
) -> Result<v1::Upkeep, ControlError> {
    let kept = get(ctl, archive, volume).await?;
    let mut schedules = kept.replications.into_iter().filter_map(|r| r.schedule);
    let is_to = |s: &v1::ReplicationSchedule| s.to.as_ref().is_some_and(|peer| peer.id == to);
    let schedule = schedules.find(is_to).ok_or_else(|| ControlError::Precondition {
        message: format!("{archive} has no schedule for {volume} to {to} that could be paused"),
        next_step: format!("make one: walbc replication-schedule {archive} {volume} {to} --every"),
    })?;
    let schedule = v1::ReplicationSchedule { paused: true, ..schedule };
    set_replication(ctl, archive, volume, to, schedule).await
}

/// Takes a replication schedule away.
///
/// # Errors
/// There is none; unknown or unreachable archive, unknown volume.
pub async fn drop_replication(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    to: &str,
) -> Result<v1::Upkeep, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let request = v1::DropReplicationRequest { volume: volume.to_owned(), to: to.to_owned() };
    let call = async || client.clone().drop_replication(request.clone()).await.at(server);
    lost::surely(call, async || {
        let left = get(ctl, archive, volume).await?;
        let here = |r: &v1::ScheduledReplication| {
            r.schedule.as_ref().and_then(|s| s.to.as_ref()).is_some_and(|peer| peer.id == to)
        };
        Ok((!left.replications.iter().any(here)).then_some(left))
    })
    .await
}

/// Sets how old the newest restorable point of a volume may be, in seconds; 0: as old as it likes.
///
/// # Errors
/// Unknown or unreachable archive, unknown volume.
pub async fn set_age_limit(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    age_limit_s: u64,
) -> Result<v1::Upkeep, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let request = v1::SetAgeLimitRequest { volume: volume.to_owned(), age_limit_s };
    lost::again(async || client.clone().set_age_limit(request.clone()).await.at(server)).await
}
