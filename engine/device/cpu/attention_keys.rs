//! The keys and values of one tile of positions: read where they lie in the cache, or converted and regrouped in scratch.

use super::kv::{CpuKv, Elements};
use super::simd::{LANES, Simd, lanes, lanes_mut};

/// Keys of a tile.
pub const KEYS: usize = 64;

/// Where the keys and values of a tile are.
pub struct Keys<'m> {
    /// Keys, 16 positions side by side.
    pub k: &'m [f32],
    /// Start of each group of 16 keys at dimension 0.
    pub k_at: [usize; KEYS / LANES],
    /// From a dimension to the next.
    pub k_stride: usize,
    /// Values, dimensions side by side.
    pub v: &'m [f32],
    /// Start of each value row.
    pub v_at: [usize; KEYS],
}

impl<'m> Keys<'m> {
    /// Positions `start .. start + keys` of the sequence with these blocks. `packed` has room for two times `KEYS` rows of head_dim rounded
    /// up to 16; it is used where the cache is not f32 or not made of whole vectors.
    #[inline(always)]
    pub fn new<S: Simd>(s: S, kv: &'m CpuKv, blocks: &[i32], head: usize, start: usize, keys: usize, packed: &'m mut [f32]) -> Keys<'m> {
        let (dim, block_size) = (kv.shape.head_dim, kv.shape.block_size);
        let place = |position: usize| (blocks[position / block_size] as usize, position % block_size);
        let (mut k_at, mut v_at) = ([0; KEYS / LANES], [0; KEYS]);
        for (group, at) in k_at[..keys.div_ceil(LANES)].iter_mut().enumerate() {
            let (block, slot) = place(start + group * LANES);
            *at = kv.k_at(block, head, slot);
        }
        for (key, at) in v_at[..keys].iter_mut().enumerate() {
            let (block, slot) = place(start + key);
            *at = kv.v_at(block, head, slot);
        }
        if let (Some(k), Some(v)) = (kv.k.as_f32(), kv.v.as_f32())
            && block_size.is_multiple_of(LANES)
            && dim.is_multiple_of(LANES)
        {
            return Keys { k, k_at, k_stride: block_size, v, v_at };
        }
        let stride = dim.next_multiple_of(LANES);
        let (k, v) = packed.split_at_mut(KEYS * stride);
        for (group, at) in k_at[..keys.div_ceil(LANES)].iter_mut().enumerate() {
            for i in 0..dim {
                let out = &mut k[i * KEYS + group * LANES..][..LANES];
                if block_size.is_multiple_of(LANES) {
                    s.store(load(s, &kv.k, *at + i * block_size), lanes_mut(out, 0));
                } else {
                    for (key, out) in out.iter_mut().enumerate().take(keys - group * LANES) {
                        let (block, slot) = place(start + group * LANES + key);
                        *out = kv.k.get(kv.k_at(block, head, slot) + i * block_size);
                    }
                }
            }
            *at = group * LANES;
        }
        for (at, out) in v_at[..keys].iter_mut().zip(v.chunks_exact_mut(stride)) {
            let whole = dim / LANES * LANES;
            for i in (0..whole).step_by(LANES) {
                s.store(load(s, &kv.v, *at + i), lanes_mut(out, i));
            }
            for (i, out) in out[whole..].iter_mut().enumerate() {
                *out = if whole + i < dim { kv.v.get(*at + whole + i) } else { 0.0 };
            }
        }
        for (key, at) in v_at.iter_mut().enumerate() {
            *at = key * stride;
        }
        Keys { k, k_at, k_stride: KEYS, v, v_at }
    }
}

/// Sixteen elements from `index` on.
#[inline(always)]
fn load<S: Simd>(s: S, elements: &Elements, index: usize) -> S::V {
    match elements {
        Elements::F32(values) => s.load(lanes(values.as_slice(), index)),
        Elements::F16(values) => s.load_f16(halves(lanes(values.as_slice(), index))),
        Elements::BF16(values) => s.load_bf16(halves(lanes(values.as_slice(), index))),
        Elements::E4M3(codes) => s.load(&std::array::from_fn(|lane| codes.get(index + lane))),
    }
}

#[inline(always)]
fn halves<T: bytemuck::Pod>(values: &[T; LANES]) -> &[u8; 2 * LANES] {
    bytemuck::cast_slice(&values[..]).try_into().expect("sixteen elements of two bytes")
}
