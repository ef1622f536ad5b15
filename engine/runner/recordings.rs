//! Decode steps recorded once and queued again as a whole: on a GPU one call instead of some two hundred launches.
//!
//! A shape's first step runs as it is, which also sets up what a device prepares lazily; its second is recorded; from then on it is replayed.

use std::collections::HashMap;

use tracing::warn;

use super::shapes::StepShape;
use crate::device::Device;
use crate::error::Result;

/// Recordings kept at most: a burst of all batch sizes at two context lengths. When there are more, all are made anew as they are needed.
const MAX_RECORDINGS: usize = 96;

/// What is known of a shape.
enum Known<D: Device> {
    RunOnce,
    Recorded(D::Recording),
}

/// The recordings of one runner. They hold the addresses of its tensors.
pub struct Recordings<D: Device> {
    known: HashMap<StepShape, Known<D>>,
    enabled: bool,
}

impl<D: Device> Recordings<D> {
    /// None yet; `enabled`: whether there will be any.
    pub fn new(enabled: bool) -> Recordings<D> {
        Recordings { known: HashMap::new(), enabled }
    }

    /// Whether steps are recorded.
    pub fn are_enabled(&self) -> bool {
        self.enabled
    }

    /// Queues the ops that `run` queues for this shape, by a recording where there is one.
    ///
    /// # Errors
    /// A device fault.
    pub fn queue(&mut self, device: &D, shape: StepShape, mut run: impl FnMut() -> Result<()>) -> Result<()> {
        match self.known.get(&shape) {
            Some(Known::Recorded(recording)) => device.replay(recording),
            Some(Known::RunOnce) => match device.record(&mut run) {
                Ok(recording) => {
                    device.replay(&recording)?;
                    self.known.insert(shape, Known::Recorded(recording));
                    Ok(())
                }
                Err(error) => {
                    warn!(?shape, %error, "decode steps cannot be recorded: they are launched op by op from now on");
                    self.enabled = false;
                    run()
                }
            },
            None => {
                run()?;
                if self.known.len() >= MAX_RECORDINGS {
                    self.known.clear();
                }
                self.known.insert(shape, Known::RunOnce);
                Ok(())
            }
        }
    }
}
