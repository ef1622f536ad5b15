//! Progress on stderr: a bar on a terminal, a few plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pagoda::hub::Report;

use super::terminal;

/// Without a terminal, a line at most this often.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Draws progress of downloads and loads.
pub struct Progress {
    what: String,
    total: Option<u64>,
    done: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
    is_terminal: bool,
}

impl Progress {
    /// For this process's stderr.
    pub fn new() -> Progress {
        let now = Instant::now();
        Progress {
            what: String::new(),
            total: None,
            done: 0,
            started: now,
            last_line: now,
            bar: None,
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    fn line(&self) -> String {
        match self.total {
            Some(total) => format!("{}: {} of {}", self.what, terminal::bytes(self.done), terminal::bytes(total)),
            None => format!("{}: {}", self.what, terminal::bytes(self.done)),
        }
    }
}

impl Report for Progress {
    fn start(&mut self, what: &str, total: Option<u64>) {
        self.what = what.to_string();
        self.total = total;
        self.done = 0;
        self.started = Instant::now();
        self.last_line = self.started;
        if !self.is_terminal {
            return terminal::note(&match total {
                Some(total) => format!("{what} ({})", terminal::bytes(total)),
                None => what.to_string(),
            });
        }
        let bar = match total {
            Some(total) => {
                let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes} {bytes_per_sec} {eta}");
                ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "))
            }
            None => ProgressBar::new_spinner(),
        };
        bar.set_message(self.what.clone());
        bar.enable_steady_tick(Duration::from_millis(120));
        self.bar = Some(bar);
    }

    fn advance(&mut self, done: u64) {
        self.done = done;
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.last_line.elapsed() >= LINE_INTERVAL => {
                self.last_line = Instant::now();
                terminal::note(&self.line());
            }
            None => {}
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            terminal::note(&format!("{} ({:.1} s)", self.what, self.started.elapsed().as_secs_f64()));
        }
    }

    fn note(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => terminal::note(line),
        }
    }
}
