//! Settings of a role: one struct of flags that is also the shape of its TOML file; a flag that is
//! given wins over the file.
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be; the source says where.
    #[error("the configuration {} is wrong", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Line and reason.
        source: Box<toml::de::Error>,
    },
    /// The role cannot do without it.
    #[error("{0} is missing: give --{0}, or put it in the configuration")]
    Missing(&'static str),
    /// The flags cannot be expressed as a file; a mistake in the program.
    #[error("the flags cannot be merged with a configuration")]
    Flags(#[from] toml::ser::Error),
}

/// `flags` over the content of `file`, if one is given. Fields of `T` that a flag did not set must
/// not serialise (`Option` does so by itself; for `bool` and `Vec` use `skip_serializing_if`).
///
/// # Errors
/// [`ConfigError`].
pub fn load<T: Serialize + DeserializeOwned>(
    file: Option<&Path>,
    flags: T,
) -> Result<T, ConfigError> {
    let Some(file) = file else { return Ok(flags) };
    let text = std::fs::read_to_string(file)
        .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    let parse = |source| ConfigError::Parse { file: file.to_owned(), source: Box::new(source) };
    // The file alone first, so that an error points into it; and back, so that a key has one name
    // where the file may use an older one.
    let mut settings = toml::Table::try_from(toml::from_str::<T>(&text).map_err(parse)?)?;
    settings.extend(toml::Table::try_from(flags)?);
    settings.try_into().map_err(parse)
}

/// A setting that the role cannot do without, by the name of its flag.
///
/// # Errors
/// [`ConfigError::Missing`].
pub fn required<T>(value: Option<T>, flag: &'static str) -> Result<T, ConfigError> {
    value.ok_or(ConfigError::Missing(flag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        id: Option<String>,
        #[serde(alias = "pause")]
        delay: Option<u64>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        insecure: bool,
    }

    fn load_text(text: &str, flags: Settings) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("walb.toml");
        std::fs::write(&file, text).unwrap();
        load(Some(&file), flags)
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_nothing() {
        let flags = Settings { delay: Some(5), ..Settings::default() };
        let merged = load_text("id = 'p0'\ndelay = 3\ninsecure = true\n", flags).unwrap();
        assert_eq!(merged, Settings { id: Some("p0".into()), delay: Some(5), insecure: true });
        let flags = || Settings { delay: Some(5), ..Settings::default() };
        assert_eq!(load_text("pause = 3\n", flags()).unwrap(), flags(), "an older name");
        let alone = Settings { id: Some("x".into()), ..Settings::default() };
        assert_eq!(load(None, alone).unwrap().id.as_deref(), Some("x"));
    }

    #[test]
    fn an_unknown_key_or_a_missing_file_is_an_error_that_names_the_file() {
        let error = load_text("idd = 'p0'\n", Settings::default()).unwrap_err();
        assert!(error.to_string().contains("walb.toml"), "{error}");
        let error = load(Some(Path::new("/nonexistent/x.toml")), Settings::default()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x.toml"), "{error}");
    }
}
