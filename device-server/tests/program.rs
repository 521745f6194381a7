//! The real program in trouble: a volume that cannot be opened, a device that grows while it is
//! served, a restore to it that is killed.
//!
//! More than one thread, so that a client of the control service can hang up while a test waits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use block_io::nbd::Client;
use common::payload;
use common::role::{Loop, Role, command, file, run};
use device_server::format_ldev;
use proto::v1;
use proto::v1::device_control_client::DeviceControlClient;
use server_kit::error::{Reason, RoleError};
use server_kit::net::{Connector, Endpoint, RealConnector};
use tonic::transport::Channel;
use wlog_format::superblock::DeviceName;
use wlog_format::units::BlockSize;

fn control(role: &Role) -> DeviceControlClient<Channel> {
    DeviceControlClient::new(RealConnector.channel(&Endpoint::Unix(role.path("control"))))
}

fn volume(name: &str) -> v1::VolumeRef {
    v1::VolumeRef { volume: name.to_owned() }
}

fn said(role: &Role) -> String {
    std::fs::read_to_string(role.path("log.txt")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_cannot_be_opened_does_not_keep_the_others_from_service() {
    let bad = ["--volume", "bad=/nonexistent/data,/nonexistent/log"];
    let mut role = Role::start(8 << 20, 16 << 20, BlockSize::B512, &bad).await;
    let client = role.connect().await;
    client.write(0, payload(1, 0, 8), true).await.unwrap();
    let refused = Client::unix(role.path("nbd"), "bad").await.unwrap_err().to_string();
    assert!(refused.contains("/nonexistent/log"), "{refused}");
    let default = Client::unix(role.path("nbd"), "").await;
    assert!(default.is_err(), "with two volumes there is no default, whichever is broken");

    let mut control = control(&role);
    let listed = control.list(v1::Empty {}).await.unwrap().into_inner().volumes;
    let [good, broken] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((good.name.as_str(), good.failure.as_str()), ("v0", ""));
    assert_eq!((broken.name.as_str(), broken.data_path.as_str()), ("bad", "/nonexistent/data"));
    assert!(broken.failure.contains("restart the device role"), "{}", broken.failure);
    let error = RoleError::from_status("d", &control.get(volume("bad")).await.unwrap_err());
    assert_eq!(error.reason(), Reason::Io);
    assert!(error.message().contains("/nonexistent/log"), "{error}");
    assert!(error.detail().next_step.contains("restart"));

    let said = said(&role);
    let line = said.lines().find(|line| line.contains("/nonexistent/log")).expect("it is said");
    assert_eq!(line.matches("No such file or directory").count(), 1, "{line}");
    assert_eq!(line.matches("/nonexistent/log").count(), 1, "{line}");
    assert!(!line.contains("offset"), "{line}");
    drop(client);
    role.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn when_no_volume_can_be_opened_the_program_fails() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir.path().join("log"), 1 << 20);
    file(&dir.path().join("data"), 1 << 20);
    let bad = ["--volume".to_owned(), "bad=/nonexistent/data,/nonexistent/log".to_owned()];
    let output = command(dir.path(), &bad).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("walb ldev format") && said.contains("/nonexistent/log"), "{said}");
}

async fn grow(role: &Role, size: u64, enlarge: impl FnOnce()) {
    let before = role.connect().await;
    let small = before.size_bytes();
    let resize = |size_lb| v1::ResizeRequest { volume: "v0".to_owned(), size_lb };
    let mut control = control(role);
    let too_early = control.resize(resize(size / 512)).await.unwrap_err();
    assert_eq!(RoleError::from_status("d", &too_early).reason(), Reason::WrongSize);
    enlarge();
    let half = (small + size) / 2 / 4096 * 4096;
    let told = control.resize(resize(half / 512)).await.unwrap().into_inner();
    assert_eq!(told.size_lb * 512, half);
    assert_eq!(role.connect().await.size_bytes(), half);
    let told = control.resize(resize(0)).await.unwrap().into_inner();
    assert_eq!(told.size_lb * 512, size, "as large as the data device is now");
    let after = role.connect().await;
    assert_eq!(after.size_bytes(), size);
    let last = size - 4096;
    after.write(last, payload(1, last / 512, 8), true).await.unwrap();
    before.write(0, payload(2, 0, 8), true).await.unwrap();
    assert_eq!(after.read(last, 4096).await.unwrap(), payload(1, last / 512, 8));
    assert_eq!(after.read(0, 4096).await.unwrap(), payload(2, 0, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_on_a_file_grows_while_it_is_served() {
    let mut role = Role::start(8 << 20, 16 << 20, BlockSize::B4096, &[]).await;
    let data = role.path("data");
    let enlarge = || File::options().write(true).open(&data).unwrap().set_len(20 << 20).unwrap();
    grow(&role, 20 << 20, enlarge).await;
    role.kill();
    role.restart();
    let client = role.connect().await;
    assert_eq!(client.size_bytes(), 20 << 20);
    let last = (20 << 20) - 4096;
    assert_eq!(client.read(last, 4096).await.unwrap(), payload(1, last / 512, 8));
    drop(client);
    role.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_on_a_block_device_grows_while_it_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (log, image) = (dir.path().join("log"), dir.path().join("data.img"));
    file(&log, 8 << 20);
    file(&image, 16 << 20);
    let Some(data) = Loop::attach(&image, 512) else { return };
    format_ldev(&log, Path::new(&data.0), BlockSize::B4096, DeviceName::EMPTY).await.unwrap();
    std::os::unix::fs::symlink(&data.0, dir.path().join("data")).unwrap();
    let child = common::role::spawn(dir.path(), &[]);
    let mut role = Role { dir, child, flags: Vec::new() };
    let enlarge = || {
        File::options().write(true).open(&image).unwrap().set_len(24 << 20).unwrap();
        assert!(run("losetup", &["--set-capacity", &data.0]).unwrap().status.success());
    };
    grow(&role, 24 << 20, enlarge).await;
    role.stop();
}

/// A device role that is killed while a restore replaces the content does not serve the mixture.
#[tokio::test(flavor = "multi_thread")]
async fn half_replaced_content_is_not_served_after_a_kill() {
    let state = tempfile::tempdir().unwrap();
    let flags = ["--state-dir", state.path().to_str().unwrap()];
    let mut role = Role::start(8 << 20, 16 << 20, BlockSize::B512, &flags).await;
    let client = role.connect().await;
    client.write(0, payload(1, 0, 8), true).await.unwrap();
    control(&role).begin_overwrite(volume("v0")).await.unwrap();
    assert!(client.read(0, 4096).await.is_err());
    drop(client);
    role.kill();
    role.restart();
    let client = role.connect().await;
    assert!(client.read(0, 4096).await.is_err());
    assert!(client.write(0, payload(2, 0, 8), true).await.is_err());
    let told = control(&role).get(volume("v0")).await.unwrap().into_inner();
    assert!(told.overwriting);
    assert!(said(&role).contains("walb-device end-overwrite --control"), "it says the way out");
    let end = || {
        let mut end = Command::new(env!("CARGO_BIN_EXE_walb-device"));
        end.arg("end-overwrite").arg("--control").arg(role.path("control")).arg("v0");
        end.output().unwrap().status
    };
    assert!(end().success());
    assert!(!end().success(), "there is nothing to end any more");
    assert_eq!(client.read(0, 4096).await.unwrap(), payload(1, 0, 8));
    let after = control(&role).get(volume("v0")).await.unwrap().into_inner();
    assert_ne!(after.log_uuid, told.log_uuid);
    drop(client);
    role.stop();
}
