//! Random inputs on any device, through `trait Device` alone.

use std::sync::Arc;

use pagoda_engine::Result;
use pagoda_engine::device::{
    DType, Device, HostMatrix, HostWeight, KvShape, Linear, MatrixLoad, MatrixUse, RopeKvParams, RopeStyle, RopeTable, StepInts, StepRoom,
    StepTensors, Tensor,
};
use pagoda_engine::weights::format::WeightFormat;
use pagoda_engine::weights::mapped::MappedBytes;
use pagoda_engine::weights::quant::LoadFormat;

/// Rows of the table that activations are made from.
const TABLE_ROWS: usize = 64;
/// Tokens of a block.
pub const BLOCK_SIZE: usize = 16;

/// bf16 noise of one exponent and random signs and mantissas: 1/64 to 1/32. As good as any for power and clocks, and made fast.
pub fn noise(seed: u64, len: usize) -> MappedBytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0u8; len * 2];
    for chunk in bytes.chunks_mut(8) {
        // xorshift64* (Vigna 2014).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) & 0x807f_807f_807f_807f | 0x3c80_3c80_3c80_3c80;
        chunk.copy_from_slice(&bits.to_le_bytes()[..chunk.len()]);
    }
    MappedBytes::from_slice(&bytes)
}

/// How weights are stored.
#[derive(Clone, Copy)]
pub enum Stored {
    /// bf16.
    Dense,
    /// Quantised when they are loaded.
    AtLoad(LoadFormat),
    /// Blocks of GGUF.
    Blocks(WeightFormat),
}

impl Stored {
    /// Whether rows of `k` weights can be stored so.
    pub fn takes(self, k: usize) -> bool {
        !matches!(self, Stored::Blocks(format) if !k.is_multiple_of(format.block().0))
    }

    /// Bytes that a product reads of a matrix: bf16, bytes with a scale a row, tiles of 4-bit codes with a scale of 16 bits for 64 of them, or
    /// blocks.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        match self {
            Stored::Dense => n * k * 2,
            Stored::AtLoad(LoadFormat::Fp8) => n * k + n * 4,
            Stored::AtLoad(_) => n * k * 17 / 32,
            Stored::Blocks(format) => n * format.row_bytes(k),
        }
    }

    /// A random matrix. As blocks its halves are of one exponent too: they begin at even bytes of every block.
    fn matrix(self, seed: u64, n: usize, k: usize) -> HostMatrix {
        HostMatrix::Rows(match self {
            Stored::Blocks(format) => {
                let bytes = noise(seed, self.bytes(n, k) / 2);
                HostWeight { format, ..dense(bytes, n, k) }
            }
            _ => dense(noise(seed, n * k), n, k),
        })
    }
}

/// What the matrix of that name is for.
pub fn usage(name: &str) -> MatrixUse {
    match name {
        "gate_up" => MatrixUse::GateUp,
        "lm_head" => MatrixUse::Table,
        _ => MatrixUse::Projection,
    }
}

/// `num` random matrices `[n, k]`, each as a linear layer.
pub fn linears<D: Device>(device: &D, num: usize, [n, k]: [usize; 2], stored: Stored, usage: MatrixUse) -> Result<Vec<Linear<D>>> {
    let quantize = if let Stored::AtLoad(format) = stored { Some(format) } else { None };
    let load = MatrixLoad { usage, quantize };
    let linear = |seed| Ok(Linear { parts: device.load_parts(vec![stored.matrix(seed as u64, n, k)], load)?, bias: None, n, k });
    (1..=num).map(linear).collect()
}

fn dense(bytes: MappedBytes, n: usize, k: usize) -> HostWeight {
    HostWeight { name: Arc::from("bench"), format: WeightFormat::BF16, n, k, bytes }
}

/// Random activations `[rows, cols]`.
pub fn activations<D: Device>(device: &D, rows: usize, cols: usize) -> Result<Tensor<D>> {
    let table = device.load_weight(dense(noise(cols as u64, TABLE_ROWS * cols), TABLE_ROWS, cols))?;
    let mut step = device.alloc_step(&StepRoom { max_tokens: rows, max_seqs: rows, max_blocks_per_seq: 1 })?;
    let token_ids = (0..rows).map(|row| (row % TABLE_ROWS) as i32).collect();
    device.write_step(&mut step, &StepInts { token_ids, ..StepInts::default() })?;
    step.num_tokens = rows;
    let mut out = device.alloc(rows, cols, device.activation_dtype())?;
    device.embedding(&mut out, &table, &step, 1.0)?;
    device.wait()?;
    Ok(out)
}

/// Random logits `[rows, vocab]`.
pub fn logits<D: Device>(device: &D, rows: usize, vocab: usize) -> Result<Tensor<D>> {
    const K: usize = 64;
    let x = activations(device, rows, K)?;
    let head = linears(device, 1, [vocab, K], Stored::Dense, usage("lm_head"))?.swap_remove(0);
    let mut out = device.alloc(rows, vocab, DType::F32)?;
    device.linear(&mut out, &x, &head)?;
    device.wait()?;
    Ok(out)
}

/// A table of rotations.
pub fn rope<D: Device>(device: &D, positions: usize, head_dim: usize) -> Result<RopeTable<D>> {
    let angles = |f: fn(f32) -> f32| -> Vec<f32> { (0..positions * head_dim / 2).map(|i| f(i as f32 * 0.001)).collect() };
    let (cos, sin) = (device.load_vector(&angles(f32::cos))?, device.load_vector(&angles(f32::sin))?);
    Ok(RopeTable { cos, sin, rotary_dim: head_dim, style: RopeStyle::HalfSplit })
}

/// A step of `seqs` sequences whose last `query` tokens of `context` are computed; blocks lie scattered, as after a while of serving.
pub fn paged_step<D: Device>(device: &D, seqs: usize, context: usize, query: usize) -> Result<StepTensors<D>> {
    let blocks_per_seq = context.div_ceil(BLOCK_SIZE);
    let num_tokens = seqs * query;
    let mut step = device.alloc_step(&StepRoom { max_tokens: num_tokens, max_seqs: seqs, max_blocks_per_seq: blocks_per_seq })?;
    let block = |seq: usize, idx: usize| scattered(seq * blocks_per_seq + idx, seqs * blocks_per_seq);
    let places = || (0..seqs).flat_map(|seq| (context - query..context).map(move |position| (seq, position)));
    let slot = |(seq, position): (usize, usize)| (block(seq, position / BLOCK_SIZE) * BLOCK_SIZE + position % BLOCK_SIZE) as i32;
    let ints = StepInts {
        token_ids: vec![0; num_tokens],
        token_source: vec![-1; num_tokens],
        positions: places().map(|(_, position)| position as i32).collect(),
        slot_mapping: places().map(slot).collect(),
        cu_seqlens_q: (0..=seqs).map(|seq| (seq * query) as i32).collect(),
        context_lens: vec![context as i32; seqs],
        block_tables: (0..seqs).flat_map(|seq| (0..blocks_per_seq).map(move |idx| (seq, idx))).map(|(s, i)| block(s, i) as i32).collect(),
        ..StepInts::default()
    };
    step.num_tokens = num_tokens;
    step.num_seqs = seqs;
    step.max_query_len = query;
    step.max_context_len = context;
    step.max_blocks_per_seq = blocks_per_seq;
    device.write_step(&mut step, &ints)?;
    Ok(step)
}

/// Fills a cache with random keys and values, `chunk` slots at a time: power and clocks depend on the bits that are read.
pub fn fill_cache<D: Device>(
    device: &D,
    kv: &mut D::KvLayer,
    num_slots: usize,
    chunk: usize,
    (columns, rotation): (usize, &RopeKvParams<'_, D>),
) -> Result<()> {
    let mut step = device.alloc_step(&StepRoom { max_tokens: chunk, max_seqs: 1, max_blocks_per_seq: 1 })?;
    for first in (0..num_slots).step_by(chunk) {
        let len = chunk.min(num_slots - first);
        let mut qkv = activations(device, len, columns)?;
        let ints = StepInts {
            token_ids: vec![0; len],
            token_source: vec![-1; len],
            positions: (0..len as i32).collect(),
            slot_mapping: (first as i32..(first + len) as i32).collect(),
            cu_seqlens_q: vec![0, len as i32],
            context_lens: vec![len as i32],
            block_tables: vec![0],
            ..StepInts::default()
        };
        (step.num_tokens, step.num_seqs, step.max_query_len, step.max_context_len, step.max_blocks_per_seq) = (len, 1, len, len, 1);
        device.write_step(&mut step, &ints)?;
        device.rope_kv_store(&mut qkv, kv, &step, rotation)?;
        device.wait()?;
    }
    Ok(())
}

/// A permutation of `0..num`: steps of a prime that does not divide it.
fn scattered(idx: usize, num: usize) -> usize {
    const PRIMES: [usize; 3] = [7919, 104_729, 1_299_709];
    let step = PRIMES.into_iter().find(|prime| !num.is_multiple_of(*prime)).unwrap_or(1);
    idx * step % num
}

/// Shape of a cache that holds such a step.
pub fn kv_shape(seqs: usize, context: usize, kv_heads: usize, head_dim: usize, dtype: DType) -> KvShape {
    KvShape { num_blocks: seqs * context.div_ceil(BLOCK_SIZE), block_size: BLOCK_SIZE, num_kv_heads: kv_heads, head_dim, dtype }
}

/// Anything that a case may answer.
pub type Outcome = Result<()>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_scattered_and_each_used_once() {
        for num in [1, 2, 64, 7919, 10_000] {
            let mut seen: Vec<usize> = (0..num).map(|idx| scattered(idx, num)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..num), "{num}");
        }
    }

    #[test]
    fn noise_is_bounded_and_differs() {
        let bytes = noise(1, 1001);
        let values: Vec<f32> =
            bytes.as_slice().chunks(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)).collect();
        assert!(values.iter().all(|value| (1.0 / 64.0..1.0 / 32.0).contains(&value.abs())));
        assert!(values.iter().any(|value| *value < 0.0) && values[0] != values[1]);
    }
}
