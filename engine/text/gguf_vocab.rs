//! A tokeniser built from a GGUF file's vocabulary: byte-level BPE (`gpt2`) or SentencePiece BPE with scores (`llama`).
//!
//! SentencePiece stores no merges: they follow from the scores as in transformers' converter (`generate_merges`, Apache-2.0): every split
//! of a token into two known tokens is a merge, ranked by the token's score. Key names are those of the GGUF specification.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence, unicode::NFC};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

use super::pieces::{Decoding, PieceKind};
use super::pre_tokenizers;
use crate::error::{EngineError, Result};
use crate::weights::checkpoint::GgufVocab;

/// The encoder of a vocabulary.
///
/// # Errors
/// `Unsupported` for an unknown model or pre-tokeniser; `Text` for lists that do not fit together.
pub(super) fn build(vocab: &GgufVocab) -> Result<Tokenizer> {
    check_lists(vocab)?;
    let mut tokenizer = match vocab.model.as_str() {
        "gpt2" => build_byte_level(vocab)?,
        "llama" => build_sentence_piece(vocab)?,
        other => return Err(EngineError::Unsupported(format!("tokenizer model `{other}` (tokenizer.ggml.model); known: gpt2, llama"))),
    };
    let added = (0..vocab.tokens.len()).filter_map(|id| {
        let special = match kind(vocab, id) {
            PieceKind::Special => true,
            PieceKind::Added => false,
            PieceKind::Normal | PieceKind::Absent => return None,
        };
        Some(AddedToken::from(vocab.tokens[id].clone(), special).normalized(false))
    });
    tokenizer.add_special_tokens(added).map_err(text_error)?;
    Ok(tokenizer)
}

/// How the vocabulary's tokens become text.
pub(super) fn decoding(vocab: &GgufVocab) -> Decoding {
    match vocab.model.as_str() {
        "llama" => Decoding::SentencePiece { strip_start: usize::from(adds_space_prefix(vocab)) },
        _ => Decoding::ByteLevel,
    }
}

/// Kind of token `id` by its type: unknown and control tokens are special, user defined ones are added.
pub(super) fn kind(vocab: &GgufVocab, id: usize) -> PieceKind {
    match vocab.token_types.get(id) {
        Some(2 | 3) => PieceKind::Special,
        Some(4) => PieceKind::Added,
        _ => PieceKind::Normal,
    }
}

/// Whether BOS goes in front when neither file nor configuration says.
pub(super) fn adds_bos_by_default(vocab: &GgufVocab) -> bool {
    match vocab.model.as_str() {
        "llama" => true,
        _ => pre_tokenizers::by_name(&vocab.pre).is_ok_and(|pre| pre.add_bos),
    }
}

fn adds_space_prefix(vocab: &GgufVocab) -> bool {
    vocab.add_space_prefix.unwrap_or(true)
}

fn text_error(error: impl std::fmt::Display) -> EngineError {
    EngineError::Text(format!("tokenizer of the GGUF file: {error}"))
}

fn check_lists(vocab: &GgufVocab) -> Result<()> {
    let size = vocab.tokens.len();
    if size == 0 {
        return Err(text_error("tokenizer.ggml.tokens is empty"));
    }
    for (key, len) in [("token_type", vocab.token_types.len()), ("scores", vocab.scores.len())] {
        if len != 0 && len != size {
            return Err(text_error(format!("tokenizer.ggml.{key} has {len} entries, tokenizer.ggml.tokens {size}")));
        }
    }
    for (key, id) in [("bos", vocab.bos), ("eos", vocab.eos), ("unknown", vocab.unk), ("padding", vocab.pad)] {
        if let Some(id) = id.filter(|&id| id as usize >= size) {
            return Err(text_error(format!("tokenizer.ggml.{key}_token_id is {id}, tokenizer.ggml.tokens has {size} entries")));
        }
    }
    Ok(())
}

/// Token to id; of equal tokens the first wins.
fn vocab_map(vocab: &GgufVocab) -> Vocab {
    vocab.tokens.iter().enumerate().rev().map(|(id, token)| (token.clone(), id as u32)).collect()
}

fn build_byte_level(vocab: &GgufVocab) -> Result<Tokenizer> {
    let pre = pre_tokenizers::by_name(&vocab.pre)?;
    let mut merges: Merges = Vec::with_capacity(vocab.merges.len());
    for merge in &vocab.merges {
        let (left, right) = merge.split_once(' ').ok_or_else(|| text_error(format!("merge {merge:?} is not two tokens")))?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let model = BPE::builder().vocab_and_merges(vocab_map(vocab), merges).ignore_merges(pre.ignore_merges).build().map_err(text_error)?;
    let mut tokenizer = Tokenizer::new(model);
    if pre.nfc {
        tokenizer.with_normalizer(Some(NormalizerWrapper::NFC(NFC))).map_err(text_error)?;
    }
    tokenizer.with_pre_tokenizer(Some(pre.build()?));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
    Ok(tokenizer)
}

fn build_sentence_piece(vocab: &GgufVocab) -> Result<Tokenizer> {
    if vocab.scores.is_empty() {
        return Err(text_error("a `llama` vocabulary needs tokenizer.ggml.scores"));
    }
    let map = vocab_map(vocab);
    let merges = merges_of_scores(vocab, &map);
    let mut builder = BPE::builder().vocab_and_merges(map, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unk) = vocab.unk {
        builder = builder.unk_token(vocab.tokens[unk as usize].clone());
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(text_error)?);

    let mut steps = Vec::new();
    if adds_space_prefix(vocab) {
        steps.push(NormalizerWrapper::Prepend(Prepend::new("\u{2581}".into())));
    }
    steps.push(NormalizerWrapper::Replace(Replace::new(" ", "\u{2581}").map_err(text_error)?));
    tokenizer.with_normalizer(Some(NormalizerWrapper::Sequence(Sequence::new(steps)))).map_err(text_error)?;
    Ok(tokenizer)
}

/// Best score first; equal scores: longer left part, then longer right part, then the order of tokens.
fn merges_of_scores(vocab: &GgufVocab, map: &Vocab) -> Merges {
    let known = |piece: &str| map.get(piece).copied().filter(|&id| kind(vocab, id as usize) != PieceKind::Special);
    let mut ranked: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        if kind(vocab, id) == PieceKind::Special {
            continue;
        }
        let num_chars = token.chars().count();
        let mut splits: Vec<(u32, u32, usize, usize)> = Vec::new();
        for (left_chars, (at, _)) in token.char_indices().enumerate().skip(1) {
            if let (Some(left), Some(right)) = (known(&token[..at]), known(&token[at..])) {
                splits.push((left, right, left_chars, at));
            }
        }
        splits.sort_unstable();
        let score = vocab.scores[id];
        ranked.extend(splits.iter().map(|&(_, _, chars, at)| (score, chars, num_chars - chars, &token[..at], &token[at..])));
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    ranked.into_iter().map(|(_, _, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}
