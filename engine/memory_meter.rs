//! `MemoryMeter`: what a load really took of a device's memory, to hold against the plan.

use std::sync::Arc;

use crate::device::Device;

/// Reads how much of a device's memory is in use, against a first reading.
pub struct MemoryMeter {
    before: Option<usize>,
    in_use: Box<dyn Fn() -> Option<usize> + Send + Sync>,
}

impl MemoryMeter {
    /// Takes the first reading now.
    pub fn new<D: Device>(device: Arc<D>) -> MemoryMeter {
        let before = device.memory_in_use();
        MemoryMeter { before, in_use: Box::new(move || device.memory_in_use()) }
    }

    /// Bytes taken since then, by whomever; None for a device without memory of its own.
    pub fn taken_bytes(&self) -> Option<usize> {
        Some((self.in_use)()?.saturating_sub(self.before?))
    }
}
