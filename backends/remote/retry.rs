//! How often and after what time a request is sent again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use http::HeaderMap;

use super::breaker::BreakerPolicy;

/// Bounds of everything that may go wrong with a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Times a request is sent again.
    pub max_retries: u32,
    /// Wait before the first of them; doubled each time, and spread by half of it.
    pub base_wait: Duration,
    /// Longest wait. A service that asks for more gets no second request: the client is told instead.
    pub max_wait: Duration,
    /// Longest time for a connection.
    pub connect_timeout: Duration,
    /// When to stop asking at all.
    pub breaker: BreakerPolicy,
}

impl Default for RetryPolicy {
    /// Two retries after about 0.25 and 0.5 s, at most 5 s each; five failures in a row stop requests for 2 to 30 s.
    fn default() -> Self {
        RetryPolicy {
            max_retries: 2,
            base_wait: Duration::from_millis(250),
            max_wait: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            breaker: BreakerPolicy { max_failures: 5, cooldown: Duration::from_secs(2), max_cooldown: Duration::from_secs(30) },
        }
    }
}

impl RetryPolicy {
    /// Wait before retry number `num_retries + 1`; None: not again. `asked` is the service's own `retry-after`.
    pub(super) fn wait(&self, num_retries: u32, asked: Option<Duration>) -> Option<Duration> {
        if num_retries >= self.max_retries || asked.is_some_and(|asked| asked > self.max_wait) {
            return None;
        }
        let backoff = self.base_wait.saturating_mul(1 << num_retries.min(16)).min(self.max_wait);
        match asked {
            // Never earlier than asked; a little later, so that clients who were told the same do not come together.
            Some(asked) => Some(asked + self.base_wait.mul_f64(random_unit())),
            None => Some(backoff.mul_f64(0.5 + random_unit() / 2.0)),
        }
    }
}

/// `retry-after-ms` or `retry-after` in seconds. A date is not read: our own clock may differ.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok().filter(|value| (0.0..1e9).contains(value));
    let seconds = number("retry-after-ms").map(|ms| ms / 1e3).or_else(|| number("retry-after"))?;
    Some(Duration::from_secs_f64(seconds))
}

/// Between 0 and 1. Every `RandomState` has keys of its own.
pub(super) fn random_unit() -> f64 {
    random_bits() as f64 / u64::MAX as f64
}

/// Random bits, good enough to spread waits and to tell calls apart.
pub(super) fn random_bits() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let policy = RetryPolicy { max_retries: 6, base_wait: ms(100), max_wait: ms(1000), ..RetryPolicy::default() };
        for (num_retries, low, high) in [(0, 50, 100), (1, 100, 200), (3, 400, 800), (5, 500, 1000)] {
            let waits: Vec<Duration> = (0..50).map(|_| policy.wait(num_retries, None).expect("a retry")).collect();
            assert!(waits.iter().all(|wait| (ms(low)..=ms(high)).contains(wait)), "{num_retries}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "spread");
        }
        assert_eq!(policy.wait(6, None), None);
        let asked = policy.wait(0, Some(ms(700))).expect("a retry");
        assert!((ms(700)..=ms(800)).contains(&asked), "{asked:?}");
        assert_eq!(policy.wait(0, Some(ms(1001))), None, "longer than anybody waits");
    }

    #[test]
    fn retry_after_is_read() {
        let check = |name: &'static str, value: &str, expected: Option<Duration>| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a header"));
            assert_eq!(retry_after(&headers), expected, "{name}: {value}");
        };
        check("retry-after", "3", Some(ms(3000)));
        check("retry-after", " 0.5 ", Some(ms(500)));
        check("retry-after-ms", "250", Some(ms(250)));
        check("retry-after", "-1", None);
        check("retry-after", "inf", None);
        check("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT", None);
        check("other", "3", None);
    }
}
