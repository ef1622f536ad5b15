//! Rounding weights to codes: at load (`at_load.rs`), and into checkpoint files (`export.rs`). To nearest, without calibration.

pub mod at_load;
pub mod export;
pub mod floats;
pub mod four_bit;
pub mod integers;
pub mod packing;

#[cfg(test)]
mod tests;
