//! pagoda, embedded: the crates of the engine under one name, and the model sources.

pub mod hub;

pub use pagoda_backends as backends;
pub use pagoda_engine as engine;
