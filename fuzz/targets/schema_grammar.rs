//! Schemas, grammars and expressions of a request. Input: what it is, how the answer is chosen, its text. It is compiled within bounds or
//! refused with a reason, and a model that says what it allows never gets stuck.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use pagoda_engine::grammar::{Compiler, Format, GrammarError, GrammarSource, GrammarState, Limits, Spacing, format_of_structural_tag};

const EOS: u32 = 256;
/// Longest answer that is followed.
const MAX_TOKENS: usize = 24;

/// Every byte a token; a tenth of the usual fuel, since this build is slow.
static COMPILER: LazyLock<Compiler> = LazyLock::new(|| {
    // What a grammar breaks inside its compiler is caught there and becomes a refusal; whatever else panics ends this process.
    std::panic::set_hook(Box::new(|_| {}));
    let usual = Limits::default();
    let limits = Limits {
        compile_fuel: usual.compile_fuel / 10,
        mask_fuel: usual.mask_fuel / 10,
        mask_items: usual.mask_items / 10,
        lexer_states: usual.lexer_states / 10,
        grammar_size: usual.grammar_size / 10,
        ..usual
    };
    Compiler::new(limits, EOS as usize + 1, &[EOS], |token| u8::try_from(token).ok().map(|byte| vec![byte]))
});

fn format(kind: u8, text: &str) -> Option<Format> {
    Some(match kind % 5 {
        0 => Format::JsonSchema(serde_json::from_str(text).ok()?),
        1 => Format::Grammar(text.into()),
        2 => Format::Regex(text.into()),
        3 => format_of_structural_tag(&serde_json::from_str(text).ok()?).ok()?,
        _ => Format::Choice(text.split('\n').map(str::to_owned).collect()),
    })
}

fuzz_target!(|data: &[u8]| {
    let [kind, choice, text @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Some(format) = format(*kind, text) else { return };
    let spacing = if choice % 2 == 0 { Spacing::Bounded } else { Spacing::Compact };
    let grammar = match COMPILER.compile(&GrammarSource { format, spacing }) {
        Ok(grammar) => grammar,
        Err(GrammarError::Invalid(reason)) => return assert!(!reason.is_empty(), "a refusal without a reason"),
        Err(GrammarError::Busy) => return,
    };
    let mut state = GrammarState::new(grammar, Arc::new([EOS]), 0, &[]);
    for step in 0..MAX_TOKENS {
        let allowed: Vec<u32> = (0..=EOS).filter(|&token| state.mask()[token as usize / 32] >> (token % 32) & 1 == 1).collect();
        assert!(!allowed.is_empty(), "nothing may follow");
        if state.error().is_some() {
            return;
        }
        let token = allowed[(usize::from(*choice) + step * 31) % allowed.len()];
        if token == EOS {
            return assert!(state.may_end(), "an end in the middle");
        }
        state.advance(token);
    }
});
