//! Checkpoints as a whole: what opens, and what each kind of damage says.

mod damage;
mod folders;
mod gguf;
mod kv_scales;

use std::path::Path;

use serde_json::{Map, Value};

use super::checkpoint::Checkpoint;
use crate::error::EngineError;

/// Opens what must not open.
fn refusal(path: &Path, what: &str) -> String {
    match Checkpoint::open(path) {
        Ok(_) => panic!("{what}: accepted"),
        Err(error @ (EngineError::Checkpoint { .. } | EngineError::Io { .. } | EngineError::Unsupported(_))) => error.to_string(),
        Err(EngineError::UnknownArchitecture { name, known }) => format!("{name}: {known}"),
        Err(other) => panic!("{what}: unexpected kind of error: {other}"),
    }
}

fn check_says(said: &str, expected: &str, what: &str) {
    assert!(said.contains(expected), "{what}\n  said     {said}\n  expected {expected}");
}

/// A safetensors file taken apart.
struct Parts {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Parts {
    fn read(path: &Path) -> Parts {
        let bytes = std::fs::read(path).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        Parts { header: serde_json::from_slice(&bytes[8..8 + len]).unwrap(), data: bytes[8 + len..].to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        let header = Value::Object(self.header.clone()).to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &self.data].concat()
    }
}
