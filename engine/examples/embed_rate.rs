//! Texts a second of a model of embeddings, without server and tokeniser: `embed_rate FOLDER [THREADS] [BATCH] [TEXTS]`. Prints the median of
//! five rounds; sequences have 6 to 240 tokens, most of them few.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Instant;

use pagoda_engine::loader::{DeviceChoice, EngineOptions};
use pagoda_engine::pooling::{Sequence, load};

const ROUNDS: usize = 5;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let folder = PathBuf::from(arguments.next().expect("embed_rate FOLDER [THREADS] [BATCH] [TEXTS]"));
    let mut number = |default: usize| arguments.next().map_or(default, |text| text.to_string_lossy().parse().expect("a number"));
    let (threads, batch, num_texts) = (number(1), number(32), number(64));
    let options = EngineOptions { device: DeviceChoice::Cpu, threads: Some(threads), ..EngineOptions::default() };
    let model = load(&folder, None, &options, &mut |_| ()).unwrap();
    let length = |i: usize| 6 + (i * 7919 % 1000) * (i * 7919 % 1000) * 234 / 1_000_000;
    let text = |i: usize| Sequence { ids: (0..length(i)).map(|j| ((i * 31 + j * 17) % 80 + 4) as u32).collect(), token_types: Vec::new() };
    let texts: Vec<Sequence> = (0..num_texts).map(text).collect();
    let num_tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
    let mut rounds: Vec<f64> = (0..=ROUNDS)
        .map(|_| {
            let started = Instant::now();
            for batch in texts.chunks(batch) {
                model.handle.run_blocking(batch.to_vec()).unwrap();
            }
            started.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    rounds.sort_by(f64::total_cmp);
    let seconds = rounds[ROUNDS / 2];
    let (texts_s, tokens_s) = (num_texts as f64 / seconds, num_tokens as f64 / seconds);
    println!("{threads} threads, batches of {batch}: {texts_s:.1} texts/s, {tokens_s:.0} tokens/s");
}
