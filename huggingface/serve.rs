//! Questions in, answers out: loads the model that the first question names, then computes what the others ask.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use candle_core::{Device, Tensor};

use crate::cache::Cache;
use crate::config::Config;
use crate::decoder::{Decoder, LoadOptions};
use crate::frame::{self, Answer, Forward, Load, Loaded, Question};
use crate::store::Store;

/// Longest sequence where nobody says otherwise.
const MAX_LEN: usize = 32_768;

/// Why the worker ends, or why a question has no other answer.
#[derive(Debug)]
pub struct Fault(String);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Fault {
        Fault(error.to_string())
    }
}

impl From<candle_core::Error> for Fault {
    /// Its message alone: a backtrace that candle may add is for nobody.
    fn from(error: candle_core::Error) -> Fault {
        Fault(error.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

/// A fault in words.
pub fn fault<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault(message.into()))
}

/// Answers until the other side is gone.
///
/// # Errors
/// The first question is no load, or an answer cannot be sent.
pub fn run(socket: UnixStream) -> Result<(), Fault> {
    let mut out = socket.try_clone()?;
    let questions = questions(socket);
    let Ok((Question::Load(load), _)) = questions.recv() else { return fault("the first question is no load") };
    let mut progress = |done, total| {
        // A backend that is gone ends the process elsewhere.
        let _ = frame::write(&mut out, &Answer::Progress { done, total }, &[]);
    };
    let (decoder, loaded) = match load_model(&load, &mut progress) {
        Ok(model) => model,
        Err(fault) => return Ok(frame::write(&mut out, &Answer::Failed { message: fault.0 }, &[])?),
    };
    frame::write(&mut out, &Answer::Loaded(loaded), &[])?;
    let mut sequences = HashMap::new();
    for (question, numbers) in questions {
        let outcome = match question {
            Question::Load(_) => fault("a model is loaded already"),
            Question::Forward(forward) => answer(&decoder, &mut sequences, &forward, &numbers),
        };
        match outcome {
            Ok(logits) => frame::write(&mut out, &Answer::Logits, &logits)?,
            Err(fault) => frame::write(&mut out, &Answer::Failed { message: fault.0 }, &[])?,
        }
    }
    Ok(())
}

/// Reads on a thread of its own, which ends the process as soon as the backend is gone, whatever is being computed.
fn questions(mut socket: UnixStream) -> Receiver<(Question, Vec<u8>)> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        while let Ok(question) = frame::read(&mut socket) {
            if sender.send(question).is_err() {
                break;
            }
        }
        std::process::exit(0);
    });
    receiver
}

fn load_model(load: &Load, progress: &mut dyn FnMut(usize, usize)) -> Result<(Decoder, Loaded), Fault> {
    let device = device(&load.device)?;
    let folder = Path::new(&load.path);
    let config = Config::read(&folder.join("config.json"))?;
    let store = Store::open(folder)?;
    let max_len = load.max_len.unwrap_or(config.max_len.min(MAX_LEN));
    if config.learned_positions().is_some() && max_len > config.max_len {
        return fault(format!("max_model_len is {max_len}, but the model has {} learned positions", config.max_len));
    }
    let options = LoadOptions { device: device.clone(), four_bit: load.four_bit, flash_attention: load.flash_attention, max_len };
    let decoder = Decoder::load(config, &store, &options, progress)?;
    let mut ignored = Vec::new();
    if load.flash_attention && !decoder.has_flash_attention() {
        ignored.push(format!("flash attention: candle has none for a {} model on {}", decoder.config.family.name, name(&device)));
    }
    let loaded = Loaded {
        family: decoder.config.family.name.to_owned(),
        vocab_size: decoder.config.vocab_size,
        max_len,
        device: name(&device).to_owned(),
        weight_bytes: decoder.weight_bytes(),
        resident_bytes: resident_bytes(),
        ignored,
    };
    Ok((decoder, loaded))
}

/// What /proc says of this process.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()).map_or(0, |kib| kib << 10)
}

fn device(wanted: &str) -> Result<Device, Fault> {
    match wanted {
        "cpu" => Ok(Device::Cpu),
        "cuda" if !cfg!(feature = "cuda") => fault("HF_DEVICE=cuda: this worker was built without the feature `cuda`"),
        "cuda" => Ok(Device::new_cuda(0)?),
        _ => Ok(Device::cuda_if_available(0)?),
    }
}

fn name(device: &Device) -> &'static str {
    if device.is_cuda() { "cuda" } else { "cpu" }
}

fn answer(decoder: &Decoder, sequences: &mut HashMap<usize, Cache>, forward: &Forward, numbers: &[u8]) -> Result<Vec<[u8; 4]>, Fault> {
    let tokens: Vec<u32> = frame::words(numbers)?.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let Forward { lane, from, start, .. } = *forward;
    let has_it = sequences.get(&from).filter(|cache| cache.len() >= start);
    let begun = match has_it {
        _ if start == 0 => Some(decoder.new_cache()),
        None => return fault(format!("sequence {from} has no {start} tokens")),
        Some(cache) if from == lane && cache.len() == start => None,
        Some(cache) => Some(cache.first(start)?),
    };
    if let Some(cache) = begun {
        sequences.insert(lane, cache);
    }
    let Some(cache) = sequences.get_mut(&lane) else { return fault(format!("there is no sequence {lane}")) };
    let logits = decoder.forward(cache, &tokens, &forward.rows)?;
    let copies = forward.copies.iter().map(|copy| Ok((*copy, cache.first(cache.len())?))).collect::<candle_core::Result<Vec<_>>>()?;
    sequences.extend(copies);
    match logits {
        Some(logits) => floats(&logits),
        None => Ok(Vec::new()),
    }
}

fn floats(logits: &Tensor) -> Result<Vec<[u8; 4]>, Fault> {
    Ok(logits.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_le_bytes).collect())
}
