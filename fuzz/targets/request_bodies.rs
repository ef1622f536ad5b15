//! Request bodies of every route: the first byte chooses the route, the rest is the body. A body is parsed or refused with a message;
//! nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagoda_server::fuzzing;

const ROUTES: [fn(&[u8]) -> Result<(), String>; 9] = [
    fuzzing::parse_messages_body,
    fuzzing::parse_count_body,
    fuzzing::parse_chat_body,
    fuzzing::parse_completion_body,
    fuzzing::parse_tokenize_body,
    fuzzing::parse_embeddings_body,
    fuzzing::parse_embed_body,
    fuzzing::parse_rerank_body,
    fuzzing::parse_score_body,
];

fuzz_target!(|data: &[u8]| {
    let Some((route, body)) = data.split_first() else { return };
    if let Err(message) = ROUTES[usize::from(*route) % ROUTES.len()](body) {
        assert!(!message.is_empty(), "a refusal without a reason");
    }
});
