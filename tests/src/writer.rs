//! A writer in the background: one block after the other through NBD, by qemu's client.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

/// Pause between two writes.
const PAUSE: Duration = Duration::from_millis(50);
const PROMPT: &str = "qemu-io> ";

/// Writes one block at offset 0 every 50 ms, each time another pattern, until it is finished or
/// dropped.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// `qemu-io` that takes commands one by one.
struct QemuIo {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl QemuIo {
    fn start(uri: &str) -> Result<Self> {
        let mut child = Command::new("qemu-io")
            .args(["-f", "raw", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("qemu-io")?;
        let stdin = child.stdin.take().context("stdin of qemu-io")?;
        let stdout = child.stdout.take().context("stdout of qemu-io")?;
        let mut io = Self { child, stdin, stdout };
        io.until_prompt()?;
        Ok(io)
    }

    /// What it prints until it waits for a command.
    fn until_prompt(&mut self) -> Result<String> {
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        while !text.ends_with(PROMPT.as_bytes()) {
            let read = self.stdout.read(&mut buffer)?;
            ensure!(read > 0, "qemu-io has ended: {}", String::from_utf8_lossy(&text));
            text.extend_from_slice(buffer.get(..read).unwrap_or_default());
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn command(&mut self, command: &str) -> Result<()> {
        writeln!(self.stdin, "{command}")?;
        let answer = self.until_prompt()?;
        ensure!(answer.contains("ops;"), "{command}: {answer}");
        Ok(())
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Writer {
    /// Starts writing blocks of `block_bytes` to the export at `uri`; the first is acknowledged
    /// when this returns.
    ///
    /// # Errors
    /// qemu-io does not come up, or its first write fails.
    pub fn start(uri: &str, block_bytes: u32) -> Result<Self> {
        let mut io = QemuIo::start(uri)?;
        let mut write = move |number: u64| {
            io.command(&format!("write -P {} 0 {block_bytes}", number % 255 + 1))
        };
        write(0)?;
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                // The pace of the original's writer: an input of the test, nothing waits for it.
                std::thread::sleep(PAUSE);
                write(count.load(Ordering::SeqCst))?;
                count.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        Ok(Self { stop, written, thread: Some(thread) })
    }

    /// How many writes were acknowledged so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Ends it; how many writes were acknowledged. The volume does not change after this.
    ///
    /// # Errors
    /// A write failed.
    pub fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("finished once")?;
        thread.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok(self.written())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
