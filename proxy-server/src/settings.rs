//! What the role can be told: flags, and the same keys in a TOML file.
use clap::Args;
use serde::{Deserialize, Serialize};
use server_kit::error::RoleError;
use server_kit::net::Endpoint;
use server_kit::retry::{DELAY_MAX, DELAY_MIN};
use server_kit::units::{Size, Span};
use server_kit::volume_name::ServerId;
use std::path::PathBuf;
use std::time::Duration;

/// Flags of `walb-proxy serve`, and the keys of its configuration file, where they may be written
/// with `_` too.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Settings {
    /// Directory of the volumes and their staged wdiffs.
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Where to listen: unix:PATH or HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<Endpoint>,
    /// Id of this server, for instance p0.
    #[arg(long, value_name = "ID")]
    pub id: Option<ServerId>,
    /// Listen beyond loopback without TLS.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Write the log as JSON.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[serde(alias = "log_json")]
    pub log_json: bool,
    /// Start with all volumes stopped; those that were started are so again at the next start.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Most bytes of wdiffs that are merged into one transfer [default: 128M].
    #[arg(long, value_name = "SIZE")]
    #[serde(alias = "max_merge_size")]
    pub max_merge_size: Option<Size>,
    /// Most wdiffs that are merged into one transfer [default: 1000].
    #[arg(long, value_name = "N")]
    #[serde(alias = "max_merge_files")]
    pub max_merge_files: Option<usize>,
    /// First wait after a failed transfer, doubled after each further one [default: 1s].
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "retry_min")]
    pub retry_min: Option<Span>,
    /// Longest wait after a failed transfer [default: 5m].
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "retry_max")]
    pub retry_max: Option<Span>,
    /// An archive that refuses is given up when the last wlog is older than this [default: 30m].
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "give_up_after")]
    pub give_up_after: Option<Span>,
    /// Most wlogs that are received at a time [default: 16].
    #[arg(long, value_name = "N")]
    #[serde(alias = "max_receiving")]
    pub max_receiving: Option<usize>,
    /// Most transfers to archives at a time [default: 8].
    #[arg(long, value_name = "N")]
    #[serde(alias = "max_sending")]
    pub max_sending: Option<usize>,
    /// Threads that compress for one transfer [default: all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Space that is kept free on the file system of the base directory [default: 0].
    #[arg(long, value_name = "SIZE")]
    #[serde(alias = "keep_free")]
    pub keep_free: Option<Size>,
}

/// Settings with nothing left open.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) max_merge_bytes: u64,
    pub(crate) max_merge_files: usize,
    pub(crate) retry_min: Duration,
    pub(crate) retry_max: Duration,
    pub(crate) give_up_after: Duration,
    pub(crate) max_receiving: usize,
    pub(crate) max_sending: usize,
    pub(crate) threads: usize,
    pub(crate) keep_free_bytes: u64,
    pub(crate) stopped: bool,
}

impl Settings {
    /// A key that the role cannot do without.
    pub(crate) fn required<T>(value: Option<T>, flag: &str) -> Result<T, RoleError> {
        value.ok_or_else(|| {
            RoleError::bad_request(format!("--{flag} is needed, as a flag or in the configuration"))
        })
    }

    /// The limits, with their defaults.
    pub(crate) fn limits(&self) -> Result<Limits, RoleError> {
        let span = |given: Option<Span>, default| given.map_or(default, |s| s.0);
        let limits = Limits {
            max_merge_bytes: self.max_merge_size.map_or(128 << 20, |s| s.0),
            max_merge_files: self.max_merge_files.unwrap_or(1000),
            retry_min: span(self.retry_min, DELAY_MIN),
            retry_max: span(self.retry_max, DELAY_MAX),
            give_up_after: span(self.give_up_after, Duration::from_secs(1800)),
            max_receiving: self.max_receiving.unwrap_or(16),
            max_sending: self.max_sending.unwrap_or(8),
            threads: self.threads.unwrap_or_else(server_kit::blocking::parallelism),
            keep_free_bytes: self.keep_free.map_or(0, |s| s.0),
            stopped: self.stopped,
        };
        let positive = [
            ("max-merge-size", limits.max_merge_bytes > 0),
            ("max-merge-files", limits.max_merge_files > 0),
            ("max-receiving", limits.max_receiving > 0),
            ("max-sending", limits.max_sending > 0),
            ("threads", limits.threads > 0),
            ("retry-min", !limits.retry_min.is_zero()),
        ];
        match positive.into_iter().find(|(_, ok)| !ok) {
            Some((flag, _)) => Err(RoleError::bad_request(format!("--{flag} cannot be 0"))),
            None => Ok(limits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_name_of_its_flag_and_may_have_underscores() {
        let load = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("proxy.toml");
            std::fs::write(&file, text).unwrap();
            server_kit::config::load(Some(&file), Settings::default())
        };
        for text in ["max-merge-files = 3\nlog-json = true", "max_merge_files = 3\nlog_json = true"]
        {
            let settings = load(text).unwrap();
            assert_eq!((settings.max_merge_files, settings.log_json), (Some(3), true));
        }
        assert!(load("max-merge-file = 3").is_err());
    }

    #[test]
    fn zero_is_refused_where_it_would_mean_nothing_ever_happens() {
        let zero = Settings { max_merge_files: Some(0), ..Settings::default() };
        assert!(zero.limits().unwrap_err().to_string().contains("--max-merge-files"));
        let zero = Settings { max_sending: Some(0), ..Settings::default() };
        assert!(zero.limits().is_err());
        let defaults = Settings::default().limits().unwrap();
        assert_eq!((defaults.max_merge_bytes, defaults.max_merge_files), (134_217_728, 1000));
        assert_eq!(defaults.give_up_after.as_secs(), 1800);
    }
}
