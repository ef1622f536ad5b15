//! Random weights of the benches.

/// Random bf16 between 2^-9 and 2^-5 of either sign (xorshift64, Marsaglia 2003).
pub fn random_bits(len: usize) -> Vec<u16> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u16
    };
    (0..len).map(|_| next()).map(|r| (r & 0x807f) | ((118 + ((r >> 8) & 3)) << 7)).collect()
}
