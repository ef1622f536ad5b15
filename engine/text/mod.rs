//! Text at the edge of the engine: tokeniser, incremental detokeniser, stop strings, chat templates.
//!
//! Called by the backends on a request's own task or on the blocking pool, never by the engine thread, which knows token ids only.

pub mod chat_template;
pub mod detokenizer;
pub mod stop;
pub mod tokenizer;

mod gguf_vocab;
mod pieces;
mod pre_tokenizers;
mod strftime;
mod template_filters;

pub use chat_template::{ChatInput, ChatTemplate};
pub use detokenizer::Detokenizer;
pub use stop::{StopMatcher, StopPiece};
pub use tokenizer::Tokenizer;
