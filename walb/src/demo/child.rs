//! A role as a child process of this very program, so that it can be killed without mercy.

use std::fmt;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How long a role may take to stop when asked.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// One role's process; killed when dropped.
pub(super) struct RoleProcess {
    role: &'static str,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl RoleProcess {
    /// Starts `walb ROLE ARGS`, its log in a file.
    pub(super) fn start(
        role: &'static str,
        args: Vec<String>,
        log: PathBuf,
    ) -> anyhow::Result<Self> {
        let mut process = Self { role, args, log, child: None };
        process.restart()?;
        Ok(process)
    }

    /// Starts it (again).
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        let attempt = || format!("cannot start the {} role", self.role);
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let child = Command::new(std::env::current_exe().with_context(attempt)?)
            .arg(self.role)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.with_context(attempt)?)
            .spawn()
            .with_context(attempt)?;
        self.child = Some(child);
        Ok(())
    }

    /// Fails when it has ended by itself.
    pub(super) fn check_running(&mut self) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("the role was started")?;
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            bail!("the {} role has ended: {status}\n{log}", self.role);
        }
        Ok(())
    }

    /// SIGKILL; gone when this returns.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; returns when it has ended.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(child) = self.child.as_mut() else { return Ok(()) };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_LIMIT;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the {} role does not stop; see {}", self.role, self.log.display());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

impl fmt::Display for RoleProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.child {
            Some(child) => write!(f, "{} (pid {})", self.role, child.id()),
            None => write!(f, "{} (not running)", self.role),
        }
    }
}

impl Drop for RoleProcess {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
