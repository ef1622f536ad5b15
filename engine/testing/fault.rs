//! Steps that fail on purpose: a file `fault.json` beside a checkpoint, `{"step": 5, "kind": "error" | "lost" | "panic"}`.
//!
//! Only binaries built for tests (feature `testing`) look for it; what it brings about is what a GPU does when it fails.

use std::path::Path;

use serde_json::Value;

use crate::error::{EngineError, Result};
use crate::runner::executor::StepRunner;
use crate::runner::{StepInputs, StepOutputs};

/// A runner whose steps fail from some step on.
pub struct Faulty<R> {
    runner: R,
    fault: Value,
    num_steps: u64,
}

/// `runner` with the fault that the checkpoint's `fault.json` names; without that file it never fails.
pub fn with_fault<R: StepRunner>(checkpoint: &Path, runner: R) -> Faulty<R> {
    let text = std::fs::read_to_string(checkpoint.join("fault.json")).unwrap_or_default();
    Faulty { runner, fault: serde_json::from_str(&text).unwrap_or_default(), num_steps: 0 }
}

impl<R: StepRunner> StepRunner for Faulty<R> {
    fn launch(&mut self, inputs: StepInputs) -> Result<()> {
        self.num_steps += 1;
        if self.fault["step"].as_u64().is_none_or(|step| self.num_steps < step) {
            return self.runner.launch(inputs);
        }
        let message = "injected fault".to_string();
        match self.fault["kind"].as_str() {
            Some("lost") => Err(EngineError::DeviceLost(message)),
            Some("panic") => panic!("{message}"),
            _ => Err(EngineError::Device(message)),
        }
    }

    fn is_ready(&self) -> bool {
        self.runner.is_ready()
    }

    fn finish(&mut self) -> Result<StepOutputs> {
        self.runner.finish()
    }

    fn resume(&mut self) {
        self.runner.resume();
    }

    fn sleep(&mut self) -> Result<()> {
        self.runner.sleep()
    }

    fn wake(&mut self) -> Result<()> {
        self.runner.wake()
    }
}
