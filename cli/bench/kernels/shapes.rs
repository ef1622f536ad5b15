//! Shapes of known models, as far as single operations need them.

/// A decoder's layer and head.
#[derive(Clone, Copy, Debug)]
pub struct ModelShape {
    /// Name on the command line.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Rows of the head.
    pub vocab: usize,
}

/// `tiny` is for tests; the others are public models: Qwen2.5 0.5B to 32B and Llama 3.1 8B.
#[rustfmt::skip]
pub const SHAPES: &[ModelShape] = &[
    ModelShape { name: "tiny",     hidden: 128,  heads: 2,  kv_heads: 1, head_dim: 64,  intermediate: 256,   vocab: 512 },
    ModelShape { name: "0.5b",     hidden: 896,  heads: 14, kv_heads: 2, head_dim: 64,  intermediate: 4864,  vocab: 151_936 },
    ModelShape { name: "1.5b",     hidden: 1536, heads: 12, kv_heads: 2, head_dim: 128, intermediate: 8960,  vocab: 151_936 },
    ModelShape { name: "3b",       hidden: 2048, heads: 16, kv_heads: 2, head_dim: 128, intermediate: 11_008, vocab: 151_936 },
    ModelShape { name: "7b",       hidden: 3584, heads: 28, kv_heads: 4, head_dim: 128, intermediate: 18_944, vocab: 152_064 },
    ModelShape { name: "14b",      hidden: 5120, heads: 40, kv_heads: 8, head_dim: 128, intermediate: 13_824, vocab: 152_064 },
    ModelShape { name: "32b",      hidden: 5120, heads: 40, kv_heads: 8, head_dim: 128, intermediate: 27_648, vocab: 152_064 },
    ModelShape { name: "llama-8b", hidden: 4096, heads: 32, kv_heads: 8, head_dim: 128, intermediate: 14_336, vocab: 128_256 },
];

impl ModelShape {
    /// Columns of q, k and v together.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// The matrices of a layer and the head: name, rows, columns.
    pub fn matrices(&self) -> [(&'static str, usize, usize); 5] {
        [
            ("qkv", self.qkv(), self.hidden),
            ("o", self.hidden, self.heads * self.head_dim),
            ("gate_up", 2 * self.intermediate, self.hidden),
            ("down", self.hidden, self.intermediate),
            ("lm_head", self.vocab, self.hidden),
        ]
    }
}
