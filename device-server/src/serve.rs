//! The role as a whole: opens the volumes, serves them, and brings them down in order.
//!
//! A volume that cannot be opened does not keep the others from service: it is listed with its
//! failure, and clients that want it are told why. When none can be opened, the role ends.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use block_io::Engine;
use block_io::nbd::server::{Limits, NbdServer};
use proto::v1::Role;
use server_kit::durable::{DurableDir, RealDir, claim_base};
use server_kit::net::{Endpoint, Listener};
use server_kit::operations::Operations;
use server_kit::role::RoleServer;
use server_kit::shutdown::Shutdown;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::config::{ServeArgs, VolumeSpec};
use crate::control::{ControlService, MEND, Served, ServedVolumes, Unserved, UnservedVolumes};
use crate::format::{DeviceRole, open_device, open_with};
use crate::frontend::VolumeExport;
use crate::io_threads::IoThreads;
use crate::options::VolumeOptions;
use crate::volume::Volume;

/// Runs the device role until `shutdown`. A graceful one brings everything that was accepted to the
/// data devices; a forced one leaves that to redo.
///
/// # Errors
/// When the settings are wrong, a volume cannot be opened, or an address cannot be listened on.
pub async fn serve(args: ServeArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let args = server_kit::config::load(args.config.clone().as_deref(), args)?;
    check(&args)?;
    let state = args.state_dir.as_deref().map(open_state_dir).transpose()?;
    let mut threads = IoThreads::start(args.volume.len())?;
    let (mut volumes, unserved) = open_volumes(&args, state, &mut threads).await?;
    let result = serve_volumes(&args, &mut volumes, unserved, &shutdown).await;
    close(volumes, &shutdown).await;
    result
}

/// All volumes, those that cannot be served apart.
async fn open_volumes(
    args: &ServeArgs,
    state: Option<Arc<dyn DurableDir>>,
    threads: &mut IoThreads,
) -> anyhow::Result<(ServedVolumes, UnservedVolumes)> {
    let options: Result<Vec<_>, _> = args.volume.iter().map(|spec| args.options(spec)).collect();
    let options = options.map_err(anyhow::Error::msg)?;
    let (mut volumes, mut unserved) = (BTreeMap::new(), BTreeMap::new());
    let log_engine = if threads.are_enough() { Engine::NearAlone } else { Engine::Near };
    let mut last = None;
    for (spec, options) in args.volume.iter().zip(options) {
        let opened = open_volume(spec.clone(), options, log_engine, state.clone());
        match threads.run(opened).await.and_then(|opened| opened) {
            Ok(volume) => {
                let served = Served { volume: Arc::new(volume), frontends: Vec::new() };
                volumes.insert(spec.name.to_string(), served);
            }
            Err(error) => {
                let error = error.context(format!("volume {} cannot be served", spec.name));
                let why = format!("{error:#}");
                unserved.insert(spec.name.to_string(), Unserved { spec: spec.clone(), why });
                last = Some(error);
            }
        }
    }
    match last {
        // The caller says the last.
        Some(error) if volumes.is_empty() => {
            let last = args.volume.last().map(|spec| spec.name.as_str());
            let others = unserved.iter().filter(|(name, _)| Some(name.as_str()) != last);
            others.for_each(|(_, other)| tracing::error!("{}", other.why));
            Err(error)
        }
        _ => {
            for Unserved { why, .. } in unserved.values() {
                tracing::error!("{why}; the other volumes are served; {MEND}");
            }
            Ok((volumes, unserved))
        }
    }
}

fn check(args: &ServeArgs) -> anyhow::Result<()> {
    server_kit::config::required(args.volume.first(), "volume")?;
    for (index, spec) in args.volume.iter().enumerate() {
        let twice = args.volume.iter().skip(index + 1).any(|other| other.name == spec.name);
        ensure!(!twice, "two volumes have the name {}", spec.name);
    }
    Ok(())
}

/// Opens the devices of one volume and redoes its log.
async fn open_volume(
    spec: VolumeSpec,
    options: VolumeOptions,
    log_engine: Engine,
    state: Option<Arc<dyn DurableDir>>,
) -> anyhow::Result<Volume> {
    let log = open_with(&absolute(&spec.log)?, DeviceRole::Log, log_engine).await?;
    let data = open_device(&absolute(&spec.data)?, DeviceRole::Data).await?;
    // After the devices: they are locked, so nobody else has the directory of this volume.
    let state = state.map(|base| volume_dir(&*base, &spec)).transpose()?;
    let opened = Volume::open_with_state(spec.name.as_str(), log, data, options, state).await;
    let (volume, redo) = opened?;
    tracing::info!(
        volume = %spec.name, begin = %redo.begin, end = %redo.end, writes = redo.writes,
        cut_records = redo.cut_records, stale_packs = redo.stale_packs, "redo done"
    );
    if redo.overflow {
        tracing::error!(volume = %spec.name, "the log has overflowed: backup must start anew");
    }
    Ok(volume)
}

fn open_state_dir(path: &Path) -> anyhow::Result<Arc<dyn DurableDir>> {
    let path = absolute(path)?;
    let open = || {
        let dir: Arc<dyn DurableDir> = Arc::new(RealDir::create(&path)?);
        claim_base(&dir, "device").map(|()| dir)
    };
    open().with_context(|| format!("--state-dir {} cannot be used", path.display()))
}

/// The directory of one volume, without what a killed process left half-made there.
fn volume_dir(base: &dyn DurableDir, spec: &VolumeSpec) -> anyhow::Result<Arc<dyn DurableDir>> {
    let dir = base.create_dir(spec.name.as_str())?;
    dir.remove_tmp_files()?;
    Ok(dir)
}

/// The path as others (the storage role) can use it too.
fn absolute(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    std::path::absolute(path).with_context(|| format!("path {}", path.display()))
}

async fn serve_volumes(
    args: &ServeArgs,
    volumes: &mut ServedVolumes,
    unserved: UnservedVolumes,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let export = |served: &Served| Arc::new(VolumeExport::new(Arc::clone(&served.volume))) as _;
    let exports: HashMap<_, _> =
        volumes.iter().map(|(name, served)| (name.clone(), export(served))).collect();
    let why = |(name, volume): (&String, &Unserved)| (name.clone(), volume.why.clone());
    let unavailable = unserved.iter().map(why).collect();
    let nbd = NbdServer::with_unavailable(exports, unavailable, Limits::default())?;
    let mut listeners = Vec::new();
    for endpoint in &args.nbd {
        let (listener, uri) = server_kit::nbd::listen(endpoint, args.insecure).await?;
        for (name, served) in volumes.iter_mut() {
            served.frontends.push(uri.replace("NAME", name));
        }
        listeners.push(listener);
    }
    let control = match &args.control {
        Some(path) => Some(Listener::bind(&control_endpoint(path)?, false).await?),
        None => None,
    };
    let frontends = TaskTracker::new();
    for listener in listeners {
        let (nbd, stop) = (nbd.clone(), shutdown.requested());
        frontends.spawn(async move { nbd.serve(listener, stop).await });
    }
    frontends.close();
    for (name, served) in volumes.iter() {
        tracing::info!(volume = %name, at = ?served.frontends, "serving the volume");
    }
    let service = ControlService::new(volumes.clone(), shutdown.clone()).unserved(unserved);
    let served = serve_control(args, control, service, shutdown).await;
    // Without a control service there is nothing else that would wait for the end.
    shutdown.requested().cancelled().await;
    frontends.wait().await;
    served
}

async fn serve_control(
    args: &ServeArgs,
    listener: Option<Listener>,
    service: ControlService,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let Some(listener) = listener else {
        server_kit::shutdown::ready();
        return Ok(());
    };
    let id = match &args.id {
        Some(id) => id.clone(),
        None => "device".parse()?,
    };
    let (operations, shutdown) = (Operations::new(), shutdown.clone());
    let server = RoleServer {
        role: Role::Device,
        id,
        base: args.state_dir.as_deref().map(absolute).transpose()?,
        listener,
        operations,
        shutdown: shutdown.clone(),
    };
    let served = server.run(Routes::new(service.into_server())).await;
    if served.is_err() {
        // Nobody could administer the volumes any more.
        shutdown.request(proto::v1::StopMode::Graceful);
    }
    Ok(served?)
}

/// `PATH` or `unix:PATH`.
pub(crate) fn control_endpoint(path: &Path) -> anyhow::Result<Endpoint> {
    let text = path.to_string_lossy();
    let path = text.strip_prefix("unix:").map_or(path, Path::new);
    Ok(Endpoint::Unix(absolute(path)?))
}

async fn close(volumes: ServedVolumes, shutdown: &Shutdown) {
    for (name, served) in volumes {
        tokio::select! {
            closed = served.volume.close() => if let Err(error) = closed {
                tracing::error!(volume = %name, %error, "not closed in order; redo will mend that");
            },
            () = shutdown.forced().cancelled_owned() => {}
        }
    }
}
