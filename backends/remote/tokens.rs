//! Tokens of an answer as a service writes them: chat's logprobs, completions' logprobs, vLLM's ids and prompt logprobs.

use crate::{Json, TokenInfo};

/// Prefix of a token that is named by its id.
const ID_PREFIX: &str = "token_id:";

/// A token of which only its existence is known.
pub(super) fn unknown() -> TokenInfo {
    TokenInfo { id: 0, text: String::new(), bytes: Vec::new(), logprob: None, top: Vec::new() }
}

/// Tokens of a choice of a chunk or of a whole answer; empty where it has neither logprobs nor ids.
pub(super) fn of_choice(choice: &Json) -> Vec<TokenInfo> {
    let ids: Vec<u32> = choice["token_ids"].as_array().into_iter().flatten().filter_map(id).collect();
    let mut tokens = match (choice["logprobs"]["content"].as_array(), choice["logprobs"]["tokens"].as_array()) {
        (Some(entries), _) => entries.iter().map(chat_token).collect(),
        (None, Some(names)) => (0..names.len()).map(|idx| text_token(&choice["logprobs"], idx)).collect(),
        (None, None) => vec![unknown(); ids.len()],
    };
    if tokens.len() == ids.len() {
        tokens.iter_mut().zip(ids).for_each(|(token, id)| token.id = id);
    }
    tokens
}

fn id(value: &Json) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A token of this name; bytes are those of the name unless told.
fn named(name: &str, bytes: Option<Vec<u8>>, logprob: Option<f64>) -> TokenInfo {
    let bytes = bytes.unwrap_or_else(|| name.as_bytes().to_vec());
    let logprob = logprob.map(|logprob| logprob as f32);
    match name.strip_prefix(ID_PREFIX).and_then(|id| id.parse().ok()) {
        Some(id) => TokenInfo { id, text: String::from_utf8_lossy(&bytes).into_owned(), bytes, logprob, top: Vec::new() },
        None => TokenInfo { id: 0, text: name.to_owned(), bytes, logprob, top: Vec::new() },
    }
}

fn chat_token(entry: &Json) -> TokenInfo {
    let plain = |entry: &Json| {
        let bytes = entry["bytes"].as_array().map(|bytes| bytes.iter().filter_map(|byte| byte.as_u64()).map(|byte| byte as u8).collect());
        named(entry["token"].as_str().unwrap_or_default(), bytes, entry["logprob"].as_f64())
    };
    let top = entry["top_logprobs"].as_array().into_iter().flatten().map(plain).collect();
    TokenInfo { top, ..plain(entry) }
}

fn text_token(lists: &Json, idx: usize) -> TokenInfo {
    let name = lists["tokens"][idx].as_str().unwrap_or_default();
    let top = lists["top_logprobs"][idx].as_object().into_iter().flatten();
    let mut top: Vec<TokenInfo> = top.map(|(name, logprob)| named(name, None, logprob.as_f64())).collect();
    top.sort_by(|a, b| b.logprob.partial_cmp(&a.logprob).unwrap_or(std::cmp::Ordering::Equal));
    TokenInfo { top, ..named(name, None, lists["token_logprobs"][idx].as_f64()) }
}

/// vLLM's `prompt_logprobs`: null, then a map from id to logprob, rank and text for each further token of the prompt. None: it does not
/// fit the prompt.
pub(super) fn of_prompt(positions: &Json, prompt_token_ids: &[u32], num_top: usize) -> Option<Vec<TokenInfo>> {
    let positions = positions.as_array().filter(|positions| positions.len() == prompt_token_ids.len())?;
    let position = |(entries, &own): (&Json, &u32)| {
        let read = |(id, entry): (&String, &Json)| {
            let text = entry["decoded_token"].as_str().unwrap_or_default();
            let rank = entry["rank"].as_u64();
            Some((rank, TokenInfo { id: id.parse().ok()?, ..named(text, None, entry["logprob"].as_f64()) }))
        };
        let entries: Vec<(Option<u64>, TokenInfo)> = entries.as_object()?.iter().filter_map(read).collect();
        let mut ranked: Vec<&(Option<u64>, TokenInfo)> = entries.iter().filter(|(rank, _)| rank.is_some()).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let top = ranked.into_iter().take(num_top).map(|(_, token)| token.clone()).collect();
        let (_, token) = entries.iter().find(|(_, token)| token.id == own)?;
        Some(TokenInfo { top, ..token.clone() })
    };
    positions.iter().zip(prompt_token_ids).skip(1).map(position).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(id: u32, text: &str, logprob: f32, top: Vec<TokenInfo>) -> TokenInfo {
        TokenInfo { id, text: text.into(), bytes: text.as_bytes().to_vec(), logprob: Some(logprob), top }
    }

    #[test]
    fn logprobs_in_all_shapes() {
        let entry = |name: &str, logprob: f32| json!({"token": name, "logprob": logprob, "bytes": name.as_bytes()});
        let mut chat = entry("é", -0.5);
        chat["top_logprobs"] = json!([entry("é", -0.5), entry("e", -1.5)]);
        let top = vec![token(0, "é", -0.5, vec![]), token(0, "e", -1.5, vec![])];
        assert_eq!(of_choice(&json!({"token_ids": [7], "logprobs": {"content": [chat]}})), [token(7, "é", -0.5, top)]);
        let lists = json!({"tokens": ["a", "b"], "token_logprobs": [-0.5, null], "top_logprobs": [{"b": -2.0, "a": -0.5}, null]});
        let tokens = of_choice(&json!({"logprobs": lists}));
        assert_eq!(tokens[0], token(0, "a", -0.5, vec![token(0, "a", -0.5, vec![]), token(0, "b", -2.0, vec![])]));
        assert_eq!((tokens[1].text.as_str(), tokens[1].logprob), ("b", None));
        let by_id = json!({"logprobs": {"content": [{"token": "token_id:9", "logprob": -1.0, "bytes": [104, 105]}]}});
        assert_eq!(of_choice(&by_id), [token(9, "hi", -1.0, vec![])]);
        assert_eq!(of_choice(&json!({"token_ids": [3, 4]})).iter().map(|token| token.id).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(of_choice(&json!({"text": "x", "logprobs": null})), []);
    }

    #[test]
    fn prompt_logprobs_find_the_prompts_own_tokens() {
        let entry = |logprob: f32, rank: Option<u32>, text: &str| json!({"logprob": logprob, "rank": rank, "decoded_token": text});
        let positions =
            json!([null, {"10": entry(-2.0, None, "own"), "7": entry(-0.5, Some(1), "best"), "8": entry(-1.0, Some(2), "next")}]);
        let top = vec![token(7, "best", -0.5, vec![])];
        assert_eq!(of_prompt(&positions, &[1, 10], 1), Some(vec![token(10, "own", -2.0, top)]));
        assert_eq!(of_prompt(&positions, &[1, 11], 1), None, "another prompt");
        assert_eq!(of_prompt(&positions, &[1], 1), None, "another length");
    }
}
