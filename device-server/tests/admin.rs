//! Administration: freeze and melt, log reset, resize, and all of it through the control service.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use block_io::device::Operation;
use block_io::sim::{Fault, Gate, When};
use common::state_dir::{Files, StateDir};
use common::{Bench, bench, payload, quiet, read, reopen};
use device_server::{ControlService, Served, Volume, VolumeError};
use proto::v1;
use proto::v1::device_control_client::DeviceControlClient;
use server_kit::durable::DurableDir;
use server_kit::error::{Reason, RoleError};
use server_kit::net::{Connector, Endpoint, Listener, RealConnector};
use server_kit::shutdown::Shutdown;
use tonic::service::Routes;
use tonic::transport::Channel;
use wlog_format::superblock::SuperBlock;
use wlog_format::units::{BlockSize, Lb, Lsid};

async fn usual() -> Bench {
    bench(400 << 10, 1 << 20, quiet()).await
}

fn spawn_write(bench: &Bench, stamp: u32) -> tokio::task::JoinHandle<Result<(), VolumeError>> {
    let volume = Arc::clone(&bench.volume);
    tokio::spawn(async move { volume.write(0, payload(stamp, 0, 8), false).await })
}

#[tokio::test(start_paused = true)]
async fn a_frozen_volume_reads_and_its_writes_wait_for_the_melt() {
    let bench = usual().await;
    bench.volume.write(0, payload(1, 0, 8), false).await.unwrap();
    let ticket = bench.volume.freeze().await.unwrap();
    let positions = bench.volume.status().positions;
    assert_eq!(positions.permanent, positions.latest, "everything acknowledged is permanent");
    let write = spawn_write(&bench, 2);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!write.is_finished());
    assert_eq!(read(&bench.volume, 0, 4096).await, payload(1, 0, 8));
    bench.volume.flush().await.unwrap();
    bench.volume.take_checkpoint().await.unwrap();
    assert_eq!(bench.volume.status().positions.latest, positions.latest);
    assert!(matches!(bench.volume.freeze().await, Err(VolumeError::Frozen)));
    assert!(matches!(bench.volume.reset_log().await, Err(VolumeError::Frozen)));
    bench.volume.melt_ticket(ticket);
    write.await.unwrap().unwrap();
    assert_eq!(read(&bench.volume, 0, 4096).await, payload(2, 0, 8));
}

#[tokio::test]
async fn freeze_waits_for_log_writes_in_flight() {
    let bench = usual().await;
    let gate = Gate::new();
    bench.log.inject(Operation::Write, When::Nth(0), Fault::Hang(gate.clone()));
    let before = bench.log.calls(Operation::Write);
    let write = spawn_write(&bench, 1);
    while bench.log.calls(Operation::Write) == before {
        tokio::task::yield_now().await;
    }
    let volume = Arc::clone(&bench.volume);
    let freeze = tokio::spawn(async move { volume.freeze().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!freeze.is_finished());
    gate.open();
    freeze.await.unwrap().unwrap();
    assert_eq!(bench.volume.status().positions.permanent, Lsid(9));
    write.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_starts_a_new_log_and_loses_no_write() {
    let bench = usual().await;
    let before = bench.volume.status();
    for stamp in 0..20 {
        bench.volume.write(0, payload(stamp, 0, 8), false).await.unwrap();
    }
    bench.volume.reset_log().await.unwrap();
    let after = bench.volume.status();
    assert_ne!(after.uuid, before.uuid);
    assert_ne!(after.salt, before.salt);
    assert_eq!(after.positions.latest, Lsid(0));
    assert_eq!(
        bench.data.image()[..4096],
        payload(19, 0, 8),
        "the backlog went to the data device"
    );
    let super_block = SuperBlock::decode(&bench.log.image()[4096..]).unwrap();
    assert_eq!((super_block.uuid, super_block.salt), (after.uuid, after.salt));
    assert_eq!((super_block.oldest, super_block.written), (Lsid(0), Lsid(0)));
    bench.volume.write(4096, payload(50, 8, 8), true).await.unwrap();
    let bench = reopen(bench.log.image(), bench.data.image(), quiet()).await;
    assert_eq!(read(&bench.volume, 0, 4096).await, payload(19, 0, 8));
    assert_eq!(read(&bench.volume, 4096, 4096).await, payload(50, 8, 8));
}

/// Writes that were queued, checksum and all, before the reset are logged with the new salt.
#[tokio::test]
async fn writes_go_on_across_resets() {
    let bench = usual().await;
    for round in 0..30 {
        let writes: Vec<_> = (0..8).map(|n| spawn_write(&bench, round * 8 + n)).collect();
        bench.volume.reset_log().await.unwrap();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        bench.volume.flush().await.unwrap();
        let again = reopen(bench.log.image(), bench.data.image(), quiet()).await;
        let expected = read(&bench.volume, 0, 4096).await;
        assert_eq!(read(&again.volume, 0, 4096).await, expected, "the log is sound");
    }
}

/// A client that vanishes must leave no super block half-way, on the device or in memory.
#[tokio::test]
async fn a_reset_whose_caller_goes_away_is_done_to_the_end() {
    let bench = usual().await;
    bench.volume.write(0, payload(1, 0, 8), true).await.unwrap();
    bench.volume.take_checkpoint().await.unwrap();
    let before = bench.volume.status();
    let gate = Gate::new();
    let calls = bench.log.calls(Operation::Write);
    bench.log.inject(Operation::Write, When::Nth(0), Fault::Hang(gate.clone()));
    let volume = Arc::clone(&bench.volume);
    let reset = tokio::spawn(async move { volume.reset_log().await });
    while bench.log.calls(Operation::Write) == calls {
        tokio::task::yield_now().await;
    }
    reset.abort();
    assert!(reset.await.unwrap_err().is_cancelled());
    let write = spawn_write(&bench, 2);
    gate.open();
    write.await.unwrap().unwrap();
    bench.volume.flush().await.unwrap();
    let after = bench.volume.status();
    assert_ne!(after.uuid, before.uuid);
    let again = reopen(bench.log.image(), bench.data.image(), quiet()).await;
    assert_eq!(again.volume.status().uuid, after.uuid);
    assert_eq!(read(&again.volume, 0, 4096).await, payload(2, 0, 8));
}

#[tokio::test]
async fn a_freeze_whose_client_goes_away_ends_with_its_timeout() {
    let bench = usual().await;
    let mut service = serve(&[("v", &bench)]).await;
    let gate = Gate::new();
    let calls = bench.log.calls(Operation::Write);
    bench.log.inject(Operation::Write, When::Nth(0), Fault::Hang(gate.clone()));
    let write = spawn_write(&bench, 1);
    while bench.log.calls(Operation::Write) == calls {
        tokio::task::yield_now().await;
    }
    let request = v1::FreezeRequest { volumes: vec!["v".to_owned()], timeout_ms: 50 };
    let mut watch = bench.volume.watch();
    let freeze = async {
        let _ = service.client.freeze(request).await;
    };
    tokio::select! {
        () = freeze => panic!("it cannot be frozen while a log write hangs"),
        () = async { while !bench.volume.status().frozen { tokio::task::yield_now().await } } => {}
    }
    gate.open();
    write.await.unwrap().unwrap();
    let melted = watch.wait_for(|status| !status.frozen && status.positions.permanent.0 > 0);
    tokio::time::timeout(Duration::from_secs(5), melted).await.unwrap().unwrap();
    bench.volume.write(0, payload(2, 0, 8), false).await.unwrap();
}

#[tokio::test]
async fn a_reset_takes_a_larger_log_device_into_use() {
    let bench = usual().await;
    let before = bench.volume.status().ring.size();
    bench.log.grow(800 << 10);
    bench.volume.reset_log().await.unwrap();
    assert_eq!(bench.volume.status().ring.size().0, before.0 + 800);
    for stamp in 0..200 {
        bench.volume.write(0, payload(stamp, 0, 8), false).await.unwrap();
    }
}

#[tokio::test]
async fn a_volume_grows_with_its_data_device_and_never_shrinks() {
    let bench = usual().await;
    let size = Lb::from_bytes(1 << 20);
    assert!(bench.volume.resize(Lb(size.0 + 8)).await.is_err(), "the data device is too small");
    assert!(bench.volume.resize(Lb(size.0 - 8)).await.is_err());
    bench.data.grow(2 << 20);
    assert_eq!(bench.volume.size_bytes(), 1 << 20);
    bench.volume.resize(Lb(size.0 + 8)).await.unwrap();
    assert_eq!(bench.volume.size_bytes(), (1 << 20) + 4096);
    bench.volume.resize(Lb(0)).await.unwrap();
    assert_eq!(bench.volume.size_bytes(), 2 << 20);
    let end = (2 << 20) / 512 - 8;
    bench.volume.write(end * 512, payload(1, end, 8), true).await.unwrap();
    let bench = reopen(bench.log.image(), bench.data.image(), quiet()).await;
    assert_eq!(bench.volume.size_bytes(), 2 << 20, "it is durable");
    assert_eq!(read(&bench.volume, end * 512, 4096).await, payload(1, end, 8));
}

#[tokio::test]
async fn log_and_data_device_must_belong_together() {
    let bench = usual().await;
    let open = |log: Vec<u8>, data: Vec<u8>, sector: u32| async move {
        let log = block_io::sim::SimDisk::from_image("log", log, sector);
        let data = block_io::sim::SimDisk::from_image("data", data, sector);
        let opened = device_server::Volume::open("v", log.clone(), data, quiet()).await;
        (opened.map(|_| ()).map_err(|error| error.to_string()), log.calls(Operation::Write))
    };
    let (log, data) = (bench.log.image(), bench.data.image());
    for (log, data, sector, why) in [
        (vec![0; 1 << 20], data.clone(), 512, "walb ldev format --log sim:log --data sim:data"),
        (log.clone(), vec![0; 512 << 10], 512, "the data device has 524288"),
        (log[..200 << 10].to_vec(), data.clone(), 512, "cut short"),
        (log.clone(), data.clone(), 4096, "--block-size 4096"),
    ] {
        let (opened, writes) = open(log, data, sector).await;
        let message = opened.unwrap_err();
        assert!(message.contains(why), "{message}");
        assert_eq!(writes, 0, "nothing was changed");
    }
}

/// A data device with content is taken as it is.
#[tokio::test]
async fn an_existing_data_device_is_adopted() {
    let content = payload(9, 0, 2048).to_vec();
    let (log, _) = common::formatted(400 << 10, 1 << 20, BlockSize::B4096).await;
    let bench = reopen(log, content.clone(), quiet()).await;
    assert_eq!(read(&bench.volume, 0, 1 << 20).await, content);
    bench.volume.write(512, payload(10, 1, 3), true).await.unwrap();
    bench.volume.close().await.unwrap();
    let expected = [&content[..512], &payload(10, 1, 3), &content[2048..]].concat();
    assert_eq!(bench.data.image(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_idle_volume_costs_nothing() {
    let options = device_server::VolumeOptions::default();
    let bench = bench(400 << 10, 1 << 20, options).await;
    bench.volume.write(0, payload(1, 0, 8), false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let positions = bench.volume.status().positions;
    assert_eq!(
        positions.prev_written, positions.latest,
        "flushed, written, checkpointed by itself"
    );
    let io = || {
        let of = |disk: &block_io::sim::SimDisk| {
            [Operation::Read, Operation::Write, Operation::Flush].map(|kind| disk.calls(kind))
        };
        (of(&bench.log), of(&bench.data))
    };
    let before = io();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(io(), before);
}

struct Service {
    client: DeviceControlClient<Channel>,
    shutdown: Shutdown,
    server: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

async fn serve(benches: &[(&str, &Bench)]) -> Service {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::Unix(dir.path().join("control.sock"));
    let listener = Listener::bind(&endpoint, false).await.unwrap();
    let served = |bench: &Bench| Served {
        volume: Arc::clone(&bench.volume),
        frontends: vec!["nbd://somewhere".to_owned()],
    };
    let volumes: BTreeMap<_, _> =
        benches.iter().map(|(name, bench)| ((*name).to_owned(), served(bench))).collect();
    let shutdown = Shutdown::new();
    let service = ControlService::server(volumes, shutdown.clone());
    let stop = shutdown.clone();
    let server = tokio::spawn(async move {
        server_kit::net::serve(listener, Routes::new(service), &stop).await.unwrap();
    });
    let client = DeviceControlClient::new(RealConnector.channel(&endpoint));
    Service { client, shutdown, server, _dir: dir }
}

fn volume(name: &str) -> v1::VolumeRef {
    v1::VolumeRef { volume: name.to_owned() }
}

fn reason(status: &tonic::Status) -> Reason {
    RoleError::from_status("device", status).reason()
}

#[tokio::test]
async fn the_control_service_tells_and_does() {
    let bench = usual().await;
    let mut service = serve(&[("v", &bench)]).await;
    bench.volume.write(0, payload(1, 0, 8), false).await.unwrap();
    let client = &mut service.client;
    let positions = client.take_checkpoint(volume("v")).await.unwrap().into_inner();
    assert_eq!((positions.prev_written, positions.permanent, positions.latest), (9, 9, 9));
    let listed = client.list(v1::Empty {}).await.unwrap().into_inner().volumes;
    let told = client.get(volume("v")).await.unwrap().into_inner();
    assert_eq!(listed, std::slice::from_ref(&told));
    let status = bench.volume.status();
    assert_eq!((told.size_lb, told.physical_block_bytes), (2048, 512));
    assert_eq!((told.log_uuid.as_ref(), told.salt), (&status.uuid.0[..], status.salt.0));
    assert_eq!((told.log_path.as_str(), told.data_path.as_str()), ("sim:log", "sim:data"));
    assert_eq!(told.frontends, ["nbd://somewhere"]);
    let set = |oldest| v1::SetOldestRequest { volume: "v".to_owned(), oldest };
    let refused = client.set_oldest(set(3)).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::BadRequest);
    assert_eq!(client.set_oldest(set(9)).await.unwrap().into_inner().oldest, 9);
    let after = client.reset_log(volume("v")).await.unwrap().into_inner();
    assert_ne!(after.log_uuid, told.log_uuid);
    bench.data.grow(2 << 20);
    let resize = |size_lb| v1::ResizeRequest { volume: "v".to_owned(), size_lb };
    assert_eq!(client.resize(resize(0)).await.unwrap().into_inner().size_lb, 4096);
    let refused = client.resize(resize(1)).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::WrongSize);
    let unknown = client.get(volume("w")).await.unwrap_err();
    assert_eq!(reason(&unknown), Reason::UnknownVolume);
    assert!(unknown.message().contains('w'));
}

#[tokio::test]
async fn regions_and_the_replacing_of_the_content_are_told_and_refused() {
    let kept = {
        let dir: Arc<dyn DurableDir> = StateDir::new(&Files::new(), None);
        let Bench { log, data, .. } = usual().await;
        let opened = Volume::open_with_state("v", log.clone(), data.clone(), quiet(), Some(dir));
        Bench { log, data, volume: Arc::new(opened.await.unwrap().0) }
    };
    let plain = usual().await;
    let mut service = serve(&[("v", &kept), ("plain", &plain)]).await;
    let mut events = service.client.watch(volume("v")).await.unwrap().into_inner();
    let client = &mut service.client;
    let asked = |volume: &str, log: &[u8], since_lsid| v1::RegionsRequest {
        volume: volume.to_owned(),
        log_uuid: log.to_vec().into(),
        since_lsid,
    };
    let log = kept.volume.status().uuid.0;
    kept.volume.write(64 << 10, payload(1, 128, 8), false).await.unwrap();
    let reply = client.list_regions(asked("v", &log, 0)).await.unwrap().into_inner();
    let range = v1::ByteRange { begin: 64 << 10, end: 128 << 10 };
    assert_eq!((reply.known, reply.region_bytes), (true, 64 << 10));
    assert_eq!(reply.ranges, [range]);
    let reply = client.list_regions(asked("v", &[1; 16], 0)).await.unwrap().into_inner();
    assert!(!reply.known && reply.ranges.is_empty() && reply.why_unknown.contains("0101"));
    let reply = client.list_regions(asked("plain", &log, 0)).await.unwrap().into_inner();
    assert!(!reply.known && reply.why_unknown.contains("--state-dir"));
    let refused = client.list_regions(asked("v", &[1; 15], 0)).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::BadRequest);

    let refused = client.begin_overwrite(volume("plain")).await.unwrap_err();
    assert!(RoleError::from_status("d", &refused).detail().next_step.contains("--state-dir"));
    let refused = client.end_overwrite(volume("v")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::WrongState);
    assert!(client.begin_overwrite(volume("v")).await.unwrap().into_inner().overwriting);
    while !events.message().await.unwrap().unwrap().overwriting {}
    let told = client.end_overwrite(volume("v")).await.unwrap().into_inner();
    assert!(!told.overwriting && told.log_uuid != log.to_vec());
    loop {
        let event = events.message().await.unwrap().unwrap();
        if !event.overwriting {
            assert_eq!(event.log_uuid, told.log_uuid);
            break;
        }
    }
}

#[tokio::test]
async fn a_watch_shows_what_changes_and_ends_with_the_server() {
    let bench = usual().await;
    let mut service = serve(&[("v", &bench)]).await;
    let mut events = service.client.watch(volume("v")).await.unwrap().into_inner();
    let first = events.message().await.unwrap().unwrap();
    assert_eq!(first.positions.unwrap().permanent, 0);
    for stamp in 0..50 {
        bench.volume.write(0, payload(stamp, 0, 8), true).await.unwrap();
    }
    let permanent = loop {
        let event = events.message().await.unwrap().unwrap();
        let permanent = event.positions.unwrap().permanent;
        if permanent == 450 {
            break permanent;
        }
    };
    assert_eq!(permanent, 450);
    bench.volume.reset_log().await.unwrap();
    loop {
        let event = events.message().await.unwrap().unwrap();
        if event.log_uuid != first.log_uuid {
            assert_eq!(event.positions.unwrap().latest, 0);
            break;
        }
    }
    service.shutdown.request(v1::StopMode::Graceful);
    while events.message().await.is_ok_and(|event| event.is_some()) {}
    tokio::time::timeout(Duration::from_secs(5), service.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_group_is_frozen_together_or_not_at_all_and_melts_by_itself() {
    let (a, b) = (usual().await, usual().await);
    let mut service = serve(&[("a", &a), ("b", &b)]).await;
    let freeze = |names: &[&str], timeout_ms| v1::FreezeRequest {
        volumes: names.iter().map(|name| (*name).to_owned()).collect(),
        timeout_ms,
    };
    let client = &mut service.client;
    let refused = client.freeze(freeze(&["a", "nobody"], 0)).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::UnknownVolume);
    assert!(!a.volume.status().frozen);
    client.freeze(freeze(&["b"], 0)).await.unwrap();
    let refused = client.freeze(freeze(&["a", "b"], 0)).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::WrongState);
    assert!(!a.volume.status().frozen && b.volume.status().frozen);
    client.melt(v1::MeltRequest { volumes: vec!["b".to_owned()] }).await.unwrap();
    client.freeze(freeze(&["b", "a", "b"], 50)).await.unwrap();
    assert!(a.volume.status().frozen && b.volume.status().frozen);
    for bench in [&a, &b] {
        let mut watch = bench.volume.watch();
        let melted = watch.wait_for(|status| !status.frozen);
        tokio::time::timeout(Duration::from_secs(5), melted).await.unwrap().unwrap();
    }
    assert_eq!(reason(&client.freeze(freeze(&[], 0)).await.unwrap_err()), Reason::BadRequest);
}

/// A device that tells at most so many extents at a time, and a map of pending writes with many
/// pieces: what is told is in order, from the start on, and not too much.
#[tokio::test]
async fn extents_stay_in_their_places_and_are_not_too_many() {
    let bench = bench(4 << 20, 2 << 20, quiet()).await;
    for sector in (0..4096).step_by(2) {
        bench.volume.trim(sector * 512, 512, false).await.unwrap();
    }
    let extents = bench.volume.extents(0, 2 << 20).await.unwrap();
    assert_eq!(extents.len(), block_io::device::MAX_EXTENTS);
    for (index, extent) in extents.iter().enumerate() {
        assert_eq!((extent.len, extent.hole), (512, index % 2 == 0), "extent {index}");
    }
}
