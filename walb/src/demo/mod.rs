//! `walb demo`: a block device is written, backed up continuously, attacked, and restored bit for
//! bit, on sparse files, without root.
//!
//! The roles are processes of this very program; the writes go through the device's NBD export.
//! stdout tells the steps; its last line is the verdict.

mod child;
mod writer;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use controller::Controller;
use controller::ops::{archive, backup, look, setup};
use sha2::{Digest, Sha256};

use self::child::RoleProcess;
use self::writer::Writer;
use crate::place::{Place, ROLES, format_if_blank, make_sparse};
use device_server::VolumeSpec;

const VOLUME: &str = "demo";
/// How long roles may take to answer on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Bytes hashed at once.
const HASH_CHUNK: usize = 1 << 20;

/// Arguments of `walb demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where to work; a new directory below it is used [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Size of the volume
    #[arg(long, default_value = "256M", value_parser = parse_volume_size)]
    size: u64,
    /// Leave all files behind
    #[arg(long)]
    keep: bool,
}

fn parse_volume_size(text: &str) -> Result<u64, String> {
    const MIN: u64 = 8 << 20;
    let bytes = server_kit::units::parse_size(text)?;
    if bytes < MIN || bytes % 4096 != 0 {
        return Err(format!("{text} is not a multiple of 4K of at least 8M"));
    }
    Ok(bytes)
}

/// Prints numbered steps with the time since the start.
struct Steps {
    started: Instant,
}

impl Steps {
    fn say(&self, text: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout();
        writeln!(out, "{:6.2} s  {text}", self.started.elapsed().as_secs_f64())?;
        Ok(out.flush()?)
    }
}

/// The running group.
struct Demo {
    place: Place,
    ctl: Controller,
    roles: Vec<RoleProcess>,
    steps: Steps,
}

/// Runs the demo.
///
/// # Errors
/// The step that failed, with the logs of all roles named.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&parent)
        .with_context(|| format!("cannot make the directory {}", parent.display()))?;
    let dir = tempfile::Builder::new()
        .prefix("walb-demo-")
        .disable_cleanup(true)
        .tempdir_in(&parent)
        .context("cannot make the demo's directory")?;
    let dir = dir.path();
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(show(dir, args.size));
    match &result {
        // What is left tells what went wrong.
        Err(_) => eprintln!("walb demo: the roles' logs and files are in {}", dir.display()),
        Ok(_) if args.keep => eprintln!("walb demo: files kept in {}", dir.display()),
        Ok(_) => std::fs::remove_dir_all(dir).context("cannot remove the demo's directory")?,
    }
    let sum = result?;
    writeln!(std::io::stdout(), "restored image is identical: sha256 {sum}")?;
    Ok(())
}

async fn show(dir: &Path, size: u64) -> anyhow::Result<String> {
    let mut demo = Demo::start(dir, size).await?;
    let writer = Writer::start(demo.place.nbd_socket(), size);
    writer.wait_for_more(64).await?;
    demo.steps.say(&format!("a writer writes at random through {}", demo.place.nbd_uri(VOLUME)))?;

    demo.full_backup().await?;
    writer.wait_for_more(64).await?;
    demo.attack(&writer).await?;
    writer.wait_for_more(64).await?;
    let written = writer.stop().await?;
    demo.steps.say(&format!(
        "the writer has stopped: {} writes of {} acknowledged, {} sent again after the kill",
        written.writes,
        server_kit::units::format_size(written.bytes),
        written.repeated
    ))?;
    let expected = writer::device_sha256(&demo.place.nbd_socket()).await?;
    let restored = demo.restore().await?;
    ensure!(
        restored == expected,
        "the restored image differs: device sha256 {expected}, image sha256 {restored}"
    );
    demo.stop().await?;
    Ok(restored)
}

impl Demo {
    async fn start(dir: &Path, size: u64) -> anyhow::Result<Self> {
        let steps = Steps { started: Instant::now() };
        let place = Place::create(dir)?;
        let volume = VolumeSpec {
            name: VOLUME.parse()?,
            data: place.dir().join("demo.data"),
            log: place.dir().join("demo.log"),
            overflow: None,
        };
        make_sparse(&volume.data, size)?;
        make_sparse(&volume.log, (size / 2).max(64 << 20))?;
        format_if_blank(&volume).await?;
        steps.say(&format!("formatted the log device {}", volume.log.display()))?;
        let group = place.write_group()?;
        let mut roles = Vec::new();
        for role in ROLES {
            let args = place.role_args(role, std::slice::from_ref(&volume));
            let log = place.dir().join(format!("{role}.stderr"));
            roles.push(RoleProcess::start(role, args, log)?);
        }
        let mut demo = Self { place, ctl: Controller::new(group), roles, steps };
        demo.wait_alive().await?;
        let pids: Vec<_> = demo.roles.iter().map(RoleProcess::to_string).collect();
        demo.steps.say(&format!("started the roles: {}", pids.join(", ")))?;
        Ok(demo)
    }

    async fn wait_alive(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            for role in &mut self.roles {
                role.check_running()?;
            }
            let servers = look::alive(&self.ctl).await;
            let device = tokio::net::UnixStream::connect(self.place.nbd_socket()).await.is_ok();
            let missing = servers.iter().find_map(|server| server.problem.as_ref());
            if device && missing.is_none() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not all roles answer: {missing:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn full_backup(&self) -> anyhow::Result<()> {
        let control = format!("{}#{VOLUME}", self.place.control().display());
        setup::init_storage(&self.ctl, "s0", VOLUME, &control).await?;
        let options = backup::FullBackupOptions::default();
        let gid = backup::full_backup(&self.ctl, "s0", VOLUME, options, &mut |_| {}).await?;
        self.steps.say(&format!(
            "full backup while the writer went on: snapshot {gid} is restorable; \
             from now on the log is shipped continuously"
        ))
    }

    /// SIGKILLs the device role under the writer and starts it again.
    async fn attack(&mut self, writer: &Writer) -> anyhow::Result<()> {
        let role = self.roles.first_mut().context("the device role runs")?;
        let before = role.to_string();
        role.kill()?;
        let acknowledged = writer.acknowledged();
        self.steps.say(&format!("SIGKILL to the {before}, after {acknowledged} writes"))?;
        role.restart()?;
        self.wait_alive().await?;
        self.steps.say("the device role is back: its log was replayed, the writer goes on")
    }

    async fn restore(&self) -> anyhow::Result<String> {
        let taken = Instant::now();
        let snapshot = backup::snapshot(&self.ctl, "s0", VOLUME).await?;
        backup::wait_restorable(&self.ctl, "a0", VOLUME, snapshot.gid).await?;
        let waited = taken.elapsed().as_millis();
        self.steps.say(&format!("snapshot {} is restorable after {waited} ms", snapshot.gid))?;
        let point = archive::RestorePoint::Gid(snapshot.gid);
        let plan = archive::restore(&self.ctl, "a0", VOLUME, point, None, &mut |_| {}).await?;
        self.steps.say(&format!("restored it to {}", plan.path))?;
        let path = PathBuf::from(plan.path);
        tokio::task::spawn_blocking(move || file_sha256(&path)).await?
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        // The reverse of the start: whoever sends stops before whoever receives.
        for role in self.roles.iter_mut().rev() {
            role.stop().await?;
        }
        self.steps.say("stopped all roles")
    }
}

fn file_sha256(path: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let attempt = || format!("cannot read {}", path.display());
    let mut file = std::fs::File::open(path).with_context(attempt)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; HASH_CHUNK];
    loop {
        let read = file.read(&mut buffer).with_context(attempt)?;
        if read == 0 {
            return Ok(hex(hash));
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
