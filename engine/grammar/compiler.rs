//! `Compiler`: grammars from sources, each compiled once, within bounds, on threads of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::api::ParserLimits;
use parking_lot::{Condvar, Mutex, RwLock};

use super::compiled::Grammar;
use super::lark::{LarkText, lark_of};
use super::masks::MaskPool;
use super::source::{GrammarError, GrammarSource, invalid};
use super::vocabulary::Vocabulary;

/// Grammars that are kept, the ones used last.
const MAX_CACHED: usize = 128;
/// Grammars compiled at the same time.
const MAX_COMPILING: usize = 2;
/// Stack of a thread that compiles: schemas and expressions nest. Only what is used is taken.
const STACK_BYTES: usize = 256 << 20;

/// Bounds of what a grammar may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest that a request waits for its grammar. The model's vocabulary, prepared once, does not count.
    pub compile_time: Duration,
    /// Steps of the lexer's derivatives at compile time (50,000 take about 1 ms).
    pub compile_fuel: u64,
    /// The same for one mask (14,000 take about 1 ms).
    pub mask_fuel: u64,
    /// Parser items of one mask (20,000 take about 1 ms).
    pub mask_items: usize,
    /// States of a lexer, 1 to 2 kB each.
    pub lexer_states: usize,
    /// Symbols of all productions.
    pub grammar_size: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            compile_time: Duration::from_secs(5),
            compile_fuel: 1_000_000,
            mask_fuel: 200_000,
            mask_items: 50_000,
            lexer_states: 20_000,
            grammar_size: 200_000,
        }
    }
}

impl Limits {
    pub(super) fn apply(&self, limits: &mut ParserLimits) {
        limits.initial_lexer_fuel = self.compile_fuel;
        limits.step_lexer_fuel = self.mask_fuel;
        limits.step_max_items = self.mask_items;
        limits.max_lexer_states = self.lexer_states;
        limits.max_grammar_size = self.grammar_size;
        limits.verbose_errors = false;
    }
}

/// The bytes of a token that is text.
type TokenText = dyn Fn(u32) -> Option<Vec<u8>> + Send + Sync;

/// Compiles grammars for one model and keeps them.
pub struct Compiler {
    shared: Arc<Shared>,
}

struct Shared {
    limits: Limits,
    vocab_size: usize,
    eos: Vec<u32>,
    token_text: Box<TokenText>,
    ground: RwLock<Option<Result<Ground, GrammarError>>>,
    cache: Mutex<Cache>,
    compiling: Mutex<usize>,
    compiled: Condvar,
}

/// What all grammars of a model share.
#[derive(Clone)]
struct Ground {
    vocabulary: Arc<Vocabulary>,
    pool: Arc<MaskPool>,
}

/// Grammars by their Lark text.
#[derive(Default)]
struct Cache {
    entries: HashMap<String, (Arc<Entry>, u64)>,
    clock: u64,
}

/// A grammar that is compiled, or being compiled.
#[derive(Default)]
struct Entry {
    outcome: Mutex<Option<Result<Grammar, GrammarError>>>,
    done: Condvar,
}

impl Compiler {
    /// A compiler for a model with `vocab_size` tokens. `token_text`: the bytes of a token, None for one that is no text (a special one, an
    /// id without a token); asked for every token when the first grammar is compiled. `eos`: tokens that end an answer.
    pub fn new(
        limits: Limits,
        vocab_size: usize,
        eos: &[u32],
        token_text: impl Fn(u32) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Compiler {
        let shared = Shared {
            limits,
            vocab_size,
            eos: eos.to_vec(),
            token_text: Box::new(token_text),
            ground: RwLock::default(),
            cache: Mutex::default(),
            compiling: Mutex::default(),
            compiled: Condvar::new(),
        };
        Compiler { shared: Arc::new(shared) }
    }

    /// The grammar of a source: from the cache, or compiled now. Waits on this thread, at most `Limits::compile_time`; the first call also
    /// for the vocabulary.
    ///
    /// # Errors
    /// `Invalid` with what is wrong with the source; `Busy`.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        let lark = lark_of(source)?;
        // On a busy machine the vocabulary alone can take longer than a grammar may.
        self.shared.ground()?;
        let deadline = Instant::now() + self.shared.limits.compile_time;
        let (entry, is_new) = self.shared.cache.lock().entry(&lark.text);
        if is_new && let Err(error) = self.start(lark, &entry, deadline) {
            entry.end(Err(error));
        }
        let mut outcome = entry.outcome.lock();
        while outcome.is_none() {
            if entry.done.wait_until(&mut outcome, deadline).timed_out() {
                let limit = self.shared.limits.compile_time.as_secs();
                return Err(invalid(format!("the grammar takes longer than {limit} s to compile")));
            }
        }
        outcome.clone().expect("waited for")
    }

    /// Starts to compile as soon as fewer than `MAX_COMPILING` others are compiled.
    fn start(&self, lark: LarkText, entry: &Arc<Entry>, deadline: Instant) -> Result<(), GrammarError> {
        let mut compiling = self.shared.compiling.lock();
        while *compiling >= MAX_COMPILING {
            if self.shared.compiled.wait_until(&mut compiling, deadline).timed_out() {
                self.shared.cache.lock().entries.remove(&lark.text);
                return Err(GrammarError::Busy);
            }
        }
        *compiling += 1;
        drop(compiling);
        let (shared, entry) = (self.shared.clone(), entry.clone());
        let thread = std::thread::Builder::new().name("pagoda-grammar".into()).stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || {
            // llguidance asserts what it believes of a grammar; whoever breaks it broke their own request.
            let compile = std::panic::AssertUnwindSafe(|| shared.compile_now(&lark));
            let panicked = |_| Err(invalid("the grammar cannot be compiled"));
            entry.end(std::panic::catch_unwind(compile).unwrap_or_else(panicked));
            shared.end_compiling();
        });
        if spawned.is_err() {
            self.shared.end_compiling();
            return Err(GrammarError::Busy);
        }
        Ok(())
    }
}

impl Shared {
    fn compile_now(&self, lark: &LarkText) -> Result<Grammar, GrammarError> {
        let Ground { vocabulary, pool } = self.ground()?;
        Grammar::compile(vocabulary, pool, &lark.text, lark.is_json)
    }

    fn ground(&self) -> Result<Ground, GrammarError> {
        if let Some(ground) = &*self.ground.read() {
            return ground.clone();
        }
        let mut ground = self.ground.write();
        let make = || {
            let tokens = (0..self.vocab_size as u32).map(&self.token_text).collect();
            let vocabulary = Arc::new(Vocabulary::new(tokens, &self.eos, &self.limits)?);
            Ok(Ground { vocabulary, pool: Arc::new(MaskPool::start()?) })
        };
        ground.get_or_insert_with(make).clone()
    }

    fn end_compiling(&self) {
        *self.compiling.lock() -= 1;
        self.compiled.notify_one();
    }
}

impl Cache {
    /// The entry of a text, and whether it was made now.
    fn entry(&mut self, text: &str) -> (Arc<Entry>, bool) {
        self.clock += 1;
        if let Some((entry, used)) = self.entries.get_mut(text) {
            *used = self.clock;
            return (entry.clone(), false);
        }
        if self.entries.len() >= MAX_CACHED {
            let oldest = self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(text, _)| text.clone());
            oldest.and_then(|text| self.entries.remove(&text));
        }
        let entry = Arc::new(Entry::default());
        self.entries.insert(text.to_string(), (entry.clone(), self.clock));
        (entry, true)
    }
}

impl Entry {
    fn end(&self, outcome: Result<Grammar, GrammarError>) {
        *self.outcome.lock() = Some(outcome);
        self.done.notify_all();
    }
}
