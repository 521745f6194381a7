//! §8.3, misoperation: refused with a reason, and the way back works.

use anyhow::ensure;
use proto::v1::storage_client::StorageClient;
use tests::cluster::{Layout, size};
use tests::poll::{DEADLINE, until};

use crate::{base_state, scenario};

// The original's full backup fails because s0 is Target; ours says so before anything is changed.
scenario!(scenario_m1_full_backup_of_a_target, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    v.write(0, 0, 1)?;
    v.walbc("stop-synchronizing a0 VOL")?;
    v.refused("full-backup s0 VOL", "walbc")?;
    v.expect_state("s0", "Target")?;
    v.walbc("start-synchronizing a0 VOL")?;
    ensure!(v.ask("is-synchronizing a0 VOL")?);
    for (server, state) in [("s1", "Standby"), ("p0", "Started"), ("a0", "Archived")] {
        // A proxy or an archive may be receiving at this very moment.
        v.until_state(server, state)?;
    }
});

scenario!(scenario_m2_hash_backup_without_a_history, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    v.walbc("stop-synchronizing a0 VOL")?;
    v.walbc("stop a0 VOL")?;
    v.walbc("reset a0 VOL")?;
    v.write(0, 0, 1)?;
    v.refused("hash-backup s0 VOL", "walbc")?;
    v.expect_state("s0", "Target")?;
    v.walbc("go-standby s0 VOL")?;
    // Also where the leg could: there is nothing to compare with, and its log is not touched.
    v.refused("hash-backup s0 VOL", "full-backup")?;
    v.expect_state("s0", "Standby")?;
    let gid = v.gid("full-backup s0 VOL")?;
    v.same(0, "a0", gid)?;
});

scenario!(scenario_m3_grown_at_the_storage_servers_only, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    v.gid("snapshot s0 VOL --wait a0")?;
    let (old, new) = (c.layout().data_bytes, c.layout().data_bytes + size("4M"));
    for (leg, storage) in [(0, "s0"), (1, "s1")] {
        v.grow_data_device(leg, new)?;
        let mut client = StorageClient::new(c.channel(storage)?);
        let request = proto::v1::ResizeRequest { volume: "vol0".to_owned(), size_lb: new / 512 };
        c.run(client.resize(request))?;
    }
    v.fill(0, old, 4096)?;
    let missed = v.gid("snapshot s0 VOL")?;
    until("the proxy gives up", DEADLINE, || {
        Ok(v.ask("is-wdiff-send-error p0 VOL a0")?.then_some(()))
    })?;
    v.stays_unrestorable("a0", missed)?;
    v.walbc(&format!("resize VOL {new}"))?;
    v.walbc("kick-all")?;
    v.until_restorable("a0", missed)?;
    ensure!(!v.ask("is-wdiff-send-error p0 VOL a0")?);
    v.same(0, "a0", missed)?;
});
