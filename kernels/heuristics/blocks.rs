//! When a product reads GGUF's blocks as they are.

use super::skinny::{SkinnyKernel, SkinnyPlan};

/// Tokens up to which reading the blocks takes less than making the weights dense and reading them again; those of one pass over the blocks
/// (the largest `kTiles` of 8 in cuda/gemm/blocks.cu).
pub const MAX_BLOCK_TOKENS: usize = 32;
/// Tokens up to which it takes less than reading a copy in bf16.
pub const MAX_BLOCK_TOKENS_BESIDE_COPY: usize = 8;

/// The launch of a product with blocks; its kernel follows from the number of tokens.
pub const BLOCKS_PLAN: SkinnyPlan = SkinnyPlan { kernel: SkinnyKernel::Gemv, block_n: 2, split_k: 1, num_stages: 1, max_ctas: 1 };
