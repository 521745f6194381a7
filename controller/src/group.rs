//! The group file `walb.toml`: which servers there are, in which role and order.
//!
//! ```toml
//! [[server]]
//! name = "s0"
//! role = "storage"
//! address = "10.0.0.1:5000"   # or "unix:/run/walb/s0.sock"
//!
//! [[volume]]                  # optional: where volumes belong, as `init-storage` was told
//! name = "vol0"
//! legs = { s0 = "/run/walb/control.sock#vol0" }
//! ```
//!
//! Nothing but `doctor` looks at the volumes: a storage server that has lost its state cannot say
//! what it had, and the file can.
//!
//! Order means priority: the first archive is the primary, proxies are tried from the first on
//! (semantics.md §1.1). Names are unique over all roles, so that a verb can take any of them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use server_kit::net::Endpoint;
use server_kit::volume_name::VolumeName;

/// What a server of the group does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerRole {
    /// Follows log devices and ships wlogs.
    Storage,
    /// Turns wlogs into wdiffs and sends them on.
    Proxy,
    /// Keeps base images and wdiffs.
    Archive,
}

impl std::fmt::Display for ServerRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Storage => "storage",
            Self::Proxy => "proxy",
            Self::Archive => "archive",
        })
    }
}

/// One server of the group.
#[derive(Clone, Debug)]
pub struct Server {
    /// The name that commands use; for an archive also its key at the proxies.
    pub name: String,
    /// What it does.
    pub role: ServerRole,
    /// Where it listens.
    pub address: Endpoint,
}

/// A volume that belongs on a storage server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The volume.
    pub volume: String,
    /// The storage server.
    pub storage: String,
    /// `CONTROL#NAME` of its device there.
    pub device: String,
}

/// All servers, in the order of the file.
#[derive(Clone, Debug)]
pub struct Group {
    servers: Vec<Server>,
    legs: Vec<Leg>,
}

/// Why a group file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The file cannot be read.
    #[error(
        "cannot read the group file {}: {source}; name one with --config or WALB_CONFIG",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the group file {} is wrong: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A name that is not in the file.
    #[error("no server {name:?} in the group; it has {known}")]
    UnknownServer {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A server in another role than the command needs.
    #[error("{name} is of role {actual}, this command needs a server of role {wanted}")]
    WrongRole {
        /// The server.
        name: String,
        /// Its role.
        actual: ServerRole,
        /// The role that the command needs.
        wanted: ServerRole,
    },
    /// The command needs a role that the group does not have.
    #[error("the group has no server of role {0}")]
    NoServer(ServerRole),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupFile {
    #[serde(default)]
    server: Vec<ServerEntry>,
    #[serde(default)]
    volume: Vec<VolumeEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeEntry {
    name: VolumeName,
    legs: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerEntry {
    name: String,
    role: ServerRole,
    address: String,
}

impl std::str::FromStr for Group {
    type Err = String;
    /// Checks the text of a group file.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl Group {
    /// Reads and checks a group file.
    ///
    /// # Errors
    /// [`GroupError::Read`] and [`GroupError::Syntax`], each naming the file.
    pub fn load(path: &Path) -> Result<Self, GroupError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| GroupError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|message| GroupError::Syntax { path: path.to_owned(), message })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: GroupFile = toml::from_str(text).map_err(|e| e.to_string())?;
        let mut names = HashSet::new();
        let mut servers = Vec::with_capacity(file.server.len());
        for entry in file.server {
            if !names.insert(entry.name.clone()) {
                return Err(format!("two servers are named {:?}", entry.name));
            }
            let address = entry
                .address
                .parse()
                .map_err(|e| format!("address {:?} of {}: {e}", entry.address, entry.name))?;
            servers.push(Server { name: entry.name, role: entry.role, address });
        }
        if servers.is_empty() {
            return Err("it names no [[server]]".to_owned());
        }
        let mut legs = Vec::new();
        for VolumeEntry { name, legs: of_volume } in file.volume {
            for (storage, device) in of_volume {
                let is_storage = |s: &Server| s.name == storage && s.role == ServerRole::Storage;
                if !servers.iter().any(is_storage) {
                    return Err(format!("{name} has a leg at {storage:?}, no storage server"));
                }
                legs.push(Leg { volume: name.to_string(), storage, device });
            }
        }
        Ok(Self { servers, legs })
    }

    /// Where volumes belong, as far as the file says so.
    #[must_use]
    pub fn legs(&self) -> &[Leg] {
        &self.legs
    }

    /// All servers, in order.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The servers of one role, in order.
    pub fn of_role(&self, role: ServerRole) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(move |server| server.role == role)
    }

    /// The server of that name, whatever its role.
    ///
    /// # Errors
    /// [`GroupError::UnknownServer`].
    pub fn server(&self, name: &str) -> Result<&Server, GroupError> {
        self.servers.iter().find(|server| server.name == name).ok_or_else(|| {
            let known: Vec<_> = self.servers.iter().map(|s| s.name.as_str()).collect();
            GroupError::UnknownServer { name: name.to_owned(), known: known.join(", ") }
        })
    }

    /// The server of that name, which must have that role.
    ///
    /// # Errors
    /// [`GroupError::UnknownServer`] or [`GroupError::WrongRole`].
    pub fn server_of(&self, name: &str, role: ServerRole) -> Result<&Server, GroupError> {
        let server = self.server(name)?;
        if server.role == role {
            return Ok(server);
        }
        Err(GroupError::WrongRole { name: name.to_owned(), actual: server.role, wanted: role })
    }

    /// The archive that full and hash backups go to: the first one.
    ///
    /// # Errors
    /// [`GroupError::NoServer`].
    pub fn primary(&self) -> Result<&Server, GroupError> {
        self.of_role(ServerRole::Archive).next().ok_or(GroupError::NoServer(ServerRole::Archive))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [[server]]
        name = "s0"
        role = "storage"
        address = "unix:/run/walb/s0.sock"
        [[server]]
        name = "a0"
        role = "archive"
        address = "127.0.0.1:5002"
    "#;

    #[test]
    fn order_and_roles_come_from_the_file() {
        let group = Group::parse(FILE).unwrap();
        assert_eq!(group.primary().unwrap().name, "a0");
        assert!(group.server_of("s0", ServerRole::Storage).is_ok());
        assert!(matches!(
            group.server_of("s0", ServerRole::Proxy),
            Err(GroupError::WrongRole { .. })
        ));
        let unknown = group.server("s9").unwrap_err().to_string();
        assert!(unknown.contains("s0, a0"), "{unknown}");
    }

    #[test]
    fn legs_say_where_a_volume_belongs() {
        let text = format!("{FILE}[[volume]]\nname = 'v'\nlegs = {{ s0 = '/c.sock#v' }}");
        let leg = Leg { volume: "v".into(), storage: "s0".into(), device: "/c.sock#v".into() };
        assert_eq!(Group::parse(&text).unwrap().legs(), [leg]);
        assert!(Group::parse(FILE).unwrap().legs().is_empty());
    }

    #[test]
    fn a_wrong_file_says_what_is_wrong() {
        for (text, part) in [
            ("", "no [[server]]"),
            (&FILE.replace("a0", "s0"), "two servers"),
            (&FILE.replace("archive", "attic"), "attic"),
            (&FILE.replace("127.0.0.1:5002", "nowhere"), "nowhere"),
            (&FILE.replace("address", "adress"), "adress"),
            (&format!("{FILE}[[volume]]\nname = 'v_1'\nlegs = {{ s0 = '/c#v' }}"), "v_1"),
            (&format!("{FILE}[[volume]]\nname = 'v'\nlegs = {{ a0 = '/c#v' }}"), "no storage"),
        ] {
            let message = Group::parse(text).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
