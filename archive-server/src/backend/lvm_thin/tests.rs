//! Against what LVM 2.03.16 answered on Debian 12.

use super::*;
use parking_lot::Mutex;
use std::sync::Arc;

const LVS: &str = include_str!("recorded/lvs.json");
const POOL: &str = include_str!("recorded/pool.json");
const NO_POOL: &str = r#"{"report":[{"lv":[{"lv_name":"x", "lv_size":"1", "data_percent":""}]}]}"#;
const FULL: &str = "  WARNING: Thin pool vg/pool is out of data space.\n  Cannot create new thin \
                    volume, free space in thin pool vg/pool reached threshold.\n";
const IN_USE: &str = "File descriptor 9 (/dev/mapper/vg-walb.db.base) leaked on lvm invocation. \
                      Parent PID 157: bash\n  Logical volume vg/walb.db.base in use.\n";

/// Commands that answer this, and what was asked of them.
fn answering(success: bool, stdout: &str, stderr: &str) -> (Lvm, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let answer = Answer { success, stdout: stdout.into(), stderr: stderr.into() };
    let heard = asked.clone();
    let run: Run = Box::new(move |args| {
        heard.lock().push(args.join(" "));
        Ok(answer.clone())
    });
    (Lvm::new("vg", "pool", run), asked)
}

#[test]
fn a_report_is_read_with_its_tags_and_times() {
    let (lvm, asked) = answering(true, LVS, "");
    let found = lvm.list().unwrap();
    let names: Vec<_> = found.iter().map(|lv| lv.name.as_str()).collect();
    assert_eq!(names, ["pool", "walb.db.base", "walb.db.restoring-7"]);
    let half_made = &found[2];
    assert_eq!((half_made.size_bytes, half_made.created_s), (20_971_520, 1_795_207_823));
    assert_eq!(half_made.tag("walb.archive"), Some("a0"));
    assert_eq!(half_made.tag("walb.size"), Some("40960"));
    assert_eq!(half_made.tag("walb"), None);
    assert!(found[1].active && !half_made.active);
    assert!(asked.lock()[0].starts_with("lvs --reportformat json --units b --nosuffix"));
}

#[test]
fn a_pool_is_read_and_anything_else_is_none() {
    let pool = answering(true, POOL, "").0.pool().unwrap();
    assert_eq!((pool.chunk_bytes, pool.zeroes, pool.discards), (65536, true, true));
    assert_eq!(pool.free_bytes(), 16 << 20);
    let error = answering(true, NO_POOL, "").0.pool().unwrap_err();
    assert_eq!(error.reason(), Reason::BadRequest);
    assert!(error.detail().next_step.starts_with("lvcreate --type thin-pool"));
    let error = answering(true, "{\"rep", "").0.pool().unwrap_err();
    assert!(error.full_message().contains("makes no sense"), "{error}");
}

#[test]
fn a_full_pool_is_no_space_and_says_what_helps() {
    let error = answering(false, "", FULL).0.create("walb.db.base", 1024, &[]).unwrap_err();
    assert_eq!(error.reason(), Reason::NoSpace);
    assert_eq!(error.detail().file, "vg/pool");
    assert!(error.detail().next_step.contains("lvextend -L +SIZE vg/pool"));
}

#[test]
fn another_failure_says_what_lvm_said() {
    let error = answering(false, "", IN_USE).0.remove("walb.db.base").unwrap_err();
    assert_eq!(error.reason(), Reason::Io);
    let said = "cannot remove vg/walb.db.base: Logical volume vg/walb.db.base in use.";
    assert_eq!(error.to_string(), said);
}

#[test]
fn the_commands_are_these() {
    let (lvm, asked) = answering(true, "", "");
    let tags = ["t=1".to_owned()];
    lvm.create("b", 1536, &tags).unwrap();
    lvm.snapshot("b", "s", &tags).unwrap();
    lvm.rename("s", "r").unwrap();
    lvm.extend("b", 4096).unwrap();
    lvm.retag("b", "t=1", "t=2").unwrap();
    lvm.activate("b").unwrap();
    lvm.remove("r").unwrap();
    assert_eq!(
        *asked.lock(),
        [
            "lvcreate -y -q -V 1536b --thinpool pool -n b --addtag t=1 vg",
            "lvcreate -y -q -s --setactivationskip n -n s --addtag t=1 vg/b",
            "lvrename -q vg s r",
            "lvextend -q -L 4096b vg/b",
            "lvchange -q --deltag t=1 --addtag t=2 vg/b",
            "lvchange -q -ay -K vg/b",
            "lvremove -y -q vg/r",
        ]
    );
}
