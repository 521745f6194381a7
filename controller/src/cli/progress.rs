//! Progress of a long operation on stderr, with rate and time left, where that is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::Report;
use crate::ops::Event;

/// A bar that follows the reports of one operation.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    quiet: bool,
    notes: Vec<String>,
}

impl Progress {
    /// Draws only on a terminal, and never between lines of JSON.
    #[must_use]
    pub(super) fn new(quiet: bool) -> Self {
        let draw = !quiet && std::io::stderr().is_terminal();
        let target = if draw { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} \
                        {binary_bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar, quiet, notes: Vec::new() }
    }

    /// Takes in a report; a note is a line of its own, and kept for the JSON.
    pub(super) fn show(&mut self, event: Event<'_>) {
        let operation = match event {
            Event::Progress(operation) => operation,
            Event::Note(text) => {
                if !self.quiet {
                    self.bar.suspend(|| eprintln!("walbc: {text}"));
                }
                return self.notes.push(text.to_owned());
            }
        };
        if operation.total_bytes > 0 {
            self.bar.set_length(operation.total_bytes);
        }
        self.bar.set_message(format!("{} {}", operation.kind, operation.volume));
        self.bar.set_position(operation.done_bytes);
    }
}

impl Progress {
    /// The report with the notes that came on the way.
    pub(super) fn noted(&mut self, mut report: Report) -> Report {
        if let Some(object) = report.json.as_object_mut() {
            object.insert("notes".to_owned(), std::mem::take(&mut self.notes).into());
        }
        report
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
