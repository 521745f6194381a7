//! `walb wdiff` and `walb wlog to-wdiff`, run as people run them, over the golden files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use sha2::{Digest, Sha256};

fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared")
}

fn entries() -> &'static Vec<Value> {
    static ENTRIES: OnceLock<Vec<Value>> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let text = fs::read_to_string(shared().join("golden/manifest.json")).unwrap();
        let mut manifest: Value = serde_json::from_str(&text).unwrap();
        serde_json::from_value(manifest["files"].take()).unwrap()
    })
}

fn entry(id: &str) -> &'static Value {
    entries().iter().find(|entry| entry["id"] == id).unwrap()
}

fn content(id: &str) -> Vec<u8> {
    let entry = entry(id);
    let stored = fs::read(shared().join("golden").join(entry["path"].as_str().unwrap())).unwrap();
    match entry["encoding"].as_str().unwrap() {
        "zstd" => zstd::decode_all(&stored[..]).unwrap(),
        _ => stored,
    }
}

fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A directory to work in, and the program.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The golden file, under its id.
    fn golden(&self, id: &str) -> PathBuf {
        let path = self.path(id);
        fs::write(&path, content(id)).unwrap();
        path
    }

    /// Runs `walb` with these words in the directory; `-` has `stdin`.
    fn run_with(&self, stdin: &[u8], words: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_walb"))
            .args(words.split_whitespace())
            .current_dir(self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // A program that fails early does not read its input to the end.
            scope.spawn(move || input.write_all(stdin));
            child.wait_with_output().unwrap()
        })
    }

    fn run(&self, words: &str) -> Output {
        self.run_with(b"", words)
    }

    /// Runs something that must succeed; what it printed.
    fn ok(&self, words: &str) -> String {
        let output = self.run(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "walb {words}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs something that must fail; what it said.
    fn fails(&self, words: &str) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "walb {words}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.ok(words)).unwrap()
    }

    /// What the independent reader of the formats says of our files.
    fn check(&self, words: &str) {
        let output = Command::new("python3")
            .arg(shared().join("spec/check.py"))
            .args(words.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "check.py {words}: {said}");
    }

    fn files(&self) -> Vec<String> {
        let files = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn show_prints_what_the_original_prints() {
    let bench = Bench::new();
    for id in ["d-w512-mix-s", "d-w4096-mix-i-x16K", "full-odd-s", "merge4-zstd-9-1", "merge-empty"]
    {
        bench.golden(id);
        let dump = content(entry(id)["expect"]["show_dump"].as_str().unwrap());
        assert_eq!(bench.ok(&format!("wdiff show {id}")), String::from_utf8(dump).unwrap(), "{id}");
    }
}

#[test]
fn json_has_the_numbers_of_the_manifest() {
    let bench = Bench::new();
    for id in ["d-w512-bigio-s", "d-w512-bigio-i", "merge4-gzip-0-1", "d-w4096-empty-i"] {
        bench.golden(id);
        let expect = &entry(id)["expect"];
        for command in ["show", "verify"] {
            let mut ours = bench.json(&format!("wdiff {command} {id} --json"));
            assert_eq!(ours["header"], expect["header"], "{command} {id}");
            let (ours, theirs) = (ours["stat"].take(), &expect["stat"]);
            for (key, value) in theirs.as_object().unwrap() {
                // The manifest has 0 where an empty diff has no address.
                let none = key == "min_address" && ours[key].is_null();
                assert!(none || ours[key] == *value, "{command} {id}: {key} {}", ours[key]);
            }
        }
        let shown = bench.json(&format!("wdiff show {id} --json"));
        let records = shown["records"].as_array().unwrap().len();
        assert_eq!(records as u64, expect["stat"]["records"], "{id}");
    }
}

#[test]
fn damage_fails_and_is_named() {
    let bench = Bench::new();
    for damaged in entries().iter().filter(|entry| entry["kind"] == "corrupt") {
        let id = damaged["id"].as_str().unwrap();
        let must = damaged["must"].as_str().unwrap();
        let ours = id.starts_with("cs") || id.starts_with("ci");
        // The damage of the sets for the two block sizes is the same.
        if !ours || id.contains("4096") {
            continue;
        }
        bench.golden(id);
        if matches!(must, "reject" | "truncated") {
            let said = bench.fails(&format!("wdiff verify {id}"));
            assert!(said.contains(id) && said.contains("byte "), "{id}: {said}");
            let said = bench.fails(&format!("wdiff merge {id} -o merged"));
            assert!(said.contains(id), "{id}: {said}");
        } else {
            bench.ok(&format!("wdiff verify {id}"));
            bench.ok(&format!("wdiff merge {id} -o merged"));
            fs::remove_file(bench.path("merged")).unwrap();
        }
        fs::remove_file(bench.path(id)).unwrap();
        assert_eq!(bench.files(), [""; 0], "{id}: no half file is left");
    }
}

#[test]
fn conversion_is_accepted_by_the_independent_reader() {
    let bench = Bench::new();
    for log in ["w512-mix", "w4096-bigio", "m4", "cat-l512-wrap1", "w512-empty"] {
        bench.golden(log);
        bench.ok(&format!("wlog to-wdiff {log} -o sorted --compression zstd:3"));
        let made = bench.json(&format!("wlog to-wdiff {log} -o indexed --format indexed --json"));
        assert_eq!(made["bytes"], fs::metadata(bench.path("indexed")).unwrap().len(), "{log}");
        bench.check(&format!("convert {log} sorted indexed"));
        bench.check(&format!("same {log} sorted indexed"));
        if log != "w512-mix" {
            continue;
        }
        for compression in ["none", "gzip:9", "snappy", "lzma:1", "lz4", "zstd:19"] {
            let threads = 1 + compression.len() % 3;
            bench.ok(&format!(
                "wlog to-wdiff {log} -o diff --format indexed --max-io 16K --threads {threads} \
                 --compression {compression}"
            ));
            bench.check("wdiff diff");
            bench.check(&format!("same {log} diff"));
        }
    }
}

#[test]
fn merges_are_accepted_by_the_independent_reader() {
    let bench = Bench::new();
    for id in ["d-m1-s", "d-m2-i", "d-m3-s", "d-m4-i"] {
        bench.golden(id);
    }
    let mut hashes = Vec::new();
    for (threads, format) in [(1, "sorted"), (3, "sorted"), (2, "indexed")] {
        bench.ok(&format!(
            "wdiff merge d-m1-s d-m2-i d-m3-s d-m4-i -o merged --format {format} \
             --compression lz4 --max-io 64K --threads {threads}"
        ));
        bench.check("wdiff merged");
        let hash = &entry("merge4-mixed")["expect"]["virt_full_cat"]["base16"];
        bench.golden("base16");
        bench.ok("wdiff virtual-cat --base base16 merged -o image");
        assert_eq!(sha256(&bench.path("image")), *hash);
        hashes.push(sha256(&bench.path("merged")));
    }
    assert_eq!(hashes[0], hashes[1], "the threads do not show");
}

#[test]
fn redo_gives_the_image_of_the_original() {
    let bench = Bench::new();
    for id in ["d-m1-s", "d-m2-i", "d-m3-s", "d-m4-i", "d-w4096-mix-i"] {
        bench.golden(id);
    }
    let expect = &entry("merge4-mixed")["expect"]["redo"];
    let inputs = "d-m1-s d-m2-i d-m3-s d-m4-i";
    for (option, key) in [("", "base16"), ("--zero-discard", "base16+z")] {
        let image = bench.golden("base16");
        let done = bench.json(&format!("wdiff redo {inputs} base16 {option} --json"));
        assert_eq!(done["beyond_end"], 0);
        assert_eq!(sha256(&image), expect[key], "{key}");
    }
    let smaller = &entry("d-w4096-mix-i")["expect"]["redo_on_smaller_block_device"];
    for (key, hash) in smaller.as_object().into_iter().flatten() {
        let (bytes, option) = match key.strip_suffix("+z") {
            Some(bytes) => (bytes, "--zero-discard"),
            None => (key.as_str(), ""),
        };
        fs::write(bench.path("small"), vec![0; bytes.parse().unwrap()]).unwrap();
        let output = bench.run(&format!("wdiff redo d-w4096-mix-i small {option}"));
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("beyond the end"));
        assert_eq!(sha256(&bench.path("small")), *hash, "{key}");
    }
}

#[test]
fn a_whole_image_comes_back() {
    let bench = Bench::new();
    let image = bench.golden("odd");
    fs::write(bench.path("empty"), vec![0; content("odd").len()]).unwrap();
    for format in ["sorted", "indexed"] {
        bench.ok(&format!("wdiff full odd -o full --format {format} --compression zstd"));
        bench.check("wdiff full");
        bench.ok("wdiff virtual-cat --base empty full -o back");
        assert_eq!(sha256(&bench.path("back")), sha256(&image));
    }
}

#[test]
fn pipes_are_read_and_written() {
    let bench = Bench::new();
    let log = content("w512-mix");
    bench.golden("d-m1-s");
    let diff = bench.run_with(&log, "wlog to-wdiff - -o -").stdout;
    let merged = bench.run_with(&diff, "wdiff merge - d-m1-s -o -").stdout;
    fs::write(bench.path("merged"), &merged).unwrap();
    bench.check("wdiff merged");
    let verdict = bench.run_with(&merged, "wdiff verify -");
    assert!(verdict.status.success());
    assert!(String::from_utf8_lossy(&verdict.stdout).starts_with("sound"));
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let bench = Bench::new();
    bench.golden("d-m1-s");
    for words in [
        "wdiff merge d-m1-s",
        "wdiff merge d-m1-s -o x --compression zip",
        "wdiff merge d-m1-s -o x --compression zstd:99",
        "wdiff merge d-m1-s -o x --compression lzma:9",
        "wdiff merge d-m1-s -o x --max-io 1000",
        "wdiff full d-m1-s -o x --io-size 0",
        "wdiff redo d-m1-s",
    ] {
        assert_eq!(bench.run(words).status.code(), Some(2), "walb {words}");
    }
    let said = bench.fails("wdiff merge d-m1-s nowhere -o x");
    assert!(said.contains("nowhere"), "{said}");
    assert_eq!(bench.files(), ["d-m1-s"]);
}
