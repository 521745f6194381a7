//! A backup group of separate processes: one device, one storage, some proxies and archives.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use controller::ops::{archive, backup, setup};
use controller::{Controller, Group};
use server_kit::units::parse_size;
use tempfile::TempDir;

use crate::outside::run;
use crate::poll::{DEADLINE, until};
use crate::process::{Process, binary};

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Volume names; each gets a data device and a log device, sparse files.
    pub volumes: Vec<String>,
    /// Bytes of each data device.
    pub data_bytes: u64,
    /// Bytes of each log device.
    pub log_bytes: u64,
    /// Physical block size of the log devices.
    pub block_bytes: u32,
    /// How many proxies.
    pub proxies: usize,
    /// How many archives.
    pub archives: usize,
    /// Further flags for the device role.
    pub device_flags: Vec<String>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            volumes: vec!["vol0".to_owned()],
            data_bytes: 64 << 20,
            log_bytes: 64 << 20,
            block_bytes: 4096,
            proxies: 2,
            archives: 1,
            device_flags: Vec::new(),
        }
    }
}

/// The running group. Dropping it kills every process and removes the directory.
pub struct Cluster {
    /// The role processes by server name: `d0 s0 p0 p1 a0 ...`.
    pub roles: Vec<(String, Process)>,
    layout: Layout,
    ctl: Controller,
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

impl Cluster {
    /// Makes the devices, starts every role and waits until all answer.
    ///
    /// # Errors
    /// A binary is missing, or a role does not come up.
    pub fn start(layout: Layout) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("walb-test-").tempdir()?;
        std::fs::write(dir.path().join("walb.toml"), group_file(&layout, dir.path()))?;
        let group = Group::load(&dir.path().join("walb.toml"))?;
        let roles = role_commands(&layout, dir.path())?;
        let ctl = Controller::new(group);
        let runtime = tokio::runtime::Runtime::new()?;
        let mut cluster = Self { roles, layout, ctl, runtime, dir };
        cluster.make_devices()?;
        cluster.start_all()?;
        Ok(cluster)
    }

    fn make_devices(&self) -> Result<()> {
        for volume in &self.layout.volumes {
            let (data, log) = (self.data_path(volume), self.path(&format!("{volume}.log")));
            std::fs::File::create(&data)?.set_len(self.layout.data_bytes)?;
            std::fs::File::create(&log)?.set_len(self.layout.log_bytes)?;
            let block_size = self.layout.block_bytes.to_string();
            self.walb(&[
                "ldev",
                "format",
                "--log",
                &log.to_string_lossy(),
                "--data",
                &data.to_string_lossy(),
                "--block-size",
                &block_size,
            ])?;
        }
        Ok(())
    }

    /// Starts what does not run and waits until everything answers.
    ///
    /// # Errors
    /// A role ends or does not answer in time; its log is in the message.
    pub fn start_all(&mut self) -> Result<()> {
        for (_, process) in &mut self.roles {
            process.start()?;
        }
        until("all roles answer", DEADLINE, || {
            for (name, process) in &mut self.roles {
                if !process.is_running() {
                    bail!("{name} has ended: {}", process.log());
                }
            }
            let alive = self.runtime.block_on(controller::ops::look::alive(&self.ctl));
            let device = self.layout.volumes.iter().all(|volume| self.nbd_socket(volume).exists());
            Ok((device && alive.iter().all(|server| server.problem.is_none())).then_some(()))
        })
    }

    /// A path below the cluster's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The data device of a volume.
    #[must_use]
    pub fn data_path(&self, volume: &str) -> PathBuf {
        self.path(&format!("{volume}.data"))
    }

    /// Where the device role exports all volumes; the export's name is the volume's.
    #[must_use]
    pub fn nbd_socket(&self, _volume: &str) -> PathBuf {
        self.path("nbd.sock")
    }

    /// The NBD URI of a volume.
    #[must_use]
    pub fn nbd_uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.nbd_socket(volume).display())
    }

    /// The process of a server.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn role(&mut self, name: &str) -> Result<&mut Process> {
        let found = self.roles.iter_mut().find(|(role, _)| role == name);
        found.map(|(_, process)| process).with_context(|| format!("no role {name}"))
    }

    /// SIGKILLs a role and starts it again; returns when it answers.
    ///
    /// # Errors
    /// It does not come up again.
    pub fn kill_and_restart(&mut self, name: &str) -> Result<()> {
        self.role(name)?.kill()?;
        if name == "d0" {
            let _ = std::fs::remove_file(self.path("nbd.sock"));
        }
        self.start_all()
    }

    /// The controller library on this group.
    #[must_use]
    pub fn ctl(&self) -> &Controller {
        &self.ctl
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

    /// Runs `walbc ARGS` on this group: (exit code, stdout, stderr).
    ///
    /// # Errors
    /// It cannot be started or was killed by a signal.
    pub fn walbc(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let output = Command::new(binary("walbc")?)
            .arg("--config")
            .arg(self.path("walb.toml"))
            .args(args)
            .output()?;
        let code = output.status.code().with_context(|| format!("walbc {args:?} was killed"))?;
        Ok((code, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
    }

    /// Initialises a volume at the storage server and takes its full backup; returns the gid.
    ///
    /// # Errors
    /// What the operations give.
    pub fn full_backup(&self, volume: &str) -> Result<u64> {
        let device = format!("{}#{volume}", self.path("control.sock").display());
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
        let copy = self.path(&format!("{volume}.copy"));
        run("nbdcopy", &[&self.nbd_uri(volume), &copy.to_string_lossy()])?;
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

fn socket(dir: &Path, name: &str) -> String {
    format!("unix:{}", dir.join(format!("{name}.sock")).display())
}

fn names(layout: &Layout) -> Vec<(String, &'static str)> {
    let proxies = (0..layout.proxies).map(|n| (format!("p{n}"), "proxy"));
    let archives = (0..layout.archives).map(|n| (format!("a{n}"), "archive"));
    [("s0".to_owned(), "storage")].into_iter().chain(proxies).chain(archives).collect()
}

fn group_file(layout: &Layout, dir: &Path) -> String {
    let entry = |(name, role): (String, &str)| {
        let address = socket(dir, &name);
        format!("[[server]]\nname = {name:?}\nrole = {role:?}\naddress = {address:?}\n")
    };
    names(layout).into_iter().map(entry).collect()
}

fn role_commands(layout: &Layout, dir: &Path) -> Result<Vec<(String, Process)>> {
    let mut roles = Vec::new();
    let mut add = |name: &str, program: &str, flags: Vec<String>| -> Result<()> {
        let args = std::iter::once("serve".to_owned()).chain(flags).collect();
        let log = dir.join(format!("{name}.log.txt"));
        roles.push((name.to_owned(), Process::new(program, args, log)?));
        Ok(())
    };
    let text = |flags: &[&str]| flags.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>();
    let at = |name: &str| dir.join(name).display().to_string();

    let nbd = format!("unix:{}", at("nbd.sock"));
    let mut device = text(&["--nbd", &nbd, "--control", &at("control.sock")]);
    for volume in &layout.volumes {
        let devices =
            format!("{volume}={},{}", at(&format!("{volume}.data")), at(&format!("{volume}.log")));
        device.extend(text(&["--volume", &devices]));
    }
    device.extend(layout.device_flags.iter().cloned());
    add("d0", "walb-device", device)?;

    let proxies: Vec<_> = (0..layout.proxies).map(|n| socket(dir, &format!("p{n}"))).collect();
    for (name, role) in names(layout) {
        let (base, listen) = (at(&name), socket(dir, &name));
        let mut flags = text(&["--base", &base, "--listen", &listen, "--id", &name]);
        match role {
            "storage" => {
                let (archive, proxies) = (socket(dir, "a0"), proxies.join(","));
                flags.extend(text(&["--archive", &archive, "--proxy", &proxies]));
            }
            "archive" => flags.extend(text(&["--backend", "file"])),
            _ => {}
        }
        add(&name, &format!("walb-{role}"), flags)?;
    }
    Ok(roles)
}

/// A size for layouts, such as `64M`.
///
/// # Panics
/// On a text that is no size: a mistake in the test.
#[must_use]
pub fn size(text: &str) -> u64 {
    parse_size(text).unwrap_or_else(|e| panic!("{e}"))
}
