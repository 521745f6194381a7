//! Our own files are right by the judgement of the independent checker.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::tempdir;

use crate::checker::check;
use crate::golden::sha256_file;
use crate::walb;

fn generate(wlog: &Path, block_size: &str, seed: &str, more: &[&str]) {
    let args = ["wlog", "gen", "--device-size", "16M", "--log-size", "1M"];
    let args = args.into_iter().chain(["--block-size", block_size, "--seed", seed]);
    let args = args.chain(more.iter().copied()).chain(["-o", wlog.to_str().unwrap()]);
    crate::run::walb(args).ok();
}

#[test]
fn generated_logs_are_right() {
    let dir = tempdir().unwrap();
    let wlog = dir.path().join("log.wlog");
    let variants: [&[&str]; 6] = [
        &[],
        &["--no-padding", "--no-discard", "--no-allzero"],
        &["--min-io", "4K", "--max-io", "4K"],
        &["--max-io", "1M", "--max-pack", "4M", "--max-discard", "16M"],
        &["--begin-lsid", "9223372036854775000", "--random-data"],
        &["--max-pack", "8K"],
    ];
    for (seed, options) in variants.into_iter().enumerate() {
        for block_size in ["512", "4096"] {
            generate(&wlog, block_size, &seed.to_string(), options);
            check("wlog", &wlog, &[]);
            walb!["wlog", "verify", &wlog].ok();
        }
    }
}

#[test]
fn a_generated_log_keeps_to_its_options() {
    let dir = tempdir().unwrap();
    let wlog = dir.path().join("log.wlog");
    let stat = |options: &[&str]| {
        generate(&wlog, "512", "7", options);
        walb!["wlog", "verify", "--json", &wlog].json()["stat"].clone()
    };
    let all = stat(&[]);
    for kind in ["normal", "allzero", "discard", "padding"] {
        assert!(all[kind].as_u64().unwrap() > 0, "{kind}");
    }
    for (option, kind) in
        [("--no-padding", "padding"), ("--no-discard", "discard"), ("--no-allzero", "allzero")]
    {
        assert_eq!(stat(&[option])[kind], 0, "{option}");
    }
    let small = stat(&["--min-io", "1K", "--max-io", "1K", "--no-allzero", "--no-padding"]);
    assert_eq!(small["normal_lb"].as_u64().unwrap(), 2 * small["normal"].as_u64().unwrap());
    assert_eq!(small["begin_lsid"], 0);
}

#[test]
fn a_seed_means_the_same_bytes_every_time() {
    let dir = tempdir().unwrap();
    let wlog = dir.path().join("log.wlog");
    let hash = |seed| {
        generate(&wlog, "4096", seed, &[]);
        sha256_file(&wlog)
    };
    assert_eq!(hash("1"), hash("1"));
    assert_ne!(hash("1"), hash("2"));
}

#[test]
fn a_restored_log_device_is_right_wherever_it_wraps() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (wlog, ldev, ddev, again) = (path("log.wlog"), path("ldev"), path("ddev"), path("again"));
    std::fs::File::create(&ddev).unwrap().set_len(16 << 20).unwrap();
    for (block_size, ring) in [("512", 4086_u64), ("4096", 509)] {
        generate(&wlog, block_size, "3", &[]);
        std::fs::File::create(&ldev).unwrap().set_len(2 << 20).unwrap();
        let format =
            walb!["ldev", "format", "--log", &ldev, "--data", &ddev, "--block-size", block_size];
        format.ok();
        check("ldev", &ldev, &["--pbs", block_size]);
        for diff in [0, ring - 1, ring - 40, 1_000_000_007] {
            walb!["ldev", "restore", &ldev, &wlog, "--lsid-diff", diff.to_string()].ok();
            check("ldev", &ldev, &["--pbs", block_size]);
            walb!["ldev", "verify", &ldev].ok();
            walb!["ldev", "cat", &ldev, "-o", &again].ok();
            check("wlog", &again, &[]);
            assert_eq!(image_after(&again, &path("a")), image_after(&wlog, &path("b")), "{diff}");
        }
    }
}

#[test]
fn restore_pads_exactly_where_a_pack_would_not_fit() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (wlog, ldev, ddev) = (path("log.wlog"), path("ldev"), path("ddev"));
    std::fs::File::create(&ddev).unwrap().set_len(16 << 20).unwrap();
    for (block_size, ring) in [("512", 4086_u64), ("4096", 509)] {
        generate(&wlog, block_size, "4", &["--no-padding", "--max-io", "8K", "--max-pack", "64K"]);
        let first = walb!["wlog", "show", "--json", &wlog].json()["wlogs"][0]["packs"][0].clone();
        let size = 1 + first["total_io_pb"].as_u64().unwrap();
        std::fs::File::create(&ldev).unwrap().set_len(2 << 20).unwrap();
        let pbs = ["--block-size", block_size];
        walb!["ldev", "format", "--log", &ldev, "--data", &ddev, pbs[0], pbs[1]].ok();
        for (room, paddings) in [(size, 0), (size - 1, 1), (size + 1, 1)] {
            let diff = (ring - room).to_string();
            let run = walb!["ldev", "restore", "--json", &ldev, &wlog, "--lsid-diff", diff];
            assert_eq!(run.json()["padding_packs"], paddings, "room for {room} of {size}");
            walb!["ldev", "verify", &ldev].ok();
        }
    }
}

fn image_after(wlog: &Path, image: &Path) -> String {
    std::fs::File::create(image).unwrap().set_len(16 << 20).unwrap();
    walb!["wlog", "redo", wlog, image].ok();
    sha256_file(image)
}

#[test]
fn format_leaves_the_data_device_as_it_is() {
    let dir = tempdir().unwrap();
    let (ldev, ddev) = (dir.path().join("ldev"), dir.path().join("ddev"));
    std::fs::write(&ddev, vec![7; 1 << 20]).unwrap();
    std::fs::write(&ldev, vec![9; 1 << 20]).unwrap();
    let before = sha256_file(&ddev);
    let run = walb!["ldev", "format", "--log", &ldev, "--data", &ddev, "--name", "v", "--json"];
    let info = run.json();
    assert_eq!((&info["name"], &info["device_size_lb"]), (&"v".into(), &2048.into()));
    assert_eq!(sha256_file(&ddev), before);
    check("ldev", &ldev, &["--pbs", &info["pbs"].to_string()]);
    let run = walb!["ldev", "format", "--log", &ddev, "--data", &ddev];
    run.failed_on(&ddev);
    assert_eq!(sha256_file(&ddev), before, "the data device given twice is not formatted");
}

#[test]
fn pipes_carry_logs_and_a_closed_pipe_is_no_error() {
    let dir = tempdir().unwrap();
    let (wlog, image) = (dir.path().join("log.wlog"), dir.path().join("image"));
    generate(&wlog, "512", "5", &[]);
    std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let program = env!("CARGO_BIN_EXE_walb");
    let input = std::fs::File::open(&wlog).unwrap();
    let mut redo = Command::new(program);
    redo.args(["wlog", "redo", "-"]).arg(&image).stdin(input).stdout(Stdio::null());
    assert!(redo.status().unwrap().success());
    assert_eq!(sha256_file(&image), image_after(&wlog, &dir.path().join("other")));

    let mut show = Command::new(program);
    show.args(["wlog", "show"]).arg(&wlog).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = show.spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}
