//! The golden set: its manifest, its files, and the digests that it is compared by.

use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::Value;
use sha2::{Digest, Sha256};
use wlog_format::pack::{Record, RecordKind};
use wlog_format::stream::Pack;

fn dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden"))
}

static MANIFEST: LazyLock<Value> = LazyLock::new(|| {
    let text = std::fs::read(dir().join("manifest.json")).expect("the golden set is there");
    serde_json::from_slice(&text).unwrap()
});

/// Entries of the manifest whose id starts with `prefix`.
pub(crate) fn entries(kind: &str, prefix: &str) -> Vec<&'static Value> {
    let files = MANIFEST["files"].as_array().unwrap().iter();
    let found: Vec<_> = files
        .filter(|f| f["kind"] == kind && f["id"].as_str().unwrap().starts_with(prefix))
        .collect();
    assert!(!found.is_empty(), "no golden {kind} {prefix}");
    found
}

/// The bytes of a golden file, checked against the manifest.
pub(crate) fn load(entry: &Value) -> Vec<u8> {
    let stored = std::fs::read(dir().join(entry["path"].as_str().unwrap())).unwrap();
    let bytes = match entry["encoding"].as_str() {
        Some("zstd") => zstd::decode_all(stored.as_slice()).unwrap(),
        _ => stored,
    };
    assert_eq!(hex(&Sha256::digest(&bytes)), entry["sha256"].as_str().unwrap());
    bytes
}

/// The bytes of the golden file with exactly this id.
pub(crate) fn load_id(id: &str) -> Vec<u8> {
    let files = MANIFEST["files"].as_array().unwrap();
    load(files.iter().find(|f| f["id"] == id).unwrap())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What a sequence of packs amounts to.
pub(crate) struct Summary {
    packs: u64,
    /// [normal, allzero, discard, padding]
    records: [u64; 4],
    blocks: [u64; 4],
    min_address: Option<u64>,
    max_end_address: u64,
    io_digest: Sha256,
}

impl Summary {
    pub(crate) fn of<'a>(packs: impl IntoIterator<Item = &'a Pack>) -> Self {
        let mut sum = Self {
            packs: 0,
            records: [0; 4],
            blocks: [0; 4],
            min_address: None,
            max_end_address: 0,
            io_digest: Sha256::new(),
        };
        for pack in packs {
            sum.packs += 1;
            for (record, blocks) in pack.header.records().iter().zip(&pack.blocks) {
                sum.add(record, &blocks[..record.payload_bytes()]);
            }
        }
        sum
    }

    fn add(&mut self, record: &Record, payload: &[u8]) {
        let class = match record.kind {
            RecordKind::Normal if payload.iter().all(|b| *b == 0) => 1,
            RecordKind::Normal => 0,
            RecordKind::Discard => 2,
            RecordKind::Padding => 3,
        };
        self.records[class] += 1;
        self.blocks[class] += u64::from(record.blocks);
        if record.kind == RecordKind::Padding {
            return;
        }
        let min = self.min_address.unwrap_or(u64::MAX).min(record.address.0);
        self.min_address = Some(min);
        self.max_end_address = self.max_end_address.max(record.end().0);
        self.io_digest.update(record.address.0.to_le_bytes());
        self.io_digest.update(record.blocks.to_le_bytes());
        self.io_digest.update([if class == 2 { 2 } else { 0 }]);
        if class != 2 {
            self.io_digest.update(Sha256::digest(payload));
        }
    }

    pub(crate) fn packs(&self) -> u64 {
        self.packs
    }

    pub(crate) fn io_digest(&self) -> String {
        hex(&self.io_digest.clone().finalize())
    }

    /// Like `expect.stat` of the manifest.
    pub(crate) fn stat(&self, end_lsid: u64, pbs: u64) -> Value {
        let ([normal, allzero, discard, padding], blocks) = (self.records, self.blocks);
        serde_json::json!({
            "packs": self.packs,
            "records": self.records.iter().sum::<u64>(),
            "normal": normal, "allzero": allzero, "discard": discard, "padding": padding,
            "normal_lb": blocks[0], "allzero_lb": blocks[1], "discard_lb": blocks[2],
            "padding_pb": blocks[3] / (pbs / 512),
            "min_address": self.min_address,
            "max_end_address": self.max_end_address,
            "really_end_lsid": end_lsid,
        })
    }
}
