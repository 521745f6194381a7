//! The golden files and their digests (`golden/README.md`), and a naive model of diffs.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use serde_json::Value;
use sha2::{Digest, Sha256};
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::error::WdiffError;
use wdiff_format::header::FileType;
use wdiff_format::io_at::WriteAt;
use wdiff_format::open::WdiffReader;
use wdiff_format::record::{DiffRecord, RecordKind};
use wdiff_format::split::MaxIo;
use wdiff_format::write::WriteOptions;
use wlog_format::units::LogUuid;

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden")
}

pub fn manifest() -> &'static Value {
    static MANIFEST: OnceLock<Value> = OnceLock::new();
    MANIFEST.get_or_init(|| {
        let text = fs::read_to_string(golden_dir().join("manifest.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    })
}

/// The golden files of one kind: "wdiff", "wlog", "corrupt" ...
pub fn entries(kind: &str) -> Vec<&'static Value> {
    let files = manifest()["files"].as_array().unwrap();
    files.iter().filter(|f| f["kind"] == kind).collect()
}

pub fn entry(id: &str) -> &'static Value {
    manifest()["files"].as_array().unwrap().iter().find(|f| f["id"] == id).unwrap()
}

/// The uncompressed content of a golden file; `zeroN` are images that are not stored.
pub fn content(id: &str) -> Vec<u8> {
    static IMAGES: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
    if !id.starts_with("base") {
        return load(id);
    }
    IMAGES.lock().unwrap().entry(id.into()).or_insert_with(|| load(id)).clone()
}

fn load(id: &str) -> Vec<u8> {
    if let Some(mib) = id.strip_prefix("zero") {
        return vec![0; mib.parse::<usize>().unwrap() << 20];
    }
    let entry = entry(id);
    let stored = fs::read(golden_dir().join(entry["path"].as_str().unwrap())).unwrap();
    let content = match entry["encoding"].as_str().unwrap() {
        "zstd" => zstd::decode_all(&stored[..]).unwrap(),
        _ => stored,
    };
    assert_eq!(hex(&content), entry["sha256"].as_str().unwrap(), "{id} is not the golden file");
    content
}

/// The golden file as a file.
pub fn file(dir: &Path, id: &str) -> PathBuf {
    let path = dir.join(id);
    fs::write(&path, content(id)).unwrap();
    path
}

pub fn open(dir: &Path, id: &str) -> WdiffReader {
    WdiffReader::open(&file(dir, id)).unwrap()
}

pub fn hex(data: &[u8]) -> String {
    to_hex(&Sha256::digest(data))
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A record with its data, without any type of the crate under test.
#[derive(Clone, PartialEq, Eq)]
pub struct Plain {
    pub address: u64,
    pub blocks: u32,
    pub kind: u8,
    pub data: Vec<u8>,
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{} kind {} {}", self.address, self.blocks, self.kind, &hex(&self.data)[..8])
    }
}

pub fn plain(record: &DiffRecord, codec: &mut Codec) -> Result<Plain, WdiffError> {
    let kind = match record.kind() {
        RecordKind::Normal => 0,
        RecordKind::AllZero => 1,
        RecordKind::Discard => 2,
    };
    let data = record.raw(codec)?.unwrap_or_default().to_vec();
    Ok(Plain { address: record.address.0, blocks: record.blocks, kind, data })
}

/// All records, decompressed.
pub fn all(
    records: impl Iterator<Item = Result<DiffRecord, WdiffError>>,
) -> Result<Vec<Plain>, WdiffError> {
    let mut codec = Codec::new(Compression::NONE);
    records.map(|record| plain(&record?, &mut codec)).collect()
}

pub fn records_digest(records: &[Plain]) -> String {
    let mut sha = Sha256::new();
    for record in records {
        sha.update(record.address.to_le_bytes());
        sha.update(record.blocks.to_le_bytes());
        sha.update([record.kind]);
        if record.kind == 0 {
            sha.update(Sha256::digest(&record.data));
        }
    }
    to_hex(&sha.finalize())
}

/// Block address -> its data, or `None` when it is discarded.
pub type BlockMap = BTreeMap<u64, Option<Vec<u8>>>;

/// What records do, block by block, oldest first.
pub fn apply(map: &mut BlockMap, records: &[Plain]) {
    for record in records {
        for i in 0..record.blocks as usize {
            let block = match record.kind {
                0 => Some(record.data[i * 512..(i + 1) * 512].to_vec()),
                1 => Some(vec![0; 512]),
                _ => None,
            };
            map.insert(record.address + i as u64, block);
        }
    }
}

pub fn blockmap_digest(records: &[Plain]) -> String {
    let mut map = BlockMap::new();
    apply(&mut map, records);
    let mut sha = Sha256::new();
    for (address, block) in map {
        sha.update(address.to_le_bytes());
        sha.update([if block.is_some() { 0 } else { 2 }]);
        sha.update(block.unwrap_or_default());
    }
    to_hex(&sha.finalize())
}

/// Options for a small test file.
pub fn options(file_type: FileType, max_io: MaxIo, compression: &str) -> WriteOptions {
    WriteOptions {
        file_type,
        uuid: LogUuid([7; 16]),
        compression: compression.parse().unwrap(),
        max_io,
        threads: 2,
    }
}

/// The golden sizes: `null` is the default, 0 no limit.
pub fn max_io(param: &Value) -> MaxIo {
    match param {
        Value::Null => MaxIo::default(),
        Value::Number(_) => MaxIo::NONE,
        Value::String(s) => match s.as_str() {
            "4K" => MaxIo::from_blocks(8),
            "16K" => MaxIo::from_blocks(32),
            other => panic!("max_io {other}"),
        },
        other => panic!("max_io {other}"),
    }
}

/// Reads a wdiff that lies in memory.
pub fn read_back(dir: &Path, bytes: &[u8]) -> WdiffReader {
    let path = dir.join("read_back");
    fs::write(&path, bytes).unwrap();
    WdiffReader::open(&path).unwrap()
}

/// An image in memory.
pub struct MemoryImage(Mutex<Vec<u8>>);

impl MemoryImage {
    pub fn new(content: Vec<u8>) -> Self {
        Self(Mutex::new(content))
    }

    pub fn into_content(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

impl WriteAt for MemoryImage {
    fn write_all_at(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        self.0.lock().unwrap()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}
