//! One decoder over a table of families.

pub mod config;
pub mod decoder;
pub mod encoder;
pub mod encoder_config;
pub mod encoder_families;
pub mod families;
pub mod layer;
pub mod limits;
mod relative_bias;
pub mod rope;
pub(crate) mod rope_parameters;
