//! Codes into the tensors that checkpoints hold, inverse to `../repack.rs`.

use crate::weights::quant::repack::AWQ_ORDER;

/// Rows of codes `[rows][cols]`, each row packed low bits first into 32-bit words: `[rows][cols * bits / 32]`.
pub fn pack_rows(codes: &[u8], bits: u32) -> Vec<u8> {
    match bits {
        4 => codes.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4).collect(),
        _ => codes.to_vec(),
    }
}

/// `[rows][cols]` -> `[cols][rows]`.
pub fn transposed<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    let rows = values.len() / cols.max(1);
    (0..cols).flat_map(|col| (0..rows).map(move |row| (row, col))).map(|(row, col)| values[row * cols + col]).collect()
}

/// GPTQ's codes: `[n][k]` -> `[k * bits / 32]` rows of `n` words, consecutive rows of k in a word.
pub fn pack_gptq(codes: &[u8], k: usize, bits: u32) -> Vec<u8> {
    let words: Vec<[u8; 4]> = pack_rows(codes, bits).as_chunks::<4>().0.to_vec();
    transposed(&words, k * bits as usize / 32).concat()
}

/// AWQ's words: rows of `[rows][n]` codes, eight columns a word in its order.
pub fn pack_awq(codes: &[u8]) -> Vec<u8> {
    let word = |eight: &[u8; 8]| AWQ_ORDER.iter().enumerate().fold(0u32, |word, (i, column)| word | u32::from(eight[*column]) << (4 * i));
    codes.as_chunks::<8>().0.iter().flat_map(|eight| word(eight).to_le_bytes()).collect()
}
