//! SIGKILL of the real program at random instants, again and again: what it acknowledged is there,
//! and every snapshot is what the device was.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::{Client, Device, VOLUME, same, until};
use proto::v1::{Empty, WdiffResult};
use server_kit::net::{Connector, Endpoint, RealConnector};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::watch;

struct Program(Child);

impl Program {
    fn start(base: &Path, socket: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walb-archive"));
        command.args(["serve", "--id", "a0", "--backend", "file", "--flush-interval", "64K"]);
        command.arg("--base").arg(base).arg("--listen");
        command.arg(format!("unix:{}", socket.display()));
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn up(socket: &Path) -> Client {
    let channel = RealConnector.channel(&Endpoint::Unix(socket.to_owned()));
    let client = Client::new(channel);
    until("the server to answer", || {
        let mut client = client.clone();
        async move { client.host.info(Empty {}).await.ok().map(drop) }
    })
    .await;
    client
}

/// Sends new steps, and applies now and then, until the server is gone; the last gid that it
/// acknowledged, told step by step.
async fn load(mut client: Client, device: &mut Device, told: &watch::Sender<u64>) -> u64 {
    let mut acked = *told.borrow();
    loop {
        if device.gid() == acked {
            device.write(20);
        }
        match client.send_step(device, acked + 1).await {
            Ok(reply) => match reply.result() {
                WdiffResult::Stored | WdiffResult::TooOld => {
                    acked += 1;
                    told.send_replace(acked);
                }
                other => panic!("{other:?}: {}", reply.message),
            },
            Err(_) => return acked,
        }
        if device.random(6) == 0 {
            let gid = acked - device.random(3).min(acked as usize) as u64;
            // May be busy, or behind the base image: not our subject.
            let _ = client.archive.apply(common::apply_to(gid)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_every_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (base, socket) = (dir.path().join("a0"), dir.path().join("a0.sock"));
    let mut device = Device::new(1024, 31);
    let mut program = Program::start(&base, &socket);
    let mut client = up(&socket).await;
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    let (told, acks) = watch::channel(0);
    for round in 0..15 {
        // A random instant after some steps, however long these take on this disk.
        let (wanted, pause) = (*told.borrow() + round % 4, device.random(120) as u64);
        let mut seen = acks.clone();
        let killer = tokio::spawn(async move {
            seen.wait_for(|acked| *acked >= wanted).await.unwrap();
            tokio::time::sleep(Duration::from_millis(pause)).await;
            drop(program);
        });
        let acked = load(client, &mut device, &told).await;
        killer.await.unwrap();
        program = Program::start(&base, &socket);
        client = up(&socket).await;
        let latest = client.get().await.latest.unwrap();
        assert!(
            latest.gid_end >= acked,
            "round {round}: {acked} was acknowledged, {latest:?} is there"
        );
    }
    until("the apply to end", || {
        let mut client = client.clone();
        async move { client.get().await.running.is_empty().then_some(()) }
    })
    .await;
    let (status, acked) = (client.get().await, *acks.borrow());
    assert_eq!(status.error, "");
    assert!(common::files(&base.join(VOLUME), ".tmp").is_empty());
    let (from, to) = (status.base.unwrap().begin.unwrap().gid_end, status.latest.unwrap().gid_end);
    assert!(acked > 20, "it got no further than {acked}");
    for gid in [from, from.midpoint(to), to] {
        same(&client.restored(gid).await, &device.history[gid as usize], &format!("gid {gid}"));
    }
}
