//! How byte-level vocabularies cut text before merging, by the name in GGUF's `tokenizer.ggml.pre`.
//!
//! Names and which model uses which are llama.cpp's (`llama-vocab.cpp`, MIT licence); the expressions are those of the models' public
//! tokenizer.json files. Each expression isolates its matches inside the pieces that the one before it left.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::{EngineError, Result};

/// One family of pre-tokenisers.
pub(super) struct PreTokenizer {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    cut: Cut,
    /// Text is brought to NFC first (Qwen).
    pub(super) nfc: bool,
    /// A piece that is a token as a whole is not merged.
    pub(super) ignore_merges: bool,
    /// BOS goes in front when the file does not say.
    pub(super) add_bos: bool,
}

enum Cut {
    /// GPT-2's expression.
    Gpt2,
    /// Every character with a Unicode number property alone, then GPT-2's expression.
    DigitsGpt2,
    /// These expressions in order.
    Regexes(&'static [&'static str]),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee, ... letters with case, as DeepSeek lists them.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_LLM: &[&str] = &[r"[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}+"];
const DEEPSEEK_CODER: &[&str] = &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"];
const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

const fn row(names: &'static [&'static str], cut: Cut) -> PreTokenizer {
    PreTokenizer { names, cut, nfc: false, ignore_merges: false, add_bos: false }
}

const TABLE: &[PreTokenizer] = &[
    row(&["gpt-2", "default", "", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling"], Cut::Gpt2),
    row(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], Cut::DigitsGpt2),
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        ..row(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"], Cut::Regexes(&[LLAMA3]))
    },
    row(&["dbrx", "smaug-bpe", "chatglm-bpe"], Cut::Regexes(&[LLAMA3])),
    PreTokenizer { ignore_merges: true, ..row(&["glm4"], Cut::Regexes(&[LLAMA3])) },
    PreTokenizer { nfc: true, ..row(&["qwen2", "deepseek-r1-qwen", "megrez", "hunyuan"], Cut::Regexes(&[QWEN2])) },
    row(&["stablelm2"], Cut::Regexes(&[QWEN2])),
    PreTokenizer { ignore_merges: true, add_bos: true, ..row(&["tekken"], Cut::Regexes(&[TEKKEN])) },
    row(&["gpt-4o", "llama4"], Cut::Regexes(&[GPT4O])),
    row(&["deepseek-llm"], Cut::Regexes(DEEPSEEK_LLM)),
    row(&["deepseek-coder"], Cut::Regexes(DEEPSEEK_CODER)),
    row(&["deepseek-v3"], Cut::Regexes(DEEPSEEK_V3)),
];

/// The row of a name.
///
/// # Errors
/// `Unsupported` with the names that are known.
pub(super) fn by_name(name: &str) -> Result<&'static PreTokenizer> {
    TABLE.iter().find(|row| row.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = TABLE.iter().flat_map(|row| row.names).copied().filter(|name| !name.is_empty()).collect();
        EngineError::Unsupported(format!("pre-tokenizer `{name}` (tokenizer.ggml.pre); known: {}", known.join(", ")))
    })
}

impl PreTokenizer {
    /// As the `tokenizers` crate runs it.
    ///
    /// # Errors
    /// `Text` when an expression does not compile: a fault of the table.
    pub(super) fn build(&self) -> Result<PreTokenizerWrapper> {
        let byte_level = |use_regex| PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, use_regex));
        let steps = match self.cut {
            Cut::Gpt2 => vec![byte_level(true)],
            Cut::DigitsGpt2 => vec![PreTokenizerWrapper::Digits(Digits::new(true)), byte_level(true)],
            Cut::Regexes(regexes) => {
                let mut steps = Vec::with_capacity(regexes.len() + 1);
                for regex in regexes {
                    let split = Split::new(SplitPattern::Regex((*regex).to_owned()), SplitDelimiterBehavior::Isolated, false)
                        .map_err(|error| EngineError::Text(format!("pre-tokenizer expression {regex}: {error}")))?;
                    steps.push(PreTokenizerWrapper::Split(split));
                }
                steps.push(byte_level(false));
                steps
            }
        };
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    /// Cuts `text` and gives the pieces of the original text.
    fn cut(name: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        by_name(name).unwrap().build().unwrap().pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    #[test]
    fn every_row_compiles_and_loses_nothing() {
        let text = "Hello  world's I'M\r\n\n 12345² ٣Ⅷ 日本語 naïve Ünïcode x_y(z) <|tag|>\t  end  ";
        for row in TABLE {
            for name in row.names {
                assert_eq!(cut(name, text).concat(), text, "{name}");
            }
        }
    }

    #[test]
    fn cuts() {
        let check = |name: &str, text: &str, expected: &[&str]| assert_eq!(cut(name, text), expected, "{name} {text:?}");
        check("gpt-2", "it's 2024  now", &["it", "'s", " 2024", " ", " now"]);
        check("gpt-2", "IT'S", &["IT", "'", "S"]);
        check("smollm", "a 12²Ⅷ٣", &["a", " ", "1", "2", "²", "Ⅷ", "٣"]);
        check("llama-bpe", "IT'S 12345!\n\n x", &["IT", "'S", " ", "123", "45", "!\n\n", " x"]);
        check("qwen2", "ab 123 (x)\n", &["ab", " ", "1", "2", "3", " (", "x", ")\n"]);
        check("tekken", "helloWorld 12", &["hello", "World", " ", "1", "2"]);
        check("gpt-4o", "HelloWorld's 1234", &["Hello", "World's", " ", "123", "4"]);
        check("deepseek-llm", "foo bar\n12 日本", &["foo", " bar", "\n", "12", " ", "日本"]);
        check("deepseek-v3", "x+1234", &["x", "+", "123", "4"]);
    }

    #[test]
    fn unknown_name_is_refused_with_the_known_ones() {
        let message = by_name("nonsense").err().unwrap().to_string();
        assert!(message.contains("nonsense") && message.contains("llama-bpe") && message.contains("smollm"), "{message}");
    }
}
