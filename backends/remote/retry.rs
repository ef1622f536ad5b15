//! How often and after what time a request is sent again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// Longest wait that is believed.
const MAX_WAIT_S: f64 = 1e9;

/// `retry-after-ms`, or `retry-after` in seconds or as a date. A date is taken from the service's own `date`, else from our clock, which may
/// differ from the service's; one that is over asks for no wait.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok().filter(|value| (0.0..MAX_WAIT_S).contains(value));
    if let Some(seconds) = number("retry-after-ms").map(|ms| ms / 1e3).or_else(|| number("retry-after")) {
        return Some(Duration::from_secs_f64(seconds));
    }
    let until = http_date(text("retry-after")?)?;
    let ours = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = text("date").and_then(http_date).unwrap_or_else(ours);
    Some(Duration::from_secs(until.saturating_sub(now).min(MAX_WAIT_S as u64)))
}

/// Seconds since 1970 of a date in the form that HTTP prescribes (RFC 9110, 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let fields: Vec<&str> = text.split_once(", ")?.1.split(' ').collect();
    let [day, month, year, time, "GMT"] = fields[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let in_range = |text: &str, len: usize, range: RangeInclusive<u64>| {
        let is_number = text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|value| is_number && range.contains(value))
    };
    let (day, year) = (in_range(day, 2, 1..=31)?, in_range(year, 4, 1970..=9999)?);
    let parts: Vec<&str> = time.split(':').collect();
    let [hour, minute, second] = parts[..] else { return None };
    let (hour, minute, second) = (in_range(hour, 2, 0..=23)?, in_range(minute, 2, 0..=59)?, in_range(second, 2, 0..=60)?);
    // Days of the Gregorian calendar, in years that begin in March: the leap day is the last of its year.
    let shifted = if month <= 2 { year - 1 } else { year };
    let days = 365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + (153 * ((month + 9) % 12) + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
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
    fn dates_are_read_against_the_services_own_clock() {
        for (text, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799)),
            ("Mon, 01 Mar 2100 00:00:00 GMT", Some(4_107_542_400)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 6 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(http_date(text), expected, "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("date", "Wed, 21 Oct 2026 07:27:30 GMT".parse().expect("a header"));
        headers.insert("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT".parse().expect("a header"));
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(30)));
        headers.remove("date");
        let later = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() > 1_792_567_680;
        assert!(retry_after(&headers).is_some_and(|wait| (wait == Duration::ZERO) == later), "against our own clock");
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
        check("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT", Some(ms(0)));
        check("retry-after", "tomorrow", None);
        check("other", "3", None);
    }
}
