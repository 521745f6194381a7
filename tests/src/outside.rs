//! Programs that we did not write, used against our devices.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::{NamedTempFile, TempDir};

use crate::poll::{DEADLINE, until};

/// Runs a command to its end; its stdout.
///
/// # Errors
/// It cannot be started or fails; stderr is in the message.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().context(program.to_owned())?;
    ensure!(
        output.status.success(),
        "{program} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A child that is killed and reaped when dropped. Its output is kept.
#[derive(Debug)]
pub struct Background {
    child: Child,
    output: NamedTempFile,
}

impl Background {
    /// Starts a command without input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = format!("{command:?}");
        let output = NamedTempFile::new()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.reopen()?)
            .stderr(output.reopen()?)
            .spawn()
            .context(name)?;
        Ok(Self { child, output })
    }

    /// Waits until it has ended: whether with success, and what it has printed.
    ///
    /// # Errors
    /// It is still running after `limit`.
    pub fn ended(mut self, limit: Duration) -> Result<(bool, String)> {
        let status = until("the program ends", limit, || Ok(self.child.try_wait()?))?;
        Ok((status.success(), std::fs::read_to_string(self.output.path())?))
    }

    /// Waits until it has ended, which must be with success.
    ///
    /// # Errors
    /// It failed (with its output in the message), or is still running after `limit`.
    pub fn finish(self, limit: Duration) -> Result<()> {
        let (success, output) = self.ended(limit)?;
        ensure!(success, "it failed: {output}");
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An NBD export as a kernel block device: nbdfuse, then a loop device on top of it.
#[derive(Debug)]
pub struct KernelDevice {
    path: String,
    mount: TempDir,
    fuse: Option<Background>,
}

impl KernelDevice {
    /// Attaches the export at `uri`.
    ///
    /// # Errors
    /// nbdfuse or losetup fail.
    pub fn attach(uri: &str) -> Result<Self> {
        let mount = tempfile::Builder::new().prefix("walb-fuse-").tempdir()?;
        let file = mount.path().join("nbd");
        let fuse = Background::start(Command::new("nbdfuse").arg(&file).arg(uri))?;
        let file_there = || Ok(std::fs::metadata(&file).is_ok_and(|m| m.len() > 0).then_some(()));
        until("nbdfuse has mounted", DEADLINE, file_there)?;
        let path = run("losetup", &["-f", "--show", &file.to_string_lossy()])?;
        Ok(Self { path, mount, fuse: Some(fuse) })
    }

    /// The device node.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for KernelDevice {
    fn drop(&mut self) {
        let _ = run("losetup", &["-d", &self.path]);
        // The loop device lets go of the file a moment after `losetup -d`.
        let mount = self.mount.path().to_string_lossy();
        let unmounted = || Ok(run("umount", &[&mount]).ok());
        let _ = until("nbdfuse unmounts", DEADLINE, unmounted);
        drop(self.fuse.take());
    }
}

/// A loop device on a file.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// Attaches `file`.
    ///
    /// # Errors
    /// losetup fails.
    pub fn attach(file: &Path) -> Result<Self> {
        run("losetup", &["-f", "--show", &file.to_string_lossy()]).map(Self)
    }

    /// Attaches `file` past the page cache: what is read comes from the disk.
    ///
    /// # Errors
    /// losetup fails, or the filesystem knows no direct I/O.
    pub fn attach_direct(file: &Path) -> Result<Self> {
        let path = file.to_string_lossy();
        run("losetup", &["-f", "--show", "--direct-io=on", &path]).map(Self)
    }

    /// The device node.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run("losetup", &["-d", &self.0]);
    }
}

/// A mounted filesystem.
#[derive(Debug)]
pub struct Mount(TempDir);

impl Mount {
    /// Mounts a device node or, with `loop` among the options, an image file.
    ///
    /// # Errors
    /// mount fails.
    pub fn new(source: &str, options: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("walb-mount-").tempdir()?;
        run("mount", &["-o", options, source, &dir.path().to_string_lossy()])?;
        Ok(Self(dir))
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &[&self.0.path().to_string_lossy()]);
    }
}

/// An NBD server in front of `uri` that connects again when its server was killed: what a VM's
/// NBD client does for its guest.
#[derive(Debug)]
pub struct Reconnecting {
    socket: PathBuf,
    _dir: TempDir,
    _nbdkit: Background,
}

impl Reconnecting {
    /// Starts nbdkit with its retry filter.
    ///
    /// # Errors
    /// nbdkit does not come up.
    pub fn start(uri: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("walb-nbdkit-").tempdir()?;
        let socket = dir.path().join("retry.sock");
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--exit-with-parent", "--filter=retry", "-U"]);
        command.arg(&socket).arg("nbd").arg(format!("uri={uri}"));
        command.args(["retry=60", "retries=1000", "retry-delay=1", "retry-exponential=no"]);
        let nbdkit = Background::start(&mut command)?;
        until("nbdkit listens", DEADLINE, || Ok(socket.exists().then_some(())))?;
        Ok(Self { socket, _dir: dir, _nbdkit: nbdkit })
    }

    /// Its NBD URI.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}
