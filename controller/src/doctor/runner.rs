//! The plan and its execution: the steps of all findings, volume by volume, each command once.
//!
//! Invariant: a command that throws something away runs only after a yes; a volume whose step fails
//! is left as it is, the others go on; what only a person can do ends the steps of its volume.

use super::diagnosis::{Command, Diagnosis, Step};

/// The steps of one volume, or of the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The volume; `None`: the servers themselves.
    pub volume: Option<String>,
    /// In order.
    pub steps: Vec<Step>,
}

/// What happened to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The command as typed.
    pub command: String,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// The steps of the findings; a command that stands in several is run once, where it stands last.
#[must_use]
pub fn plan(found: &[Diagnosis]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for diagnosis in found.iter().filter(|d| !d.steps().is_empty()) {
        let steps = diagnosis.steps().to_vec();
        match parts.iter_mut().find(|part| part.volume == diagnosis.volume) {
            Some(part) => part.steps.extend(steps),
            None => parts.push(Part { volume: diagnosis.volume.clone(), steps }),
        }
    }
    for part in &mut parts {
        let all = part.steps.clone();
        let mut at = 0;
        part.steps.retain(|step| {
            at += 1;
            !all.iter().skip(at).any(|later| later == step)
        });
    }
    parts
}

/// Whether a step of the plan throws something away.
#[must_use]
pub fn drops(plan: &[Part]) -> bool {
    let dropping = |step: &Step| matches!(step, Step::Run(command) if command.drops.is_some());
    plan.iter().flat_map(|part| &part.steps).any(dropping)
}

/// Runs the plan. `execute` runs one command; `say` gets a line before each step.
pub async fn run(
    plan: &[Part],
    mut execute: impl AsyncFnMut(&Command) -> Result<(), String>,
    say: &mut dyn FnMut(String),
) -> Vec<Ran> {
    let mut ran = Vec::new();
    for part in plan {
        for step in &part.steps {
            match step {
                Step::Person(what) => {
                    say(format!("this is for a person: {what}"));
                    break;
                }
                Step::Run(command) => {
                    say(format!("$ {command}"));
                    let error = execute(command).await.err();
                    let failed = error.is_some();
                    if let Some(error) = &error {
                        say(error.clone());
                    }
                    ran.push(Ran { command: command.to_string(), error });
                    if failed {
                        break;
                    }
                }
            }
        }
    }
    ran
}

#[cfg(test)]
mod tests {
    use super::super::diagnosis::{Row, Way};
    use super::*;

    fn found(volume: &str, lines: &[&str]) -> Diagnosis {
        let step = |line: &&str| match line.strip_prefix("! ") {
            Some(what) => Step::person(what),
            None => Step::run(line),
        };
        let way = Way::Steps(lines.iter().map(step).collect());
        Diagnosis::of(volume, Row::F2, Vec::new(), way)
    }

    async fn ran(found: &[Diagnosis], failing: &str) -> Vec<String> {
        let execute = async |command: &Command| match command.to_string().contains(failing) {
            true => Err("no".to_owned()),
            false => Ok(()),
        };
        let ran = run(&plan(found), execute, &mut |_| {}).await;
        ran.into_iter().map(|ran| ran.command).collect()
    }

    #[tokio::test]
    async fn a_volume_that_fails_does_not_stop_the_others() {
        let found = [found("v", &["stop s0 v", "hash-backup s0 v"]), found("w", &["stop s0 w"])];
        assert_eq!(ran(&found, "stop s0 v").await, ["walbc stop s0 v", "walbc stop s0 w"]);
    }

    #[tokio::test]
    async fn what_a_person_must_do_ends_the_steps_of_its_volume() {
        let found = [found("v", &["! mend the disk", "kick-all"]), found("w", &["stop s0 w"])];
        assert_eq!(ran(&found, "nothing").await, ["walbc stop s0 w"]);
    }

    #[tokio::test]
    async fn a_command_that_stands_twice_is_run_once_and_last() {
        let found = [found("v", &["kick-all", "stop s0 v"]), found("v", &["kick-all"])];
        assert_eq!(ran(&found, "nothing").await, ["walbc stop s0 v", "walbc kick-all"]);
    }

    #[test]
    fn only_a_plan_that_throws_something_away_needs_a_yes() {
        let mut one = found("v", &["kick-all"]);
        assert!(!drops(&plan(std::slice::from_ref(&one))));
        one.way = Way::Steps(vec![Step::Run(Command::dropping("clear a0 v", "all of it"))]);
        assert!(drops(&plan(&[one])));
    }
}
