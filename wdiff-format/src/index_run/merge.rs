//! Many runs into one, without the diffs that are gone.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::io::Write;

use wlog_format::units::to_usize;

use super::RunError;
use super::entry::{Covered, Entry};
use super::run::Run;
use super::writer::RunWriter;

/// A run that goes into a merge, and which of its diffs do.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The run.
    pub run: &'a Run,
    /// By the numbers of its diffs: whether the diff goes in.
    pub kept: &'a [bool],
}

struct Head<'a> {
    entry: Entry,
    /// By the numbers of the diffs in the input: their numbers in the output.
    numbers: Vec<Option<u32>>,
    rest: Box<dyn Iterator<Item = Result<Entry, RunError>> + 'a>,
}

impl Head<'_> {
    /// The next entry of a diff that is kept, with its new number.
    fn advance(&mut self) -> Result<bool, RunError> {
        for entry in self.rest.by_ref() {
            let entry = entry?;
            let number = self.numbers.get(to_usize(entry.key.diff.0.into())).copied().flatten();
            if let Some(number) = number {
                self.entry = entry;
                self.entry.key.diff = Reverse(number);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head<'_> {}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head<'_> {
    /// The first key is the greatest: heaps give out the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.entry.key.cmp(&self.entry.key)
    }
}

/// Writes one run with the entries of all diffs that are kept; a diff that several runs cover goes
/// in once. `going` is asked now and then whether to go on. What the run covers; `None` when the
/// merge was given up.
///
/// # Errors
/// An input is damaged, or the output cannot be written.
pub fn merge<W: Write>(
    inputs: &[Input<'_>],
    output: W,
    going: impl Fn() -> bool,
) -> Result<Option<(W, Vec<Covered>)>, RunError> {
    let mut all: Vec<(Covered, usize, usize)> = Vec::new();
    for (input, Input { run, kept }) in inputs.iter().enumerate() {
        let rows = run.covered().iter().zip(*kept).enumerate().filter(|(_, (_, kept))| **kept);
        all.extend(rows.map(|(number, (covered, _))| (*covered, input, number)));
    }
    all.sort_by_key(|(covered, ..)| covered.order);
    all.dedup_by_key(|(covered, ..)| covered.order);
    let mut numbers: Vec<Vec<Option<u32>>> =
        inputs.iter().map(|input| vec![None; input.run.covered().len()]).collect();
    for (to, (_, input, number)) in (0..).zip(&all) {
        if let Some(slot) = numbers.get_mut(*input).and_then(|n| n.get_mut(*number)) {
            *slot = Some(to);
        }
    }
    let mut heads = BinaryHeap::new();
    for (Input { run, .. }, numbers) in inputs.iter().zip(numbers) {
        let mut rest: Box<dyn Iterator<Item = _>> = Box::new(run.entries());
        let Some(entry) = rest.next().transpose()? else { continue };
        let rest = Box::new(std::iter::once(Ok(entry)).chain(rest));
        let mut head = Head { entry, numbers, rest };
        if head.advance()? {
            heads.push(head);
        }
    }
    let mut writer = RunWriter::new(output);
    let mut written = 0_u64;
    while let Some(mut head) = heads.pop() {
        writer.push(&head.entry)?;
        written += 1;
        if written.is_multiple_of(1 << 16) && !going() {
            return Ok(None);
        }
        if head.advance()? {
            heads.push(head);
        }
    }
    let covered: Vec<Covered> = all.into_iter().map(|(covered, ..)| covered).collect();
    Ok(Some((writer.finish(&covered)?, covered)))
}
