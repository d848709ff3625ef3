//! The table of what was found: on the terminal, and in a document between two markers.
//!
//! In the document the rows that were run replace what stood there; the others stay, so that rows
//! can be run one by one. Rows that never ran say so.

use std::fs;
use std::path::Path;

use crate::rows::ROWS;
use crate::{Mode, Row, RowResult};

const BEGIN: &str = "<!-- faults: `make faults` writes what stands between these two lines -->";
const END: &str = "<!-- faults: end -->";
const NOT_RUN: &str = "not run";
const NOT_MEANT: &str = "–";

/// Prints the table.
pub fn print(results: &[RowResult]) {
    println!("\n{:4} {:14} {:6} found", "row", "mode", "");
    for result in results {
        let word = if result.found.broken.is_empty() { "held" } else { "BROKEN" };
        let (id, mode) = (result.row.id, result.mode.name());
        println!("{id:4} {mode:14} {word:6} {}", result.found.found);
    }
}

/// Writes the table into a document.
///
/// # Panics
///
/// Where the file can't be read or written, or has no markers.
pub fn write(path: &Path, results: &[RowResult]) {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let markers = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (table, after) = rest.split_once(END)?;
        Some((before, table, after))
    });
    let (before, table, after) =
        markers.unwrap_or_else(|| panic!("{} has not the lines {BEGIN} and {END}", path.display()));
    let mut lines = vec![
        "| # | fault | injected | at least once | exactly once |".to_owned(),
        "| --- | --- | --- | --- | --- |".to_owned(),
    ];
    for row in &ROWS {
        lines.push(line(row, &cells(table, row.id), results));
    }
    let table = lines.join("\n");
    let text = format!("{before}{BEGIN}\n{table}\n{END}{after}");
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Returns the cells of a row in an earlier table: what was injected, and what was found in each
/// mode.
fn cells(table: &str, id: &str) -> Vec<String> {
    let begin = format!("| {id} |");
    let Some(line) = table.lines().find(|line| line.starts_with(&begin)) else {
        return vec![NOT_RUN.to_owned(); 3];
    };
    let cells: Vec<_> = line.trim_matches('|').split(" | ").map(|c| c.trim().to_owned()).collect();
    (2..5).map(|n| cells.get(n).cloned().unwrap_or_else(|| NOT_RUN.to_owned())).collect()
}

fn line(row: &Row, before: &[String], results: &[RowResult]) -> String {
    let of = |mode| {
        results.iter().find(|result: &&RowResult| result.row.id == row.id && result.mode == mode)
    };
    let injected = Mode::ALL.into_iter().filter_map(of).next();
    let injected = injected.map_or(before[0].clone(), |result| result.found.injected.clone());
    let cell = |mode, before: &String| match of(mode) {
        Some(result) if result.found.broken.is_empty() => result.found.found.clone(),
        Some(RowResult { found, .. }) => {
            format!("**broken**: {}. {}", found.broken.join("; "), found.found)
        }
        None if !row.modes.contains(&mode) => NOT_MEANT.to_owned(),
        None => before.clone(),
    };
    let cells = [
        row.id.to_owned(),
        row.fault.to_owned(),
        injected,
        cell(Mode::AtLeastOnce, &before[1]),
        cell(Mode::ExactlyOnce, &before[2]),
    ];
    // What is found may quote a log.
    let cells = cells.map(|cell| cell.replace(['\n', '|'], " "));
    format!("| {} |", cells.join(" | "))
}
