//! `pagoda-hf-worker`: models on candle, for the backend kind `huggingface`. One process, one model, one sequence at a time.
//!
//! Started by `pagoda`, with a Unix socket as its standard input, over which it is asked (`frame.rs`). It computes logits and nothing else:
//! text, sampling and queues are pagoda's. What goes wrong for good goes to stderr, which pagoda logs. It ends with its socket.

mod attention;
mod cache;
mod config;
mod decoder;
mod families;
#[path = "../backends/huggingface/frame.rs"]
mod frame;
mod linear;
mod nf4;
mod norm;
mod rotary;
mod serve;
mod store;
#[cfg(test)]
mod tests;

// The engine's own NF4: the same files, under the same names.
#[allow(dead_code)]
#[path = "../engine/weights/quant/books.rs"]
mod books;
#[allow(dead_code)]
#[path = "../engine/weights/quant/quantize/four_bit.rs"]
mod four_bit;
mod weights {
    pub mod quant {
        pub(crate) use crate::books;
    }
}

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    match socket.map_err(serve::Fault::from).and_then(serve::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // Without a reader of stderr there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{fault}");
            ExitCode::FAILURE
        }
    }
}
