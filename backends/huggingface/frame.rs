//! What the huggingface backend and its worker process say to each other, over a Unix socket. Both compile this file.
//!
//! A frame is the lengths of its two parts, u32 little endian each, a message as JSON, and numbers: u32 or f32, little endian.
//! The backend asks, the worker answers each question in turn; a load is answered by `Progress` any number of times first.

use std::io::{Error, ErrorKind, Read, Result, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest message.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Most bytes of numbers of a frame.
const MAX_NUMBER_BYTES: usize = 1 << 31;

/// To the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The first one: load a model. Answered by `Loaded` or `Failed`.
    Load(Load),
    /// Compute tokens of a sequence. Answered by `Logits` or `Failed`.
    Forward(Forward),
}

/// What to load, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Folder with config.json and safetensors files.
    pub path: String,
    /// auto, cpu, cuda.
    pub device: String,
    /// Linear layers in NF4 with double quantisation.
    pub four_bit: bool,
    /// Flash attention where the device has it.
    pub flash_attention: bool,
    /// Longest sequence; None: what the model allows.
    pub max_len: Option<usize>,
}

/// Tokens of a sequence; the frame's numbers are the token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// Which of the sequences that the worker keeps.
    pub lane: usize,
    /// The lane that its first `start` tokens are taken from: its own, which is cut to them, or another, which is copied.
    pub from: usize,
    /// Position of the first token; 0 begins with nothing.
    pub start: usize,
    /// Rows of these tokens whose logits are wanted, ascending.
    pub rows: Vec<usize>,
    /// Lanes that become copies of this one.
    pub copies: Vec<usize>,
}

/// From the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Where the load has come to.
    Progress {
        /// Layers that are loaded.
        done: usize,
        /// Layers in all.
        total: usize,
    },
    /// The model is loaded.
    Loaded(Loaded),
    /// The frame's numbers are logits, f32 `[rows, vocab]`.
    Logits,
    /// It cannot be done.
    Failed {
        /// Why.
        message: String,
    },
}

/// What was loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// Name of the family.
    pub family: String,
    /// Logits of a row.
    pub vocab_size: usize,
    /// Longest sequence, in tokens.
    pub max_len: usize,
    /// What computes, in words.
    pub device: String,
    /// Bytes that the weights take.
    pub weight_bytes: usize,
    /// Bytes of host memory that the worker holds; 0 where the system does not tell.
    pub resident_bytes: usize,
    /// What was asked for and is not done, in words.
    pub ignored: Vec<String>,
}

/// Sends one frame.
///
/// # Errors
/// The other side is gone.
pub fn write(out: &mut impl Write, message: &impl Serialize, numbers: &[[u8; 4]]) -> Result<()> {
    let message = serde_json::to_vec(message)?;
    let numbers = numbers.as_flattened();
    let length = |len: usize| u32::try_from(len).map(u32::to_le_bytes).map_err(|_| damaged("a frame of more than 4 GiB"));
    out.write_all(&[length(message.len())?, length(numbers.len())?].concat())?;
    out.write_all(&message)?;
    out.write_all(numbers)?;
    out.flush()
}

/// Waits for one frame.
///
/// # Errors
/// The other side is gone, or what it sent is no frame.
pub fn read<T: DeserializeOwned>(input: &mut impl Read) -> Result<(T, Vec<u8>)> {
    let mut lengths = [0; 8];
    input.read_exact(&mut lengths)?;
    let (message, numbers) = lengths.split_at(4);
    let length = |bytes: &[u8]| bytes.try_into().map_or(usize::MAX, |bytes| u32::from_le_bytes(bytes) as usize);
    let (message, numbers) = (length(message), length(numbers));
    if message > MAX_MESSAGE_BYTES || numbers > MAX_NUMBER_BYTES {
        return Err(damaged("a frame is too long"));
    }
    let (mut text, mut rest) = (vec![0; message], vec![0; numbers]);
    input.read_exact(&mut text)?;
    input.read_exact(&mut rest)?;
    Ok((serde_json::from_slice(&text)?, rest))
}

/// Words of four bytes of a frame's numbers.
///
/// # Errors
/// Their length is no multiple of four.
pub fn words(bytes: &[u8]) -> Result<&[[u8; 4]]> {
    match bytes.as_chunks() {
        (words, []) => Ok(words),
        _ => Err(damaged("numbers are not whole")),
    }
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}
