//! The program itself: configuration file, signals, exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]
mod common;
use common::archive::Archive;
use common::log::Device;
use common::{Place, soon, until};
use proto::v1::host_client::HostClient;
use proto::v1::proxy_client::ProxyClient;
use proto::v1::{ArchiveInfoRequest, Empty, VolumeRef};
use server_kit::net::{Connector, RealConnector};
use std::process::{Child, Command, Output, Stdio};

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walb-proxy"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Kills the program when a test fails half-way.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    async fn exit_code(&mut self) -> Option<i32> {
        until("the end of the program", || {
            let ended = self.0.try_wait().unwrap().is_some();
            async move { ended }
        })
        .await;
        self.0.wait().unwrap().code()
    }
}

fn configuration(place: &Place) -> String {
    let path = place.socket("p0").to_string().replace("unix:", "") + ".toml";
    let text = format!(
        "base = {:?}\nlisten = {:?}\nid = 'p0'\ninsecure = false\nlog_json = true\n\
         stopped = false\nmax_merge_size = '64M'\nmax_merge_files = 10\nretry_min = '20ms'\n\
         retry_max = '1s'\ngive_up_after = '1h'\nmax_receiving = 3\nmax_sending = 2\n\
         threads = 1\nkeep_free = '1M'\n",
        place.base(),
        place.socket("p0").to_string(),
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn it_serves_from_a_configuration_file_survives_sigkill_and_ends_on_sigterm() {
    let place = Place::new();
    let config = configuration(&place);
    let (archive, mut device) = (Archive::start(&place.socket("a0")).await, Device::new());
    let channel = RealConnector.channel(&place.socket("p0"));
    let mut client = ProxyClient::new(channel.clone());
    for signal in ["-KILL", "-TERM"] {
        let child = program(&["serve", "--config", &config]).stderr(Stdio::null()).spawn();
        let mut running = Running(child.unwrap());
        let mut host = HostClient::new(channel.clone());
        let up = async { while host.info(Empty {}).await.is_err() {} };
        soon("the service", up).await;
        if signal == "-KILL" {
            let info = Some(common::info("a0", &place.socket("a0")));
            let request = ArchiveInfoRequest { volume: "v0".into(), info };
            client.add_archive(request).await.unwrap();
            client.start(VolumeRef { volume: "v0".into() }).await.unwrap();
        }
        let ios = device.random_ios(10, 64);
        let messages = device.write(&ios).messages();
        client.wlog_transfer(tokio_stream::iter(messages)).await.unwrap();
        running.signal(signal);
        let expected = (signal == "-TERM").then_some(0);
        assert_eq!(running.exit_code().await, expected, "{signal}");
    }
    let sent = !archive.stored().is_empty();
    assert!(sent || !place.staged("a0").is_empty(), "nothing that was acknowledged is lost");
}

fn ended(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = program(args).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn mistakes_are_said_with_their_exit_code() {
    let place = Place::new();
    let (base, listen) = (place.base().display().to_string(), place.socket("p0").to_string());
    let (code, text) = ended(&["serve", "--base", &base, "--listen", &listen]);
    assert_eq!(code, Some(2));
    assert!(text.contains("id is missing: give --id"), "{text}");
    let (code, text) = ended(&["serve", "--base", &base, "--id", "p0", "--listen", "0.0.0.0:0"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("--insecure"), "{text}");
    let (code, _) = ended(&["serve", "--max-merge-size", "many"]);
    assert_eq!(code, Some(2));
    let (code, text) = ended(&["serve", "--config", "/nonexistent/walb.toml"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("/nonexistent/walb.toml"), "{text}");
    let file = place.socket("x").to_string().replace("unix:", "");
    std::fs::write(&file, "bse = 'x'\n").unwrap();
    let (code, text) = ended(&["serve", "--config", &file]);
    assert_eq!(code, Some(2));
    assert!(text.contains("bse"), "{text}");
}
