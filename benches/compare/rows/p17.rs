//! A restore, against a plain copy of as many bytes on the same disk. Both end when the image is on
//! the disk.

use std::time::Instant;

use controller::ops::archive::{self, RestorePoint};

use super::archive::Repeated;
use super::group::VOLUME;
use crate::bench::{Bench, Case, Row, Run, Sample, Side, shell, throughput};
use crate::results::Unit;

pub(super) struct Restore;

impl Row for Restore {
    fn id(&self) -> &'static str {
        "P17"
    }

    fn title(&self) -> &'static str {
        "restore of 1 GiB with 8 wdiffs of 64 MiB log each, against `cp` and `sync` of the image"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let repeated = Repeated::start(bench)?;
        let (_, gid) = repeated.come()?;
        let group = &repeated.archive.group;
        let (image, copy) = (group.file("restored"), group.file("copy"));
        let bytes = group.base_image().metadata()?.len();
        let ours: Run<'_> = Box::new(|| {
            if image.exists() {
                std::fs::remove_file(&image)?;
            }
            let (cluster, start) = (&group.cluster, Instant::now());
            let (point, to) = (RestorePoint::Gid(gid), Some(image.clone()));
            let ctl = cluster.ctl();
            cluster.run(archive::restore(ctl, "a0", VOLUME, point, to, &mut |_| {}))?;
            Ok(Sample::throughput(bytes, start))
        });
        let paths = [&group.base_image(), &copy].map(Into::into).into();
        let cp = shell("cp --reflink=auto \"$1\" \"$2\"; sync \"$2\"", paths);
        let theirs = throughput(cp, bytes, &copy);
        let case = Case::new("restore to a file", Unit::MegabytesPerSecond);
        bench.measure(case, vec![Side::ours(ours), Side::limit("cp", theirs)])
    }
}
