//! `walbc doctor`: the findings for people and programs, and `--fix`.

use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use clap::{Args, Parser};
use serde_json::{Value, json};
use server_kit::volume_name::VolumeName;
use tokio::time::{Instant, sleep};

use super::args::Cli;
use super::output::Report;
use super::verbs;
use crate::client::Controller;
use crate::doctor;
use crate::doctor::diagnosis::{Command, Diagnosis, Step, Way};
use crate::doctor::runner::{self, Ran};
use crate::error::{ControlError, Exit};

/// How long `--fix` waits for its steps to show.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks meanwhile.
const PAUSE: Duration = Duration::from_millis(500);

/// Arguments of `walbc doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// This volume only
    pub volume: Option<VolumeName>,
    /// Run the steps that are printed, then look again
    #[arg(long)]
    pub fix: bool,
    /// Do not ask before a step that throws something away
    #[arg(long, requires = "fix")]
    pub yes: bool,
}

/// Looks, and mends if told to.
pub(super) async fn run(
    ctl: &Controller,
    args: &DoctorArgs,
    json: bool,
) -> Result<(Report, Exit), ControlError> {
    let only = args.volume.as_ref().map(VolumeName::as_str);
    let found = doctor::examine(ctl, only).await;
    if !args.fix || doctor::is_well(&found) {
        return Ok((report(&found, &[], args.fix), doctor::exit(&found)));
    }
    eprintln!("{}\n", report(&found, &[], true).text);
    let plan = runner::plan(&found);
    if runner::drops(&plan) && !args.yes && !agreed() {
        eprintln!("walbc: nothing was done; to agree without being asked: --yes");
        return Ok((report(&found, &[], true), Exit::No));
    }
    let execute = async |command: &Command| execute(ctl, command, json).await;
    let ran = runner::run(&plan, execute, &mut |line| eprintln!("{line}")).await;
    let left = settle(ctl, only, &found, &ran).await;
    Ok((report(&left, &ran, true), doctor::exit(&left)))
}

/// Runs a command as if it had been typed.
async fn execute(ctl: &Controller, command: &Command, json: bool) -> Result<(), String> {
    let words = std::iter::once("walbc").chain(command.args.iter().map(String::as_str));
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    // Boxed: a command is run by what runs commands.
    match Box::pin(verbs::run(ctl, &cli.verb, json)).await {
        Ok((_, Exit::Done)) => Ok(()),
        Ok((report, exit)) => Err(format!("{command}: exit code {}: {}", exit.code(), report.text)),
        Err(error) => Err(error.to_string()),
    }
}

/// Looks until all is well, for as long as something that was done, or that heals by itself, may
/// still show.
async fn settle(
    ctl: &Controller,
    only: Option<&str>,
    found: &[Diagnosis],
    ran: &[Ran],
) -> Vec<Diagnosis> {
    let heals = |all: &[Diagnosis]| all.iter().any(|d| matches!(d.way, Way::Itself(_)));
    let start = Instant::now();
    let worth = !ran.is_empty() || heals(found);
    loop {
        let left = doctor::examine(ctl, only).await;
        if doctor::is_well(&left) || !worth || start.elapsed() > SETTLE_LIMIT {
            return left;
        }
        sleep(PAUSE).await;
    }
}

/// A yes from the terminal.
fn agreed() -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    eprint!("Run these steps? Some throw away what they say. [yes/no] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "yes" | "y")
}

fn step_lines(number: usize, step: &Step) -> String {
    match step {
        Step::Person(what) => format!("  {number}. {what}"),
        Step::Run(command) => match &command.drops {
            None => format!("  {number}. {command}"),
            Some(what) => format!("  {number}. {command}\n     throws away: {what}"),
        },
    }
}

fn lines(diagnosis: &Diagnosis) -> String {
    let volume = diagnosis.volume.as_ref().map_or_else(String::new, |name| format!("{name}: "));
    let mut lines = vec![format!("{volume}{} {}", diagnosis.row, diagnosis.row.title())];
    lines.extend(diagnosis.evidence.iter().map(|fact| format!("  - {fact}")));
    match &diagnosis.way {
        Way::Itself(watch) => lines.push(format!("  nothing to do: {watch}")),
        Way::Steps(steps) => {
            lines.extend(steps.iter().enumerate().map(|(n, step)| step_lines(n + 1, step)));
        }
    }
    lines.join("\n")
}

fn step_json(step: &Step) -> Value {
    match step {
        Step::Person(what) => json!({ "person": what }),
        Step::Run(command) => {
            json!({ "command": command.to_string(), "drops": command.drops })
        }
    }
}

fn finding_json(diagnosis: &Diagnosis) -> Value {
    let watch = match &diagnosis.way {
        Way::Itself(watch) => Some(watch),
        Way::Steps(_) => None,
    };
    json!({
        "id": diagnosis.row.to_string(), "title": diagnosis.row.title(),
        "volume": diagnosis.volume, "evidence": diagnosis.evidence,
        "heals_itself": watch.is_some(), "watch": watch,
        "steps": diagnosis.steps().iter().map(step_json).collect::<Vec<_>>(),
        "safe_to_run": diagnosis.is_safe(),
    })
}

fn report(found: &[Diagnosis], ran: &[Ran], fixing: bool) -> Report {
    let mut text: Vec<_> = found.iter().map(lines).collect();
    if doctor::is_well(found) {
        text.push("all is well".to_owned());
    } else if !fixing && found.iter().any(|d| !d.steps().is_empty()) {
        text.push("walbc doctor --fix runs these steps".to_owned());
    }
    let ran: Vec<_> =
        ran.iter().map(|ran| json!({ "command": ran.command, "error": ran.error })).collect();
    let findings: Vec<_> = found.iter().map(finding_json).collect();
    let json = json!({ "healthy": doctor::is_well(found), "findings": findings, "ran": ran });
    Report { text: text.join("\n\n"), json }
}
