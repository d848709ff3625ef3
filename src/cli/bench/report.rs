//! What all benchmarks share of their output: a table for people, JSON for programs, a chart.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::chart::Chart;
use crate::cli::output::OutFile;
use crate::cli::{REPEATS_MAX, say};

/// How results are shown.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Prints one JSON document instead of tables.
    #[arg(long)]
    json: bool,
    /// Draws the curves into this SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// How often everything is measured, in turn; medians are shown.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=REPEATS_MAX as i64)
    )]
    repeats: u32,
}

impl ReportArgs {
    /// Returns how often everything is measured.
    pub fn repeats(&self) -> u32 {
        self.repeats
    }

    /// Finds out before anything is measured whether the results can be written.
    ///
    /// # Errors
    ///
    /// When no plot can be written there.
    pub fn check(&self) -> anyhow::Result<()> {
        match &self.plot {
            // A pipe's reader would take it for the end that nothing comes.
            Some(plot) if !plot.exists() || plot.is_file() || plot.is_dir() => {
                OutFile::create(plot).map(drop).context("--plot")
            }
            _ => Ok(()),
        }
    }

    /// Writes the results: `text` for people, `report` as JSON where that is asked for. The plot
    /// comes last, so that the figures are there should it fail.
    ///
    /// # Errors
    ///
    /// When the plot or standard output can't be written.
    pub fn publish(
        &self,
        report: &impl Serialize,
        text: &str,
        chart: impl FnOnce() -> Chart,
    ) -> anyhow::Result<()> {
        let said = match self.json {
            true => say(serde_json::to_string_pretty(report)?),
            false => say(text.trim_end()),
        };
        if let Some(plot) = &self.plot {
            let mut file = OutFile::create(plot)?;
            file.write_all(chart().to_svg().as_bytes())?;
            file.finish()?;
        }
        Ok(said?)
    }
}

/// A table whose first column is of words and whose others are of numbers.
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// Returns a table with these heads and no rows.
    pub fn new(heads: &[&str]) -> Table {
        Table(vec![heads.iter().map(|head| (*head).to_owned()).collect()])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.0 {
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                match column {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Returns a share as people read it.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Returns milliseconds as people read them.
pub fn milliseconds(ms: Option<f64>) -> String {
    match ms {
        None => "–".into(),
        Some(ms) if ms < 100.0 => format!("{ms:.1}"),
        Some(ms) => format!("{ms:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["mix", "tokens/s"]);
        table.row(["captions".into(), "7".into()]);
        assert_eq!(table.to_string(), "mix       tokens/s\ncaptions         7\n");
    }
}
