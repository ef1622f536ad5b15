//! One decoder over a table of families.

pub mod config;
