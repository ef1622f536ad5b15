//! Storage formats of a weight row: elements or blocks of elements along k.
//!
//! GGUF block layouts follow ggml's `ggml-common.h` (block sizes, field order) as described in the GGUF specification.

/// How the bytes of a weight row encode its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// IEEE single, little endian.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 32 values, 18 bytes: f16 d, 16 bytes of nibbles; d * (q - 8).
    Q4_0,
    /// 32 values, 20 bytes: f16 d, f16 m, 16 bytes of nibbles; d * q + m.
    Q4_1,
    /// 32 values, 22 bytes: f16 d, 4 bytes of fifth bits, 16 bytes of nibbles; d * (q - 16).
    Q5_0,
    /// 32 values, 24 bytes: f16 d, f16 m, 4 bytes of fifth bits, 16 bytes of nibbles; d * q + m.
    Q5_1,
    /// 32 values, 34 bytes: f16 d, 32 i8; d * q.
    Q8_0,
    /// 256 values, 144 bytes: f16 d, f16 dmin, 12 bytes of 6-bit scales and mins, 128 bytes of nibbles.
    Q4K,
    /// 256 values, 176 bytes: as Q4K with 32 bytes of fifth bits before the nibbles.
    Q5K,
    /// 256 values, 210 bytes: 128 low nibbles, 64 bytes of high 2 bits, 16 i8 scales, f16 d.
    Q6K,
}

impl WeightFormat {
    /// Every format.
    pub const ALL: [WeightFormat; 11] = [
        WeightFormat::F32,
        WeightFormat::F16,
        WeightFormat::BF16,
        WeightFormat::Q4_0,
        WeightFormat::Q4_1,
        WeightFormat::Q5_0,
        WeightFormat::Q5_1,
        WeightFormat::Q8_0,
        WeightFormat::Q4K,
        WeightFormat::Q5K,
        WeightFormat::Q6K,
    ];

    /// (values of a block, bytes of a block).
    pub const fn block(self) -> (usize, usize) {
        match self {
            WeightFormat::F32 => (1, 4),
            WeightFormat::F16 | WeightFormat::BF16 => (1, 2),
            WeightFormat::Q4_0 => (32, 18),
            WeightFormat::Q4_1 => (32, 20),
            WeightFormat::Q5_0 => (32, 22),
            WeightFormat::Q5_1 => (32, 24),
            WeightFormat::Q8_0 => (32, 34),
            WeightFormat::Q4K => (256, 144),
            WeightFormat::Q5K => (256, 176),
            WeightFormat::Q6K => (256, 210),
        }
    }

    /// Whether it stores a float for each value.
    pub const fn is_dense(self) -> bool {
        matches!(self, WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16)
    }

    /// Bytes of a row of `k` values; `k` is a multiple of the block.
    pub const fn row_bytes(self, k: usize) -> usize {
        let (values, bytes) = self.block();
        k / values * bytes
    }
}
