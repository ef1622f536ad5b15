//! Runs steps in order on a thread of their own: the CPU's counterpart of a device stream.
//!
//! `submit` queues a step and returns; `wait` gives the oldest queued step's outputs. At most `MAX_QUEUED` steps are queued, which is
//! what scheduling one step ahead needs. A panic inside a step comes out of `wait` as an error, and the thread goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{StepInputs, StepOutputs};
use crate::error::{EngineError, Result};

/// Steps that may be queued at once.
pub const MAX_QUEUED: usize = 2;

/// A queue of steps in front of a runner.
pub struct Executor {
    inputs: Option<Sender<StepInputs>>,
    outputs: Receiver<Result<StepOutputs>>,
    thread: Option<JoinHandle<()>>,
}

impl Executor {
    /// Starts the thread; `execute` runs one step.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(mut execute: impl FnMut(StepInputs) -> Result<StepOutputs> + Send + 'static) -> Result<Executor> {
        let (inputs, steps) = bounded::<StepInputs>(MAX_QUEUED);
        let (results, outputs) = bounded(MAX_QUEUED);
        let run = move || {
            for step in steps {
                let result = catch_unwind(AssertUnwindSafe(|| execute(step)))
                    .unwrap_or_else(|panic| Err(EngineError::Device(format!("step panicked: {}", panic_message(&*panic)))));
                if results.send(result).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("pagoda-step".into()).spawn(run);
        let thread = thread.map_err(|e| EngineError::Device(format!("cannot start the step thread: {e}")))?;
        Ok(Executor { inputs: Some(inputs), outputs, thread: Some(thread) })
    }

    /// Queues a step.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn submit(&self, step: StepInputs) -> Result<()> {
        let inputs = self.inputs.as_ref().expect("present until drop");
        inputs.send(step).map_err(|_| EngineError::Device("the step thread ended".into()))
    }

    /// Waits for the oldest queued step.
    ///
    /// # Errors
    /// What the step answered, or the thread is gone.
    pub fn wait(&self) -> Result<StepOutputs> {
        self.outputs.recv().unwrap_or_else(|_| Err(EngineError::Device("the step thread ended".into())))
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.inputs = None;
        while self.outputs.recv().is_ok() {}
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The message of a caught panic.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_string(),
        (None, Some(text)) => text.clone(),
        (None, None) => "unknown panic".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(id: u64) -> StepInputs {
        StepInputs { id, ..StepInputs::default() }
    }

    #[test]
    fn steps_come_back_in_order_and_a_panic_does_not_end_the_thread() {
        let executor = Executor::start(|step| {
            assert!(step.id != 2, "step two is bad");
            Ok(StepOutputs { id: step.id, sampled: Vec::new(), prompt_logprobs: Vec::new() })
        })
        .unwrap();
        executor.submit(step(1)).unwrap();
        executor.submit(step(2)).unwrap();
        assert_eq!(executor.wait().unwrap().id, 1);
        let error = executor.wait().unwrap_err().to_string();
        assert!(error.contains("step two is bad"), "{error}");
        executor.submit(step(3)).unwrap();
        assert_eq!(executor.wait().unwrap().id, 3);
    }
}
