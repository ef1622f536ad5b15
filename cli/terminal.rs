//! Writing to the user: results on stdout, one-line errors on stderr.

use std::io::{self, ErrorKind, Write};

/// Writes one error as one line.
pub fn error_line(message: &str) {
    let line = message.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    // Nobody is left to be told when stderr is closed.
    let _ = writeln!(io::stderr(), "pagoda: {line}");
}

/// An error with its causes, outermost first. Many messages already end with their cause: it is said once.
pub fn causes(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.is_empty() {
            said = cause;
        } else if !said.ends_with(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

/// Writes one line for the user that is not a result.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes text that is not a result to stderr at once.
pub fn aside(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes text to stdout at once.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Whether the reader of stdout went away (`pagoda doctor | head -1`): no error for anybody.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe))
}

/// Bytes in words.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let missing = || io::Error::new(ErrorKind::NotFound, "not there");
        assert_eq!(causes(&anyhow!(missing()).context("model.json: not there").context("--model")), "--model: model.json: not there");
        assert_eq!(causes(&anyhow!(missing()).context("model.json")), "model.json: not there");
        assert_eq!(causes(&anyhow!(missing())), "not there");
    }

    #[test]
    fn bytes_in_words() {
        for (count, expected) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (98_362_432, "93.8 MiB"), (1 << 40, "1.0 TiB")] {
            assert_eq!(bytes(count), expected);
        }
    }
}
