//! One directory that holds a whole backup group: sockets, state of every role, the group file.
//!
//! `walb up` and `walb demo` agree on it, so that `walbc --config DIR/walb.toml` works for both.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use controller::Group;
use device_server::{DeviceRole, VolumeSpec, format_devices, open_device};
use wlog_format::superblock::{DeviceName, SUPER_OFFSET_BYTES};
use wlog_format::units::BlockSize;

/// A volume as the device role's `--volume` wants it.
fn volume_flag(volume: &VolumeSpec) -> String {
    format!("{}={},{}", volume.name, volume.data.display(), volume.log.display())
}

/// The role servers of a place, in the order in which they start.
pub(crate) const ROLES: [&str; 4] = ["device", "archive", "proxy", "storage"];

/// The directory of one group.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    dir: PathBuf,
}

impl Place {
    /// Below `dir`, which is made if need be.
    pub(crate) fn create(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
        let dir = dir
            .canonicalize()
            .with_context(|| format!("cannot use the directory {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The device role's control socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// The socket of the device role's NBD server.
    pub(crate) fn nbd_socket(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }

    /// The NBD URI of a volume.
    pub(crate) fn nbd_uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.nbd_socket().display())
    }

    /// The group file.
    pub(crate) fn group_file(&self) -> PathBuf {
        self.dir.join("walb.toml")
    }

    fn address(&self, id: &str) -> String {
        format!("unix:{}", self.dir.join(format!("{id}.sock")).display())
    }

    /// Writes the group file and reads it back.
    pub(crate) fn write_group(&self) -> anyhow::Result<Group> {
        let servers = [("s0", "storage"), ("p0", "proxy"), ("a0", "archive")];
        let entry = |(name, role): (&str, &str)| {
            let address = self.address(name);
            format!("[[server]]\nname = \"{name}\"\nrole = \"{role}\"\naddress = {address:?}\n")
        };
        let text: Vec<_> = servers.into_iter().map(entry).collect();
        let file = self.group_file();
        std::fs::write(&file, text.join("\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Group::load(&file)?)
    }

    /// The command line of a role: `serve` and its flags.
    pub(crate) fn role_args(&self, role: &str, volumes: &[VolumeSpec]) -> Vec<String> {
        let mut args = vec!["serve".to_owned()];
        let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        if role == "device" {
            flag("control", self.control().display().to_string());
            flag("state-dir", self.dir.join("device").display().to_string());
            flag("nbd", format!("unix:{}", self.nbd_socket().display()));
            volumes.iter().for_each(|volume| flag("volume", volume_flag(volume)));
            return args;
        }
        let id = match role {
            "storage" => "s0",
            "proxy" => "p0",
            _ => "a0",
        };
        flag("base", self.dir.join(role).display().to_string());
        flag("listen", self.address(id));
        flag("id", id.to_owned());
        match role {
            "storage" => {
                flag("archive", self.address("a0"));
                flag("proxy", self.address("p0"));
            }
            "archive" => flag("backend", "file".to_owned()),
            _ => {}
        }
        args
    }
}

/// Makes a sparse file of that size; an existing file is left alone.
pub(crate) fn make_sparse(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let attempt = || format!("cannot make the file {}", path.display());
    match std::fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file.set_len(bytes).with_context(attempt),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).with_context(attempt),
    }
}

/// Formats the log device of a volume if it is blank: a super sector of zeros.
pub(crate) async fn format_if_blank(volume: &VolumeSpec) -> anyhow::Result<bool> {
    let log = open_device(&volume.log, DeviceRole::Log).await?;
    let sector = log.read(SUPER_OFFSET_BYTES, BlockSize::B4096.as_usize()).await?;
    if sector.iter().any(|byte| *byte != 0) {
        return Ok(false);
    }
    let data = open_device(&volume.data, DeviceRole::Data).await?;
    let name = volume.name.as_str().parse().unwrap_or(DeviceName::EMPTY);
    format_devices(&log, &data, BlockSize::B4096, name).await?;
    Ok(true)
}
