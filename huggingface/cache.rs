//! `Cache`: keys and values of one sequence, layer by layer.

use candle_core::Result;
use candle_nn::kv_cache::KvCache;

/// Tokens by which it grows.
const GROWTH: usize = 256;

/// Keys and values of one sequence.
pub struct Cache {
    /// `[kv_heads, tokens, head_dim]` each.
    pub layers: Vec<KvCache>,
    len: usize,
}

impl Cache {
    /// Nothing yet.
    pub fn new(num_layers: usize) -> Cache {
        Cache { layers: (0..num_layers).map(|_| KvCache::new(1, GROWTH)).collect(), len: 0 }
    }

    /// Tokens of the sequence.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All layers hold `num_tokens` more.
    pub fn advance(&mut self, num_tokens: usize) {
        self.len += num_tokens;
    }

    /// Its first `len` tokens in memory of their own: candle's caches are written in place.
    pub fn first(&self, len: usize) -> Result<Cache> {
        let mut copy = Cache::new(self.layers.len());
        for (from, to) in self.layers.iter().zip(&mut copy.layers) {
            if let (Some(k), Some(v)) = (from.k()?, from.v()?) {
                to.append(&k.narrow(1, 0, len)?.contiguous()?, &v.narrow(1, 0, len)?.contiguous()?)?;
            }
        }
        copy.len = len;
        Ok(copy)
    }
}
