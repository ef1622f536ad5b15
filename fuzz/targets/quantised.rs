//! A quantised matrix from arbitrary bytes: two bytes of shape, a quantization_config up to a zero byte, a safetensors file. What is accepted
//! can be read and dequantised.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagoda_engine::weights::quant::probe::read_matrix;

fuzz_target!(|data: &[u8]| {
    let [rows, columns, rest @ ..] = data else { return };
    let (n, k) = (8 * (1 + usize::from(rows % 8)), 16 * (1 + usize::from(columns % 8)) + usize::from(columns / 128));
    let split = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let file = rest.get(split + 1..).unwrap_or_default();
    let _ = read_matrix(&rest[..split], file, n, k);
});
