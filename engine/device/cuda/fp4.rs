//! NVFP4 matrices times many tokens on compute capability 12.x, with `fp4_activations`: what is multiplied is rounded to NVFP4 as well, for the
//! tensor core's own product of 4 bits.

use pagoda_kernels::DeviceMemory;
use pagoda_kernels::ops::fp4::{Fp4Gemm, Fp4Inputs, fp4_gemm, fp4_quantize, has_fp4_gemm};

use super::product::Product;
use super::w4::W4Weight;
use super::{CudaDevice, engine_error};
use crate::error::{EngineError, Result};

/// Memory for rounded activations. Grown by the first step of many tokens; what recorded steps may name is kept.
#[derive(Default)]
pub(super) struct Fp4Room {
    taken: Vec<DeviceMemory>,
    /// The longest row of the matrices that were loaded: the first allocation suits all.
    max_cols: usize,
}

impl Fp4Room {
    /// There is a matrix of rows so long.
    pub fn expect(&mut self, cols: usize) {
        self.max_cols = self.max_cols.max(cols);
    }

    fn inputs(&mut self, device: &CudaDevice, rows: usize, cols: usize) -> Result<Fp4Inputs> {
        if self.taken.last().is_none_or(|memory| memory.bytes().len() < Fp4Inputs::bytes(rows, cols)) {
            self.taken.push(device.zeroed(Fp4Inputs::bytes(rows, cols.max(self.max_cols)))?);
        }
        Ok(Fp4Inputs::new(self.taken.last().expect("taken above").bytes(), rows, cols))
    }
}

impl CudaDevice {
    /// The same device, which rounds activations to NVFP4 where matrices are in it and tokens are many.
    ///
    /// # Errors
    /// `Option` where the GPU or this build has no product of that kind.
    pub fn with_fp4_activations(self) -> Result<CudaDevice> {
        let refuse = |reason| Err(EngineError::Option { option: "fp4_activations", reason });
        let (major, minor) = self.gpu.info().compute_capability;
        if major != 12 {
            return refuse(format!("compute capability is {major}.{minor}, expected a GPU of 12.x"));
        }
        self.gpu.bind().map_err(engine_error)?;
        if !has_fp4_gemm().map_err(engine_error)? {
            return refuse(format!("no code for {major}.{minor} in this build, expected 120f or 120a in PAGODA_CUDA_ARCHS"));
        }
        Ok(CudaDevice { fp4_activations: true, ..self })
    }

    /// Whether a matrix's products of many tokens are those here.
    pub(super) fn takes_fp4(&self, weight: &W4Weight) -> bool {
        self.fp4_activations && weight.order.is_none() && weight.matrix.fits_fp4()
    }

    /// A product with rounded activations.
    pub(super) fn run_fp4(&self, p: &Product<'_>, weight: &W4Weight) -> Result<()> {
        let x = self.fp4_room.lock().inputs(self, p.x.max_rows, p.k)?;
        self.launch(|stream| fp4_quantize(&x, p.x.bytes, p.num_tokens, stream))?;
        let params = Fp4Gemm {
            out: p.out.bytes,
            x,
            w: weight.matrix,
            bias: p.bias(),
            residual: None,
            num_tokens: p.num_tokens,
            ld_out: p.ld_out,
            out_dtype: p.out.dtype,
            epilogue: p.epilogue,
        };
        self.launch(|stream| fp4_gemm(&params, stream))
    }
}

#[cfg(test)]
mod tests {
    use crate::loader::{DeviceChoice, EngineOptions};

    #[test]
    fn the_option_says_what_it_needs() {
        let on = EngineOptions { fp4_activations: true, ..EngineOptions::default() };
        for (options, expected) in [
            (
                EngineOptions { device: DeviceChoice::Cpu, ..on.clone() },
                "option fp4_activations: expected a GPU of compute capability 12.x",
            ),
            (EngineOptions { deterministic: true, ..on.clone() }, "option fp4_activations: rounds by the size of a step"),
        ] {
            let message = options.validate().expect_err(expected).to_string();
            assert!(message.contains(expected), "{message} does not say {expected}");
        }
    }
}
