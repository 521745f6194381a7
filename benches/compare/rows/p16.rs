//! Apply and merge as the archive's commands, against the original's file tools on the same wdiffs
//! on the same disk. Both end when the result is on the disk; what is merged is compressed alike,
//! as archives do it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use controller::ops::archive;

use super::archive::Repeated;
use super::files::ensure_same_files;
use super::group::VOLUME;
use crate::bench::{Bench, Case, Row, Run, Sample, Side, in_place, shell, throughput};
use crate::results::Unit;

pub(super) struct ApplyMerge;

impl Row for ApplyMerge {
    fn id(&self) -> &'static str {
        "P16"
    }

    fn title(&self) -> &'static str {
        "apply and merge at the archive, 8 wdiffs of 64 MiB log each on 1 GiB, against \
         `wdiff-redo -z` and `wdiff-merge`"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let repeated = Repeated::start(bench)?;
        let mut wdiffs = Vec::new();
        for (number, wdiff) in repeated.wdiffs.iter().enumerate() {
            let copy = repeated.archive.group.file(&format!("{number}.wdiff"));
            std::fs::copy(wdiff, &copy)?;
            wdiffs.push(copy);
        }
        apply(bench, &repeated, &wdiffs)?;
        merge(bench, &repeated, &wdiffs)
    }
}

/// The tool, the file that it makes or changes, and the wdiffs.
fn args(tool: OsString, result: &Path, wdiffs: &[PathBuf]) -> Vec<OsString> {
    let wdiffs = wdiffs.iter().map(OsString::from);
    [tool, result.into()].into_iter().chain(wdiffs).collect()
}

fn apply(bench: &mut Bench, repeated: &Repeated, wdiffs: &[PathBuf]) -> anyhow::Result<()> {
    let group = &repeated.archive.group;
    let (base, image) = (group.base_image(), group.file("image"));
    std::fs::copy(&base, &image)?;
    let ours: Run<'_> = Box::new(|| {
        let (_, gid) = repeated.come()?;
        let start = Instant::now();
        repeated.apply(gid)?;
        Ok(Sample::throughput(repeated.bytes, start))
    });
    let redo = bench.peer("wdiff-redo", &[]).and_then(|command| command.into_iter().next());
    let is_compared = redo.is_some();
    let theirs = redo.map(|tool| {
        let redo = "tool=$1 image=$2; shift 2; \
                    for wdiff; do \"$tool\" -z -i \"$wdiff\" \"$image\"; done; sync \"$image\"";
        in_place(shell(redo, args(tool, &image, wdiffs)), repeated.bytes)
    });
    let case = Case::new("apply", Unit::MegabytesPerSecond);
    bench.measure(case, vec![Side::ours(ours), Side::peer("wdiff-redo", 1.0, theirs)])?;
    if is_compared { ensure_same_files(&base, &image) } else { Ok(()) }
}

fn merge(bench: &mut Bench, repeated: &Repeated, wdiffs: &[PathBuf]) -> anyhow::Result<()> {
    let group = &repeated.archive.group;
    let ours: Run<'_> = Box::new(|| {
        let (from, to) = repeated.come()?;
        let (cluster, start) = (&group.cluster, Instant::now());
        let ctl = cluster.ctl();
        cluster.run(archive::merge(ctl, "a0", VOLUME, (from, to), 0, &mut |_| {}))?;
        let sample = Sample::throughput(repeated.bytes, start);
        repeated.apply(to)?;
        Ok(sample)
    });
    let result = group.file("merged");
    let tool = bench.peer("wdiff-merge", &[]).and_then(|command| command.into_iter().next());
    let theirs = tool.map(|tool| {
        let merge = "tool=$1 result=$2; shift 2; \
                     \"$tool\" -cmpr zstd:1:2 -o \"$result\" -i \"$@\"; sync \"$result\"";
        throughput(shell(merge, args(tool, &result, wdiffs)), repeated.bytes, &result)
    });
    let case = Case::new("merge", Unit::MegabytesPerSecond);
    bench.measure(case, vec![Side::ours(ours), Side::peer("wdiff-merge", 1.0, theirs)])
}
