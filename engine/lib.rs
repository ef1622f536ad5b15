//! pagoda's engine: devices, weights, models, sampling, text, and the thread that drives them.
//!
//! Arrows: `loader -> core -> runner -> models -> device`, `core -> scheduler`. Knows no wire format and no HTTP.

pub mod core;
pub mod description;
pub mod device;
pub mod error;
pub mod grammar;
pub mod loader;
pub mod memory_meter;
pub mod memory_plan;
pub mod models;
pub mod pooling;
pub mod request;
pub mod runner;
pub mod sampling;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod weights;

pub use error::{EngineError, Result};
