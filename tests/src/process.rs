//! One role as a separate process of the real binary.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// The built binary of that name, next to the running program or, for a test, one above it.
///
/// # Errors
/// It has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let near = program.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    let found = near.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("{name} is missing: cargo build --workspace --bins"))
}

/// A role's process: its command line, and the child while it runs. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Not started yet; its stderr goes to `log`.
    ///
    /// # Errors
    /// The binary has not been built.
    pub fn new(program: &str, args: Vec<String>, log: PathBuf) -> Result<Self> {
        Ok(Self { program: binary(program)?, args, log, child: None })
    }

    /// Other arguments, from the next start on.
    pub fn set_args(&mut self, args: Vec<String>) {
        self.args = args;
    }

    /// Starts it; nothing to do when it runs.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// SIGKILL, and gone when this returns.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; its exit code when it has ended.
    ///
    /// # Errors
    /// It does not end by itself in time.
    pub fn terminate(&mut self) -> Result<Option<i32>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let what = format!("{} ends after SIGTERM", self.program.display());
        let ended = crate::poll::until(&what, crate::poll::DEADLINE, || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        Ok(ended?.code())
    }

    /// The pid while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it still runs (and was started).
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Everything that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
