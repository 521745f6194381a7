//! A volume with very many small wdiffs at an archive: each has 8 writes of 4 KiB strewn over an
//! image of 256 MiB. They are laid out while the archive is down, by the library. Caches are warm:
//! the files were written a moment ago.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use block_io::nbd::Client;
use bytes::Bytes;
use controller::ops::archive::RestorePoint;
use controller::ops::mount;
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::record::DiffRecord;
use wdiff_format::sorted_writer::SortedWriter;
use wlog_format::units::Lb;

use super::archive::{Archive, UUID, name};
use super::group::VOLUME;
use crate::bench::Bench;

/// Bytes of the image.
pub(super) const IMAGE_BYTES: u64 = 256 << 20;
/// What a wdiff takes at most, with what its volume keeps about it.
const DIFF_BYTES: u64 = 32 << 10;
const SLOTS: u64 = IMAGE_BYTES / 4096;
const WRITES: u64 = 8;

/// A volume of some wdiffs, from gid 1 on.
pub(super) struct Many {
    pub(super) archive: Archive,
    pub(super) diffs: u64,
}

/// A mount that was read.
pub(super) struct Read {
    /// From asking for the mount to the first block of it.
    pub(super) ms: f64,
    pub(super) mounted: proto::v1::Mounted,
}

impl Many {
    /// A volume without wdiffs, which may get as many as `most`.
    pub(super) fn start(bench: &Bench, most: u64) -> anyhow::Result<Self> {
        let archive = Archive::start(bench, 2 * IMAGE_BYTES + most * DIFF_BYTES)?;
        let piece = Bytes::from(vec![0x5a; 1 << 20]);
        archive.full_backup(&vec![piece; usize::try_from(IMAGE_BYTES >> 20)?])?;
        Ok(Self { archive, diffs: 0 })
    }

    /// As many wdiffs as that, and a new start of the archive: how many seconds that takes.
    pub(super) fn grow(&mut self, diffs: u64) -> anyhow::Result<f64> {
        let new = self.diffs + 1..=diffs;
        let lay_out = |dir: &Path| {
            for gid in new {
                std::fs::write(dir.join(name(gid)), wdiff(gid)?)?;
            }
            Ok(())
        };
        let seconds = self.archive.restart(diffs, lay_out)?;
        self.diffs = diffs;
        Ok(seconds)
    }

    /// Mounts the newest snapshot and reads a block of the newest wdiff.
    pub(super) fn first_read(&self) -> anyhow::Result<Read> {
        let (cluster, gid) = (&self.archive.group.cluster, self.diffs);
        let (at, wanted) = (slot(gid, 0) * 4096, content(gid));
        cluster.run(async {
            let start = Instant::now();
            let (point, options) = (RestorePoint::Gid(gid), mount::MountOptions::default());
            let mounted = mount::mount(cluster.ctl(), "a0", VOLUME, point, options).await?;
            let (_, socket) = mounted.uri.split_once("socket=").context("no socket")?;
            let read = Client::unix(socket, VOLUME).await?.read(at, 4096).await?;
            let ms = start.elapsed().as_secs_f64() * 1e3;
            ensure!(read == wanted, "wdiff {gid} was not read");
            Ok(Read { ms, mounted })
        })
    }

    pub(super) fn unmount(&self, mounted: &proto::v1::Mounted) -> anyhow::Result<()> {
        let cluster = &self.archive.group.cluster;
        let end = mount::unmount(cluster.ctl(), "a0", VOLUME, Some(&mounted.id));
        Ok(cluster.run(end)?)
    }
}

fn slot(gid: u64, write: u64) -> u64 {
    (gid * 7919 + write * (SLOTS / WRITES) + gid * gid % 1013) % SLOTS
}

/// What a write to a slot leaves there.
fn content(gid: u64) -> Vec<u8> {
    (0..512_u64).flat_map(|n| (gid * 4096 + n / 8).to_le_bytes()).collect()
}

/// The wdiff that leads to `gid`.
pub(super) fn wdiff(gid: u64) -> anyhow::Result<Vec<u8>> {
    let mut codec = Codec::new(Compression::SNAPPY);
    let mut slots: Vec<u64> = (0..WRITES).map(|write| slot(gid, write)).collect();
    slots.sort_unstable();
    slots.dedup();
    let mut writer = SortedWriter::new(Vec::new(), UUID)?;
    for slot in slots {
        let data = Bytes::from(content(gid));
        let record = DiffRecord::from_raw(Lb(slot * 8), data).context("an empty write")?;
        writer.write(&record.encode(&mut codec)?)?;
    }
    Ok(writer.finish()?)
}
