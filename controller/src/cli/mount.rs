//! `walbc mount`, `mounts`, `unmount`.

use clap::Args;
use proto::v1;
use serde_json::{Value, json};
use server_kit::units::format_size;

use super::output::{Report, time};
use super::values::{Point, Target, parse_volume};
use crate::client::Controller;
use crate::error::{ControlError, Exit};
use crate::ops::mount;

/// Arguments of `walbc mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// An archive of the group file, and the volume
    #[command(flatten)]
    pub target: Target,
    /// Which snapshot
    #[command(flatten)]
    pub point: Point,
    /// Where the archive serves it: unix:PATH or HOST:PORT there [default: a socket of its own]
    #[arg(long, value_name = "ADDR")]
    pub nbd: Option<String>,
    /// Clients may write; what they write is gone with the mount
    #[arg(long)]
    pub writable: bool,
}

/// Arguments of `walbc mounts`.
#[derive(Debug, Args)]
pub struct MountsArgs {
    /// An archive of the group file
    pub server: String,
    /// This volume only
    #[arg(value_parser = parse_volume)]
    pub volume: Option<String>,
}

/// Arguments of `walbc unmount`.
#[derive(Debug, Args)]
pub struct UnmountArgs {
    /// An archive of the group file, and the volume
    #[command(flatten)]
    pub target: Target,
    /// Which mount; may be left out when the volume has one only
    pub id: Option<String>,
}

type Answer = Result<(Report, Exit), ControlError>;

/// Mounts, and prints the URI that NBD clients take.
pub(super) async fn mount(ctl: &Controller, args: &MountArgs) -> Answer {
    let MountArgs { target: t, point, nbd, writable } = args;
    let options = mount::MountOptions { nbd: nbd.clone(), writable: *writable };
    let mounted = mount::mount(ctl, &t.server, &t.volume, point.point(), options).await?;
    Ok((Report { text: mounted.uri.clone(), json: entry(&mounted) }, Exit::Done))
}

/// Lists.
pub(super) async fn mounts(ctl: &Controller, args: &MountsArgs) -> Answer {
    let mounts = mount::mounts(ctl, &args.server, args.volume.as_deref()).await?;
    let row = |m: &v1::Mounted| {
        let kind = if m.writable { "writable" } else { "read-only" };
        let size = format_size(m.size_bytes);
        let gid = m.gid.to_string();
        let (since, at) = (time(m.since_s), time(m.timestamp_s));
        vec![m.volume.clone(), m.id.clone(), gid, at, since, kind.into(), size, m.uri.clone()]
    };
    let json = json!({ "mounts": mounts.iter().map(entry).collect::<Vec<_>>() });
    let header = ["VOLUME", "ID", "GID", "TIME", "SINCE", "KIND", "SIZE", "URI"];
    Ok((Report::table(&header, mounts.iter().map(row).collect(), json), Exit::Done))
}

/// Ends one.
pub(super) async fn unmount(ctl: &Controller, args: &UnmountArgs) -> Answer {
    let t = &args.target;
    mount::unmount(ctl, &t.server, &t.volume, args.id.as_deref()).await?;
    Ok((Report::done(), Exit::Done))
}

fn entry(m: &v1::Mounted) -> Value {
    json!({
        "volume": m.volume, "id": m.id, "gid": m.gid, "timestamp_s": m.timestamp_s, "uri": m.uri,
        "writable": m.writable, "since_s": m.since_s, "size_bytes": m.size_bytes,
        "wdiffs": m.wdiffs, "records": m.records, "holds_base": m.holds_base,
    })
}
