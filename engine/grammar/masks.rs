//! Masks made beside the engine: a pool of threads, and of every constrained sequence the mask that is ready or on its way.

use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::compiled::Grammar;
use super::source::{GrammarError, invalid};
use super::state::GrammarState;

/// Threads of the pool at most: masks of a batch take a few of them some 100 us.
const MAX_THREADS: usize = 8;
/// Stack of a thread: derivatives of deep regular expressions recurse.
const STACK_BYTES: usize = 16 << 20;

/// Threads that make masks. One pool a model.
pub(super) struct MaskPool {
    threads: ThreadPool,
}

impl MaskPool {
    /// # Errors
    /// The system has no thread to give.
    pub(super) fn start() -> Result<MaskPool, GrammarError> {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let threads = ThreadPoolBuilder::new().num_threads(num_threads).stack_size(STACK_BYTES);
        let threads = threads.thread_name(|i| format!("pagoda-mask-{i}")).build().map_err(invalid)?;
        Ok(MaskPool { threads })
    }
}

/// The mask of a sequence's next token: ready, or being made.
pub struct SlotMask {
    grammar: Grammar,
    state: Option<Box<GrammarState>>,
    coming: Option<Receiver<Box<GrammarState>>>,
}

impl SlotMask {
    /// Begins to make the mask that follows `output`. Does not wait.
    pub fn start(grammar: &Grammar, stop_ids: Arc<[u32]>, min_tokens: u32, output: &[u32]) -> SlotMask {
        let mut slot = SlotMask { grammar: grammar.clone(), state: None, coming: None };
        let (grammar, output) = (grammar.clone(), output.to_vec());
        slot.run(move || Box::new(GrammarState::new(grammar, stop_ids, min_tokens, &output)));
        slot
    }

    /// The token was sampled: begins to make the mask of the next one. Does not wait.
    pub fn advance(&mut self, token: u32) {
        self.wait();
        if let Some(mut state) = self.state.take() {
            self.run(move || {
                state.advance(token);
                state
            });
        }
    }

    fn run(&mut self, work: impl FnOnce() -> Box<GrammarState> + Send + 'static) {
        let (sender, receiver) = bounded(1);
        self.coming = Some(receiver);
        self.grammar.pool().threads.spawn(move || {
            // A panic drops the sender, which `wait` sees; the pool lives on.
            if let Ok(state) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
                let _ = sender.send(state);
            }
        });
    }

    /// Waits until the mask is ready.
    pub fn wait(&mut self) {
        if let Some(coming) = self.coming.take() {
            self.state = coming.recv().ok();
        }
    }

    /// The mask, once `wait` has returned.
    pub fn allowed(&self) -> &[u32] {
        self.state.as_ref().map_or_else(|| self.grammar.ends(), |state| state.mask())
    }

    /// Why the grammar cannot be followed any longer, once `wait` has returned.
    pub fn error(&self) -> Option<&str> {
        match &self.state {
            Some(state) => state.error(),
            None => Some("following the grammar panicked"),
        }
    }
}

impl std::fmt::Debug for SlotMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SlotMask")
    }
}
