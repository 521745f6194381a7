//! One volume of a cluster, with the helpers of the acceptance scenarios (semantics.md §8.1).
//!
//! What changes something runs the `walbc` program, as an operator types it; what only looks asks
//! the servers past the fault proxies.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use controller::ops::{archive, look};
use proto::v1;
use rand::RngExt;

use crate::cluster::{Cluster, sha256};
use crate::outside::{Background, run};
use crate::poll::{DEADLINE, until};
use crate::writer::Writer;

/// A volume of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Volume<'a> {
    cluster: &'a Cluster,
    /// Its name.
    pub name: &'a str,
}

impl Cluster {
    /// The volume of most scenarios.
    #[must_use]
    pub fn vol(&self) -> Volume<'_> {
        self.volume("vol0")
    }

    /// A volume by name.
    #[must_use]
    pub fn volume<'a>(&'a self, name: &'a str) -> Volume<'a> {
        Volume { cluster: self, name }
    }
}

/// A whole command line, with `VOL` for the volume's name.
fn words<'a>(line: &'a str, volume: &'a str) -> Vec<&'a str> {
    line.split_whitespace().map(|word| if word == "VOL" { volume } else { word }).collect()
}

impl Volume<'_> {
    /// Runs a line such as `start-synchronizing a0 VOL`; its stdout, when it exits with 0.
    ///
    /// # Errors
    /// Another exit code; stderr is in the message.
    pub fn walbc(&self, line: &str) -> Result<String> {
        let (code, stdout, stderr) = self.cluster.walbc(&words(line, self.name))?;
        ensure!(code == 0, "walbc {line}: exit {code}: {stdout}{stderr}");
        Ok(stdout.trim().to_owned())
    }

    /// The same past the fault proxies.
    ///
    /// # Errors
    /// As [`Volume::walbc`].
    pub fn walbc_direct(&self, line: &str) -> Result<String> {
        let (code, stdout, stderr) = self.cluster.walbc_direct(&words(line, self.name))?;
        ensure!(code == 0, "walbc {line}: exit {code}: {stdout}{stderr}");
        Ok(stdout.trim().to_owned())
    }

    /// Starts a line in the background.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin(&self, line: &str) -> Result<Background> {
        Background::start(&mut self.cluster.walbc_command(&words(line, self.name))?)
    }

    /// The gid that a line prints.
    ///
    /// # Errors
    /// It fails or prints something else.
    pub fn gid(&self, line: &str) -> Result<u64> {
        let stdout = self.walbc(line)?;
        stdout.parse().with_context(|| format!("walbc {line} printed {stdout:?}"))
    }

    /// Runs a line that must fail with exit 1 and say `part`.
    ///
    /// # Errors
    /// It does anything else.
    pub fn refused(&self, line: &str, part: &str) -> Result<()> {
        let (code, stdout, stderr) = self.cluster.walbc(&words(line, self.name))?;
        ensure!(code == 1, "walbc {line}: exit {code} instead of 1: {stdout}{stderr}");
        ensure!(stderr.contains(part), "walbc {line}: no {part:?} in: {stderr}");
        Ok(())
    }

    /// A question that is answered by `true` (exit 0) or `false` (exit 3).
    ///
    /// # Errors
    /// Any other answer.
    pub fn ask(&self, line: &str) -> Result<bool> {
        let (code, stdout, stderr) = self.cluster.walbc(&words(line, self.name))?;
        match (code, stdout.trim()) {
            (0, "true") => Ok(true),
            (3, "false") => Ok(false),
            _ => bail!("walbc {line}: exit {code}: {stdout}{stderr}"),
        }
    }

    /// Base state T: s0 the target with a full backup at a0, the other legs standby.
    ///
    /// # Errors
    /// A command fails.
    pub fn base_state(&self) -> Result<u64> {
        for leg in 0..self.cluster.layout().storages {
            self.init_storage(leg)?;
        }
        self.write(0, 0, 1)?;
        let gid = self.gid("full-backup s0 VOL")?;
        self.expect_state("s0", "Target")?;
        Ok(gid)
    }

    /// `init-storage` of a leg.
    ///
    /// # Errors
    /// The command fails.
    pub fn init_storage(&self, leg: usize) -> Result<()> {
        let device = self.cluster.device(leg, self.name);
        self.walbc(&format!("init-storage s{leg} VOL --device {device}")).map(drop)
    }

    /// W: random data into `blocks` physical blocks of a leg from block `at` on, flushed.
    ///
    /// # Errors
    /// qemu-io fails.
    pub fn write(&self, leg: usize, at: u64, blocks: u64) -> Result<()> {
        let bytes = u64::from(self.cluster.layout().block_bytes);
        self.fill(leg, at * bytes, blocks * bytes)
    }

    /// Random data from byte `at` on, flushed.
    ///
    /// # Errors
    /// qemu-io fails.
    pub fn fill(&self, leg: usize, at: u64, bytes: u64) -> Result<()> {
        let mut data = vec![0; usize::try_from(bytes)?];
        rand::rng().fill(&mut data[..]);
        let source = tempfile::NamedTempFile::new_in(self.cluster.path(""))?;
        std::fs::write(source.path(), data)?;
        let write = format!("write -s {} {at} {bytes}", source.path().display());
        let uri = self.cluster.leg_uri(leg, self.name);
        run("qemu-io", &["-f", "raw", "-c", &write, "-c", "flush", &uri]).map(drop)
    }

    /// RW: a writer in the background.
    ///
    /// # Errors
    /// It does not come up.
    pub fn writer(&self, leg: usize) -> Result<Writer> {
        let uri = self.cluster.leg_uri(leg, self.name);
        Writer::start(&uri, self.cluster.layout().block_bytes)
    }

    /// OVER: more than a whole log. Without overflow, waits after each chunk until the log is
    /// empty.
    ///
    /// # Errors
    /// A write fails, or the log does not become empty.
    pub fn write_a_log(&self, leg: usize, overflow: bool) -> Result<()> {
        let layout = self.cluster.layout();
        let block = u64::from(layout.block_bytes);
        let chunk = layout.data_bytes.min(layout.log_bytes) / 2;
        let mut left = layout.log_bytes + 4 * block;
        while left > 0 {
            let now = left.min(chunk);
            self.fill(leg, 0, now)?;
            left -= now;
            if !overflow {
                let storage = format!("s{leg}");
                let empty = || Ok((self.storage(&storage)?.log_usage_pb == 0).then_some(()));
                until("the log becomes empty", DEADLINE, empty)?;
            }
        }
        Ok(())
    }

    /// SHA: of the volume as its users see it, read through NBD after a flush.
    ///
    /// # Errors
    /// `nbdcopy` fails.
    pub fn sha(&self, leg: usize) -> Result<String> {
        self.cluster.leg_sha256(leg, self.name)
    }

    /// RSHA: restores a snapshot, the hash of the image, and deletes it.
    ///
    /// # Errors
    /// It cannot be restored.
    pub fn rsha(&self, archive: &str, gid: u64) -> Result<String> {
        let path = self.walbc(&format!("restore {archive} VOL {gid}"))?;
        let sum = sha256(Path::new(&path))?;
        self.walbc(&format!("del-restored {archive} VOL {gid}"))?;
        ensure!(!Path::new(&path).exists(), "{path} is still there");
        Ok(sum)
    }

    /// Restores a snapshot and compares it with a leg that nobody writes to.
    ///
    /// # Errors
    /// They differ.
    pub fn same(&self, leg: usize, archive: &str, gid: u64) -> Result<()> {
        let (device, restored) = (self.sha(leg)?, self.rsha(archive, gid)?);
        ensure!(device == restored, "snapshot {gid} at {archive} differs from leg {leg}");
        Ok(())
    }

    /// What a storage server says.
    ///
    /// # Errors
    /// It does not answer.
    pub fn storage(&self, server: &str) -> Result<v1::StorageVolume> {
        let ctl = self.cluster.direct();
        Ok(self.cluster.run(look::storage_volume(ctl, server, self.name))?)
    }

    /// What a proxy says.
    ///
    /// # Errors
    /// It does not answer.
    pub fn proxy(&self, server: &str) -> Result<v1::ProxyVolume> {
        let ctl = self.cluster.direct();
        Ok(self.cluster.run(controller::ops::sync::proxy_volume(ctl, server, self.name))?)
    }

    /// What an archive says.
    ///
    /// # Errors
    /// It does not answer.
    pub fn archive(&self, server: &str) -> Result<v1::ArchiveVolume> {
        let ctl = self.cluster.direct();
        Ok(self.cluster.run(look::archive_volume(ctl, server, self.name))?)
    }

    /// The gid of an archive's latest snapshot.
    ///
    /// # Errors
    /// It has none.
    pub fn latest(&self, archive: &str) -> Result<u64> {
        let latest = self.archive(archive)?.latest.context("no snapshot")?;
        Ok(latest.gid_begin)
    }

    /// The state of the volume at a server.
    ///
    /// # Errors
    /// It does not answer.
    pub fn state(&self, server: &str) -> Result<String> {
        let ctl = self.cluster.direct();
        Ok(self.cluster.run(controller::ops::setup::state(ctl, server, self.name))?)
    }

    /// Fails unless the volume is in that state at a server.
    ///
    /// # Errors
    /// It is not.
    pub fn expect_state(&self, server: &str, state: &str) -> Result<()> {
        let now = self.state(server)?;
        ensure!(now == state, "{} is {now} at {server}, not {state}", self.name);
        Ok(())
    }

    /// Waits until the volume is in that state at a server.
    ///
    /// # Errors
    /// It does not get there.
    pub fn until_state(&self, server: &str, state: &str) -> Result<()> {
        let what = format!("{} becomes {state} at {server}", self.name);
        until(&what, DEADLINE, || Ok((self.state(server)? == state).then_some(())))
    }

    /// The gids that an archive can restore, explicit ones only or all.
    ///
    /// # Errors
    /// It does not answer.
    pub fn restorable(&self, server: &str, all: bool) -> Result<Vec<u64>> {
        let list = archive::restorable(self.cluster.direct(), server, self.name, all);
        Ok(self.cluster.run(list)?.iter().map(|snapshot| snapshot.gid).collect())
    }

    /// Waits until an archive can restore a snapshot.
    ///
    /// # Errors
    /// It cannot.
    pub fn until_restorable(&self, server: &str, gid: u64) -> Result<()> {
        let what = format!("{gid} becomes restorable at {server}");
        let there = || Ok(self.restorable(server, true)?.contains(&gid).then_some(()));
        until(&what, DEADLINE, there)
    }

    /// Watches for a while that a snapshot is not restorable. Twenty times the usual delay; where
    /// there is a sign that the delivery was tried and failed, wait for that first.
    ///
    /// # Errors
    /// It is.
    pub fn stays_unrestorable(&self, server: &str, gid: u64) -> Result<()> {
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let list = self.restorable(server, true)?;
            ensure!(!list.contains(&gid), "{gid} is restorable at {server}: {list:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Waits until a storage server has tried to ship and says what is wrong.
    ///
    /// # Errors
    /// It does not.
    pub fn until_shipping_fails(&self, server: &str) -> Result<()> {
        let failed = || Ok((!self.storage(server)?.error.is_empty()).then_some(()));
        until("a transfer to the proxies fails", DEADLINE, failed)
    }

    /// Waits until a proxy has tried to send to an archive and says what is wrong.
    ///
    /// # Errors
    /// It does not.
    pub fn until_sending_fails(&self, proxy: &str, archive: &str) -> Result<v1::ProxyQueue> {
        until("a transfer to the archive fails", DEADLINE, || {
            let of = |q: &v1::ProxyQueue| q.archive.as_ref().is_some_and(|a| a.name == archive);
            let queue = self.proxy(proxy)?.queues.into_iter().find(of);
            Ok(queue.filter(|queue| !queue.error.is_empty()))
        })
    }

    /// Grows the data devices of a leg's volume from outside; the new part reads as zeroes.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn grow_data_device(&self, leg: usize, bytes: u64) -> Result<()> {
        let file =
            std::fs::File::options().write(true).open(self.cluster.data_path(leg, self.name))?;
        Ok(file.set_len(bytes)?)
    }

    /// The size that the users of a leg's volume see.
    ///
    /// # Errors
    /// The export cannot be opened.
    pub fn visible_bytes(&self, leg: usize) -> Result<u64> {
        let uri = self.cluster.leg_uri(leg, self.name);
        let size = run("nbdinfo", &["--size", &uri])?;
        size.parse().with_context(|| format!("nbdinfo printed {size:?}"))
    }

    /// Waits until an archive runs no operation on the volume.
    ///
    /// # Errors
    /// It goes on and on.
    pub fn until_idle(&self, server: &str) -> Result<()> {
        let idle = || Ok(self.archive(server)?.running.is_empty().then_some(()));
        until("the operation ends", DEADLINE, idle)
    }
}
