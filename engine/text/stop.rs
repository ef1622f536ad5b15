//! Stop strings, found across the boundaries of tokens and deltas.
//!
//! The earliest match in the text wins, by start; of matches at the same start the longest. Text that may be the beginning of a match is
//! held back, so nothing of a stop string leaks, and how the text is cut into pieces makes no difference.

use crate::error::{EngineError, Result};

/// Most stop strings of a request.
pub const MAX_STOPS: usize = 64;
/// Longest stop string.
pub const MAX_STOP_BYTES: usize = 4096;

/// Looks for stop strings in one output.
pub struct StopMatcher {
    stops: Vec<String>,
    include_stop: bool,
    /// Text not emitted yet: starts where a match may start.
    pending: String,
    matched: Option<usize>,
}

/// What a piece of text allows to be emitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopPiece {
    /// Safe to emit.
    pub text: String,
    /// The stop string that ends the output here; nothing is emitted afterwards.
    pub matched: Option<String>,
}

enum Found {
    /// No match starts anywhere.
    Nothing,
    /// A match may start here, what comes next decides.
    Undecided(usize),
    /// A match: start and which stop string.
    Match(usize, usize),
}

impl StopMatcher {
    /// A matcher; with `include_stop` the stop string itself is emitted too.
    ///
    /// # Errors
    /// `InvalidRequest` for an empty or too long stop string, or too many.
    pub fn new(stops: Vec<String>, include_stop: bool) -> Result<StopMatcher> {
        if stops.len() > MAX_STOPS {
            return Err(EngineError::InvalidRequest(format!("stop has {} strings, at most {MAX_STOPS} are allowed", stops.len())));
        }
        for (index, stop) in stops.iter().enumerate() {
            if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
                let message = format!("stop[{index}] has {} bytes, allowed are 1 to {MAX_STOP_BYTES}", stop.len());
                return Err(EngineError::InvalidRequest(message));
            }
        }
        Ok(StopMatcher { stops, include_stop, pending: String::new(), matched: None })
    }

    /// Takes the next piece of text. After a match everything is swallowed.
    pub fn push(&mut self, text: &str) -> StopPiece {
        if self.matched.is_some() {
            return StopPiece { text: String::new(), matched: None };
        }
        if self.stops.is_empty() {
            return StopPiece { text: text.to_owned(), matched: None };
        }
        self.pending.push_str(text);
        match self.search(false) {
            Found::Nothing => StopPiece { text: std::mem::take(&mut self.pending), matched: None },
            Found::Undecided(start) => {
                let held = self.pending.split_off(start);
                StopPiece { text: std::mem::replace(&mut self.pending, held), matched: None }
            }
            Found::Match(start, stop) => {
                let text = self.take_match(start, stop);
                StopPiece { text, matched: Some(self.stops[stop].clone()) }
            }
        }
    }

    /// The held-back text when no more comes. Where a match was still waiting for an earlier or longer one, the text is cut there, and
    /// `matched` tells.
    pub fn flush(&mut self) -> String {
        match self.search(true) {
            Found::Match(start, stop) if self.matched.is_none() => self.take_match(start, stop),
            _ => std::mem::take(&mut self.pending),
        }
    }

    /// The stop string that ended the output, if any.
    pub fn matched(&self) -> Option<&str> {
        self.matched.map(|stop| self.stops[stop].as_str())
    }

    fn take_match(&mut self, start: usize, stop: usize) -> String {
        self.matched = Some(stop);
        let mut text = std::mem::take(&mut self.pending);
        text.truncate(start + if self.include_stop { self.stops[stop].len() } else { 0 });
        text
    }

    /// The first place in `pending` where a stop string starts, or may start unless the text is `complete`.
    fn search(&self, complete: bool) -> Found {
        let text = self.pending.as_bytes();
        for start in 0..text.len() {
            let rest = &text[start..];
            let mut longest: Option<usize> = None;
            for (index, stop) in self.stops.iter().enumerate() {
                let stop = stop.as_bytes();
                if stop[0] != rest[0] {
                    continue;
                }
                if rest.starts_with(stop) {
                    if longest.is_none_or(|best| self.stops[best].len() < stop.len()) {
                        longest = Some(index);
                    }
                } else if !complete && stop.starts_with(rest) {
                    return Found::Undecided(start);
                }
            }
            if let Some(stop) = longest {
                return Found::Match(start, stop);
            }
        }
        Found::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Emitted text and match of `pieces`, flush included.
    fn run(stops: &[&str], include_stop: bool, pieces: &[&str]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect(), include_stop).unwrap();
        let mut text = String::new();
        for piece in pieces {
            let out = matcher.push(piece);
            text.push_str(&out.text);
            if out.matched.is_some() {
                assert_eq!(out.matched.as_deref(), matcher.matched());
            }
        }
        text.push_str(&matcher.flush());
        (text, matcher.matched().map(str::to_owned))
    }

    /// The rule, on the whole text.
    fn oracle(stops: &[&str], include_stop: bool, text: &str) -> (String, Option<String>) {
        let mut best: Option<(usize, &str)> = None;
        for stop in stops {
            if let Some(at) = text.find(stop)
                && best.is_none_or(|(start, other)| at < start || (at == start && stop.len() > other.len()))
            {
                best = Some((at, stop));
            }
        }
        match best {
            Some((at, stop)) => (text[..at + if include_stop { stop.len() } else { 0 }].to_owned(), Some(stop.to_owned())),
            None => (text.to_owned(), None),
        }
    }

    #[test]
    fn cases() {
        let check = |stops: &[&str], pieces: &[&str], text: &str, matched: Option<&str>| {
            assert_eq!(run(stops, false, pieces), (text.to_owned(), matched.map(str::to_owned)), "{stops:?} {pieces:?}");
        };
        check(&[], &["a", "b"], "ab", None);
        check(&["\n\n"], &["a\n", "b\n", "\nc"], "a\nb", Some("\n\n"));
        check(&["STOP"], &["S", "T", "O"], "STO", None);
        check(&["STOP"], &["SSTO", "P tail"], "S", Some("STOP"));
        check(&["bcd", "c"], &["abc", "x"], "ab", Some("c"));
        check(&["bcd", "c"], &["abc", "d"], "a", Some("bcd"));
        check(&["ab", "abc"], &["xab"], "x", Some("ab"));
        check(&["ab", "abc"], &["xab", "c"], "x", Some("abc"));
        check(&["日本"], &["今日", "日", "本"], "今日", Some("日本"));
        check(&["aab"], &["aa", "aab"], "aa", Some("aab"));
    }

    #[test]
    fn held_text_comes_as_soon_as_it_is_safe() {
        let mut matcher = StopMatcher::new(vec!["</s>".into()], false).unwrap();
        assert_eq!(matcher.push("a <").text, "a ");
        assert_eq!(matcher.push("/").text, "");
        assert_eq!(matcher.push("b>").text, "</b>");
        assert_eq!(matcher.push("x</s>y"), StopPiece { text: "x".into(), matched: Some("</s>".into()) });
        assert_eq!(matcher.push("more"), StopPiece { text: String::new(), matched: None });
        assert_eq!(matcher.flush(), "");
    }

    #[test]
    fn bad_lists_are_refused() {
        assert!(StopMatcher::new(vec![String::new()], false).is_err());
        assert!(StopMatcher::new(vec!["x".repeat(MAX_STOP_BYTES + 1)], false).is_err());
        assert!(StopMatcher::new(vec!["x".into(); MAX_STOPS + 1], false).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]
        #[test]
        fn any_split_gives_the_same(
            text in "[abcé]{0,24}", stops in proptest::collection::vec("[abcé]{1,4}", 0..4), cuts in proptest::collection::vec(any::<bool>(), 24), include in any::<bool>(),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut pieces = Vec::new();
            let mut start = 0;
            for (n, (at, _)) in text.char_indices().enumerate() {
                if cuts[n] {
                    pieces.push(&text[start..at]);
                    start = at;
                }
            }
            pieces.push(&text[start..]);
            prop_assert_eq!(run(&stops, include, &pieces), oracle(&stops, include, &text));
        }
    }
}
