//! Looks at text that go on where the last one stopped: every byte is looked at a bounded number of times, however the text was cut.

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scanned<T> {
    /// It is there.
    Found(T),
    /// The text may still become it.
    More,
    /// It is not there.
    Nothing,
}

/// Moves `at` behind white space; whether anything follows.
pub(super) fn skip_space(text: &str, at: &mut usize) -> bool {
    let rest = text[*at..].trim_start();
    note(text.len() - *at - rest.len() + 1);
    *at = text.len() - rest.len();
    !rest.is_empty()
}

/// Which of `marks` stands at `at`, or may still.
pub(super) fn mark_at(text: &str, at: usize, marks: &[&str]) -> Scanned<usize> {
    let rest = &text[at..];
    note(marks.len());
    match marks.iter().position(|mark| rest.starts_with(mark)) {
        Some(idx) => Scanned::Found(idx),
        None if marks.iter().any(|mark| mark.starts_with(rest)) => Scanned::More,
        None => Scanned::Nothing,
    }
}

/// Moves `at` to the next `byte` (an ASCII character) before `end`. `Nothing`: there is none up to `end`.
pub(super) fn find_byte(text: &str, at: &mut usize, byte: u8, end: usize) -> Scanned<usize> {
    let stop = end.min(text.len());
    let found = text.as_bytes()[(*at).min(stop)..stop].iter().position(|&b| b == byte);
    let looked = found.unwrap_or(stop.saturating_sub(*at));
    note(looked + 1);
    *at += looked;
    match found {
        Some(_) => Scanned::Found(*at),
        None if text.len() < end => Scanned::More,
        None => Scanned::Nothing,
    }
}

#[cfg(test)]
thread_local! {
    static WORK: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts bytes looked at or moved, in tests.
#[inline]
pub(super) fn note(_bytes: usize) {
    #[cfg(test)]
    WORK.with(|work| work.set(work.get() + _bytes));
}

/// Bytes looked at or moved by `run`.
#[cfg(test)]
pub(super) fn work_of(run: impl FnOnce()) -> usize {
    let before = WORK.with(std::cell::Cell::get);
    run();
    WORK.with(std::cell::Cell::get) - before
}
