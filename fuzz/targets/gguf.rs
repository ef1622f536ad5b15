//! GGUF files of arbitrary bytes: the parser, and behind it everything that opening such a file as a model does.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use pagoda_engine::text::Tokenizer;
use pagoda_engine::weights::Checkpoint;
use pagoda_engine::weights::checkpoint::{LinearRole, VectorRole};
use pagoda_engine::weights::gguf;

/// Rewritten by every input that parses; a file of this process alone, in memory where there is such a folder.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("pagoda-fuzz-{}.gguf", std::process::id()))
});

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(file) = gguf::parse(data) else { return Corpus::Keep };
    for tensor in &file.tensors {
        assert!(tensor.start.checked_add(tensor.len).is_some_and(|end| end <= data.len()), "{} leaves the file", tensor.name);
    }
    std::fs::write(&*FILE, data).expect("room for the input");
    if let Ok(checkpoint) = Checkpoint::open(&FILE) {
        read_weights(&checkpoint);
        let _ = Tokenizer::from_source(&checkpoint.tokenizer, &checkpoint.text).map(|tokenizer| tokenizer.encode("The capital\n", false));
    }
    Corpus::Keep
});

/// What was checked when the file was opened can be read.
fn read_weights(checkpoint: &Checkpoint) {
    checkpoint.linear(LinearRole::Embedding, 0).expect("checked at open");
    checkpoint.linear(LinearRole::LmHead, 0).expect("checked at open");
    checkpoint.vector(VectorRole::FinalNorm, 0).expect("checked at open");
    for layer in 0..checkpoint.config.layers.len().min(2) {
        checkpoint.linear(LinearRole::Qkv, layer).expect("checked at open");
        checkpoint.linear(LinearRole::O, layer).expect("checked at open");
        checkpoint.vector(VectorRole::InputNorm, layer).expect("checked at open");
    }
}
