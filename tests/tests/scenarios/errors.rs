//! §8.4, errors: servers that go down, data that is lost.

use anyhow::{Result, ensure};
use controller::ops::look::now_s;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::wdiff_transfer_request::Step;
use proto::v1::{
    DiffMeta, GapCause, Snapshot, WdiffEnd, WdiffResult, WdiffSender, WdiffStart,
    WdiffTransferRequest,
};
use tests::cluster::{Cluster, Layout, size};
use tests::poll::{DEADLINE, until};
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::record::{DiffRecord, Payload};
use wdiff_format::sorted_writer::SortedWriter;
use wlog_format::units::{Lb, LogUuid};

use crate::{archives, base_state, scenario};

/// A gap is only marked: what heals it is the test's to do.
pub(crate) fn manual() -> Layout {
    Layout::scenario().with_flags("s0", &["--resync", "manual"])
}

scenario!(scenario_e1_a_proxy_is_down, {
    let mut c = base_state(Layout::scenario())?;
    c.shutdown("p0")?;
    c.vol().write_a_log(0, false)?;
    c.startup("p0")?;
    let v = c.vol();
    v.walbc("kick-all")?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    ensure!(!v.ask("is-overflow s0 VOL")?);
    v.same(0, "a0", gid)?;
});

scenario!(scenario_e2_the_archive_is_down, {
    let mut c = base_state(Layout::scenario())?;
    c.shutdown("a0")?;
    c.vol().write_a_log(0, false)?;
    let missed = c.vol().gid("snapshot s0 VOL")?;
    c.vol().until_sending_fails("p0", "a0")?;
    ensure!(!c.vol().ask("is-overflow s0 VOL")?);
    c.startup("a0")?;
    let v = c.vol();
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)?;
    ensure!(v.restorable("a0", true)?.contains(&missed), "what waited at the proxy arrives, too");
});

scenario!(scenario_e3_the_storage_server_is_down, {
    let mut c = base_state(Layout::scenario())?;
    c.shutdown("s0")?;
    c.vol().write(0, 0, 1)?;
    c.startup("s0")?;
    let v = c.vol();
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)?;
});

// Our storage server starts a hash backup by itself after an overflow; here it is told not to, and
// `scenario_e10_an_overflow_heals_itself` is the other way.
scenario!(scenario_e4_the_log_overflows_while_storage_is_down, {
    let mut c = base_state(manual())?;
    c.shutdown("s0")?;
    c.vol().write_a_log(0, true)?;
    c.startup("s0")?;
    let v = c.vol();
    until("the overflow is seen", DEADLINE, || Ok(v.ask("is-overflow s0 VOL")?.then_some(())))?;
    // It has stopped the target by itself.
    v.until_state("s0", "Stopped")?;
    let gid = v.gid("hash-backup s0 VOL")?;
    v.same(0, "a0", gid)?;
    ensure!(!v.ask("is-overflow s0 VOL")?);
});

/// The archive takes nothing while a write gets to the first proxy, whose disk then dies.
fn lose_what_waits_at_the_proxy(c: &mut Cluster) -> Result<()> {
    let v = c.vol();
    v.walbc("stop a0 VOL --mode force")?;
    v.write(0, 0, 1)?;
    let staged = || {
        let queue = v.proxy("p0")?.queues.into_iter().next();
        Ok(queue.is_some_and(|queue| queue.wdiffs > 0).then_some(()))
    };
    until("the write waits at the proxy", DEADLINE, staged)?;
    c.shutdown("p0")?;
    c.delete_data("p0")?;
    c.vol().walbc("start a0 VOL")?;
    c.startup("p0")?;
    c.vol().walbc("start-synchronizing a0 VOL")?;
    c.vol().write(0, 1, 1)
}

// In the original nobody notices: the operator sees that snapshots do not become restorable. Our
// storage server hears from the proxy that it is not the one that took the wdiffs, and marks a gap.
scenario!(scenario_e5_a_proxy_loses_undelivered_wdiffs, {
    let mut c = base_state(manual())?;
    let list = c.vol().restorable("a0", true)?;
    lose_what_waits_at_the_proxy(&mut c)?;
    let v = c.vol();
    let marked = || {
        let lost = v.storage("s0")?.gap_cause() == GapCause::ProxyDataLost;
        Ok(lost.then_some(()))
    };
    until("the gap is marked", DEADLINE, marked)?;
    v.until_state("s0", "Stopped")?;
    v.refused("snapshot s0 VOL", "hash-backup")?;
    ensure!(v.restorable("a0", true)? == list, "nothing behind the gap is called restorable");
    let gid = v.gid("hash-backup s0 VOL")?;
    v.same(0, "a0", gid)?;
    ensure!(v.storage("s0")?.gap_since_s == 0);
});

scenario!(scenario_e5_heals_by_itself, {
    let mut c = base_state(Layout::scenario())?;
    let before = c.vol().gid("snapshot s0 VOL --wait a0")?;
    let content = c.vol().sha(0)?;
    lose_what_waits_at_the_proxy(&mut c)?;
    let v = c.vol();
    // The gap may have been healed before anybody could see it: the new log is the sign.
    until("the archive follows the new log", DEADLINE, || {
        let (leg, image) = (v.storage("s0")?, v.archive("a0")?);
        let healed = leg.state == "Target" && leg.log_uuid == image.log_uuid;
        let arrived = image.newest_restorable_gid > before;
        Ok((healed && arrived && leg.gap_since_s == 0).then_some(()))
    })?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)?;
    ensure!(v.rsha("a0", before)? == content);
});

scenario!(scenario_e6_the_primary_loses_its_data, {
    let mut c = archives::replicated(manual())?;
    c.shutdown("a0")?;
    c.delete_data("a0")?;
    c.startup("a0")?;
    let v = c.vol();
    v.write(0, 0, 1)?;
    let lost = v.gid("snapshot s0 VOL")?;
    v.until_sending_fails("p0", "a0")?;
    v.expect_state("a0", "Clear")?;
    v.walbc("stop s0 VOL")?;
    let gid = v.gid("full-backup s0 VOL")?;
    // A new history begins with its own gids: whatever `lost` names now is not the old snapshot.
    ensure!(!v.restorable("a0", true)?.iter().any(|old| *old < gid && *old == lost));
    v.walbc("replicate a0 VOL a1 --resync")?;
    v.same(0, "a0", gid)?;
    v.same(0, "a1", gid)?;
});

scenario!(scenario_e7_a_synchronizing_secondary_loses_its_data, {
    let mut c = archives::replicated(Layout::scenario())?;
    let v = c.vol();
    v.write(0, 0, 1)?;
    v.walbc("replicate a0 VOL a1 --synchronizing")?;
    c.shutdown("a1")?;
    c.delete_data("a1")?;
    c.startup("a1")?;
    let v = c.vol();
    v.write(0, 1, 1)?;
    let missed = v.gid("snapshot s0 VOL --wait a0")?;
    v.until_sending_fails("p0", "a1")?;
    v.expect_state("a1", "Clear")?;
    v.walbc("replicate a0 VOL a1 --synchronizing")?;
    v.write(0, 2, 1)?;
    let gid = v.gid("snapshot s0 VOL --wait a0,a1")?;
    v.same(0, "a0", gid)?;
    v.same(0, "a1", gid)?;
    ensure!(v.restorable("a0", true)?.contains(&missed));
    v.walbc("stop-synchronizing a1 VOL")?;
});

scenario!(scenario_e8_the_storage_server_loses_its_data, {
    let mut c = base_state(manual())?;
    c.vol().write(0, 0, 1)?;
    c.shutdown("s0")?;
    c.delete_data("s0")?;
    c.startup("s0")?;
    let v = c.vol();
    v.expect_state("s0", "Clear")?;
    v.write(0, 1, 1)?;
    v.init_storage(0)?;
    v.write(0, 2, 1)?;
    let gid = v.gid("hash-backup s0 VOL")?;
    v.same(0, "a0", gid)?;
});

/// Sends one wdiff as a proxy does; the archive's answer.
fn send(c: &Cluster, diff: DiffMeta, file: Vec<u8>) -> Result<WdiffResult> {
    let archive = c.vol().archive("a0")?;
    let start = WdiffStart {
        volume: "vol0".to_owned(),
        sender_id: "p0".to_owned(),
        sender: WdiffSender::Proxy.into(),
        log_uuid: archive.log_uuid,
        size_lb: archive.size_lb,
        diff: Some(diff),
    };
    let end = WdiffEnd { total_bytes: file.len() as u64 };
    let chunk = server_kit::chunks::encode(file.into());
    let steps = [Step::Start(start), Step::Chunk(chunk), Step::End(end)];
    let stream = tokio_stream::iter(steps.map(|step| WdiffTransferRequest { step: Some(step) }));
    let mut client = ArchiveClient::new(c.channel("a0")?);
    Ok(c.run(client.wdiff_transfer(stream))?.into_inner().result())
}

/// A wdiff that discards the first half of the device in records of 1 MiB.
fn discards(uuid: &[u8], bytes: u64) -> Result<Vec<u8>> {
    let mut codec = Codec::new(Compression::default());
    let mut writer = SortedWriter::new(Vec::new(), LogUuid(uuid.try_into()?))?;
    for at in 0..bytes / 2 / (1 << 20) {
        let record = DiffRecord { address: Lb(at * 2048), blocks: 2048, payload: Payload::Discard };
        writer.write(&record.encode(&mut codec)?)?;
    }
    Ok(writer.finish()?)
}

scenario!(scenario_e17_a_wdiff_is_sent_twice, {
    // A log that takes the whole device at once.
    let c = base_state(Layout { log_bytes: size("32M"), ..Layout::scenario() })?;
    let v = c.vol();
    v.fill(0, 0, c.layout().data_bytes)?;
    v.gid("snapshot s0 VOL --wait a0")?;
    let archive = v.archive("a0")?;
    ensure!(archive.log_uuid == v.storage("s0")?.log_uuid && archive.log_uuid.len() == 16);
    // Nothing of our own comes in between.
    v.walbc("stop s0 VOL")?;
    v.walbc("stop p0 VOL --mode empty")?;
    v.walbc("stop p1 VOL --mode empty")?;
    let latest = v.latest("a0")?;
    let clean = |gid| Some(Snapshot { gid_begin: gid, gid_end: gid });
    let (begin, end) = (clean(latest), clean(latest + 1));
    let diff = DiffMeta { begin, end, timestamp_s: now_s(), ..DiffMeta::default() };
    let file = discards(&archive.log_uuid, c.layout().data_bytes)?;
    ensure!(send(&c, diff, file.clone())? == WdiffResult::Stored);
    ensure!(send(&c, diff, file)? == WdiffResult::TooOld);
    ensure!(v.latest("a0")? == latest + 1);
    let image = v.walbc(&format!("restore a0 VOL {}", latest + 1))?;
    let bytes = std::fs::read(image)?;
    let (first, second) = bytes.split_at(bytes.len() / 2);
    ensure!(first.iter().all(|byte| *byte == 0), "what was discarded reads as zeroes");
    ensure!(second.iter().any(|byte| *byte != 0));
});
