//! `walb up`: all roles in one process, for good, state below one directory.
//!
//! Each volume is formatted where its log device is new, made known to the storage role, and
//! backed up in full once; after a restart everything goes on where it was.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser};
use controller::Controller;
use controller::ops::{backup, look, setup};
use server_kit::shutdown::Shutdown;
use tokio::task::JoinSet;

use crate::place::{Place, format_if_blank, make_sparse};
use device_server::VolumeSpec;

/// Size of the volume that is made when none is named.
const DEFAULT_VOLUME_BYTES: u64 = 1 << 30;
const DEFAULT_LOG_BYTES: u64 = 512 << 20;
/// Pause between two looks at whether the roles answer.
const POLL: Duration = Duration::from_millis(50);
/// Pause before a volume that could not be backed up is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Arguments of `walb up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Where all state lives
    #[arg(long)]
    dir: PathBuf,
    /// A volume with its devices (repeatable); none: a sparse one below DIR
    #[arg(long = "volume", value_name = "NAME=DATA,LOG")]
    volumes: Vec<VolumeSpec>,
}

/// Parses a role's command line as its own program does.
#[derive(Debug, Parser)]
struct RoleLine<A: Args> {
    #[command(flatten)]
    args: A,
}

fn role_args<A: Args>(place: &Place, role: &str, volumes: &[VolumeSpec]) -> anyhow::Result<A> {
    // The word `serve` stands where a program's name would.
    Ok(RoleLine::<A>::try_parse_from(place.role_args(role, volumes))?.args)
}

/// Runs all roles until SIGTERM.
///
/// # Errors
/// A role cannot start, or fails.
pub(crate) async fn run(args: UpArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let place = Place::create(&args.dir)?;
    let volumes = if args.volumes.is_empty() { vec![sparse_volume(&place)?] } else { args.volumes };
    for volume in &volumes {
        match format_if_blank(volume).await {
            Ok(true) => {
                tracing::info!("volume {}: formatted {}", volume.name, volume.log.display());
            }
            Ok(false) => {}
            // It must not keep the others from service; the device role ends when all are like it.
            Err(error) => tracing::error!("volume {}: {error:#}", volume.name),
        }
    }
    let ctl = Controller::new(place.write_group()?);
    let mut roles = JoinSet::new();
    let mut start = |role: &'static str,
                     serve: std::pin::Pin<Box<dyn Future<Output = _> + Send>>| {
        let shutdown = shutdown.clone();
        roles.spawn(async move {
            let result: anyhow::Result<()> = serve.await;
            // One role gone means all go: half a group would only look alive.
            shutdown.request(proto::v1::StopMode::Graceful);
            result.with_context(|| format!("the {role} role failed"))
        });
    };
    let v = &volumes;
    start(
        "device",
        Box::pin(device_server::serve(role_args(&place, "device", v)?, shutdown.clone())),
    );
    start(
        "archive",
        Box::pin(archive_server::serve(role_args(&place, "archive", v)?, shutdown.clone())),
    );
    start("proxy", Box::pin(proxy_server::serve(role_args(&place, "proxy", v)?, shutdown.clone())));
    start(
        "storage",
        Box::pin(storage_server::serve::serve(role_args(&place, "storage", v)?, shutdown.clone())),
    );
    let protect = protect_all(ctl, place, volumes);
    tokio::select! {
        () = shutdown.requested().cancelled_owned() => {}
        () = protect => shutdown.requested().cancelled_owned().await,
    }
    let mut result = Ok(());
    while let Some(ended) = roles.join_next().await {
        result = result.and(ended?);
    }
    result
}

fn sparse_volume(place: &Place) -> anyhow::Result<VolumeSpec> {
    let volume = VolumeSpec {
        name: "vol0".parse()?,
        data: place.dir().join("vol0.data"),
        log: place.dir().join("vol0.log"),
        overflow: None,
    };
    make_sparse(&volume.data, DEFAULT_VOLUME_BYTES)?;
    make_sparse(&volume.log, DEFAULT_LOG_BYTES)?;
    Ok(volume)
}

/// Waits for the roles, then brings every volume under continuous backup; problems are said.
async fn protect_all(ctl: Controller, place: Place, volumes: Vec<VolumeSpec>) {
    let device = async || tokio::net::UnixStream::connect(place.control()).await.is_ok();
    let others = async || look::alive(&ctl).await.iter().all(|server| server.problem.is_none());
    while !(device().await && others().await) {
        tokio::time::sleep(POLL).await;
    }
    for volume in &volumes {
        let name = volume.name.as_str();
        tracing::info!(
            "volume {name}: attach it with `nbdfuse MOUNTPOINT '{uri}'`, `qemu-img info '{uri}'`, \
             or `nbd-client -unix {socket} -N {name} /dev/nbd0`",
            uri = place.nbd_uri(name),
            socket = place.nbd_socket().display(),
        );
    }
    tracing::info!("look at it with `walbc --config {} status`", place.group_file().display());
    futures::future::join_all(volumes.iter().map(|volume| protect_at_last(&ctl, &place, volume)))
        .await;
}

/// Tries until the volume is backed up: what is in the way may pass, a full disk for instance.
async fn protect_at_last(ctl: &Controller, place: &Place, volume: &VolumeSpec) {
    let name = volume.name.as_str();
    while let Err(error) = protect(ctl, place, name).await {
        tracing::error!("volume {name} is not backed up yet, trying again: {error:#}");
        tokio::time::sleep(RETRY).await;
    }
}

/// Initialises a volume at the storage role and takes its full backup, as far as not yet done.
async fn protect(ctl: &Controller, place: &Place, volume: &str) -> anyhow::Result<()> {
    let mut state = setup::state(ctl, "s0", volume).await?;
    if state == "Clear" {
        let device = format!("{}#{volume}", place.control().display());
        setup::init_storage(ctl, "s0", volume, &device).await?;
        state = setup::state(ctl, "s0", volume).await?;
    }
    if matches!(state.as_str(), "Standby" | "SyncReady") {
        tracing::info!("volume {volume}: the first full backup runs");
        let options = backup::FullBackupOptions::default();
        let gid = backup::full_backup(ctl, "s0", volume, options, &mut |_| {}).await?;
        tracing::info!("volume {volume}: snapshot {gid} is restorable, the log is shipped");
    }
    Ok(())
}
