//! The settings of the device role: flags, and the same as a TOML file.
//!
//! ```toml
//! control = "/run/walb/device.sock"
//! nbd = ["unix:/run/walb/nbd.sock"]
//! state-dir = "/var/lib/walb/device"
//! overflow = "overwrite"
//!
//! [[volume]]
//! name = "vol0"
//! data = "/dev/vg/vol0"
//! log = "/dev/vg/vol0-log"
//! overflow = "stall"        # this volume only
//! ```

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use server_kit::net::Endpoint;
use server_kit::units::{parse_duration, parse_size};
use server_kit::volume_name::{ServerId, VolumeName};

use crate::options::{MIN_PENDING_BYTES, OverflowPolicy, VolumeOptions};

/// Flags of `walb-device serve`.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ServeArgs {
    /// TOML file with any of these settings; flags win over it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// A volume: its name, data device and log device (repeat for more)
    #[arg(long, value_name = "NAME=DATA,LOG")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume: Vec<VolumeSpec>,
    /// Serve the volumes over NBD at unix:PATH or tcp:HOST:PORT (repeat for more); a volume's name
    /// is its export name, and a single volume is the default export too
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nbd: Vec<Endpoint>,
    /// Unix socket of the control service
    #[arg(long, value_name = "SOCKET")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// Where the volumes keep what does not belong on their devices: the map of regions written
    /// since, and whether a restore replaces their content. Without it a hash backup after lost
    /// logs compares everything, and nothing can be restored to the devices
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// What happens when the log device is full [default: overwrite]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overflow: Option<OverflowPolicy>,
    /// Memory for writes that are not on the data device yet, for each volume [default: 128M]
    #[arg(long, value_name = "SIZE", value_parser = valid_size)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<String>,
    /// Time between checkpoints [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = valid_duration)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval: Option<String>,
    /// The log is flushed so long after a write at the latest [default: 5ms]
    #[arg(long, value_name = "TIME", value_parser = valid_duration)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_flush_interval: Option<String>,
    /// Name of this server [default: device]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<ServerId>,
    /// Let NBD listen on addresses that others can reach, without TLS
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Log as JSON lines
    #[arg(long)]
    #[serde(skip)]
    pub log_json: bool,
}

fn valid_size(text: &str) -> Result<String, String> {
    let size = parse_size(text)?;
    if size < MIN_PENDING_BYTES {
        return Err(format!("it must be at least {MIN_PENDING_BYTES} bytes"));
    }
    Ok(text.to_owned())
}

fn valid_duration(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned())
}

/// A volume to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Its name, and that of its NBD export.
    pub name: VolumeName,
    /// The data device: a block device or file.
    pub data: PathBuf,
    /// The log device: a block device or file.
    pub log: PathBuf,
    /// Its own overflow policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overflow: Option<OverflowPolicy>,
}

impl FromStr for VolumeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`{text}` is not NAME=DATA,LOG");
        let (name, devices) = text.split_once('=').ok_or_else(shape)?;
        let (data, log) = devices.split_once(',').ok_or_else(shape)?;
        if data.is_empty() || log.is_empty() {
            return Err(shape());
        }
        let name = name.parse::<VolumeName>().map_err(|error| error.to_string())?;
        Ok(Self { name, data: data.into(), log: log.into(), overflow: None })
    }
}

impl ServeArgs {
    /// The options of a volume.
    ///
    /// # Errors
    /// A setting of the file that is no size or time.
    pub fn options(&self, spec: &VolumeSpec) -> Result<VolumeOptions, String> {
        let default = VolumeOptions::default();
        let duration =
            |text: &Option<String>, default| text.as_deref().map_or(Ok(default), parse_duration);
        if let Some(text) = &self.max_pending {
            valid_size(text).map_err(|why| format!("max-pending: {why}"))?;
        }
        Ok(VolumeOptions {
            policy: spec.overflow.or(self.overflow).unwrap_or(default.policy),
            max_pending_bytes: self
                .max_pending
                .as_deref()
                .map_or(Ok(default.max_pending_bytes), parse_size)?,
            checkpoint_interval: duration(&self.checkpoint_interval, default.checkpoint_interval)?,
            log_flush_interval: duration(&self.log_flush_interval, default.log_flush_interval)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_told_as_name_data_log() {
        let spec: VolumeSpec = "v0=/dev/a,/dev/b".parse().unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.data, spec.log),
            ("v0", "/dev/a".into(), "/dev/b".into())
        );
        for bad in ["v0", "v0=/dev/a", "v0=,b", "v0=a,", "v_0=a,b", "=a,b"] {
            assert!(bad.parse::<VolumeSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_file_says_what_the_flags_can_say() {
        let text = "control = '/c'\nstate-dir = '/s'\n\
            nbd = ['unix:/n', 'tcp:127.0.0.1:10809']\nmax-pending = '64M'\n\
            overflow = 'stall'\n\
            [[volume]]\nname = 'v'\ndata = 'd'\nlog = 'l'\noverflow = 'error'\n";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("device.toml");
        std::fs::write(&file, text).unwrap();
        let args = server_kit::config::load(Some(&file), ServeArgs::default()).unwrap();
        let options = args.options(&args.volume[0]).unwrap();
        assert_eq!(options.policy, OverflowPolicy::Error);
        assert_eq!(options.max_pending_bytes, 64 << 20);
        assert_eq!(args.overflow, Some(OverflowPolicy::Stall));
        assert_eq!(args.nbd.len(), 2);
        assert_eq!(args.state_dir.as_deref(), Some(std::path::Path::new("/s")));
    }
}
