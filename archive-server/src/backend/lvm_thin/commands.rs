//! The `lvm` commands that thin volumes are driven by, and what they answer.
//!
//! Invariants: what is read is a JSON report, never a text for people; a text for people is only
//! passed on, and looked at for one thing: whether the pool is full (I10).

use serde::Deserialize;
use server_kit::error::{Reason, RoleError};
use std::io;
use std::process::{Command, Stdio};

/// What a command answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `lvm` with arguments; a test answers from what was recorded.
pub(crate) type Run = Box<dyn Fn(&[&str]) -> io::Result<Answer> + Send + Sync>;

/// The real one.
pub(crate) fn real() -> Run {
    Box::new(|args| {
        let mut command = Command::new("lvm");
        command.args(args).env("LC_ALL", "C").stdin(Stdio::null());
        let output = command.output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Ok(Answer { success: output.status.success(), stdout, stderr })
    })
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lv {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) tags: Vec<String>,
    pub(crate) created_s: u64,
    pub(crate) active: bool,
}

impl Lv {
    /// What follows `key=` among the tags.
    pub(crate) fn tag(&self, key: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(key)?.strip_prefix('='))
    }
}

/// How a thin pool stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pool {
    pub(crate) size_bytes: u64,
    pub(crate) data_percent: f64,
    pub(crate) metadata_percent: f64,
    /// A discard frees whole chunks.
    pub(crate) chunk_bytes: u64,
    /// New chunks read as zeroes where nothing was written.
    pub(crate) zeroes: bool,
    /// Discards have an effect.
    pub(crate) discards: bool,
}

impl Pool {
    /// Bytes of data that the pool still takes.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an estimate from a percentage"
    )]
    pub(crate) fn free_bytes(&self) -> u64 {
        let free = (100.0 - self.data_percent).clamp(0.0, 100.0) / 100.0;
        (self.size_bytes as f64 * free) as u64
    }
}

#[derive(Deserialize)]
struct Report {
    report: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    #[serde(default)]
    lv: Vec<Row>,
}

/// Fields of a report are text, and empty where there is nothing to tell.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Row {
    lv_name: String,
    lv_size: String,
    lv_tags: String,
    lv_time: String,
    lv_active: String,
    data_percent: String,
    metadata_percent: String,
    chunk_size: String,
    zero: String,
    discards: String,
}

/// The `lvm` commands on one pool.
pub(crate) struct Lvm {
    pub(crate) vg: String,
    pub(crate) pool: String,
    run: Run,
}

/// Arguments of every report.
const REPORT: [&str; 7] = [
    "lvs",
    "--reportformat",
    "json",
    "--units",
    "b",
    "--nosuffix",
    // Seconds, whatever the host's configuration says.
    "--config=report{time_format=\"%s\"}",
];
const LV_FIELDS: &str = "lv_name,lv_size,lv_tags,lv_time,lv_active";
const POOL_FIELDS: &str = "lv_name,lv_size,data_percent,metadata_percent,chunk_size,zero,discards";

impl Lvm {
    pub(crate) fn new(vg: &str, pool: &str, run: Run) -> Self {
        Self { vg: vg.to_owned(), pool: pool.to_owned(), run }
    }

    /// `VG/NAME`.
    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.vg)
    }

    fn run(&self, attempt: &str, args: &[&str]) -> Result<String, RoleError> {
        tracing::debug!(?args, "lvm");
        let answer = (self.run)(args).map_err(|e| {
            let missing = e.kind() == io::ErrorKind::NotFound;
            let error = RoleError::io("run", "lvm", e);
            match missing {
                true => error.with_next_step("install lvm2, or use --backend file"),
                false => error,
            }
        })?;
        if answer.success {
            return Ok(answer.stdout);
        }
        Err(self.failed(attempt, &answer.stderr))
    }

    /// What a command said on its way to failure.
    fn failed(&self, attempt: &str, stderr: &str) -> RoleError {
        let lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty());
        let said: Vec<&str> = lines.filter(|line| !line.starts_with("File descriptor")).collect();
        let said = said.join("; ");
        let full =
            ["out of data space", "out of metadata", "reached threshold", "nsufficient free"];
        let message = format!("cannot {attempt}: {said}");
        if full.iter().any(|sign| said.contains(sign)) {
            return self.full_pool(message);
        }
        let denied = ["ermission denied", "Running as a non-root user"];
        let error = RoleError::new(Reason::Io, message);
        if denied.iter().any(|sign| said.contains(sign)) {
            return error.with_next_step("run the archive as root: only root may use lvm");
        }
        error.with_next_step(format!("see what is there: lvs -a {}", self.vg))
    }

    /// I10: what helps against a full pool.
    pub(crate) fn full_pool(&self, message: String) -> RoleError {
        let pool = self.full(&self.pool);
        RoleError::no_space(message).with_file(pool.clone()).with_next_step(format!(
            "make the pool larger (lvextend -L +SIZE {pool}, lvextend --poolmetadatasize +SIZE \
             {pool}), or delete restored images (walbc del-restored); it goes on by itself then"
        ))
    }

    fn report(&self, attempt: &str, fields: &str, what: &str) -> Result<Vec<Row>, RoleError> {
        let text = self.run(attempt, &[&REPORT[..], &["-o", fields, what]].concat())?;
        let report: Report = serde_json::from_str(&text).map_err(|e| {
            let message = format!("cannot {attempt}: the report of lvs makes no sense");
            RoleError::new(Reason::Io, message).with_source(e)
        })?;
        Ok(report.report.into_iter().flat_map(|section| section.lv).collect())
    }

    /// All logical volumes of the volume group.
    pub(crate) fn list(&self) -> Result<Vec<Lv>, RoleError> {
        let attempt = format!("list the volumes of {}", self.vg);
        let rows = self.report(&attempt, LV_FIELDS, &self.vg)?;
        rows.into_iter().map(|row| row.lv(&attempt)).collect()
    }

    /// How the pool stands.
    pub(crate) fn pool(&self) -> Result<Pool, RoleError> {
        let pool = self.full(&self.pool);
        let attempt = format!("look at thin pool {pool}");
        let row = self.report(&attempt, POOL_FIELDS, &pool)?.into_iter().next();
        let no_pool = || {
            let message = format!("{pool} is no thin pool that is active");
            let step = format!("lvcreate --type thin-pool -L SIZE -n {} {}", self.pool, self.vg);
            RoleError::bad_request(message).with_file(pool.clone()).with_next_step(step)
        };
        let row = row.filter(|row| !row.data_percent.is_empty()).ok_or_else(no_pool)?;
        row.pool(&attempt)
    }

    /// A thin volume that reads as zeroes.
    pub(crate) fn create(&self, name: &str, bytes: u64, tags: &[String]) -> Result<(), RoleError> {
        let attempt = format!("make thin volume {}", self.full(name));
        let bytes = format!("{bytes}b");
        let mut args =
            vec!["lvcreate", "-y", "-q", "-V", &bytes, "--thinpool", &self.pool, "-n", name];
        tags.iter().for_each(|tag| args.extend(["--addtag", tag]));
        args.push(&self.vg);
        self.run(&attempt, &args).map(drop)
    }

    /// A thin snapshot, active now and after every start of the host.
    pub(crate) fn snapshot(&self, of: &str, name: &str, tags: &[String]) -> Result<(), RoleError> {
        let attempt = format!("make snapshot {} of {of}", self.full(name));
        let of = self.full(of);
        let mut args = vec!["lvcreate", "-y", "-q", "-s", "--setactivationskip", "n", "-n", name];
        tags.iter().for_each(|tag| args.extend(["--addtag", tag]));
        args.push(&of);
        self.run(&attempt, &args).map(drop)
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), RoleError> {
        let attempt = format!("rename {} to {to}", self.full(from));
        self.run(&attempt, &["lvrename", "-q", &self.vg, from, to]).map(drop)
    }

    /// Makes a volume larger; what is new reads as zeroes.
    pub(crate) fn extend(&self, name: &str, bytes: u64) -> Result<(), RoleError> {
        let (full, size) = (self.full(name), format!("{bytes}b"));
        self.run(&format!("extend {full}"), &["lvextend", "-q", "-L", &size, &full]).map(drop)
    }

    pub(crate) fn retag(&self, name: &str, old: &str, new: &str) -> Result<(), RoleError> {
        let full = self.full(name);
        let args = ["lvchange", "-q", "--deltag", old, "--addtag", new, &full];
        self.run(&format!("tag {full}"), &args).map(drop)
    }

    pub(crate) fn activate(&self, name: &str) -> Result<(), RoleError> {
        let full = self.full(name);
        self.run(&format!("activate {full}"), &["lvchange", "-q", "-ay", "-K", &full]).map(drop)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), RoleError> {
        let full = self.full(name);
        self.run(&format!("remove {full}"), &["lvremove", "-y", "-q", &full]).map(drop)
    }
}

impl Row {
    fn lv(self, attempt: &str) -> Result<Lv, RoleError> {
        Ok(Lv {
            size_bytes: number(attempt, &self.lv_name, &self.lv_size)?,
            tags: self.lv_tags.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect(),
            // For people: an unknown one does no harm.
            created_s: self.lv_time.parse().unwrap_or(0),
            active: self.lv_active == "active",
            name: self.lv_name,
        })
    }

    fn pool(self, attempt: &str) -> Result<Pool, RoleError> {
        let name = &self.lv_name;
        Ok(Pool {
            size_bytes: number(attempt, name, &self.lv_size)?,
            data_percent: number(attempt, name, &self.data_percent)?,
            metadata_percent: number(attempt, name, &self.metadata_percent)?,
            chunk_bytes: number(attempt, name, &self.chunk_size)?,
            zeroes: self.zero == "zero",
            discards: self.discards != "ignore",
        })
    }
}

fn number<T: std::str::FromStr>(attempt: &str, name: &str, text: &str) -> Result<T, RoleError> {
    text.parse().map_err(|_| {
        RoleError::new(Reason::Io, format!("cannot {attempt}: {name} has no number but {text:?}"))
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
