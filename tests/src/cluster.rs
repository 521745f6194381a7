//! A backup group of separate processes: device, storage, proxy and archive roles, fault proxies
//! in front of those that the layout names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail, ensure};
use controller::ops::{archive, backup, setup};
use controller::{Controller, Group};
use server_kit::net::{Connector, RealConnector};
use tempfile::TempDir;

use crate::fault_proxy::FaultProxy;
use crate::layout::{self, SPARES, role_of};
pub use crate::layout::{Layout, size};
use crate::outside::{LoopDevice, run};
use crate::poll::{DEADLINE, until};
use crate::process::{Process, binary};

/// The running group. Dropping it kills every process and removes the directory.
pub struct Cluster {
    /// The role processes by server name: `d0 s0 p0 p1 a0 ...`.
    pub roles: Vec<(String, Process)>,
    /// Loop devices, by the file behind each; detached after the roles have ended.
    loops: Mutex<BTreeMap<PathBuf, LoopDevice>>,
    /// Those that [`Cluster::start_all`] leaves alone.
    down: BTreeSet<String>,
    fronts: BTreeMap<String, FaultProxy>,
    layout: Layout,
    /// Names in the group file, in order.
    group: Vec<String>,
    ctl: Controller,
    direct: Controller,
    runtime: tokio::runtime::Runtime,
    dir: TempDir,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("dir", &self.dir.path()).finish_non_exhaustive()
    }
}

/// SHA-256 of a file, as hex, by a program that is not ours.
///
/// # Errors
/// The file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let line = run("sha256sum", &[&path.to_string_lossy()])?;
    let sum = line.trim_start_matches('\\').split_whitespace().next();
    sum.map(str::to_owned).context("sha256sum prints a line")
}

/// Writes `walb.toml` (as everybody sees the group) and `direct.toml` (every server that there is,
/// past the fault proxies), and reads them as the controller does.
fn controllers(layout: &Layout, dir: &Path, group: &[String]) -> Result<(Controller, Controller)> {
    let public = group.iter().map(|name| (&**name, layout::public_address(layout, dir, name)));
    let file = layout::group_file(public) + &layout::legs_of(layout, dir, group);
    std::fs::write(dir.join("walb.toml"), file)?;
    let others = layout.processes();
    let others = others.iter().filter(|name| role_of(name) != "device" && !group.contains(name));
    let everyone = group.iter().chain(others);
    let direct = everyone.map(|name| (&**name, layout::address(layout, dir, name)));
    std::fs::write(dir.join("direct.toml"), layout::group_file(direct))?;
    let load = |file: &str| Ok::<_, anyhow::Error>(Controller::new(Group::load(&dir.join(file))?));
    Ok((load("walb.toml")?, load("direct.toml")?))
}

impl Cluster {
    /// Makes the devices, starts every role but the spares, and waits until all answer.
    ///
    /// # Errors
    /// A binary is missing, or a role does not come up.
    pub fn start(layout: Layout) -> Result<Self> {
        let below = layout.below.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("walb-test-").tempdir_in(below)?;
        let group = layout.group();
        let (ctl, direct) = controllers(&layout, dir.path(), &group)?;
        let runtime = tokio::runtime::Runtime::new()?;
        let mut roles = Vec::new();
        for name in layout.processes() {
            let args = layout::arguments(&layout, dir.path(), &group, &name);
            let log = dir.path().join(format!("{name}.log.txt"));
            let process = Process::new(&format!("walb-{}", role_of(&name)), args, log)?;
            roles.push((name, process));
        }
        let mut fronts = BTreeMap::new();
        for name in &layout.fronts {
            let listen = layout::front_address(&layout, dir.path(), name).parse()?;
            let to = layout::address(&layout, dir.path(), name).parse()?;
            fronts.insert(name.clone(), FaultProxy::start(runtime.handle(), &listen, &to)?);
        }
        let down = SPARES.map(str::to_owned).into();
        let loops = Mutex::default();
        let mut cluster =
            Self { roles, loops, down, fronts, layout, group, ctl, direct, runtime, dir };
        cluster.make_devices()?;
        cluster.start_all()?;
        Ok(cluster)
    }

    fn make_devices(&self) -> Result<()> {
        for (leg, volume) in self
            .layout
            .legs()
            .into_iter()
            .flat_map(|leg| self.layout.volumes.iter().map(move |volume| (leg, volume)))
        {
            self.make_leg(leg, volume)?;
        }
        Ok(())
    }

    /// Makes the devices of a volume at a leg, empty and formatted.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn make_leg(&self, leg: usize, volume: &str) -> Result<()> {
        let (data, log) = (self.data_path(leg, volume), self.log_path(leg, volume));
        self.make_device(&data, self.layout.data_bytes)?;
        self.make_device(&log, self.layout.log_bytes)?;
        let (data, log) = (data.to_string_lossy(), log.to_string_lossy());
        let block_size = self.layout.block_bytes.to_string();
        let block_size = ["--block-size", &block_size];
        let format = ["ldev", "format", "--log", &log, "--data", &data];
        self.walb(&[&format[..], &block_size].concat()).map(drop)
    }

    /// A file, or a link of that name to a loop device on a file.
    fn make_device(&self, path: &Path, bytes: u64) -> Result<()> {
        if !self.layout.loop_devices {
            return Ok(std::fs::File::create(path)?.set_len(bytes)?);
        }
        let file = PathBuf::from(format!("{}.image", path.display()));
        std::fs::File::create(&file)?.set_len(bytes)?;
        let device = LoopDevice::attach(&file)?;
        std::os::unix::fs::symlink(device.path(), path)?;
        let mut loops = self.loops.lock().map_err(|_| anyhow!("another thread has panicked"))?;
        loops.insert(file, device);
        Ok(())
    }

    /// Starts what does not run and was not shut down, and waits until all that answers.
    ///
    /// # Errors
    /// A role ends or does not answer in time; its log is in the message.
    pub fn start_all(&mut self) -> Result<()> {
        for (name, process) in &mut self.roles {
            if !self.down.contains(name) {
                process.start()?;
            }
        }
        until("all roles answer", DEADLINE, || {
            for (name, process) in &mut self.roles {
                if !self.down.contains(name) && !process.is_running() {
                    bail!("{name} has ended: {}", process.log());
                }
            }
            let answers = |(name, _): &(String, Process)| {
                let is_device = role_of(name) == "device";
                let file = if is_device { "nbd.sock" } else { "sock" };
                self.down.contains(name)
                    || (self.layout.tcp && !is_device)
                    || self.dir.path().join(format!("{name}.{file}")).exists()
            };
            if !self.roles.iter().all(answers) {
                return Ok(None);
            }
            let alive = self.runtime.block_on(controller::ops::look::alive(&self.direct));
            let well = |s: &controller::ops::look::Alive| {
                s.problem.is_none() || self.down.contains(&s.server)
            };
            Ok(alive.iter().all(well).then_some(()))
        })
    }

    /// Ends a role as an operator does (`walbc shutdown --mode force`; a device role by SIGTERM);
    /// it stays down until [`Cluster::startup`].
    ///
    /// # Errors
    /// It does not answer or does not end.
    pub fn shutdown(&mut self, name: &str) -> Result<()> {
        if role_of(name) == "device" {
            self.role(name)?.terminate()?;
        } else {
            let (code, _, stderr) = self.walbc_direct(&["shutdown", name, "--mode", "force"])?;
            ensure!(code == 0, "walbc shutdown {name}: {stderr}");
            let process = self.role(name)?;
            until("the server has ended", DEADLINE, || Ok((!process.is_running()).then_some(())))?;
            process.kill()?;
        }
        self.down.insert(name.to_owned());
        Ok(())
    }

    /// Starts a role that was shut down, or a spare (a spare leg with its device role), with the
    /// peers that the group has now.
    ///
    /// # Errors
    /// It does not come up.
    pub fn startup(&mut self, name: &str) -> Result<()> {
        let args = layout::arguments(&self.layout, self.dir.path(), &self.group, name);
        self.role(name)?.set_args(args);
        self.down.remove(name);
        if role_of(name) == "storage" {
            self.down.remove(&name.replacen('s', "d", 1));
        }
        self.start_all()
    }

    /// Ends a role in the same way and starts it again, with the peers that the group has now.
    ///
    /// # Errors
    /// It does not end or not come up.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        self.shutdown(name)?;
        self.startup(name)
    }

    /// Starts a role anew with other further flags than the layout's; returns when all answer.
    ///
    /// # Errors
    /// It does not come up.
    pub fn set_flags(&mut self, name: &str, flags: &[&str]) -> Result<()> {
        self.kill(name)?;
        let mut args = layout::arguments(&self.layout, self.dir.path(), &self.group, name);
        args.extend(flags.iter().map(|&flag| flag.to_owned()));
        self.role(name)?.set_args(args);
        self.start_all()
    }

    /// Removes all data of a role that is down: its disk has died.
    ///
    /// # Errors
    /// It runs.
    pub fn delete_data(&mut self, name: &str) -> Result<()> {
        ensure!(!self.role(name)?.is_running(), "{name} runs");
        Ok(std::fs::remove_dir_all(self.path(name))?)
    }

    /// Another group file: these servers, in this order.
    ///
    /// # Errors
    /// It is not one that the controller reads.
    pub fn set_group(&mut self, names: &[&str]) -> Result<()> {
        self.group = names.iter().map(|&name| name.to_owned()).collect();
        let dir = self.dir.path();
        (self.ctl, self.direct) = controllers(&self.layout, dir, &self.group)?;
        Ok(())
    }

    /// The fault proxy in front of a server.
    ///
    /// # Errors
    /// The layout names none for it.
    pub fn front(&self, name: &str) -> Result<&FaultProxy> {
        self.fronts.get(name).with_context(|| format!("no fault proxy in front of {name}"))
    }

    /// What the cluster is made of.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A path below the cluster's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The data device of a volume at a leg.
    #[must_use]
    pub fn data_path(&self, leg: usize, volume: &str) -> PathBuf {
        layout::data_path(self.dir.path(), leg, volume)
    }

    /// The log device of a volume at a leg.
    #[must_use]
    pub fn log_path(&self, leg: usize, volume: &str) -> PathBuf {
        layout::log_path(self.dir.path(), leg, volume)
    }

    /// How `init-storage --device` names a volume of a leg.
    #[must_use]
    pub fn device(&self, leg: usize, volume: &str) -> String {
        format!("{}#{volume}", self.path(&format!("d{leg}.control.sock")).display())
    }

    /// The NBD URI of a volume at the first leg.
    #[must_use]
    pub fn nbd_uri(&self, volume: &str) -> String {
        self.leg_uri(0, volume)
    }

    /// The NBD URI of a volume at a leg.
    #[must_use]
    pub fn leg_uri(&self, leg: usize, volume: &str) -> String {
        let socket = self.path(&format!("d{leg}.nbd.sock"));
        format!("nbd+unix:///{volume}?socket={}", socket.display())
    }

    /// The process of a server.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn role(&mut self, name: &str) -> Result<&mut Process> {
        let found = self.roles.iter_mut().find(|(role, _)| role == name);
        found.map(|(_, process)| process).with_context(|| format!("no role {name}"))
    }

    /// SIGKILLs a role; [`Cluster::start_all`] starts it again.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.role(name)?.kill()?;
        if role_of(name) == "device" {
            // What it left must not pass for a server that answers.
            let _ = std::fs::remove_file(self.path(&format!("{name}.nbd.sock")));
        }
        Ok(())
    }

    /// SIGKILLs a role and starts it again; returns when it answers.
    ///
    /// # Errors
    /// It does not come up again.
    pub fn kill_and_restart(&mut self, name: &str) -> Result<()> {
        self.kill(name)?;
        self.start_all()
    }

    /// The controller library on this group.
    #[must_use]
    pub fn ctl(&self) -> &Controller {
        &self.ctl
    }

    /// The controller library past the fault proxies, with every server that there is: for looking
    /// only, its order means nothing.
    #[must_use]
    pub fn direct(&self) -> &Controller {
        &self.direct
    }

    /// A connection to a server, past its fault proxy: for what no command does.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn channel(&self, name: &str) -> Result<tonic::transport::Channel> {
        let address = &self.direct.group().server(name)?.address;
        let _runtime = self.runtime.enter();
        Ok(RealConnector.channel(address))
    }

    /// Runs an operation of the controller library.
    pub fn run<T>(&self, operation: impl Future<Output = T>) -> T {
        self.runtime.block_on(operation)
    }

    /// Runs `walb ARGS` and returns its stdout.
    ///
    /// # Errors
    /// It fails; stderr is in the message.
    pub fn walb(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(binary("walb")?).args(args).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "walb {args:?}: {}: {stderr}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `walbc ARGS` on this group, not started yet.
    ///
    /// # Errors
    /// It has not been built.
    pub fn walbc_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("walbc")?);
        command.arg("--config").arg(self.path("walb.toml")).args(args);
        Ok(command)
    }

    /// Runs `walbc ARGS` on this group: (exit code, stdout, stderr).
    ///
    /// # Errors
    /// It cannot be started or was killed by a signal.
    pub fn walbc(&self, args: &[&str]) -> Result<(i32, String, String)> {
        self.walbc_with("walb.toml", args)
    }

    /// The same past the fault proxies, for any server that there is.
    ///
    /// # Errors
    /// As [`Cluster::walbc`].
    pub fn walbc_direct(&self, args: &[&str]) -> Result<(i32, String, String)> {
        self.walbc_with("direct.toml", args)
    }

    fn walbc_with(&self, file: &str, args: &[&str]) -> Result<(i32, String, String)> {
        let mut command = Command::new(binary("walbc")?);
        let output = command.arg("--config").arg(self.path(file)).args(args).output()?;
        let code = output.status.code().with_context(|| format!("walbc {args:?} was killed"))?;
        Ok((code, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
    }

    /// Initialises a volume at the storage server and takes its full backup; returns the gid.
    ///
    /// # Errors
    /// What the operations give.
    pub fn full_backup(&self, volume: &str) -> Result<u64> {
        let device = self.device(0, volume);
        let gid = self.run(async {
            setup::init_storage(&self.ctl, "s0", volume, &device).await?;
            let options = backup::FullBackupOptions::default();
            backup::full_backup(&self.ctl, "s0", volume, options, &mut |_| {}).await
        })?;
        Ok(gid)
    }

    /// Takes a snapshot and waits until the first archive can restore it; returns the gid.
    ///
    /// # Errors
    /// What the operations give.
    pub fn snapshot(&self, volume: &str) -> Result<u64> {
        let gid = self.run(async {
            let gid = backup::snapshot(&self.ctl, "s0", volume).await?.gid;
            backup::wait_restorable(&self.ctl, "a0", volume, gid).await?;
            Ok::<_, controller::ControlError>(gid)
        })?;
        Ok(gid)
    }

    /// Restores a snapshot at an archive; returns the image's path.
    ///
    /// # Errors
    /// What the operation gives.
    pub fn restore(&self, archive_name: &str, volume: &str, gid: u64) -> Result<PathBuf> {
        let point = archive::RestorePoint::Gid(gid);
        let plan = self.run(async {
            archive::restore(&self.ctl, archive_name, volume, point, None, &mut |_| {}).await
        })?;
        Ok(PathBuf::from(plan.path))
    }

    /// SHA-256 of the volume as its users see it, read through NBD.
    ///
    /// # Errors
    /// `nbdcopy` fails.
    pub fn volume_sha256(&self, volume: &str) -> Result<String> {
        self.leg_sha256(0, volume)
    }

    /// The same of a volume at a leg.
    ///
    /// # Errors
    /// `nbdcopy` fails.
    pub fn leg_sha256(&self, leg: usize, volume: &str) -> Result<String> {
        let copy = self.path(&format!("d{leg}-{volume}.copy"));
        run("nbdcopy", &[&self.leg_uri(leg, volume), &copy.to_string_lossy()])?;
        let sum = sha256(&copy)?;
        std::fs::remove_file(copy)?;
        Ok(sum)
    }

    /// Takes a snapshot of a volume that nobody writes to, restores it, and compares.
    ///
    /// # Errors
    /// The restored image differs from the volume.
    pub fn verify_restore(&self, volume: &str) -> Result<()> {
        let expected = self.volume_sha256(volume)?;
        let gid = self.snapshot(volume)?;
        let image = self.restore("a0", volume, gid)?;
        let restored = sha256(&image)?;
        ensure!(restored == expected, "snapshot {gid} of {volume} differs from the volume");
        std::fs::remove_file(image)?;
        Ok(())
    }
}
