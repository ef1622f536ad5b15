//! The engine thread: drains commands, schedules, executes, commits, emits. The world talks to it through `EngineHandle`.

pub mod command;
mod deliveries;
pub mod engine;
pub mod handle;
pub mod live;
mod outside;
mod requests;
mod rest;
pub mod stats;
mod steps;

pub use engine::{EngineConfig, start, start_runner};
pub use handle::{EngineHandle, RequestStream};
pub use outside::OutsideModel;
pub use stats::{EngineStats, STEP_SIZE_BOUNDS, StepSizes};
