//! Names that come from people and from the network and end up in paths.
//!
//! Invariant: a [`VolumeName`] or [`ServerId`] is always one harmless path component, so that no
//! caller has to check again before it joins one to a directory.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest name in bytes (semantics.md §1.4).
pub const NAME_MAX_BYTES: usize = 64;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: use 1 to 64 characters of {allowed}")]
pub struct BadName {
    text: String,
    kind: &'static str,
    allowed: &'static str,
}

/// A volume id: 1-64 characters of `[0-9A-Za-z-]`, the same on all servers (semantics.md §1.4).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// The id of a server (`--id`): 1-64 characters of `[0-9A-Za-z._-]`, the first not a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerId(String);

fn fits(text: &str, extra: &[u8]) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || extra.contains(&b);
    (1..=NAME_MAX_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

impl TryFrom<String> for VolumeName {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        if fits(&text, b"") {
            return Ok(Self(text));
        }
        Err(BadName { text, kind: "volume name", allowed: "0-9 A-Z a-z -" })
    }
}

impl TryFrom<String> for ServerId {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        if fits(&text, b"._") && !text.starts_with('.') {
            return Ok(Self(text));
        }
        Err(BadName { text, kind: "server id", allowed: "0-9 A-Z a-z . _ - (no dot first)" })
    }
}

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                text.to_owned().try_into()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text_newtype!(VolumeName);
text_newtype!(ServerId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "/", "a\0b", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
            assert!(bad.parse::<ServerId>().is_err(), "{bad:?}");
        }
        assert!("a_b".parse::<VolumeName>().is_err(), "LVM names use _ as separator");
        assert!("a_b.example".parse::<ServerId>().is_ok());
        assert!(".hidden".parse::<ServerId>().is_err());
    }

    proptest! {
        #[test]
        fn good_names_survive_text_and_serde(text in "[0-9A-Za-z-]{1,64}") {
            let name: VolumeName = text.parse().unwrap();
            prop_assert_eq!(name.to_string(), text.clone());
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<VolumeName>(&json).unwrap(), name);
        }

        #[test]
        fn what_is_accepted_is_one_path_component(text in "\\PC{0,70}") {
            if let Ok(id) = text.parse::<ServerId>() {
                let path = std::path::Path::new(id.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(path.file_name().is_some());
            }
        }
    }
}
