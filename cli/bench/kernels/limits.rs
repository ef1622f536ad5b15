//! What a device could do at best, to hold kernels against.

use std::time::Instant;

use pagoda_engine::device::Device;
use pagoda_engine::device::cuda::CudaDevice;

use super::cases::Case;
use super::inputs::{self, Stored};
use super::timer;

/// Rates that nothing exceeds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Plain reads of memory, GB/s.
    gb_s: f64,
    /// Products, TFLOP/s; None where none was measured.
    tflop_s: Option<f64>,
}

/// Bytes that a thread reads for the limit of a CPU: larger than its share of any cache.
const READ_BYTES: usize = 64 << 20;

impl Limits {
    /// Measures plain reads, and a bf16 product of 8192 rows, columns and tokens for about `ms`: on a GPU a rate is that of its memory, its
    /// power limit and what else runs, not of its name.
    ///
    /// # Errors
    /// What the device answers.
    pub fn measure_gpu(device: &CudaDevice, ms: f64) -> anyhow::Result<Limits> {
        const SIZE: usize = 8192;
        let gb_s = device.read_rate()? / 1e9;
        let linear = inputs::linears(device, 1, [SIZE, SIZE], Stored::Dense, inputs::usage("square"))?.swap_remove(0);
        let x = inputs::activations(device, SIZE, SIZE)?;
        let mut out = device.alloc(SIZE, SIZE, device.activation_dtype())?;
        let mut product = Case {
            op: "linear".into(),
            shape: String::new(),
            bytes: 0.0,
            flops: 2.0 * (SIZE * SIZE * SIZE) as f64,
            num_copies: 1,
            can_record: true,
            run: Box::new(|_| device.linear(&mut out, &x, &linear)),
        };
        let seconds = timer::time(device, ms / 1e3, &mut product)?;
        Ok(Limits { gb_s, tflop_s: Some(product.flops / seconds / 1e12) })
    }

    /// Reads memory with `threads` threads for about `ms` and takes the best pass.
    pub fn measure_cpu(threads: usize, ms: f64) -> Limits {
        // Small budgets are for tests, which do not care.
        let len = (if ms < 1.0 { READ_BYTES >> 6 } else { READ_BYTES }) / 8;
        let buffers: Vec<Vec<u64>> = (0..threads as u64).map(|seed| (0..len as u64).map(|i| i ^ seed).collect()).collect();
        let mut best = 0.0f64;
        let started = Instant::now();
        while best == 0.0 || started.elapsed().as_secs_f64() * 1e3 < ms {
            let pass = Instant::now();
            std::thread::scope(|scope| {
                for buffer in &buffers {
                    scope.spawn(move || std::hint::black_box(buffer.iter().fold(0u64, |sum, value| sum.wrapping_add(*value))));
                }
            });
            best = best.max((threads * len * 8) as f64 / pass.elapsed().as_secs_f64() / 1e9);
        }
        Limits { gb_s: best, tflop_s: None }
    }

    /// The larger of the shares of the two limits.
    pub fn share(&self, gb_s: f64, tflop_s: f64) -> f64 {
        (gb_s / self.gb_s).max(self.tflop_s.map_or(0.0, |limit| tflop_s / limit))
    }

    /// The limits in words.
    pub fn words(&self) -> String {
        let products = self.tflop_s.map_or_else(String::new, |limit| format!(", {limit:.0} TFLOP/s"));
        format!("shares of {:.1} GB/s{products}, measured in this run", self.gb_s)
    }
}
