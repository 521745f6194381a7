//! Lost and damaged logs: they are seen, said, remembered, and never shipped as if they were whole.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::os::unix::fs::FileExt;

use block_io::OpenOptions;
use common::{Behaviour, Cluster, StorageOptions, VOLUME, eventually};
use proto::v1::device_control_client::DeviceControlClient;
use proto::v1::{GapCause, Reason, StorageMode, VolumeRef};
use server_kit::error::RoleError;
use server_kit::net::{Connector, Endpoint, RealConnector};
use tonic::Status;
use wlog_format::superblock::SuperBlock;
use wlog_format::units::Lsid;

fn reason(status: &Status) -> Reason {
    RoleError::from_status("s0", status).reason()
}

#[tokio::test]
async fn an_overflow_stops_the_target_and_is_remembered_until_a_backup_heals_it() {
    let mut cluster = Cluster::target(4, StorageOptions::default()).await;
    cluster.check_restorable().await;
    let shipped = cluster.wire.stored().len();
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Refuse));
    cluster.device.fill(8 << 20).await;
    cluster.storage.wait_state("Stopped").await;
    for restart in [false, true] {
        if restart {
            cluster.restart_storage().await;
        }
        let view = cluster.storage.get(VOLUME).await;
        assert_eq!((view.state.as_str(), view.overflow), ("Stopped", true));
        assert!(view.gap_since_s > 0);
        assert!(view.error.contains("overflowed"), "{}", view.error);
        assert!(view.error.contains("walbc hash-backup S vol"), "what heals it: {}", view.error);
        assert_eq!(view.gap_cause(), GapCause::Overflow);
        let refused = cluster.storage.snapshot(VOLUME).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::Overflow, "no snapshot across a gap");
        let refused = cluster.storage.start_volume(VOLUME, StorageMode::Target).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::Overflow);
    }
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Accept));
    assert_eq!(cluster.wire.stored().len(), shipped, "nothing was shipped after the loss");
    let reset = proto::v1::ResetStorageRequest { volume: VOLUME.into(), gid: 0 };
    cluster.storage.client().reset(reset).await.unwrap();
    assert!(cluster.storage.get(VOLUME).await.gap_since_s > 0, "a reset heals nothing");
    cluster.storage.full_backup(VOLUME).await.unwrap();
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.gap_since_s, view.error.as_str(), view.overflow), (0, "", false));
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_log_that_somebody_else_resets_is_a_gap() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.check_restorable().await;
    let socket = cluster.dir.path().join("device.sock");
    let mut control = DeviceControlClient::new(RealConnector.channel(&Endpoint::Unix(socket)));
    control.reset_log(VolumeRef { volume: "vol".into() }).await.unwrap();
    cluster.device.scribble(5).await;
    cluster.storage.wait_state("Stopped").await;
    let view = cluster.storage.get(VOLUME).await;
    assert!(view.error.contains("reset by somebody else"), "{}", view.error);
    assert!(view.gap_since_s > 0);
    assert_eq!(view.gap_cause(), GapCause::LogReset);
}

/// Overwrites bytes of the log device behind everybody's back.
async fn damage(cluster: &Cluster, lsid: u64, byte: u64) -> u64 {
    let path = cluster.device.log_path();
    let log = block_io::open(&path, OpenOptions::read_only()).unwrap();
    let block = log.read(4096, 4096).await.unwrap();
    let ring = SuperBlock::decode(&block).unwrap().ring(log.size_bytes()).unwrap();
    let offset = ring.byte_offset(Lsid(lsid)) + byte;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut old = [0; 4];
    file.read_exact_at(&mut old, offset).unwrap();
    file.write_all_at(&old.map(|b| !b), offset).unwrap();
    file.sync_all().unwrap();
    ring.byte_offset(Lsid(lsid))
}

async fn damaged_log_is_not_shipped(byte_of_second_block: bool) {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.check_restorable().await;
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Refuse));
    let begin = cluster.storage.get(VOLUME).await.latest_lsid;
    cluster.device.write(0, vec![1; 4096]).await;
    cluster.device.volume().flush().await.unwrap();
    let second = cluster.storage.get(VOLUME).await.latest_lsid;
    assert_eq!(second, begin + 2, "a header and a block");
    cluster.device.write(8192, vec![2; 4096]).await;
    cluster.device.volume().flush().await.unwrap();
    let offset = damage(&cluster, second + u64::from(byte_of_second_block), 100).await;
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Accept));
    cluster.storage.client().kick(proto::v1::KickStorageRequest::default()).await.unwrap();
    let error = eventually("the damage is seen", || async {
        let error = cluster.storage.get(VOLUME).await.error;
        error.contains("lsid").then_some(error)
    })
    .await;
    let log = cluster.device.log_path().display().to_string();
    for part in ["volume vol", &format!("lsid {second}"), &log] {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    if !byte_of_second_block {
        assert!(error.contains(&offset.to_string()), "{error}");
    }
    // What lies before it may have been shipped; whatever was sent of it has no end, so that no
    // proxy has stored it.
    assert!(cluster.wire.stored().iter().all(|s| s.end.end_lsid <= second));
    assert!(cluster.storage.get(VOLUME).await.done_lsid <= second);
    cluster.wire.assert_sound();
}

#[tokio::test]
async fn a_damaged_pack_header_is_an_error_that_names_volume_lsid_and_device() {
    damaged_log_is_not_shipped(false).await;
}

#[tokio::test]
async fn damaged_log_data_is_an_error_that_names_volume_lsid_and_device() {
    damaged_log_is_not_shipped(true).await;
}
