//! Holds the house: sizes, module docs, floors, the map. Style that a machine can check is a test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::Visit;

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_COLUMNS: usize = 100;

/// Files that may be longer, each with the reason that we would defend.
const LONG_FILES: &[(&str, &str)] = &[];

/// Crates by floor (design.md §2): a crate imports only from lower floors, or as `SAME_FLOOR` says.
const FLOORS: &[&[&str]] = &[
    &["wlog-format", "wdiff-format", "proto"],
    &["block-io", "server-kit"],
    &["device-server", "storage-server", "proxy-server", "archive-server"],
    &["controller"],
    &["walb"],
    &["tests", "benches", "simulator"],
];
/// Imports inside a floor that the design wants: diffs are made of logs, the wire carries both.
const SAME_FLOOR: &[(&str, &str)] = &[
    ("wdiff-format", "wlog-format"),
    ("proto", "wlog-format"),
    ("proto", "wdiff-format"),
    // What two roles send of a device, they send by the same code.
    ("server-kit", "block-io"),
    // Both drive whole clusters of the real programs.
    ("benches", "tests"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every file of the tree with this ending, without build output, as (path from the root, text).
fn files(ending: &str) -> Vec<(String, String)> {
    let root = root();
    let hidden = |name: &str| name == "target" || name == ".git";
    walkdir::WalkDir::new(&root)
        .into_iter()
        .filter_entry(|e| !hidden(&e.file_name().to_string_lossy()))
        .map(Result::unwrap)
        .filter(|e| e.file_type().is_file() && e.path().to_string_lossy().ends_with(ending))
        .map(|e| {
            let name = e.path().strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(e.path()).unwrap())
        })
        .collect()
}

fn nothing(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn files_are_small() {
    let mut problems = Vec::new();
    for (name, text) in files(".rs") {
        let lines = text.lines().count();
        let excused = LONG_FILES.iter().any(|(file, _)| *file == name);
        if lines > MAX_FILE_LINES && !excused {
            problems.push(format!("{name}: {lines} lines; look for the second idea in it"));
        }
        if lines <= MAX_FILE_LINES && excused {
            problems.push(format!("{name}: no longer long; take it out of LONG_FILES"));
        }
    }
    nothing(&problems);
}

#[test]
fn lines_fit_the_page() {
    let mut problems = Vec::new();
    for (name, text) in files(".rs") {
        for (index, line) in text.lines().enumerate() {
            let is_table = line.starts_with("//! |");
            if line.chars().count() > MAX_COLUMNS && !line.contains("http") && !is_table {
                problems.push(format!("{name}:{}: over {MAX_COLUMNS} columns", index + 1));
            }
        }
    }
    nothing(&problems);
}

#[test]
fn functions_are_small() {
    struct Functions<'a>(&'a str, Vec<String>);
    impl Functions<'_> {
        fn check(&mut self, name: &syn::Ident, block: &syn::Block) {
            let span = block.span();
            let lines = span.end().line - span.start().line + 1;
            if lines > MAX_FUNCTION_LINES {
                self.1.push(format!("{}:{}: fn {name}: {lines} lines", self.0, span.start().line));
            }
        }
    }
    impl<'ast> Visit<'ast> for Functions<'_> {
        fn visit_item_fn(&mut self, f: &'ast syn::ItemFn) {
            self.check(&f.sig.ident, &f.block);
            syn::visit::visit_item_fn(self, f);
        }
        fn visit_impl_item_fn(&mut self, f: &'ast syn::ImplItemFn) {
            self.check(&f.sig.ident, &f.block);
            syn::visit::visit_impl_item_fn(self, f);
        }
    }
    let mut problems = Vec::new();
    for (name, text) in files(".rs") {
        let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut functions = Functions(&name, Vec::new());
        functions.visit_file(&file);
        problems.append(&mut functions.1);
    }
    nothing(&problems);
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent = files(".rs").into_iter().filter(|(_, text)| !text.starts_with("//!"));
    let problems: Vec<_> = silent.map(|(name, _)| format!("{name}: opens without //!")).collect();
    nothing(&problems);
}

#[test]
fn unsafe_code_lives_in_block_io_alone() {
    let mut problems = Vec::new();
    for (name, text) in files(".rs") {
        let is_root = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
        if is_root && !name.starts_with("block-io/") && !text.contains("#![forbid(unsafe_code)]") {
            problems.push(format!("{name}: lacks #![forbid(unsafe_code)]"));
        }
    }
    nothing(&problems);
}

/// The workspace's crates with the workspace crates that each depends on (not for its tests).
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let members: Vec<&str> = FLOORS.iter().flat_map(|floor| floor.iter().copied()).collect();
    let manifest = |name: &str| -> toml::Table {
        fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap().parse().unwrap()
    };
    members
        .iter()
        .map(|name| {
            let manifest = manifest(name);
            let table = manifest.get("dependencies").and_then(toml::Value::as_table);
            let keys = table.into_iter().flat_map(|t| t.keys().cloned());
            let ours = keys.filter(|k| members.contains(&k.as_str())).collect();
            ((*name).to_owned(), ours)
        })
        .collect()
}

#[test]
fn no_crate_imports_upward_and_no_server_imports_a_server() {
    let floor_of = |name: &str| FLOORS.iter().position(|f| f.contains(&name)).unwrap();
    let mut problems = Vec::new();
    for (name, imports) in dependencies() {
        for import in imports {
            let allowed = floor_of(&import) < floor_of(&name)
                || SAME_FLOOR.contains(&(name.as_str(), import.as_str()));
            if !allowed {
                problems.push(format!("{name} imports {import}: not a lower floor"));
            }
        }
    }
    nothing(&problems);
}

#[test]
fn the_floors_hold_every_member_and_the_map_names_it() {
    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut problems = Vec::new();
    for member in members.iter().map(|m| m.as_str().unwrap()) {
        if !FLOORS.iter().any(|floor| floor.contains(&member)) {
            problems.push(format!("{member}: on no floor"));
        }
        if !map.contains(&format!("`{member}`")) {
            problems.push(format!("{member}: not in ARCHITECTURE.md"));
        }
    }
    nothing(&problems);
}

#[test]
fn every_test_that_the_map_names_exists() {
    let sources: String = files(".rs").into_iter().map(|(_, text)| text).collect();
    // Scenarios are written with a macro that takes the name first.
    let exists = |test: &str| {
        sources.contains(&format!("fn {test}(")) || sources.contains(&format!("scenario!({test},"))
    };
    let mut problems = Vec::new();
    for page in ["ARCHITECTURE.md", "tests/tests/scenarios/additional.rs"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let named = text.split('`').filter_map(|word| word.strip_prefix("test:"));
        let missing = named.filter(|test| !exists(test));
        problems.extend(missing.map(|test| format!("{page}: no test {test}")));
    }
    nothing(&problems);
}

#[test]
fn nothing_is_left_for_later() {
    // Spelled in two halves, so that this file does not find itself.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut problems = Vec::new();
    for (name, text) in files(".rs").into_iter().chain(files(".proto")) {
        for (index, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                problems.push(format!("{name}:{}: {}", index + 1, line.trim()));
            }
        }
    }
    nothing(&problems);
}
