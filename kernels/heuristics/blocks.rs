//! When a product reads GGUF's blocks as they are. Not measured: by counting what is read and computed.

use super::skinny::{SkinnyKernel, SkinnyPlan};

/// Tokens of one pass over the blocks (the largest `kTokens` in cuda/gemm/blocks.cu).
pub const BLOCK_TOKENS: usize = 8;
/// Tokens up to which passes take less than making the weights dense and reading them again: of Q4_K 0.56 bytes a weight are read in a pass,
/// which takes about 1.6 times as long as that by its multiply-adds, against 0.56 read, 2 written and 2 read.
pub const MAX_BLOCK_PASSES_TOKENS: usize = 4 * BLOCK_TOKENS;

/// The launch of a product with blocks; its kernel follows from the number of tokens.
pub const BLOCKS_PLAN: SkinnyPlan = SkinnyPlan { kernel: SkinnyKernel::Gemv, block_n: 2, split_k: 1, num_stages: 1, max_ctas: 1 };
