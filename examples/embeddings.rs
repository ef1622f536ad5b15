//! How similar texts are: `cargo run --release --example embeddings -- MODEL TEXT...` prints the cosine of each with the first.

use std::io::Write;

use pagoda::backends::{EmbedInput, EmbedRequest, InferenceBackend, PoolingLocal};
use pagoda::engine::loader::EngineOptions;
use pagoda::engine::pooling;
use pagoda::hub::{Hub, Silent};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or_else(|| "all-minilm-l6-v2".into()); // a folder, a hub id or an alias
    let texts: Vec<String> = arguments.collect();
    let located = Hub::of_this_process()?.resolve(Some(&model), &mut Silent)?;
    let backend = PoolingLocal::new(pooling::load(&located.path, None, &EngineOptions::default(), &mut |_| {})?);
    let inputs = texts.iter().cloned().map(EmbedInput::Text).collect();
    let vectors = backend.embed(EmbedRequest { inputs, normalize: Some(true), ..EmbedRequest::default() }).await?.vectors;
    for (text, vector) in texts.iter().zip(&vectors) {
        let cosine: f32 = vectors[0].iter().zip(vector).map(|(a, b)| a * b).sum();
        writeln!(std::io::stdout(), "{cosine:.4}  {text}")?;
    }
    Ok(())
}
