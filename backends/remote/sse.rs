//! `SseParser`: server-sent events as they come, in any pieces; the data of each event out.
//!
//! Follows the WHATWG's rules (lines end in CR, LF or both; comments, names and ids are skipped; several data lines are one text), and
//! takes an event that the end of the stream cut off from its blank line, since some services end that way.

/// Largest event that is taken, bytes.
pub(super) const MAX_EVENT_BYTES: usize = 16 << 20;

/// What cannot be an event stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SseError {
    #[error("an event of more than {MAX_EVENT_BYTES} bytes")]
    TooLarge,
    #[error("an event that is no UTF-8")]
    Encoding,
}

/// State between two pieces.
#[derive(Default)]
pub(super) struct SseParser {
    /// The line so far.
    line: Vec<u8>,
    /// Data lines of the event so far.
    data: Option<String>,
    /// The last line ended in CR: a LF that follows belongs to it.
    after_cr: bool,
    /// A first line was seen; before it a byte order mark may stand.
    started: bool,
}

impl SseParser {
    /// Takes the next piece; gives the data of the events that it completes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<Vec<String>, SseError> {
        let mut events = Vec::new();
        if std::mem::take(&mut self.after_cr) {
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.extend(&bytes[..end])?;
            let is_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if is_cr {
                self.after_cr = bytes.is_empty();
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            events.extend(self.end_line()?);
        }
        self.extend(bytes)?;
        Ok(events)
    }

    /// The stream is over; gives what an event had come to.
    pub(super) fn finish(&mut self) -> Result<Option<String>, SseError> {
        if !self.line.is_empty() {
            self.end_line()?;
        }
        Ok(self.data.take())
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        if self.line.len() + self.data.as_ref().map_or(0, String::len) + bytes.len() > MAX_EVENT_BYTES {
            return Err(SseError::TooLarge);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// Ends a line; an empty one ends the event.
    fn end_line(&mut self) -> Result<Option<String>, SseError> {
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line).map_err(|_| SseError::Encoding)?;
        let line = if std::mem::replace(&mut self.started, true) { line } else { line.strip_prefix('\u{feff}').unwrap_or(line) };
        if line.is_empty() {
            return Ok(self.data.take());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events of a text, and of the same text cut at every place and into single bytes.
    fn check(text: &str, expected: &[&str]) {
        let run = |pieces: &[&[u8]]| {
            let mut parser = SseParser::default();
            let mut events = Vec::new();
            for piece in pieces {
                events.extend(parser.feed(piece).expect("events"));
            }
            events.extend(parser.finish().expect("an end"));
            events
        };
        let bytes = text.as_bytes();
        assert_eq!(run(&[bytes]), expected, "{text:?}");
        (0..bytes.len()).for_each(|at| assert_eq!(run(&[&bytes[..at], &bytes[at..]]), expected, "{text:?} cut at {at}"));
        assert_eq!(run(&bytes.chunks(1).collect::<Vec<_>>()), expected, "{text:?} in bytes");
    }

    #[test]
    fn any_cut_gives_the_same_events() {
        check("data: a\n\ndata: b\n\n", &["a", "b"]);
        check("data: a\r\n\r\ndata: b\r\rdata:c\n\n", &["a", "b", "c"]);
        check("\u{feff}data: é\n\n", &["é"]);
        check(": ping\n\nevent: x\nid: 7\ndata: 1\ndata:  2\nretry\n\n", &["1\n 2"]);
        check("data\n\n", &[""]);
        check("event: none\n\n", &[]);
        check("data: [DONE]", &["[DONE]"]);
        check("data: a\n\ndata: {\"cu", &["a", "{\"cu"]);
        check("", &[]);
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        let mut parser = SseParser::default();
        assert_eq!(parser.feed(b"data: \xff\n"), Err(SseError::Encoding));
        let mut parser = SseParser::default();
        let piece = vec![b'x'; MAX_EVENT_BYTES / 2];
        parser.feed(b"data: ").expect("fits");
        parser.feed(&piece).expect("fits");
        assert_eq!(parser.feed(&piece), Err(SseError::TooLarge));
        // Many lines of one event count together.
        let mut parser = SseParser::default();
        let line = format!("data: {}\n", "x".repeat(1 << 20));
        let outcome = (0..20).try_for_each(|_| parser.feed(line.as_bytes()).map(|_| ()));
        assert_eq!(outcome, Err(SseError::TooLarge));
    }
}
