//! Where a device is: `CONTROL_SOCKET[#NAME]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The control socket of a device role, and the volume's name there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceAddress {
    /// Absolute path of the control socket.
    pub socket: String,
    /// The volume there; `None`: it has the name that it has here.
    pub name: Option<String>,
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("device {0:?} is not CONTROL_SOCKET[#NAME] with an absolute path of a socket")]
pub struct BadAddress(String);

impl FromStr for DeviceAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        let (socket, name) = match text.rsplit_once('#') {
            Some((socket, name)) => (socket, Some(name)),
            None => (text, None),
        };
        let socket = socket.strip_prefix("unix:").unwrap_or(socket);
        let clean = |t: &str| !t.is_empty() && !t.contains(char::is_control);
        if !socket.starts_with('/') || !clean(socket) || !name.is_none_or(clean) {
            return Err(bad());
        }
        Ok(Self { socket: socket.to_owned(), name: name.map(str::to_owned) })
    }
}

impl TryFrom<String> for DeviceAddress {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        text.parse()
    }
}

impl From<DeviceAddress> for String {
    fn from(address: DeviceAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}#{name}", self.socket),
            None => f.write_str(&self.socket),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_text_and_bad_ones_are_refused() {
        for text in ["/run/walb.sock", "/run/walb.sock#vol0", "/a#b#c"] {
            assert_eq!(text.parse::<DeviceAddress>().unwrap().to_string(), text);
        }
        let named: DeviceAddress = "unix:/a#b".parse().unwrap();
        assert_eq!((named.socket.as_str(), named.name.as_deref()), ("/a", Some("b")));
        for bad in ["", "#v", "relative", "/a#", "/a\n", "tcp:1.2.3.4:5"] {
            assert!(bad.parse::<DeviceAddress>().is_err(), "{bad:?}");
        }
    }
}
