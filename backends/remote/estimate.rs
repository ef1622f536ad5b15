//! Counting a prompt's tokens where the service has no tokeniser for us: a documented estimate, never exact.

use crate::{ChatMessage, Json, Prompt};

/// Bytes of English text per token of the usual vocabularies.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens that a template puts around a message.
const TOKENS_PER_MESSAGE: usize = 4;

/// UTF-8 bytes of all text and tool definitions over four, and four more a message; exact for token ids.
pub(super) fn num_tokens(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Tokens(ids) => ids.len(),
        Prompt::Text { text, .. } => text.len().div_ceil(BYTES_PER_TOKEN),
        Prompt::Chat(chat) => {
            let messages: usize = chat.messages.iter().map(message).sum();
            messages + chat.tools.iter().map(json).sum::<usize>()
        }
    }
}

fn message(message: &ChatMessage) -> usize {
    let text = message.content.len() + message.reasoning.as_ref().map_or(0, String::len);
    TOKENS_PER_MESSAGE + text.div_ceil(BYTES_PER_TOKEN) + message.tool_calls.iter().map(json).sum::<usize>()
}

fn json(value: &Json) -> usize {
    value.to_string().len().div_ceil(BYTES_PER_TOKEN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChatPrompt;

    #[test]
    fn grows_with_every_part() {
        assert_eq!(num_tokens(&Prompt::Tokens(vec![1, 2, 3])), 3);
        assert_eq!(num_tokens(&Prompt::Text { text: "hello".into(), add_special_tokens: true }), 2);
        let says = |content: &str| ChatMessage { role: "user".into(), content: content.into(), ..ChatMessage::default() };
        let mut chat = ChatPrompt { messages: vec![says("hello"), says("")], ..ChatPrompt::default() };
        assert_eq!(num_tokens(&Prompt::Chat(chat.clone())), 4 + 2 + 4);
        chat.tools.push(serde_json::json!({"type": "function"}));
        assert_eq!(num_tokens(&Prompt::Chat(chat)), 10 + 5);
    }
}
