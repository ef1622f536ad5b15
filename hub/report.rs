//! How a download tells its caller where it is. The CLI draws bars; embedders may ignore it.

/// Receives progress.
pub trait Report {
    /// A file or stage begins; `total` bytes when known.
    fn start(&mut self, what: &str, total: Option<u64>);
    /// Bytes done of the current one, from its start.
    fn advance(&mut self, done: u64);
    /// The current one is complete.
    fn finish(&mut self);
    /// One line for the user.
    fn note(&mut self, line: &str);
}

/// Reports nothing.
pub struct Silent;

impl Report for Silent {
    fn start(&mut self, _what: &str, _total: Option<u64>) {}
    fn advance(&mut self, _done: u64) {}
    fn finish(&mut self) {}
    fn note(&mut self, _line: &str) {}
}
