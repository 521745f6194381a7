//! Where a device is: `CONTROL_SOCKET#NAME`.

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
    /// The volume there.
    pub name: String,
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("device {0:?} is not CONTROL_SOCKET#NAME with the absolute path of a socket")]
pub struct BadAddress(String);

impl DeviceAddress {
    /// Reads `CONTROL_SOCKET[#NAME]`.
    ///
    /// # Errors
    /// Not an absolute path, or neither `text` nor `default_name` gives a name.
    pub fn parse(text: &str, default_name: Option<&str>) -> Result<Self, BadAddress> {
        let (socket, name) = match text.rsplit_once('#') {
            Some((socket, name)) => (socket, Some(name)),
            None => (text, default_name),
        };
        let socket = socket.strip_prefix("unix:").unwrap_or(socket);
        let clean = |t: &&str| !t.is_empty() && !t.contains(char::is_control);
        match name.filter(clean) {
            Some(name) if socket.starts_with('/') && clean(&socket) => {
                Ok(Self { socket: socket.to_owned(), name: name.to_owned() })
            }
            _ => Err(BadAddress(text.to_owned())),
        }
    }
}

impl FromStr for DeviceAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        Self::parse(text, None)
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
        write!(f, "{}#{}", self.socket, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_text_and_bad_ones_are_refused() {
        for text in ["/run/walb.sock#vol0", "/a#b#c"] {
            assert_eq!(text.parse::<DeviceAddress>().unwrap().to_string(), text);
        }
        let default = DeviceAddress::parse("unix:/a", Some("v")).unwrap();
        assert_eq!(default, DeviceAddress::parse("/a#v", Some("w")).unwrap());
        for bad in ["", "#v", "relative#v", "/a#", "/a\n#v", "tcp:1.2.3.4:5#v", "/a"] {
            assert!(bad.parse::<DeviceAddress>().is_err(), "{bad:?}");
        }
    }
}
