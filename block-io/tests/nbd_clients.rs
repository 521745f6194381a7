//! The NBD server against clients that we did not write. A test whose program is not installed is
//! skipped by name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

mod nbd_support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use block_io::nbd::{Client, ClientError, Limits, Listener};
use nbd_support::{
    Event, Fault, MemoryExport, PAGE, Served, noise, program, run, run_any, server_of, skip, until,
};
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

/// Three pieces of noise in an image that is mostly hole.
fn sparse_image(len: usize) -> Vec<u8> {
    let mut image = vec![0; len];
    for (seed, at) in [(1, 0), (2, len / 2 + PAGE), (3, len - MIB)] {
        image[at..at + MIB].copy_from_slice(&noise(seed, MIB));
    }
    image
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_sees_all_that_the_export_can_do() {
    let Some(nbdinfo) = program("nbdinfo_sees_all_that_the_export_can_do", "nbdinfo") else {
        return;
    };
    let served = Served::new(MemoryExport::new(8 * MIB)).await;
    let json = run(&nbdinfo, &["--json", &served.uri()]).await;
    for fact in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-name\": \"vol\"",
        "\"base:allocation\"",
        "\"is_read_only\": false",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"block_size_minimum\": 512",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
        "\"export-size\": 8388608",
    ] {
        assert!(json.contains(fact), "no {fact} in {json}");
    }
    // The default export is the only one, and the list names it.
    let default = format!("nbd+unix:///?socket={}", served.socket.display());
    assert_eq!(run(&nbdinfo, &["--size", &default]).await.trim(), "8388608");
    assert!(run(&nbdinfo, &["--list", &default]).await.contains("export=\"vol\""));
    let unknown = format!("nbd+unix:///other?socket={}", served.socket.display());
    let (ok, _, stderr) = run_any(&nbdinfo, &["--size", &unknown]).await;
    assert!(!ok && stderr.contains("No such file or directory"), "{stderr}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_reach_the_server_over_tcp() {
    let export = std::sync::Arc::new(MemoryExport::new(MIB).read_only());
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.tcp_address().unwrap();
    let uri = format!("nbd://{address}/vol");
    let shutdown = CancellationToken::new();
    let server = server_of(&export, Limits::default());
    let token = shutdown.clone();
    let task = tokio::spawn(async move { server.serve(listener, token).await });
    let client = Client::tcp(address, "vol").await.unwrap();
    assert!(client.read_only());
    assert_eq!(client.read(512, 4096).await.unwrap(), [0; 4096][..]);
    let refused = client.write(0, vec![1; 512].into(), false).await.unwrap_err();
    assert!(matches!(refused, ClientError::Failed { errno: 1, .. }), "{refused}");
    if let Some(nbdinfo) = program("clients_reach_the_server_over_tcp", "nbdinfo") {
        run(&nbdinfo, &["--is", "read-only", &uri]).await;
        assert!(!run_any(&nbdinfo, &["--can", "trim", &uri]).await.0);
    }
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_converts_compares_and_maps() {
    let Some(qemu_img) = program("qemu_img_converts_compares_and_maps", "qemu-img") else { return };
    let served = Served::new(MemoryExport::new(16 * MIB)).await;
    let image = sparse_image(16 * MIB);
    let file = served.dir.path().join("image.raw");
    std::fs::write(&file, &image).unwrap();
    let (file, uri) = (file.to_str().unwrap(), served.uri());
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", file, &uri];
    run(&qemu_img, &convert).await;
    assert!(served.export.state.lock().data == image, "the export is not the image");
    run(&qemu_img, &["compare", "-f", "raw", "-F", "raw", file, &uri]).await;
    let map = run(&qemu_img, &["map", "--output=json", "-f", "raw", &uri]).await;
    for (start, len) in [(0, MIB), (8 * MIB + PAGE, MIB), (15 * MIB, MIB)] {
        let extent = format!("\"start\": {start}, \"length\": {len}");
        let line = map.lines().find(|line| line.contains(&extent));
        let line = line.unwrap_or_else(|| panic!("no {extent} in {map}"));
        assert!(line.contains("\"data\": true"), "{line}");
    }
    let back = served.dir.path().join("back.raw");
    let back_name = back.to_str().unwrap();
    run(&qemu_img, &["convert", "-f", "raw", "-O", "raw", &uri, back_name]).await;
    assert!(std::fs::read(&back).unwrap() == image, "what came back is not the image");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_sees_faults_as_what_they_are_and_goes_on() {
    let test = "qemu_io_sees_faults_as_what_they_are_and_goes_on";
    let Some(qemu_io) = program(test, "qemu-io") else { return };
    let served = Served::new(MemoryExport::new(8 * MIB)).await;
    served.export.fill(0, &[7; 65536]);
    served.export.fail(Fault::ReadAt(MIB as u64));
    served.export.fail(Fault::WriteAt(2 * MIB as u64));
    let script = [
        "read -P 7 0 64k",
        "read 960k 128k",
        "write -P 9 2044k 8k",
        "write -P 9 3m 1m",
        "read -P 9 3m 1m",
        "write -z 3m 512k",
        "read -P 0 3m 512k",
        "read -P 9 3584k 512k",
        "discard 3584k 256k",
        "flush",
    ];
    let uri = served.uri();
    let mut args = vec!["-f", "raw", "-t", "none"];
    script.iter().for_each(|command| args.extend(["-c", command]));
    args.push(&uri);
    let (_, stdout, stderr) = run_any(&qemu_io, &args).await;
    let said = format!("{stdout}{stderr}");
    assert_eq!(said.matches("read failed: Input/output error").count(), 1, "{said}");
    assert_eq!(said.matches("write failed: No space left on device").count(), 1, "{said}");
    assert!(!said.contains("Pattern verification failed"), "{said}");
    for done in ["wrote 1048576/1048576 bytes at offset 3145728", "discard 262144/262144"] {
        assert!(said.contains(done), "no {done} in {said}");
    }
    let data = served.export.state.lock().data.clone();
    assert!(data[2044 * 1024..2052 * 1024].iter().all(|byte| *byte == 0), "failed write left data");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fua_and_flush_reach_the_export_in_order() {
    let test = "fua_and_flush_reach_the_export_in_order";
    let Some(qemu_io) = program(test, "qemu-io") else { return };
    let served = Served::new(MemoryExport::new(MIB)).await;
    let uri = served.uri();
    let mut args = vec!["-f", "raw", "-t", "none"];
    let script = [
        "write 0 4k",
        "write -f 4k 4k",
        "aio_write 8k 4k",
        "aio_flush",
        "flush",
        "write -zf 16k 4k",
    ];
    script.iter().for_each(|command| args.extend(["-c", command]));
    args.push(&uri);
    run(&qemu_io, &args).await;
    let events = served.export.events();
    let at = |wanted: Event| events.iter().position(|event| *event == wanted);
    let write = |offset, fua| Event::WriteBegin { offset, len: 4096, fua };
    assert!(at(write(0, false)).is_some(), "{events:?}");
    assert!(at(write(4096, true)).is_some(), "{events:?}");
    // `aio_flush` of qemu-io waits for the write; then comes the flush.
    let written = at(Event::WriteEnd { offset: 8192 }).expect("written");
    let flushed = at(Event::FlushBegin).expect("flushed");
    assert!(written < flushed, "{events:?}");
    let zeroed = events
        .iter()
        .any(|event| matches!(event, Event::Zeroes { offset: 16384, len: 4096, how } if how.fua));
    assert!(zeroed, "{events:?}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_copies_both_ways_over_several_connections() {
    let test = "nbdcopy_copies_both_ways_over_several_connections";
    let Some(nbdcopy) = program(test, "nbdcopy") else { return };
    let delay = Duration::from_micros(300);
    let served = Served::new(MemoryExport::new(32 * MIB).delayed(delay)).await;
    let image = sparse_image(32 * MIB);
    let file = served.dir.path().join("image.raw");
    let back = served.dir.path().join("back.raw");
    std::fs::write(&file, &image).unwrap();
    let (file, uri) = (file.to_str().unwrap(), served.uri());
    let many = ["--connections=4", "--requests=32", "--request-size=65536"];
    run(&nbdcopy, &[&many[..], &["--flush", file, &uri]].concat()).await;
    assert!(served.export.state.lock().data == image, "the export is not the image");
    assert!(served.export.events().contains(&Event::FlushEnd));
    // Only what is data is read: nbdcopy asks for block status first.
    served.export.state.lock().events.clear();
    let data_pages = served.export.state.lock().allocated.len();
    run(&nbdcopy, &[&many[..], &[&uri, back.to_str().unwrap()]].concat()).await;
    assert!(std::fs::read(&back).unwrap() == image, "what came back is not the image");
    let read: usize = served.export.events().iter().map(read_bytes).sum();
    assert!(read <= data_pages * PAGE + MIB, "{read} bytes read of {data_pages} pages of data");
    served.stop().await;
}

fn read_bytes(event: &Event) -> usize {
    if let Event::Read { len, .. } = event { *len as usize } else { 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_verifies_what_it_wrote() {
    let Some(fio) = program("fio_verifies_what_it_wrote", "fio") else { return };
    if !run(&fio, &["--enghelp"]).await.contains("nbd") {
        return skip("fio_verifies_what_it_wrote", "fio has no nbd engine");
    }
    let served = Served::new(MemoryExport::new(16 * MIB)).await;
    for extra in [&["--bs=4k"][..], &["--bsrange=512-256k", "--bs_unaligned=0"]] {
        let uri = format!("--uri={}", served.uri());
        let mut args = vec!["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite"];
        args.extend(["--iodepth=32", "--size=16m", "--verify=crc32c", "--verify_fatal=1"]);
        args.extend(["--fsync=64", "--do_verify=1", "--output-format=terse"]);
        args.extend(extra);
        run(&fio, &args).await;
    }
    let events = served.export.events();
    assert!(events.contains(&Event::FlushEnd));
    let lens: BTreeSet<u32> = events.iter().filter_map(written_bytes).collect();
    assert!(lens.len() > 10, "lengths written: {lens:?}");
    served.stop().await;
}

fn written_bytes(event: &Event) -> Option<u32> {
    if let Event::WriteBegin { len, .. } = event { Some(*len) } else { None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdkit_passes_the_export_on() {
    let test = "nbdkit_passes_the_export_on";
    let Some(nbdkit) = program(test, "nbdkit") else { return };
    let Some(nbdcopy) = program(test, "nbdcopy") else { return };
    if !run_any(&nbdkit, &["nbd", "--dump-plugin"]).await.0 {
        return skip(test, "nbdkit has no nbd plugin");
    }
    let served = Served::new(MemoryExport::new(8 * MIB)).await;
    let image = sparse_image(8 * MIB);
    let file = served.dir.path().join("image.raw");
    std::fs::write(&file, &image).unwrap();
    let front = served.dir.path().join("front.sock");
    let upstream = format!("uri={}", served.uri());
    let mut proxy = tokio::process::Command::new(nbdkit)
        .args(["-f", "--exit-with-parent", "-U", front.to_str().unwrap(), "nbd", &upstream])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    until("nbdkit listens", || front.exists()).await;
    let uri = format!("nbd+unix:///?socket={}", front.display());
    run(&nbdcopy, &["--flush", file.to_str().unwrap(), &uri]).await;
    assert!(served.export.state.lock().data == image, "the export is not the image");
    proxy.kill().await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdfuse_makes_a_file_of_the_export() {
    let test = "nbdfuse_makes_a_file_of_the_export";
    let Some(nbdfuse) = program(test, "nbdfuse") else { return };
    if !Path::new("/dev/fuse").exists() || !nix::unistd::geteuid().is_root() {
        return skip(test, "needs root and /dev/fuse");
    }
    let served = Served::new(MemoryExport::new(8 * MIB)).await;
    let mount = served.dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let file = mount.join("nbd");
    let mut child = tokio::process::Command::new(nbdfuse)
        .args([file.to_str().unwrap(), &served.uri()])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    until("nbdfuse mounts", || file.exists()).await;
    let image = sparse_image(8 * MIB);
    let (path, written) = (file.clone(), image.clone());
    let read = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        file.write_all_at(&written, 0).unwrap();
        file.sync_all().unwrap();
        let mut read = vec![0; written.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        read
    });
    let read = read.await.unwrap();
    nix::mount::umount(&mount).unwrap();
    assert!(child.wait().await.unwrap().success());
    assert!(read == image, "the file is not what was written");
    assert!(served.export.state.lock().data == image, "the export is not the image");
    assert!(served.export.events().contains(&Event::FlushEnd));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdsh_speaks_every_command() {
    if program("nbdsh_speaks_every_command", "nbdsh").is_none() {
        return;
    }
    let served = Served::new(MemoryExport::new(8 * MIB)).await;
    let script = r"
h.pwrite(b'a' * 4096, 0, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 0) == b'a' * 4096 + b'\0' * 4096
whole = []
each = lambda buf, off, s, err: whole.append((off, len(buf), s))
h.pread_structured(8192, 0, each, nbd.CMD_FLAG_DF)
assert whole == [(0, 8192, nbd.READ_DATA)], whole
chunks = []
h.pread_structured(12288, 0, lambda buf, off, s, err: chunks.append((off, len(buf), s)))
assert chunks == [(0, 4096, nbd.READ_DATA), (4096, 8192, nbd.READ_HOLE)], chunks
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 0)
extents = []
h.block_status(12288, 0, lambda ctx, off, entries, err: extents.append(entries))
assert extents == [[4096, 3, 4096, 0, 4096, 3]], extents
h.flush()
";
    // The system's nbdsh goes with the system's Python, whatever else is first in PATH.
    let uri = served.uri();
    let args = ["PATH=/usr/bin:/bin", "nbdsh", "--base-allocation", "-u", &uri, "-c", script];
    run("/usr/bin/env".as_ref(), &args).await;
    served.stop().await;
}
