//! `Breaker`: stops asking a service that keeps failing, and lets one request at a time find out whether it is back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row that open it.
    pub max_failures: u32,
    /// How long it stays open at first; doubled whenever the probe fails.
    pub cooldown: Duration,
    /// How long it stays open at most.
    pub max_cooldown: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Requests pass.
    Closed { num_failures: u32 },
    /// None passes before `until`; then one does.
    Open { until: Instant, cooldown: Duration },
    /// One is on its way and decides.
    Probing { cooldown: Duration },
}

/// Shared by all requests to one service. Clones share it.
#[derive(Clone)]
pub(super) struct Breaker {
    policy: BreakerPolicy,
    state: Arc<Mutex<State>>,
}

/// The right to send one request; says how it went, or nothing when the client went away first.
pub(super) struct Permit {
    breaker: Breaker,
    is_probe: bool,
    /// When it was given.
    given: Instant,
}

impl Breaker {
    pub(super) fn new(policy: BreakerPolicy) -> Breaker {
        Breaker { policy, state: Arc::new(Mutex::new(State::Closed { num_failures: 0 })) }
    }

    /// A permit, or how long to wait for one.
    pub(super) fn enter(&self, now: Instant) -> Result<Permit, Duration> {
        let mut state = self.lock();
        let is_probe = match *state {
            State::Closed { .. } => false,
            State::Open { until, cooldown } => {
                let left = until.saturating_duration_since(now);
                if !left.is_zero() {
                    return Err(left);
                }
                *state = State::Probing { cooldown };
                true
            }
            State::Probing { cooldown } => return Err(cooldown),
        };
        Ok(Permit { breaker: self.clone(), is_probe, given: now })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is one value, whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The service answered.
    pub(super) fn succeeded(mut self) {
        self.is_probe = false;
        *self.breaker.lock() = State::Closed { num_failures: 0 };
    }

    /// The service failed.
    pub(super) fn failed(mut self, now: Instant) {
        self.is_probe = false;
        let policy = self.breaker.policy;
        let open = |cooldown| State::Open { until: now + cooldown, cooldown };
        let mut state = self.breaker.lock();
        *state = match *state {
            State::Closed { num_failures } if num_failures + 1 >= policy.max_failures => open(policy.cooldown),
            State::Closed { num_failures } => State::Closed { num_failures: num_failures + 1 },
            State::Probing { cooldown } => open((cooldown * 2).min(policy.max_cooldown)),
            // Sent before it opened: nothing new.
            unchanged @ State::Open { .. } => unchanged,
        };
    }
}

impl Drop for Permit {
    /// A probe without a verdict: the next request may try.
    fn drop(&mut self) {
        if self.is_probe {
            let mut state = self.breaker.lock();
            if let State::Probing { cooldown } = *state {
                *state = State::Open { until: self.given, cooldown };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        Breaker::new(BreakerPolicy { max_failures: 3, cooldown: 4 * S, max_cooldown: 10 * S })
    }

    fn fail(breaker: &Breaker, now: Instant) {
        breaker.enter(now).expect("lets one pass").failed(now);
    }

    fn succeed(breaker: &Breaker, now: Instant) {
        breaker.enter(now).expect("lets one pass").succeeded();
    }

    fn wait(breaker: &Breaker, now: Instant) -> Option<Duration> {
        breaker.enter(now).err()
    }

    #[test]
    fn opens_probes_and_closes() {
        let (breaker, mut now) = (breaker(), Instant::now());
        fail(&breaker, now);
        fail(&breaker, now);
        succeed(&breaker, now);
        fail(&breaker, now);
        fail(&breaker, now);
        assert_eq!(wait(&breaker, now), None, "failures count in a row only");
        fail(&breaker, now);
        assert_eq!(wait(&breaker, now + S), Some(3 * S));
        now += 4 * S;
        let probe = breaker.enter(now).expect("one probe");
        assert!(wait(&breaker, now).is_some(), "one probe at a time");
        probe.failed(now);
        assert_eq!(wait(&breaker, now), Some(8 * S), "twice as long");
        now += 8 * S;
        fail(&breaker, now);
        assert_eq!(wait(&breaker, now), Some(10 * S), "at most max_cooldown");
        now += 10 * S;
        drop(breaker.enter(now));
        succeed(&breaker, now); // a probe whose client left is followed by the next
        fail(&breaker, now);
        assert_eq!(wait(&breaker, now), None, "counts anew");
    }

    #[test]
    fn late_failures_change_nothing() {
        let (breaker, now) = (breaker(), Instant::now());
        let late: Vec<Permit> = (0..5).map(|_| breaker.enter(now).expect("closed")).collect();
        late.into_iter().for_each(|permit| permit.failed(now));
        assert_eq!(wait(&breaker, now), Some(4 * S));
    }
}
