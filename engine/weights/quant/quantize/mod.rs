//! Rounding weights to codes: at load (`at_load.rs`), and into checkpoint files (`packing.rs`). To nearest, without calibration.

pub mod at_load;
pub mod floats;
pub mod four_bit;
pub mod integers;
pub mod packing;

#[cfg(test)]
mod tests;
