//! Decode steps recorded once and queued again as a whole: on a GPU one call instead of some two hundred launches.
//!
//! A shape's first step runs as it is, which also sets up what a device prepares lazily; its second is recorded; from then on it is replayed.

use std::collections::HashMap;

use tracing::warn;

use super::shapes::StepShape;
use crate::device::Device;
use crate::error::Result;

/// Shapes kept at most: a burst of all batch sizes at two context lengths. The one that was not used for longest makes room.
const MAX_SHAPES: usize = 96;

/// What is known of a shape.
enum Known<D: Device> {
    RunOnce,
    Recorded(D::Recording),
}

/// The recordings of one runner. They hold the addresses of its tensors.
pub struct Recordings<D: Device> {
    known: HashMap<StepShape, Entry<D>>,
    enabled: bool,
    /// Steps so far: tells which shape was used last.
    clock: u64,
}

struct Entry<D: Device> {
    known: Known<D>,
    last_used: u64,
}

impl<D: Device> Recordings<D> {
    /// None yet; `enabled`: whether there will be any.
    pub fn new(enabled: bool) -> Recordings<D> {
        Recordings { known: HashMap::new(), enabled, clock: 0 }
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
        self.clock += 1;
        let last_used = self.clock;
        let Some(entry) = self.known.get_mut(&shape) else {
            run()?;
            self.make_room();
            self.known.insert(shape, Entry { known: Known::RunOnce, last_used });
            return Ok(());
        };
        entry.last_used = last_used;
        if let Known::Recorded(recording) = &entry.known {
            return device.replay(recording);
        }
        match device.record(&mut run) {
            Ok(recording) => {
                device.replay(&recording)?;
                entry.known = Known::Recorded(recording);
                Ok(())
            }
            Err(error) => {
                warn!(?shape, %error, "decode steps cannot be recorded: they are launched op by op from now on");
                self.enabled = false;
                run()
            }
        }
    }

    /// Forgets the shape that was not used for longest, when there are as many as are kept.
    fn make_room(&mut self) {
        if self.known.len() < MAX_SHAPES {
            return;
        }
        let oldest = self.known.iter().min_by_key(|(_, entry)| entry.last_used).map(|(shape, _)| *shape);
        if let Some(shape) = oldest {
            self.known.remove(&shape);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::CpuDevice;

    #[test]
    fn the_shape_that_was_not_used_for_longest_makes_room() {
        let device = CpuDevice::new(Some(1)).unwrap();
        let mut recordings = Recordings::<CpuDevice>::new(true);
        let shape = |num_seqs| StepShape { num_seqs, max_context_len: 1024, shares_prefixes: false };
        for num_seqs in 0..MAX_SHAPES {
            recordings.queue(&device, shape(num_seqs), || Ok(())).unwrap();
        }
        // A CPU records nothing: the second use of a shape runs it, and turns recording off, but it counts as a use.
        recordings.queue(&device, shape(0), || Ok(())).unwrap();
        recordings.queue(&device, shape(MAX_SHAPES), || Ok(())).unwrap();
        assert_eq!(recordings.known.len(), MAX_SHAPES);
        assert!(recordings.known.contains_key(&shape(0)) && recordings.known.contains_key(&shape(MAX_SHAPES)));
        assert!(!recordings.known.contains_key(&shape(1)));
    }
}
