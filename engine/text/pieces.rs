//! What each token stands for, in bytes, and how a decoder joins tokens: the ground of decoding without the `tokenizers` crate.
//!
//! Byte-level BPE writes each byte as one character (GPT-2's `bytes_to_unicode`, MIT licence); SentencePiece writes a space as U+2581 and
//! a byte without a token of its own as `<0xNN>`. Both make text a plain concatenation of bytes, so decoding can stream.

use serde_json::Value;

/// How tokens become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoding {
    /// Bytes of tokens, concatenated.
    ByteLevel,
    /// Bytes of tokens, concatenated; this many spaces are stripped at the very start.
    SentencePiece {
        /// Spaces stripped at most.
        strip_start: usize,
    },
    /// Anything else (WordPiece, Metaspace without byte tokens): the `tokenizers` crate decides.
    Other,
}

impl Decoding {
    /// Reads the `decoder` of a tokenizer.json.
    pub(super) fn of(decoder: &Value) -> Decoding {
        let steps: &[Value] = match decoder["decoders"].as_array() {
            Some(steps) => steps,
            None => std::slice::from_ref(decoder),
        };
        let (mut byte_level, mut replace, mut fallback, mut fused, mut strip_start) = (false, false, false, false, 0);
        for step in steps {
            match step["type"].as_str() {
                Some("ByteLevel") => byte_level = true,
                Some("Replace") if step["pattern"]["String"] == "\u{2581}" && step["content"] == " " => replace = true,
                Some("ByteFallback") => fallback = true,
                Some("Fuse") => fused = true,
                Some("Strip") if fused && step["content"] == " " && step["stop"] == 0 => {
                    strip_start = step["start"].as_u64().map_or(0, |n| n as usize);
                }
                _ => return Decoding::Other,
            }
        }
        match (byte_level, replace && fallback) {
            (true, false) if !replace && !fallback && strip_start == 0 => Decoding::ByteLevel,
            (false, true) => Decoding::SentencePiece { strip_start },
            _ => Decoding::Other,
        }
    }

    /// Spaces stripped at the very start of a text.
    pub(super) fn strip_start(self) -> usize {
        match self {
            Decoding::SentencePiece { strip_start } => strip_start,
            Decoding::ByteLevel | Decoding::Other => 0,
        }
    }
}

/// What kind of token an id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// No token has this id.
    Absent,
    /// Of the model's vocabulary.
    Normal,
    /// Added to the vocabulary, written as it is, not special.
    Added,
    /// Special: left out when decoding skips special tokens.
    Special,
}

/// Bytes and kind of every token, flat: `bytes[ends[id - 1] .. ends[id]]`.
pub(super) struct PieceTable {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    kinds: Vec<PieceKind>,
}

impl PieceTable {
    /// From the tokens by id (`None`: no such token).
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (Option<std::borrow::Cow<'a, str>>, PieceKind)>, decoding: Decoding) -> PieceTable {
        let from_char = char_bytes();
        let mut table = PieceTable { bytes: Vec::new(), ends: Vec::new(), kinds: Vec::new() };
        for (token, kind) in tokens {
            let kind = if token.is_some() { kind } else { PieceKind::Absent };
            if let Some(token) = token {
                push_bytes(&mut table.bytes, &token, kind, decoding, &from_char);
            }
            table.ends.push(u32::try_from(table.bytes.len()).expect("a vocabulary is smaller than 4 GiB"));
            table.kinds.push(kind);
        }
        table
    }

    /// Number of ids.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Kind of a token; `Absent` beyond the end.
    pub(super) fn kind(&self, id: u32) -> PieceKind {
        self.kinds.get(id as usize).copied().unwrap_or(PieceKind::Absent)
    }

    /// Bytes of a token; empty beyond the end.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        if id >= self.ends.len() {
            return &[];
        }
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.bytes[start..self.ends[id] as usize]
    }
}

fn push_bytes(out: &mut Vec<u8>, token: &str, kind: PieceKind, decoding: Decoding, from_char: &[Option<u8>; 324]) {
    match decoding {
        Decoding::ByteLevel if kind == PieceKind::Normal => {
            let start = out.len();
            for c in token.chars() {
                match from_char.get(c as usize).copied().flatten() {
                    Some(byte) => out.push(byte),
                    None => {
                        out.truncate(start);
                        out.extend_from_slice(token.as_bytes());
                        return;
                    }
                }
            }
        }
        Decoding::SentencePiece { .. } if kind != PieceKind::Special => match byte_token(token) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(token.replace('\u{2581}', " ").as_bytes()),
        },
        _ => out.extend_from_slice(token.as_bytes()),
    }
}

/// The byte of a `<0xNN>` token.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's table backwards: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100.. in order.
fn char_bytes() -> [Option<u8>; 324] {
    let mut table = [None; 324];
    let mut shifted = 0x100;
    for byte in 0..=255u8 {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            table[usize::from(byte)] = Some(byte);
        } else {
            table[shifted] = Some(byte);
            shifted += 1;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn decoders_are_classified() {
        let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let (fallback, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
        let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
        let cases = [
            (json!({"type": "ByteLevel", "use_regex": true}), Decoding::ByteLevel),
            (sequence(&[&json!({"type": "ByteLevel"}), &fuse]), Decoding::ByteLevel),
            (sequence(&[&replace, &fallback, &fuse, &strip]), Decoding::SentencePiece { strip_start: 1 }),
            (sequence(&[&replace, &fallback, &fuse]), Decoding::SentencePiece { strip_start: 0 }),
            (sequence(&[&replace, &fallback, &strip, &fuse]), Decoding::Other),
            (sequence(&[&replace, &fuse]), Decoding::Other),
            (json!({"type": "WordPiece", "prefix": "##"}), Decoding::Other),
            (Value::Null, Decoding::Other),
        ];
        for (decoder, expected) in cases {
            assert_eq!(Decoding::of(&decoder), expected, "{decoder}");
        }
    }

    #[test]
    fn bytes_of_pieces() {
        let check = |decoding, kind, token: &str, expected: &[u8]| {
            let table = PieceTable::new([(Some(token.into()), kind)].into_iter(), decoding);
            assert_eq!(table.bytes(0), expected, "{token} {kind:?} {decoding:?}");
        };
        let (bl, sp) = (Decoding::ByteLevel, Decoding::SentencePiece { strip_start: 1 });
        check(bl, PieceKind::Normal, "Ġthe", b" the");
        check(bl, PieceKind::Normal, "Ċ", b"\n");
        check(bl, PieceKind::Normal, "ðŁ", b"\xf0\x9f");
        check(bl, PieceKind::Normal, "ł", b"\xa0");
        check(bl, PieceKind::Normal, "Ń", b"\xad");
        check(bl, PieceKind::Normal, "日", "日".as_bytes());
        check(bl, PieceKind::Special, "<é Ġ>", "<é Ġ>".as_bytes());
        check(sp, PieceKind::Normal, "\u{2581}the", b" the");
        check(sp, PieceKind::Normal, "<0xF0>", b"\xf0");
        check(sp, PieceKind::Normal, "<0xF>", b"<0xF>");
        check(sp, PieceKind::Special, "<s>", b"<s>");
    }

    #[test]
    fn every_byte_has_a_character() {
        let table = char_bytes();
        let mut seen: Vec<u8> = table.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
    }
}
