//! What an archive is sent: wdiffs that lead from one image to another, and full backups.

use super::history::{BLOCK, Image, block};
use super::process::VOLUME;
use bytes::Bytes;
use proto::v1::full_sync_request::Step as FullStep;
use proto::v1::wdiff_transfer_request::Step;
use proto::v1::{
    DiffMeta, FullSyncBulk, FullSyncEnd, FullSyncRequest, FullSyncStart, Snapshot, WdiffEnd,
    WdiffSender, WdiffStart, WdiffTransferRequest,
};
use rand::RngExt;
use rand::rngs::StdRng;
use server_kit::chunks;
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::record::{DiffRecord, Payload};
use wdiff_format::sorted_writer::SortedWriter;
use wlog_format::units::{Lb, LogUuid};

/// The log that all of it is of.
pub(super) const LOG: LogUuid = LogUuid([7; 16]);
/// Blocks of the longest record.
const RUN_MAX: usize = 8;
/// Bytes of a chunk: small, so that a transfer has several.
const CHUNK: usize = 700;

/// Writes some runs of blocks into the image: data, zeros and discards, each value a new one.
pub(super) fn scribble(image: &mut Image, blocks: usize, next: &mut u64, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..6) {
        let len = rng.random_range(1..=RUN_MAX);
        let at = rng.random_range(0..blocks - len);
        let zeros = rng.random_ratio(1, 3);
        for value in &mut image[at..at + len] {
            *next += u64::from(!zeros);
            *value = if zeros { 0 } else { *next };
        }
    }
}

fn data(values: &[u64]) -> Bytes {
    values.iter().flat_map(|value| block(*value)).collect::<Vec<u8>>().into()
}

/// A record of blocks that are all zeros or all not.
fn record(at: usize, values: &[u64], rng: &mut StdRng) -> DiffRecord {
    let (address, blocks) = (Lb(at as u64), u32::try_from(values.len()).unwrap());
    let payload = match (values[0], rng.random()) {
        (0, true) => Payload::Discard,
        (0, false) => Payload::AllZero,
        _ => return DiffRecord::from_raw(address, data(values)).unwrap(),
    };
    DiffRecord { address, blocks, payload }
}

/// A wdiff that makes `to` of `from`; it also has some blocks that do not change.
pub(super) fn wdiff(from: &Image, to: &Image, blocks: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut codec = Codec::new(Compression::default());
    let mut writer = SortedWriter::new(Vec::new(), LOG).unwrap();
    let mut at = 0;
    while at < blocks {
        let wanted = |at: usize, rng: &mut StdRng| from[at] != to[at] || rng.random_ratio(1, 40);
        if !wanted(at, rng) {
            at += 1;
            continue;
        }
        let zeros = to[at] == 0;
        let end = (at + RUN_MAX).min(blocks);
        let same = |next: &usize| (to[*next] == 0) == zeros && from[*next] != to[*next];
        let len = 1 + (at + 1..end).take_while(same).count();
        let record = record(at, &to[at..at + len], rng);
        writer.write(&record.encode(&mut codec).unwrap()).unwrap();
        at += len;
    }
    writer.finish().unwrap()
}

/// The name of a diff, and who sends it.
#[derive(Clone, Copy)]
pub(super) struct Name {
    pub(super) begin: u64,
    pub(super) end: u64,
    /// Whether the snapshot at its beginning is kept.
    pub(super) keeps: bool,
    pub(super) compared: bool,
    pub(super) from_archive: bool,
    pub(super) time_s: u64,
}

/// The messages of a transfer.
pub(super) fn transfer(name: Name, file: &[u8], blocks: usize) -> Vec<WdiffTransferRequest> {
    let clean = |gid| Some(Snapshot { gid_begin: gid, gid_end: gid });
    let diff = DiffMeta {
        begin: clean(name.begin),
        end: clean(name.end),
        mergeable: !name.keeps,
        comparison: name.compared,
        timestamp_s: name.time_s,
        ..DiffMeta::default()
    };
    let sender = if name.from_archive { WdiffSender::Archive } else { WdiffSender::Proxy };
    let start = WdiffStart {
        volume: VOLUME.into(),
        sender_id: "p0".into(),
        sender: sender.into(),
        log_uuid: Bytes::copy_from_slice(&LOG.0),
        size_lb: blocks as u64,
        diff: Some(diff),
    };
    let end = Step::End(WdiffEnd { total_bytes: file.len() as u64 });
    let chunk = |data| Step::Chunk(chunks::encode(Bytes::copy_from_slice(data)));
    let chunks = file.chunks(CHUNK).map(chunk);
    let steps = std::iter::once(Step::Start(start)).chain(chunks).chain([end]);
    steps.map(|step| WdiffTransferRequest { step: Some(step) }).collect()
}

/// The messages of a full backup of the image, which becomes snapshot `gid`.
pub(super) fn full(session: String, image: &Image, gid: u64) -> Vec<FullSyncRequest> {
    let log_uuid = Bytes::copy_from_slice(&LOG.0);
    let start =
        FullSyncStart { volume: VOLUME.into(), session, log_uuid, ..FullSyncStart::default() };
    let bulk = |(number, values): (usize, &[u64])| {
        let zeros = values.iter().all(|value| *value == 0);
        FullStep::Bulk(FullSyncBulk {
            offset_bytes: (number * RUN_MAX * BLOCK) as u64,
            chunk: (!zeros).then(|| chunks::encode(data(values))),
            zeros_bytes: if zeros { (values.len() * BLOCK) as u64 } else { 0 },
        })
    };
    let base = Some(Snapshot { gid_begin: gid, gid_end: gid });
    let end = FullStep::End(FullSyncEnd { base, timestamp_s: 0 });
    let bulks = image.chunks(RUN_MAX).enumerate().map(bulk);
    let steps = std::iter::once(FullStep::Start(start)).chain(bulks).chain([end]);
    steps.map(|step| FullSyncRequest { step: Some(step) }).collect()
}
