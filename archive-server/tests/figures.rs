//! How fast an archive takes in, applies and restores: figures for people, no limits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use bytes::Bytes;
use common::{Archive, UUID, bulk, full, full_end, full_start, messages, meta, start_of, wdiff};
use proto::v1::full_sync_request::Step;
use proto::v1::restore_request::Point;
use proto::v1::{MountRequest, OperationStatus, WdiffResult, mount_request};
use std::time::Instant;
use wdiff_format::record::DiffRecord;
use wlog_format::units::Lb;

const MIB: usize = 1 << 20;
const IMAGE: usize = 512 * MIB;
const IO: usize = 64 << 10;
const DIFFS: u64 = 8;

fn noise(seed: &mut u64, bytes: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        data.extend_from_slice(&seed.to_le_bytes());
    }
    data
}

fn say(what: &str, bytes: usize, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    println!("{what}: {:.0} MiB/s ({seconds:.2} s)", bytes as f64 / MIB as f64 / seconds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures; run it by hand, optimised and alone"]
async fn figures() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    client.init().await;
    let mut seed = 88_172_645_463_325_252;
    let size_lb = IMAGE as u64 / 512;
    let (session, _) = client.prepare(size_lb, &[]).await.unwrap();
    let mut backup = vec![full(Step::Start(full_start(session)))];
    backup.extend((0..IMAGE / MIB).map(|n| bulk(n * MIB, &noise(&mut seed, MIB))));
    backup.push(full(full_end(0, 0)));
    let start = Instant::now();
    client.archive.full_sync(tokio_stream::iter(backup)).await.unwrap();
    say("full backup", IMAGE, start);
    let diffs: Vec<Vec<u8>> = (0..DIFFS)
        .map(|_| {
            let records = (0..IMAGE / IO / 8).map(|n| {
                let at = (n * 8 + seed as usize % 8) * IO / 512;
                let data = Bytes::from(noise(&mut seed, IO));
                DiffRecord::from_raw(Lb(at as u64), data).unwrap()
            });
            wdiff(&records.collect::<Vec<_>>(), UUID)
        })
        .collect();
    let total: usize = diffs.iter().map(Vec::len).sum();
    let sent: Vec<_> = (1..=DIFFS)
        .map(|g| messages(start_of(meta(g - 1, g), size_lb), &diffs[g as usize - 1], MIB))
        .collect();
    let start = Instant::now();
    for messages in sent {
        assert_eq!(client.send(messages).await.unwrap().result(), WdiffResult::Stored);
    }
    say("wdiff receive, checked and durable", total, start);
    let start = Instant::now();
    let done = client.restore_to(Point::Gid(DIFFS), "").await.unwrap();
    assert_eq!(done.status(), OperationStatus::Done);
    say("restore (copy of 512 MiB, then 8 wdiffs)", IMAGE + total, start);
    let start = Instant::now();
    let done = client.apply(DIFFS).await.unwrap();
    assert_eq!(done.status(), OperationStatus::Done);
    say("apply of 8 wdiffs", total, start);
}

/// What the wdiff to `gid` writes.
const fn byte(gid: u64) -> u8 {
    (gid % 251) as u8 + 1
}

/// A mount of a snapshot that many wdiffs lead to, to its first read; the files are laid out by
/// hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures; run it by hand, optimised and alone"]
async fn first_read_of_a_mount() {
    for diffs in [10_u64, 100, 1_000, 10_000] {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::start(&dir);
        let mut client = archive.client();
        client.init().await;
        let device = common::Device::new(65_536, 5);
        client.full_sync(&device.history[0], 0).await.unwrap();
        archive.kill();
        let records = |gid: u64| {
            let record = move |n: u64| {
                let at = (gid * 7919 + n * 2311) % 65_000 / 8 * 8;
                DiffRecord::from_raw(Lb(at), Bytes::from(vec![byte(gid); 4096])).unwrap()
            };
            let mut records: Vec<_> = (0..50).map(record).collect();
            records.sort_by_key(|r| r.address);
            records.dedup_by_key(|r| r.address);
            records
        };
        let volume = dir.path().join("a0").join(common::VOLUME);
        for gid in 1..=diffs {
            let name = format!("20260101000000-M--{}-{gid}.wdiff", gid - 1);
            std::fs::write(volume.join(name), wdiff(&records(gid), UUID)).unwrap();
        }
        let archive = Archive::start(&dir);
        let mut client = archive.client();
        assert_eq!(client.get().await.diffs, diffs);
        let start = Instant::now();
        let (volume, point) = (common::VOLUME.into(), Some(mount_request::Point::Gid(diffs)));
        let request = MountRequest { volume, point, ..MountRequest::default() };
        let mounted = client.archive.mount(request).await.unwrap().into_inner();
        let (_, socket) = mounted.uri.split_once("socket=").unwrap();
        let nbd = block_io::nbd::Client::unix(socket, common::VOLUME).await.unwrap();
        let at = records(diffs)[0].address.bytes();
        assert_eq!(nbd.read(at, 4096).await.unwrap(), vec![byte(diffs); 4096]);
        let seconds = start.elapsed().as_secs_f64();
        println!("mount and first read of {diffs} wdiffs: {:.1} ms", seconds * 1e3);
    }
}
