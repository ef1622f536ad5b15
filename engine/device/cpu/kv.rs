//! One layer's paged keys and values.
//!
//! Keys are stored transposed inside a block, so that one vector holds 16 positions of one dimension and scores need no horizontal sums;
//! values are stored row by row:
//!
//! ```text
//! k[block][kv_head][dim][slot]      v[block][kv_head][slot][dim]
//! ```

use half::{bf16, f16};

use super::buffer::Buffer;
use super::threads::SharedMut;
use crate::device::{DType, KvScales, KvShape};
use crate::error::EngineError;
use crate::weights::quant::books::{e4m3, table};

/// Of a buffer, for errors.
const WHAT: &str = "kv cache of one layer";

/// Elements of one of the two arrays.
pub enum Elements {
    /// Exact.
    F32(Buffer<f32>),
    /// Half the memory, 11 bits of precision.
    F16(Buffer<f16>),
    /// Half the memory, 8 bits of precision.
    BF16(Buffer<bf16>),
    /// A quarter of the memory, 4 bits of precision.
    E4M3(Codes),
}

/// Elements as e4m3 codes of what they are in units of their head's scale.
pub struct Codes {
    codes: Buffer<u8>,
    /// Of the kv heads.
    scales: Vec<f32>,
    /// Elements of one head in a block.
    head_len: usize,
    values: Box<[f32; 256]>,
}

impl Codes {
    /// Element `index`.
    #[inline(always)]
    pub fn get(&self, index: usize) -> f32 {
        let scale = self.scales[index / self.head_len % self.scales.len()];
        self.values[usize::from(self.codes.as_slice()[index])] * scale
    }
}

/// The keys and values of one layer.
pub struct CpuKv {
    /// What was asked for.
    pub shape: KvShape,
    /// `[block][kv_head][dim][slot]`.
    pub k: Elements,
    /// `[block][kv_head][slot][dim]`.
    pub v: Elements,
}

impl CpuKv {
    /// Zeroed memory for `shape`.
    pub fn new(shape: KvShape) -> Result<CpuKv, EngineError> {
        Ok(CpuKv { shape, k: Elements::new(&shape)?, v: Elements::new(&shape)? })
    }

    /// Element of k at (block, kv head, dim 0, slot).
    #[inline(always)]
    pub fn k_at(&self, block: usize, head: usize, slot: usize) -> usize {
        (block * self.shape.num_kv_heads + head) * self.shape.head_dim * self.shape.block_size + slot
    }

    /// Element of v at (block, kv head, slot, dim 0).
    #[inline(always)]
    pub fn v_at(&self, block: usize, head: usize, slot: usize) -> usize {
        ((block * self.shape.num_kv_heads + head) * self.shape.block_size + slot) * self.shape.head_dim
    }

    /// Sets the scales of e4m3; does nothing to other elements.
    pub fn set_scales(&mut self, scales: &KvScales) {
        for (elements, scales) in [(&mut self.k, &scales.k), (&mut self.v, &scales.v)] {
            if let Elements::E4M3(codes) = elements {
                assert_eq!(codes.scales.len(), scales.len(), "scales of the heads");
                codes.scales.clone_from(scales);
            }
        }
    }

    /// Sets all to zero and gives the pages back to the system; scales stay.
    pub fn forget(&mut self) -> Result<(), EngineError> {
        self.k.forget()?;
        self.v.forget()
    }

    /// Copies whole blocks, one pair after another.
    pub fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        let len = self.shape.block_size * self.shape.num_kv_heads * self.shape.head_dim;
        for &(src, dst) in pairs {
            self.k.copy(src as usize * len, dst as usize * len, len);
            self.v.copy(src as usize * len, dst as usize * len, len);
        }
    }
}

impl Elements {
    fn new(shape: &KvShape) -> Result<Elements, EngineError> {
        let len = shape.num_blocks * shape.block_size * shape.num_kv_heads * shape.head_dim;
        Ok(match shape.dtype {
            DType::F32 => Elements::F32(Buffer::zeroed(WHAT, len)?),
            DType::F16 => Elements::F16(Buffer::zeroed(WHAT, len)?),
            DType::BF16 => Elements::BF16(Buffer::zeroed(WHAT, len)?),
            DType::E4M3 => Elements::E4M3(Codes {
                codes: Buffer::zeroed(WHAT, len)?,
                scales: KvScales::ones(shape.num_kv_heads).k,
                head_len: shape.block_size * shape.head_dim,
                values: Box::new(table(e4m3)),
            }),
        })
    }

    /// In place of the pages come the system's zero pages.
    fn forget(&mut self) -> Result<(), EngineError> {
        match self {
            Elements::F32(b) => *b = Buffer::zeroed(WHAT, b.len())?,
            Elements::F16(b) => *b = Buffer::zeroed(WHAT, b.len())?,
            Elements::BF16(b) => *b = Buffer::zeroed(WHAT, b.len())?,
            Elements::E4M3(b) => b.codes = Buffer::zeroed(WHAT, b.codes.len())?,
        }
        Ok(())
    }

    fn copy(&mut self, src: usize, dst: usize, len: usize) {
        match self {
            Elements::F32(b) => b.as_mut_slice().copy_within(src..src + len, dst),
            Elements::F16(b) => b.as_mut_slice().copy_within(src..src + len, dst),
            Elements::BF16(b) => b.as_mut_slice().copy_within(src..src + len, dst),
            Elements::E4M3(b) => b.codes.as_mut_slice().copy_within(src..src + len, dst),
        }
    }

    /// The elements if they are f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match self {
            Elements::F32(b) => Some(b.as_slice()),
            Elements::F16(_) | Elements::BF16(_) | Elements::E4M3(_) => None,
        }
    }

    /// Element `index` as f32.
    #[inline(always)]
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Elements::F32(b) => b.as_slice()[index],
            Elements::F16(b) => b.as_slice()[index].to_f32(),
            Elements::BF16(b) => b.as_slice()[index].to_f32(),
            Elements::E4M3(b) => b.get(index),
        }
    }

    /// For writing by several tasks at once.
    pub fn shared(&mut self) -> SharedElements<'_> {
        match self {
            Elements::F32(b) => SharedElements::F32(SharedMut::new(b.as_mut_slice())),
            Elements::F16(b) => SharedElements::F16(SharedMut::new(b.as_mut_slice())),
            Elements::BF16(b) => SharedElements::BF16(SharedMut::new(b.as_mut_slice())),
            Elements::E4M3(b) => SharedElements::E4M3(SharedMut::new(b.codes.as_mut_slice()), &b.scales),
        }
    }
}

/// `Elements` lent to the tasks of a region.
pub enum SharedElements<'a> {
    /// Exact.
    F32(SharedMut<'a, f32>),
    /// Rounded to nearest even.
    F16(SharedMut<'a, f16>),
    /// Rounded to nearest even.
    BF16(SharedMut<'a, bf16>),
    /// Divided by the scale of the head, rounded to nearest even, saturating.
    E4M3(SharedMut<'a, u8>, &'a [f32]),
}
