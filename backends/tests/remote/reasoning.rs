//! Reasoning: a field of the service's answer, or at the beginning of its text.

use serde_json::{Value, json};

use crate::ask;
use crate::upstream::{Reply, Upstream, finish, remote, text, usage};

/// A service that gives a model's text as it is: reasoning at its beginning is told apart, whole and in any pieces.
#[tokio::test]
async fn reasoning_in_the_text_is_told_apart() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    let cases = [
        ("<think>\nhm, 6 * 7\n</think>\n\n42", "hm, 6 * 7", "42"),
        ("[THINK]hm[/THINK]42", "hm", "42"),
        ("42 <think>hm</think>", "", "42 <think>hm</think>"),
        ("<think>hm", "hm", ""),
        ("<thi", "", "<thi"),
    ];
    for (said, reasoning, answer) in cases {
        for len in [1, 5, said.len()] {
            let mut pieces: Vec<Value> = said.as_bytes().chunks(len).map(|piece| text(std::str::from_utf8(piece).unwrap())).collect();
            pieces.push(finish("stop"));
            upstream.play(&pieces);
            let output = ask(&remote).await.unwrap();
            assert_eq!((output.choices[0].reasoning.as_str(), output.choices[0].text.as_str()), (reasoning, answer), "{said} by {len}");
        }
    }
    // What a service takes out itself is all there is.
    upstream.play(&[json!({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}), text("<think>x</think>y"), finish("stop")]);
    let output = ask(&remote).await.unwrap();
    assert_eq!((output.choices[0].reasoning.as_str(), output.choices[0].text.as_str()), ("hm", "<think>x</think>y"));
}

#[tokio::test]
async fn reasoning_is_told_apart() {
    let upstream = Upstream::start().await;
    let remote = remote(&upstream);
    for key in ["reasoning_content", "reasoning"] {
        let thought = |text: &str| json!({"choices": [{"index": 0, "delta": {key: text}}]});
        upstream.play(&[thought("let me "), thought("see"), text("42"), finish("stop")]);
        let output = ask(&remote).await.unwrap();
        assert_eq!((output.choices[0].reasoning.as_str(), output.choices[0].text.as_str()), ("let me see", "42"));
        assert_eq!(output.usage.completion_tokens, 3);
    }
    let message = json!({"role": "assistant", "content": "42", "reasoning_content": "hm"});
    let whole = json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage(1, 0, 9)["usage"]});
    upstream.push(Reply::Answer(200, "", whole.to_string()));
    let output = ask(&remote).await.unwrap();
    assert_eq!((output.choices[0].reasoning.as_str(), output.choices[0].text.as_str(), output.usage.completion_tokens), ("hm", "42", 9));
}
