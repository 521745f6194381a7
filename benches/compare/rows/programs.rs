//! Programs that others wrote: fio, qemu-nbd, nbdkit. All come from Debian's packages.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::bench::{Run, Sample};

/// How long a server may take to come up.
const START: Duration = Duration::from_secs(60);

/// Is it on this machine?
pub(super) fn have(program: &str) -> bool {
    let tried = Command::new(program).arg("--version").stdout(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Waits until somebody serves the socket.
pub(super) fn wait_for(socket: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    while UnixStream::connect(socket).is_err() {
        ensure!(Instant::now() < deadline, "{} is not served", socket.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Somebody else's NBD server. Killed when dropped.
pub(super) struct NbdServer(Child);

impl NbdServer {
    /// qemu-nbd with a raw image; `cache` is `none`, past the page cache, or `writeback`.
    pub(super) fn qemu(cache: &str, data: &Path, socket: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new("qemu-nbd");
        command.arg(format!("--cache={cache}"));
        command.args(["--aio=io_uring", "-f", "raw", "-t", "-e", "8", "-k"]).args([socket, data]);
        Self::start(&mut command, socket)
    }

    /// nbdkit with an image in which nothing is kept: every request is done at once.
    pub(super) fn null(bytes: u64, socket: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--log=null", "--unix"]).arg(socket);
        Self::start(command.args(["null", &format!("size={bytes}")]), socket)
    }

    fn start(command: &mut Command, socket: &Path) -> anyhow::Result<Self> {
        let program = command.get_program().to_owned();
        let server = Self(command.spawn().with_context(|| program.display().to_string())?);
        wait_for(socket)?;
        Ok(server)
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What fio has measured.
pub(super) struct Measured(serde_json::Value);

impl Measured {
    /// Runs fio and waits for its end.
    pub(super) fn by(fio: &mut Command) -> anyhow::Result<Self> {
        let output = fio.arg("--output-format=json").output().context("fio")?;
        ensure!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let json = text.find('{').and_then(|at| text.get(at..)).context("fio says nothing")?;
        Ok(Self(serde_json::from_str(json)?))
    }

    /// Reads and writes of the first job together.
    fn sum(&self, key: &str) -> anyhow::Result<f64> {
        let of = |side: &str| self.0.pointer(&format!("/jobs/0/{side}/{key}"))?.as_f64();
        Ok(of("read").context("no reads")? + of("write").context("no writes")?)
    }

    fn operations_per_second(&self) -> anyhow::Result<f64> {
        self.sum("iops")
    }

    /// Seconds until the last of its jobs had ended.
    pub(super) fn seconds(&self) -> anyhow::Result<f64> {
        let jobs = self.0.pointer("/jobs").and_then(|jobs| jobs.as_array()).context("no jobs")?;
        let ended = jobs.iter().filter_map(|job| job.get("job_runtime")?.as_f64());
        Ok(ended.reduce(f64::max).context("no job has run")? / 1e3)
    }

    pub(super) fn megabytes_per_second(&self) -> anyhow::Result<f64> {
        Ok(self.sum("bw_bytes")? / 1e6)
    }
}

/// fio on a file or device, its whole size, past the page cache; `args` say what it does.
pub(super) fn fio_on(path: &Path, args: &[&str]) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=row", "--direct=1", "--ioengine=io_uring"]).args(args);
    fio.arg(format!("--filename={}", path.display()));
    fio
}

/// fio on an NBD export; `args` say what it does.
pub(super) fn fio_over(uri: &str, args: &[&str]) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=row", "--ioengine=nbd", "--group_reporting=1"]).args(args);
    fio.arg(format!("--uri={uri}"));
    fio
}

/// A run of fio on the first `bytes` of what it is told to use, for so long.
pub(super) fn operations<'a>(fio: impl Fn() -> Command + 'a, bytes: u64, seconds: u64) -> Run<'a> {
    let (size, runtime) = (format!("--size={bytes}"), format!("--runtime={seconds}"));
    Box::new(move || {
        let mut fio = fio();
        fio.args(["--time_based=1", &size, &runtime]);
        Ok(Sample::of(Measured::by(&mut fio)?.operations_per_second()?))
    })
}

/// Makes a file of which every block is written once.
pub(super) fn fill(path: &Path, bytes: u64) -> anyhow::Result<()> {
    File::create(path)?.set_len(bytes)?;
    let size = format!("--size={bytes}");
    let mut fio = fio_on(path, &["--rw=write", "--bs=1m", "--iodepth=4", &size]);
    Measured::by(&mut fio).map(drop)
}
