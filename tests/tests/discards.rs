//! A discard is data: from the device to every restored, mounted and replicated image the volume is
//! the plain block map, whatever mixture of writes, zeroes and discards made it (`semantics.md`
//! §5.15).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tests::cluster::{Cluster, Layout};
use tests::outside::run;
use tests::skip::have_programs;

const SECTOR: usize = 512;
const BYTES: usize = 8 << 20;
/// Everything happens below this, so that much overlaps.
const BUSY_SECTORS: usize = 1024;

/// Requests of any place and length, on the volume and in the map.
fn change(cluster: &Cluster, map: &mut [u8], rng: &mut StdRng) {
    let mut args = vec!["-f".to_owned(), "raw".to_owned()];
    for _ in 0..60 {
        let sectors = rng.random_range(1..=96);
        let at = rng.random_range(0..BUSY_SECTORS - sectors) * SECTOR;
        let len = sectors * SECTOR;
        let pattern: u8 = rng.random_range(1..=255);
        let (request, value) = match rng.random_range(0..6) {
            0 => (format!("discard {at} {len}"), 0),
            1 => (format!("write -z {at} {len}"), 0),
            2 => (format!("write -z -u {at} {len}"), 0),
            3 => (format!("write -P 0 {at} {len}"), 0),
            _ => (format!("write -P {pattern} {at} {len}"), pattern),
        };
        map[at..at + len].fill(value);
        args.extend(["-c".to_owned(), request]);
    }
    args.extend(["-c".to_owned(), "flush".to_owned(), cluster.nbd_uri("vol0")]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run("qemu-io", &args).unwrap();
}

fn same(path: &Path, map: &[u8], what: &str) {
    let image = std::fs::read(path).unwrap();
    assert_eq!(image.len(), map.len(), "{what}");
    let differs = image.chunks(SECTOR).zip(map.chunks(SECTOR)).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: a sector differs");
}

/// What an NBD client reads, compared.
fn export_is(cluster: &Cluster, uri: &str, map: &[u8], what: &str) {
    let copy = cluster.path("copy.img");
    run("nbdcopy", &[uri, &copy.to_string_lossy()]).unwrap();
    same(&copy, map, what);
    std::fs::remove_file(&copy).unwrap();
}

/// A snapshot of an archive, restored and mounted.
fn snapshot_is(cluster: &Cluster, archive: &str, gid: u64, map: &[u8], seed: u64) {
    let what = format!("seed {seed}, gid {gid} of {archive}");
    let restored = cluster.restore(archive, "vol0", gid).unwrap();
    same(&restored, map, &format!("{what}, restored"));
    let mounted = cluster.vol().walbc(&format!("mount {archive} VOL {gid} --json")).unwrap();
    let mounted: serde_json::Value = serde_json::from_str(&mounted).unwrap();
    export_is(cluster, mounted["uri"].as_str().unwrap(), map, &format!("{what}, mounted"));
    cluster.vol().walbc(&format!("unmount {archive} VOL")).unwrap();
    cluster.vol().walbc(&format!("del-restored {archive} VOL {gid}")).unwrap();
}

fn volume_is_the_block_map(test: &str, seed: u64) {
    if !have_programs(test, &["qemu-io", "nbdcopy"]) {
        return;
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let layout = Layout {
        data_bytes: BYTES as u64,
        log_bytes: 32 << 20,
        block_bytes: 512,
        archives: 2,
        ..Layout::default()
    };
    let cluster = Cluster::start(layout).unwrap();
    let mut map = vec![0; BYTES];
    change(&cluster, &mut map, &mut rng);
    let mut history = vec![(cluster.full_backup("vol0").unwrap(), map.clone())];
    for _ in 0..5 {
        change(&cluster, &mut map, &mut rng);
        history.push((cluster.snapshot("vol0").unwrap(), map.clone()));
    }
    export_is(&cluster, &cluster.nbd_uri("vol0"), &map, &format!("seed {seed}, the volume"));
    for (gid, map) in &history {
        snapshot_is(&cluster, "a0", *gid, map, seed);
    }
    let gid = |index: usize| history[index].0;
    let v = cluster.vol();
    // Merged, applied, compared by hashes, replicated.
    v.walbc(&format!("disable-snapshot a0 VOL {}", gid(3))).unwrap();
    v.walbc(&format!("merge a0 VOL {} {}", gid(2), gid(4))).unwrap();
    v.walbc(&format!("apply a0 VOL {}", gid(2))).unwrap();
    change(&cluster, &mut map, &mut rng);
    v.walbc("stop s0 VOL").unwrap();
    let healed = cluster.vol().gid("hash-backup s0 VOL").unwrap();
    v.walbc("replicate a0 VOL a1").unwrap();
    for archive in ["a0", "a1"] {
        snapshot_is(&cluster, archive, gid(5), &history[5].1, seed);
        snapshot_is(&cluster, archive, healed, &map, seed);
    }
    snapshot_is(&cluster, "a0", gid(4), &history[4].1, seed);
    v.walbc(&format!("apply a0 VOL {healed}")).unwrap();
    snapshot_is(&cluster, "a0", healed, &map, seed);
}

#[test]
fn discards_are_data_everywhere() {
    volume_is_the_block_map("discards_are_data_everywhere", 1);
}

#[test]
#[ignore = "long: ten seeds; cargo long-test"]
fn long_discards_are_data_everywhere() {
    for seed in 2..12 {
        volume_is_the_block_map("long_discards_are_data_everywhere", seed);
    }
}
