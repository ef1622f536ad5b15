//! The huggingface backend with its worker: every family against transformers, one request at a time, crashes, 4 bits, and the whole way
//! from a folder to HTTP. Needs the worker's binary (`cargo build --manifest-path huggingface/Cargo.toml`) and says so where there is none.
#![allow(clippy::print_stdout)]

#[path = "huggingface/checkpoint.rs"]
mod checkpoint;
#[path = "huggingface/families.rs"]
mod families;
mod harness;
#[path = "huggingface/requests.rs"]
mod requests;
#[path = "huggingface/serving.rs"]
mod serving;

mod process;
