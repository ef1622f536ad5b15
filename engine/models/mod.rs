//! One decoder over a table of families.

pub mod config;
pub mod families;
pub mod limits;
mod rope_parameters;
