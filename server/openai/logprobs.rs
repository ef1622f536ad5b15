//! Logprobs in the three shapes OpenAI's clients know: chat's, completions' and vLLM's `prompt_logprobs`.

use std::collections::BTreeMap;

use pagoda_backends::TokenInfo;
use serde::Serialize;
use serde_json::{Map, Value};

use super::types::{PromptLogprob, PromptLogprobs};

/// What stands for minus infinity, which JSON cannot say.
const LOWEST_LOGPROB: f32 = -9999.0;

/// How tokens are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenNames {
    /// By their text.
    Text,
    /// As `token_id:123`.
    Ids,
}

impl TokenNames {
    pub(crate) fn name(self, token: &TokenInfo) -> String {
        match self {
            TokenNames::Text => token.text.clone(),
            TokenNames::Ids => format!("token_id:{}", token.id),
        }
    }
}

fn logprob(token: &TokenInfo) -> f32 {
    token.logprob.unwrap_or(LOWEST_LOGPROB).clamp(LOWEST_LOGPROB, 0.0)
}

/// `logprobs` of a chat choice.
#[derive(Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatLogprob>,
}

#[derive(Serialize)]
struct ChatLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<ChatLogprob>>,
}

impl ChatLogprobs {
    /// One entry a token, each with its alternatives.
    pub(crate) fn new(tokens: &[TokenInfo], names: TokenNames) -> Self {
        let entry = |token: &TokenInfo| ChatLogprob {
            token: names.name(token),
            logprob: logprob(token),
            bytes: token.bytes.clone(),
            top_logprobs: None,
        };
        let with_top = |token: &TokenInfo| ChatLogprob { top_logprobs: Some(token.top.iter().map(entry).collect()), ..entry(token) };
        ChatLogprobs { content: tokens.iter().map(with_top).collect() }
    }
}

/// `logprobs` of a completion's choice: four lists of the same length.
#[derive(Default, Serialize)]
pub(crate) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// Appends tokens; `offset` counts the characters before them and is moved on.
    pub(crate) fn extend(&mut self, tokens: &[TokenInfo], names: TokenNames, offset: &mut usize) {
        for token in tokens {
            let mut top: Map<String, Value> = token.top.iter().map(|entry| (names.name(entry), logprob(entry).into())).collect();
            top.entry(names.name(token)).or_insert_with(|| logprob(token).into());
            self.push(token, names, offset);
            self.token_logprobs.push(Some(logprob(token)));
            self.top_logprobs.push(Some(top));
        }
    }

    /// Appends the first token of a prompt, which nothing predicts.
    pub(crate) fn extend_first(&mut self, token: &TokenInfo, names: TokenNames, offset: &mut usize) {
        self.push(token, names, offset);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    fn push(&mut self, token: &TokenInfo, names: TokenNames, offset: &mut usize) {
        self.tokens.push(names.name(token));
        self.text_offset.push(*offset);
        *offset += token.text.chars().count();
    }
}

/// vLLM's `prompt_logprobs`. The rank of a token outside its own alternatives is not known.
pub(crate) fn prompt_logprobs(tokens: &[TokenInfo]) -> PromptLogprobs {
    let entry = |token: &TokenInfo, rank| PromptLogprob { logprob: logprob(token), rank, decoded_token: token.text.clone() };
    let position = |token: &TokenInfo| {
        let alternatives = token.top.iter().enumerate().map(|(idx, top)| (top.id.to_string(), entry(top, Some(idx + 1))));
        let mut map: BTreeMap<String, PromptLogprob> = alternatives.collect();
        map.entry(token.id.to_string()).or_insert_with(|| entry(token, None));
        Some(map)
    };
    std::iter::once(None).chain(tokens.iter().map(position)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, text: &str, logprob: f32, top: Vec<TokenInfo>) -> TokenInfo {
        TokenInfo { id, text: text.into(), bytes: text.as_bytes().to_vec(), logprob: Some(logprob), top }
    }

    #[test]
    fn text_logprobs_keep_offsets_over_pieces() {
        let mut offset = 3;
        let mut first = TextLogprobs::default();
        first.extend(&[token(1, "né", -0.5, vec![token(2, "x", -0.25, vec![])])], TokenNames::Text, &mut offset);
        let mut second = TextLogprobs::default();
        second.extend(&[token(3, "!", f32::NEG_INFINITY, vec![])], TokenNames::Ids, &mut offset);
        assert_eq!(
            serde_json::to_string(&[first, second]).unwrap(),
            r#"[{"tokens":["né"],"token_logprobs":[-0.5],"top_logprobs":[{"x":-0.25,"né":-0.5}],"text_offset":[3]},{"tokens":["token_id:3"],"token_logprobs":[-9999.0],"top_logprobs":[{"token_id:3":-9999.0}],"text_offset":[5]}]"#
        );
    }

    #[test]
    fn prompt_logprobs_start_with_null() {
        let own = token(7, "a", -1.0, vec![token(8, "b", -0.5, vec![])]);
        assert_eq!(
            serde_json::to_string(&prompt_logprobs(&[own])).unwrap(),
            r#"[null,{"7":{"logprob":-1.0,"rank":null,"decoded_token":"a"},"8":{"logprob":-0.5,"rank":1,"decoded_token":"b"}}]"#
        );
    }
}
