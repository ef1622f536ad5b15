//! A small byte-level tokenizer.json, a WordPiece one and vocabularies as in GGUF files, built in code.

use super::*;
use crate::weights::checkpoint::GgufVocab;

fn file(name: &str) -> TokenizerSource {
    TokenizerSource::File(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tokenizers").join(name))
}

/// 256 bytes, a few merges, three specials and one added token; its post-processor puts `<s>` in front.
pub(in crate::text) fn byte_level() -> Tokenizer {
    Tokenizer::from_source(&file("byte_level.json"), &TextConfig::default()).unwrap()
}

/// BERT-like: decoding is the `tokenizers` crate's.
pub(in crate::text) fn word_piece() -> Tokenizer {
    Tokenizer::from_source(&file("word_piece.json"), &TextConfig::default()).unwrap()
}

fn gguf(vocab: GgufVocab) -> Result<Tokenizer> {
    Tokenizer::from_source(&TokenizerSource::Gguf(Box::new(vocab)), &TextConfig::default())
}

fn sentence_piece_vocab() -> GgufVocab {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "<|im_end|>", "  "].map(String::from).to_vec();
    let mut token_types = vec![2, 3, 3, 3, 4];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    token_types.extend([6; 256]);
    let mut scores = vec![0.0; tokens.len()];
    // merges rank by score: ▁h e l l o -> ▁h el lo -> ...
    for (token, score) in [
        ("▁", -20.0),
        ("h", -21.0),
        ("e", -22.0),
        ("l", -23.0),
        ("o", -24.0),
        ("x", -25.0),
        ("el", -1.0),
        ("lo", -2.0),
        ("▁h", -3.0),
        ("▁hel", -4.0),
        ("▁hello", -5.0),
        ("hello", -7.0),
        ("hel", -6.0),
    ] {
        tokens.push(token.to_owned());
        token_types.push(1);
        scores.push(score);
    }
    GgufVocab { model: "llama".into(), tokens, token_types, scores, bos: Some(1), eos: Some(2), unk: Some(0), ..GgufVocab::default() }
}

/// Llama-like: byte fallback, a space in front.
pub(in crate::text) fn sentence_piece() -> Tokenizer {
    gguf(sentence_piece_vocab()).unwrap()
}

fn strings(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text, false).unwrap().into_iter().map(|id| tokenizer.token_str(id).unwrap()).collect()
}

#[test]
fn byte_level_encodes_and_decodes() {
    let tokenizer = byte_level();
    let check = |text: &str, expected: &[&str]| {
        assert_eq!(strings(&tokenizer, text), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap(), false).unwrap(), text);
    };
    check("hello world 12", &["hello", "Ġworld", "Ġ", "1", "2"]);
    check("é", &["Ã©"]);
    check("日", &["æĹ", "¥"]);
    check("hello<|user|>  x</s>", &["hello", "<|user|>", "Ġ", "Ġ", "x", "</s>"]);
    check("<think>hell", &["<think>", "hell"]);
    check("", &[]);
}

#[test]
fn truncation_and_padding_of_the_file_are_ignored() {
    let tokenizer = byte_level();
    assert_eq!(tokenizer.encode("1234567890", false).unwrap().len(), 10);
    assert_eq!(tokenizer.encode("1", false).unwrap().len(), 1);
}

#[test]
fn special_tokens_are_left_out_on_request() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("<s>hello<think></s>", false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello<think>");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<s>hello<think></s>");
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(ids[1]) && !tokenizer.is_special(ids[2]));
}

#[test]
fn bos_follows_the_configuration() {
    let encode = |name: &str, add_bos, text: &str| {
        let config = TextConfig { add_bos_token: add_bos, bos_token: Some(name.into()), ..TextConfig::default() };
        Tokenizer::from_source(&file("byte_level.json"), &config).unwrap().encode(text, true).unwrap()
    };
    let one = byte_level().token_id("1").unwrap();
    assert_eq!(encode("<s>", None, "1"), [0, one]);
    assert_eq!(encode("<s>", Some(true), "1"), [0, one]);
    assert_eq!(encode("<s>", Some(false), "1"), [one]);
    assert_eq!(encode("</s>", Some(true), "1"), [1, 0, one]);
    assert_eq!(encode("<s>", Some(false), "<s>1"), [0, one]);
}

#[test]
fn ids_without_a_token_are_named() {
    let tokenizer = byte_level();
    let beyond = tokenizer.vocab_size() as u32;
    let message = tokenizer.decode(&[0, beyond], false).unwrap_err().to_string();
    assert!(message.contains(&beyond.to_string()), "{message}");
    assert!(tokenizer.decode(&[u32::MAX], true).is_err());
    assert_eq!((tokenizer.token_bytes(beyond), tokenizer.token_str(beyond)), (Vec::new(), None));
    assert_eq!(tokenizer.token_bytes(tokenizer.token_id("Ġworld").unwrap()), b" world");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_id("æĹ").unwrap()), b"\xe6\x97");
}

#[test]
fn sentence_piece_encodes_and_decodes() {
    let tokenizer = sentence_piece();
    let check = |text: &str, expected: &[&str]| {
        assert_eq!(strings(&tokenizer, text), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap(), false).unwrap(), text);
    };
    check("hello", &["▁hello"]);
    check("hello hello", &["▁hello", "▁hello"]);
    check("xhello", &["▁", "x", "hello"]);
    check("é\n", &["▁", "<0xC3>", "<0xA9>", "<0x0A>"]);
    assert_eq!(strings(&tokenizer, "x  x<|im_end|>"), ["▁", "x", "  ", "▁", "x", "<|im_end|>"]);
}

#[test]
fn sentence_piece_options() {
    let tokenizer = sentence_piece();
    let hello = tokenizer.token_id("▁hello").unwrap();
    assert_eq!(tokenizer.encode("hello", true).unwrap(), [1, hello]);
    assert_eq!(tokenizer.decode(&[1, hello], false).unwrap(), "<s> hello");
    assert_eq!(tokenizer.decode(&[1, hello], true).unwrap(), "hello");
    assert_eq!(tokenizer.token_bytes(hello), b" hello");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_id("<0x0A>").unwrap()), b"\n");

    let bare = gguf(GgufVocab { add_space_prefix: Some(false), add_bos: Some(false), ..sentence_piece_vocab() }).unwrap();
    assert_eq!(bare.encode("hello", true).unwrap(), [bare.token_id("hello").unwrap()]);
    assert_eq!(bare.decode(&[hello], false).unwrap(), " hello");
}

#[test]
fn gguf_byte_level() {
    let source = byte_level();
    let tokens: Vec<String> = (0..source.vocab_size() as u32).map(|id| source.token_str(id).unwrap()).collect();
    let token_types = (0..tokens.len())
        .map(|id| {
            if id < 3 {
                3
            } else if tokens[id] == "<think>" {
                4
            } else {
                1
            }
        })
        .collect();
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor l", "Ġworl d"].map(String::from).to_vec();
    let vocab = GgufVocab { model: "gpt2".into(), pre: "smollm".into(), tokens, token_types, merges, bos: Some(0), ..GgufVocab::default() };

    let tokenizer = gguf(vocab.clone()).unwrap();
    for text in ["hello world 12²", "<s>hello<think></s>日"] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    assert_eq!(strings(&tokenizer, "hello world<think>"), ["hello", "Ġworld", "<think>"]);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(tokenizer.token_id("<think>").unwrap()));
    let llama3 = gguf(GgufVocab { pre: "llama-bpe".into(), ..vocab.clone() }).unwrap();
    assert_eq!(llama3.encode("hello", true).unwrap()[0], 0);

    let refused = |vocab: GgufVocab, needle: &str| {
        let message = gguf(vocab).err().unwrap().to_string();
        assert!(message.contains(needle), "{message}");
    };
    refused(GgufVocab { model: "rwkv".into(), ..vocab.clone() }, "known: gpt2, llama");
    refused(GgufVocab { pre: "nonsense".into(), ..vocab.clone() }, "smollm");
    refused(GgufVocab { merges: vec!["ab".into()], ..vocab.clone() }, "\"ab\"");
    refused(GgufVocab { merges: vec!["zz he".into()], ..vocab.clone() }, "zz");
    refused(GgufVocab { token_types: vec![1], ..vocab.clone() }, "token_type has 1 entries");
    refused(GgufVocab { bos: Some(9999), ..vocab.clone() }, "bos_token_id is 9999");
    refused(GgufVocab { tokens: Vec::new(), token_types: Vec::new(), ..vocab }, "empty");
}

#[test]
fn bad_files_are_named() {
    let missing = Tokenizer::from_source(&file("none.json"), &TextConfig::default()).err().unwrap();
    assert!(matches!(&missing, EngineError::Io { .. }) && missing.to_string().contains("none.json"), "{missing}");
    let damaged = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(damaged.path(), "{").unwrap();
    let error = Tokenizer::from_source(&TokenizerSource::File(damaged.path().into()), &TextConfig::default()).err().unwrap();
    assert!(matches!(error, EngineError::Checkpoint { .. }), "{error}");
}
