//! What is taken at start: buffers, the KV pool, weights (converted to bf16 on the way), vectors.

use std::sync::Arc;

use half::bf16;
use pagoda_kernels::DeviceMemory;
use pagoda_kernels::ops::DeviceBytes;
use rayon::prelude::*;

use super::{CudaDevice, CudaInts, CudaKv, CudaVector, CudaWeight, Stored, engine_error};
use crate::device::{DType, HostWeight, KvScales, KvShape, StepInts, StepRoom, StepTensors, Tensor};
use crate::error::{EngineError, Result};
use crate::weights::dequant::dequantize_row;
use crate::weights::format::WeightFormat;
use crate::weights::mapped::MappedBytes;

/// Bytes of a piece that one thread reads or converts.
pub(super) const TASK_BYTES: usize = 512 << 10;
/// Every array of a step begins at a multiple of this.
const ARRAY_ALIGN: usize = 64;

impl CudaDevice {
    pub(super) fn zeroed(&self, len: usize) -> Result<DeviceMemory> {
        DeviceMemory::zeroed(&self.gpu, len).map_err(engine_error)
    }

    /// Keeps the weights on the host and gives all large allocations away; the addresses stay, so that recorded steps are good afterwards.
    pub(super) fn put_aside(&self) -> Result<()> {
        for arena in [&self.weights, &self.scales] {
            arena.keep().map_err(engine_error)?;
        }
        self.gpu.unmap_all().map_err(engine_error)?;
        self.sample_scratch.lock().forget();
        Ok(())
    }

    /// Takes the memory back, with the weights in it.
    pub(super) fn take_back(&self) -> Result<()> {
        self.gpu.map_all().map_err(engine_error)?;
        for arena in [&self.weights, &self.scales] {
            arena.restore().map_err(engine_error)?;
        }
        self.synchronize()
    }

    pub(super) fn new_tensor(&self, max_rows: usize, cols: usize, dtype: DType) -> Result<Tensor<CudaDevice>> {
        if !matches!(dtype, DType::BF16 | DType::F32) {
            return Err(EngineError::Unsupported(format!("{dtype:?} activations on CUDA; they are BF16 or F32")));
        }
        let buffer = self.zeroed(max_rows * cols * dtype.size())?;
        Ok(Tensor { buffer, rows: 0, max_rows, cols, dtype })
    }

    pub(super) fn new_ints(&self, len: usize) -> Result<CudaInts> {
        Ok(CudaInts { memory: Arc::new(self.zeroed(len * 4)?), start: 0, len: len * 4 })
    }

    /// All arrays in one allocation, so that one copy can fill them.
    pub(super) fn new_step(&self, room: &StepRoom) -> Result<StepTensors<CudaDevice>> {
        let total: usize = room.lens().map(|len| (len * 4).next_multiple_of(ARRAY_ALIGN)).iter().sum();
        let memory = Arc::new(self.zeroed(total)?);
        self.step_ring.lock().reserve(total)?;
        StepTensors::alloc(room, |_| Ok(CudaInts { memory: memory.clone(), start: 0, len: 0 }))
    }

    /// Packs the arrays one behind the other, so that the same lengths give the same addresses.
    pub(super) fn upload_step(&self, step: &mut StepTensors<CudaDevice>, ints: &StepInts) -> Result<()> {
        let memory = step.token_ids.memory.clone();
        let mut total = 0;
        step.for_each(ints, |view, src| {
            assert!(Arc::ptr_eq(&view.memory, &memory), "a step of new_step");
            (view.start, view.len) = (total, src.len() * 4);
            total += view.len.next_multiple_of(ARRAY_ALIGN);
            Ok::<(), EngineError>(())
        })?;
        self.step_ring.lock().upload(memory.bytes(), total, |bytes| {
            let mut start = 0;
            for array in ints.arrays() {
                let len = array.len() * 4;
                bytes[start..start + len].copy_from_slice(bytemuck::cast_slice(array));
                start += len.next_multiple_of(ARRAY_ALIGN);
            }
        })
    }

    pub(super) fn new_kv(&self, shape: KvShape) -> Result<CudaKv> {
        /// The first GPUs that convert to e4m3.
        const E4M3_CAPABILITY: (u32, u32) = (8, 9);
        let refuse = |reason: String| Err(EngineError::Option { option: "kv_cache_dtype", reason });
        let capability = self.gpu.info().compute_capability;
        match shape.dtype {
            DType::BF16 => {}
            DType::E4M3 if capability < E4M3_CAPABILITY => {
                return refuse(format!("fp8 needs compute capability 8.9, this GPU has {capability:?}"));
            }
            DType::E4M3 if !shape.head_dim.is_multiple_of(16) => {
                return refuse(format!("fp8 with heads of {} elements, expected a multiple of 16", shape.head_dim));
            }
            DType::E4M3 => {}
            other => return refuse(format!("{other:?} on CUDA, expected bf16, fp8 or auto")),
        }
        let memory = self.zeroed(shape.num_blocks * shape.block_bytes())?;
        let mut kv = CudaKv { memory, scales: None, shape };
        if shape.dtype == DType::E4M3 {
            self.upload_kv_scales(&mut kv, &KvScales::ones(shape.num_kv_heads))?;
        }
        Ok(kv)
    }

    pub(super) fn upload_kv_scales(&self, kv: &mut CudaKv, scales: &KvScales) -> Result<()> {
        let values = [scales.k.as_slice(), &scales.v].concat();
        assert_eq!(values.len(), 2 * kv.shape.num_kv_heads, "scales of the heads");
        let bytes = match kv.scales {
            Some(bytes) => bytes,
            None => self.scales.alloc(values.len() * 4).map_err(engine_error)?,
        };
        kv.scales = Some(bytes);
        self.staging.lock().upload(bytes, bytemuck::cast_slice(&values))
    }

    pub(super) fn upload_vector(&self, values: &[f32]) -> Result<CudaVector> {
        let bytes = self.weights.alloc(values.len() * 4).map_err(engine_error)?;
        self.staging.lock().upload(bytes, bytemuck::cast_slice(values))?;
        let rounded: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
        let exact = rounded.iter().zip(values).all(|(half, v)| half.to_f32().to_bits() == v.to_bits());
        let half = exact.then(|| self.upload_half(&rounded)).transpose()?;
        Ok(CudaVector { bytes, half, len: values.len() })
    }

    fn upload_half(&self, values: &[bf16]) -> Result<DeviceBytes> {
        let little_endian: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bytes = self.weights.alloc(little_endian.len()).map_err(engine_error)?;
        self.staging.lock().upload(bytes, &little_endian)?;
        Ok(bytes)
    }

    pub(super) fn upload_weight(&self, host: &HostWeight) -> Result<CudaWeight> {
        let (n, k) = (host.n, host.k);
        let (values, _) = host.format.block();
        let expected = n * host.row_bytes();
        if !k.is_multiple_of(values) || host.bytes.len() != expected {
            let (name, format, found) = (&host.name, host.format, host.bytes.len());
            return Err(EngineError::Device(format!("weight {name}: {found} bytes for {format:?} [{n}, {k}], expected {expected}")));
        }
        if !k.is_multiple_of(8) {
            return Err(EngineError::Unsupported(format!("weight {} of {k} columns on CUDA, expected a multiple of 8", host.name)));
        }
        let bytes = self.weights.alloc(n * k * 2).map_err(engine_error)?;
        self.staging.lock().upload_with(bytes, n * k * 2, k * 2, |start, piece| match host.format {
            WeightFormat::BF16 => read_parallel(piece, &host.bytes, start),
            _ => {
                convert_rows(piece, host, start / (k * 2));
                Ok(())
            }
        })?;
        Ok(CudaWeight { stored: Stored::Dense(bytes), n, k })
    }
}

/// dst = the bytes from `start` on, read by all threads.
pub(super) fn read_parallel(dst: &mut [u8], src: &MappedBytes, start: usize) -> Result<()> {
    dst.par_chunks_mut(TASK_BYTES).enumerate().try_for_each(|(task, dst)| src.copy_to(start + task * TASK_BYTES, dst))
}

/// dst = rows `first ..` of `host` as bf16, rounded to nearest even.
fn convert_rows(dst: &mut [u8], host: &HostWeight, first: usize) {
    let k = host.k;
    let row_bytes = host.row_bytes();
    let rows_per_task = (TASK_BYTES / (k * 2)).max(1);
    dst.par_chunks_mut(rows_per_task * k * 2).enumerate().for_each(|(task, rows)| {
        let mut values = vec![0.0f32; k];
        for (i, out) in rows.chunks_exact_mut(k * 2).enumerate() {
            let row = first + task * rows_per_task + i;
            dequantize_row(host.format, &host.bytes.as_slice()[row * row_bytes..][..row_bytes], &mut values);
            for (out, value) in out.chunks_exact_mut(2).zip(&values) {
                out.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
            }
        }
    });
}
