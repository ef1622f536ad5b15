//! Sleep: an engine that gives its memory to other models, and takes it back when it is needed again.

use crossbeam_channel::Sender;
use tracing::info;

use super::engine::Engine;
use crate::error::{EngineError, Result};
use crate::runner::executor::Rest;

/// Whether an engine has its memory.
pub(super) enum RestState {
    Awake,
    /// It ends what runs and takes nothing new; those who asked wait.
    Closing(Vec<Sender<Result<()>>>),
    Asleep,
}

impl RestState {
    pub(super) fn is_awake(&self) -> bool {
        matches!(self, RestState::Awake)
    }
}

impl Engine {
    /// Goes to sleep when nothing runs any more.
    pub(super) fn sleep(&mut self, answer: Sender<Result<()>>) {
        match &mut self.rest {
            RestState::Awake => self.rest = RestState::Closing(vec![answer]),
            RestState::Closing(waiting) => waiting.push(answer),
            RestState::Asleep => tell(&[answer], &Ok(())),
        }
    }

    /// Called when nothing runs.
    pub(super) fn fall_asleep(&mut self) {
        let RestState::Closing(waiting) = &mut self.rest else { return };
        let waiting = std::mem::take(waiting);
        self.scheduler.clear_prefix_cache();
        let outcome = self.executor.rest(Rest::Sleep);
        self.rest = if outcome.is_ok() { RestState::Asleep } else { RestState::Awake };
        info!(is_asleep = outcome.is_ok(), "sleep");
        tell(&waiting, &outcome);
    }

    pub(super) fn wake(&mut self, answer: &Sender<Result<()>>) {
        let outcome = match std::mem::replace(&mut self.rest, RestState::Awake) {
            RestState::Awake => Ok(()),
            RestState::Closing(waiting) => {
                tell(&waiting, &Err(EngineError::Device("woken before it slept".into())));
                Ok(())
            }
            RestState::Asleep => self.executor.rest(Rest::Wake),
        };
        if outcome.is_err() {
            self.rest = RestState::Asleep;
        }
        tell(std::slice::from_ref(answer), &outcome);
    }
}

/// Whoever asked may be gone.
fn tell(waiting: &[Sender<Result<()>>], outcome: &Result<()>) {
    for answer in waiting {
        let _ = answer.try_send(match outcome {
            Ok(()) => Ok(()),
            Err(EngineError::DeviceLost(reason)) => Err(EngineError::DeviceLost(reason.clone())),
            Err(EngineError::Device(reason)) => Err(EngineError::Device(reason.clone())),
            Err(other) => Err(EngineError::Device(other.to_string())),
        });
    }
}
