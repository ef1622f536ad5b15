//! Where figures go: JSON lines as they come, and a table at the end.

use anyhow::Result;
use serde_json::Value;

use crate::cli::terminal;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// JSON lines on stdout.
    Json,
    /// A table on stdout.
    Table,
    /// JSON lines on stdout, the table on stderr.
    Both,
}

/// Lines and rows of one command.
pub struct Report {
    format: Format,
    table: String,
}

impl Report {
    /// Begins with the table's head, one line.
    pub fn new(format: Format, header: &str) -> Report {
        Report { format, table: header.to_string() }
    }

    /// Adds a figure.
    ///
    /// # Errors
    /// Nobody reads stdout.
    pub fn line(&mut self, json: &Value, row: &str) -> Result<()> {
        if self.format != Format::Table {
            terminal::print(&format!("{json}\n"))?;
        }
        self.table.push_str(row);
        Ok(())
    }

    /// Writes the table with a line above and one below.
    ///
    /// # Errors
    /// Nobody reads stdout.
    pub fn end(&self, above: &str, below: &str) -> Result<()> {
        let text = format!("{above}\n{}{below}", self.table);
        match self.format {
            Format::Json => {}
            Format::Table => terminal::print(&format!("{}\n", text.trim_end()))?,
            Format::Both => terminal::note(&format!("\n{}", text.trim_end())),
        }
        Ok(())
    }
}
