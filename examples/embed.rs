//! pagoda in a program of its own: load a model, stream an answer. `cargo run --release --example embed -- [MODEL]`
#![allow(clippy::print_stdout)]

use std::io::Write;

use futures_util::StreamExt;
use pagoda::Pagoda;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1); // a folder, a .gguf file, a hub id or an alias; none: SmolLM2
    let pagoda = Pagoda::load(model.as_deref())?;
    let mut answer = pagoda.chat("What is the capital of France?").await?;
    while let Some(piece) = answer.next().await {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
