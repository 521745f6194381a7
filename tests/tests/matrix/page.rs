//! docs/operating/recovering.md against the product: its sections are doctor's rows, and its
//! commands heal.

use anyhow::{Context, Result, ensure};
use controller::doctor::diagnosis;
use tests::cluster::Cluster;

use crate::Row;
use crate::doctor::Finding;

const PAGE: &str = include_str!("../../../docs/operating/recovering.md");

/// The section of a row, from its heading to the next.
fn section(id: &str) -> Result<&'static str> {
    let start = PAGE.find(&format!("\n## {id}: ")).with_context(|| format!("no section {id}"))?;
    let section = &PAGE[start + 1..];
    Ok(section.find("\n## ").map_or(section, |end| &section[..end]))
}

/// The lines between "```sh" and "```".
fn commands(section: &str) -> Vec<&str> {
    let blocks = section.split("```sh\n").skip(1);
    blocks.filter_map(|block| block.split("```").next()).flat_map(str::lines).collect()
}

/// Runs the commands of a section as they are typed; a comment is what a person does.
pub(crate) fn run_section(cluster: &mut Cluster, row: &Row, finding: &Finding) -> Result<()> {
    let commands = commands(section(row.section)?);
    ensure!(!commands.is_empty(), "section {} has no commands", row.section);
    for line in commands {
        match line.strip_prefix("walbc ") {
            None => (row.person)(cluster, line)?,
            Some(line) => cluster.vol().walbc(&filled_in(cluster, line, finding)?).map(drop)?,
        }
    }
    Ok(())
}

/// The command with what the page leaves to the reader.
fn filled_in(cluster: &Cluster, line: &str, finding: &Finding) -> Result<String> {
    let verb = line.split(' ').next().unwrap_or_default();
    let mut words = Vec::new();
    for word in line.split(' ') {
        words.push(match word {
            "CONTROL#vol0" => cluster.device(usize::from(line.contains(" s1 ")), "vol0"),
            "GID" | "SIZE" => match finding.number(verb) {
                Some(number) => number.to_owned(),
                None => cluster.vol().latest("a0")?.to_string(),
            },
            word => word.to_owned(),
        });
    }
    Ok(words.join(" "))
}

#[test]
fn matrix_page_has_a_section_for_every_row_under_its_title() -> Result<()> {
    for row in diagnosis::Row::all() {
        let heading = section(&row.to_string())?.lines().next().unwrap_or_default();
        ensure!(heading == format!("## {row}: {}", row.title()), "{heading}");
    }
    let sections = PAGE.lines().filter(|line| line.starts_with("## ") && line.contains(": "));
    let (sections, rows) = (sections.count(), diagnosis::Row::all().count());
    ensure!(sections == rows, "{sections} sections, {rows} rows");
    Ok(())
}
