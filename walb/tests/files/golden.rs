//! The golden set (`golden/README.md`): manifest, files, images.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value;
use sha2::{Digest, Sha256};

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

/// The entry with exactly this id.
pub(crate) fn entry(id: &str) -> &'static Value {
    MANIFEST["files"].as_array().unwrap().iter().find(|f| f["id"] == id).unwrap()
}

/// The bytes of a golden file.
pub(crate) fn load(entry: &Value) -> Vec<u8> {
    let stored = std::fs::read(dir().join(entry["path"].as_str().unwrap())).unwrap();
    match entry["encoding"].as_str() {
        Some("zstd") => zstd::decode_all(stored.as_slice()).unwrap(),
        _ => stored,
    }
}

/// Puts a golden file at `path`.
pub(crate) fn place(entry: &Value, path: &Path) {
    std::fs::write(path, load(entry)).unwrap();
}

/// Puts a start image (`zero16`, `base32` ...) at `path`; zeros are a hole.
pub(crate) fn place_image(id: &str, path: &Path) {
    if let Some(mib) = id.strip_prefix("zero") {
        let file = std::fs::File::create(path).unwrap();
        file.set_len(mib.parse::<u64>().unwrap() << 20).unwrap();
    } else {
        place(entry(id), path);
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn sha256_file(path: &Path) -> String {
    sha256(&std::fs::read(path).unwrap())
}

/// The replays of a manifest entry: (start image, are discards zeroed, sha256 afterwards).
pub(crate) fn replays(table: &Value) -> Vec<(&str, bool, &str)> {
    let table = table.as_object().unwrap().iter();
    let hashes = table.filter(|(key, _)| !key.ends_with(".bhash"));
    hashes
        .map(|(key, hash)| match key.strip_suffix("+z") {
            Some(image) => (image, true, hash.as_str().unwrap()),
            None => (key.as_str(), false, hash.as_str().unwrap()),
        })
        .collect()
}
