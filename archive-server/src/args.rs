//! The flags of `walb-archive serve`, which are also the keys of its configuration file, and
//! serving.

use crate::archive::Settings;
use crate::backend::BackendChoice;
use crate::server::Server;
use crate::verify::scrub::Scrub;
use crate::world::World;
use serde::{Deserialize, Serialize};
use server_kit::config::required;
use server_kit::error::RoleError;
use server_kit::net::{Endpoint, Listener};
use server_kit::shutdown::Shutdown;
use server_kit::units::{Size, Span, parse_size};
use server_kit::volume_name::{BadName, ServerId, VolumeName};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use wdiff_format::retention::Policy;

/// Where base images live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Sparse files below the base directory, cloned where the file system can.
    #[default]
    File,
    /// A block device for each volume (--image)
    Block,
    /// Thin volumes of LVM (--vg, --pool), cloned by snapshots
    LvmThin,
}

/// The block device of a volume's base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageDevice {
    volume: VolumeName,
    device: PathBuf,
}

impl FromStr for ImageDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`{text}` is not VOLUME=DEVICE");
        let (volume, device) = text.split_once('=').ok_or_else(shape)?;
        let (volume, device) = (volume.parse(), PathBuf::from(device));
        let volume = volume.map_err(|e: BadName| e.to_string())?;
        if device.is_absolute() { Ok(Self { volume, device }) } else { Err(shape()) }
    }
}

impl TryFrom<String> for ImageDevice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ImageDevice> for String {
    fn from(image: ImageDevice) -> Self {
        format!("{}={}", image.volume, image.device.display())
    }
}

/// What `walb-archive serve` needs to know.
#[derive(Debug, Clone, Default, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ServeArgs {
    /// Take what is not said here from this TOML file; its keys are the names of these flags
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of everything that the archive keeps; made when it is missing
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Where to listen: unix:PATH or HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<Endpoint>,
    /// Name of this archive
    #[arg(long, value_name = "ID")]
    pub id: Option<ServerId>,
    /// Where base images live
    #[arg(long, value_enum, value_name = "BACKEND")]
    pub backend: Option<Backend>,
    /// Block device of a volume's base image, for --backend block; repeatable
    #[arg(long, value_name = "VOLUME=DEVICE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image: Vec<ImageDevice>,
    /// Volume group of the base images, for --backend lvm-thin
    #[arg(long, value_name = "VG")]
    pub vg: Option<String>,
    /// Thin pool of the base images, for --backend lvm-thin
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    /// Listen without TLS where others can reach it
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Space that stays free: wdiffs are refused below it [default: 32M]
    #[arg(long, value_name = "SIZE")]
    pub reserve: Option<String>,
    /// Keep wdiffs that became needless for such a time, unless space is short [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub deletion_grace: Option<Span>,
    /// A full backup can be resumed every so much [default: 1G]
    #[arg(long, value_name = "SIZE")]
    pub flush_interval: Option<String>,
    /// What is kept of the histories of new volumes, as one word: "all 1h, every 1m 1d"
    /// [default: everything]
    #[arg(long, value_name = "POLICY")]
    pub retention: Option<String>,
    /// Histories that are thinned out at a time [default: 1]
    #[arg(long, value_name = "N")]
    pub thinning_max: Option<usize>,
    /// Scheduled replications that run at a time [default: 1]
    #[arg(long, value_name = "N")]
    pub replications_max: Option<usize>,
    /// Read back everything once in such a time, in the background [default: 14d]
    #[arg(long, value_name = "TIME")]
    pub scrub_cycle: Option<Span>,
    /// Read no more than this per second for it; 0: as fast as it goes [default: 16M]
    #[arg(long, value_name = "SIZE")]
    pub scrub_rate: Option<Size>,
    /// Read nothing back in the background
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_scrub: bool,
    /// Drill a random snapshot of each volume once in a cycle, too
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drill: bool,
    /// Have this program, with its arguments, look at each snapshot that is drilled
    #[arg(long, value_name = "COMMAND")]
    pub drill_command: Option<String>,
    /// Write the log as JSON
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub log_json: bool,
}

impl ServeArgs {
    /// The backend; flags of another one are a mistake.
    fn backend(&self) -> Result<BackendChoice, anyhow::Error> {
        let backend = self.backend.unwrap_or_default();
        let foreign = [
            (!self.image.is_empty() && backend != Backend::Block, "--image", "block"),
            (self.vg.is_some() && backend != Backend::LvmThin, "--vg", "lvm-thin"),
            (self.pool.is_some() && backend != Backend::LvmThin, "--pool", "lvm-thin"),
        ];
        if let Some((_, flag, of)) = foreign.iter().find(|(given, _, _)| *given) {
            return Err(RoleError::bad_request(format!("{flag} is for --backend {of}")).into());
        }
        Ok(match backend {
            Backend::File => BackendChoice::File,
            Backend::LvmThin => BackendChoice::LvmThin {
                vg: required(self.vg.clone(), "vg")?,
                pool: required(self.pool.clone(), "pool")?,
            },
            Backend::Block => {
                let mut devices = BTreeMap::new();
                for ImageDevice { volume, device } in &self.image {
                    if devices.insert(volume.clone(), device.clone()).is_some() {
                        let message = format!("volume {volume} is given two devices by --image");
                        return Err(RoleError::bad_request(message).into());
                    }
                }
                BackendChoice::Block(devices)
            }
        })
    }

    fn settings(&self) -> Result<Settings, RoleError> {
        let default = Settings::default();
        let size = |text: &Option<String>, default| match text {
            Some(text) => parse_size(text).map_err(RoleError::bad_request),
            None => Ok(default),
        };
        let reserve_bytes = size(&self.reserve, default.reserve_bytes)?;
        let flush_bytes = size(&self.flush_interval, default.flush_bytes)?.max(1);
        let thinning_max = self.thinning_max.unwrap_or(default.thinning_max).max(1);
        let replications_max = self.replications_max.unwrap_or(default.replications_max).max(1);
        let insecure = self.insecure;
        let (scrub, drill_command) = (self.scrub(), self.drill_command()?);
        let grace = self.deletion_grace.map_or(default.grace, |Span(grace)| grace);
        let settings = Settings { reserve_bytes, grace, flush_bytes, insecure, ..default };
        Ok(Settings { thinning_max, replications_max, scrub, drill_command, ..settings })
    }

    fn retention(&self) -> Result<Option<Policy>, RoleError> {
        self.retention.as_deref().map(crate::upkeep::policy).transpose()
    }

    fn scrub(&self) -> Option<Scrub> {
        let default = Scrub::default();
        let scrub = Scrub {
            cycle: self.scrub_cycle.map_or(default.cycle, |Span(cycle)| cycle),
            bytes_per_s: self.scrub_rate.map_or(default.bytes_per_s, |Size(rate)| rate),
            drill: self.drill,
        };
        (!self.no_scrub).then_some(scrub)
    }

    /// Words as a shell would split them; no shell ever sees them.
    fn drill_command(&self) -> Result<Vec<String>, RoleError> {
        let Some(text) = &self.drill_command else { return Ok(Vec::new()) };
        let unclear =
            || RoleError::bad_request(format!("drill-command: a quote of {text:?} is open"));
        shlex::split(text).ok_or_else(unclear)
    }
}

/// Serves an archive until shutdown, as the flags and their configuration file say.
///
/// # Errors
/// Settings that cannot be used, a base directory or an address that cannot be had.
pub async fn serve(args: ServeArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let args = server_kit::config::load(args.config.clone().as_deref(), args)?;
    let base = required(args.base.clone(), "base")?;
    let listen = required(args.listen.clone(), "listen")?;
    let id = required(args.id.clone(), "id")?;
    let listener = Listener::bind(&listen, args.insecure).await?;
    let (settings, backend, retention) = (args.settings()?, args.backend()?, args.retention()?);
    let server = Server { base, id, settings, backend, retention, world: World::real() };
    server.run(listener, shutdown).await?;
    Ok(())
}
