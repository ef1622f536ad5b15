//! `EngineHandle`: the way into the engine thread; `RequestStream`: the way out of it.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_channel::Receiver;
use crossbeam_channel::{Sender, TrySendError};
use parking_lot::Mutex;

use super::command::{Command, RequestId};
use super::stats::{EngineStats, StatsCells};
use crate::error::{EngineError, Result};
use crate::request::{Event, Request};

/// What handle and engine thread share.
pub(crate) struct Shared {
    pub(crate) stats: StatsCells,
    /// Why the engine thread ended; set once.
    pub(crate) dead: Mutex<Option<String>>,
    pub(crate) vocab_size: usize,
    pub(crate) max_model_len: usize,
    pub(crate) max_seqs: usize,
    next_id: AtomicU64,
    started: Instant,
    /// Milliseconds after `started` since when the engine thread waits for a step, plus one; 0: it does not.
    waiting_since_ms: AtomicU64,
}

/// Longest time for one step: a device that takes longer hangs. The longest honest steps are those of large models on small CPUs.
const MAX_STEP: Duration = Duration::from_secs(600);

impl Shared {
    pub(crate) fn new(vocab_size: usize, max_model_len: usize, max_seqs: usize) -> Shared {
        let stats = StatsCells::default();
        Shared {
            stats,
            dead: Mutex::new(None),
            vocab_size,
            max_model_len,
            max_seqs,
            next_id: AtomicU64::new(1),
            started: Instant::now(),
            waiting_since_ms: AtomicU64::new(0),
        }
    }

    /// Runs `wait`, which waits for a step, so that others can see how long it takes.
    pub(crate) fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.waiting_since_ms.store(self.started.elapsed().as_millis() as u64 + 1, Relaxed);
        let outcome = wait();
        self.waiting_since_ms.store(0, Relaxed);
        outcome
    }

    /// Why the engine will not go on, as of `elapsed` after the start.
    fn fault(&self, elapsed: Duration) -> Option<String> {
        if let Some(reason) = &*self.dead.lock() {
            return Some(reason.clone());
        }
        let since = self.waiting_since_ms.load(Relaxed).checked_sub(1)?;
        let waited = elapsed.saturating_sub(Duration::from_millis(since));
        (waited > MAX_STEP).then(|| format!("a step has not ended for {} s: the device hangs", waited.as_secs()))
    }

    fn dead_reason(&self) -> String {
        self.dead.lock().clone().unwrap_or_else(|| "the engine thread ended".into())
    }
}

/// A handle on a running engine. Cheap to clone; the engine ends when all handles and streams are gone or `shutdown` is called.
#[derive(Clone)]
pub struct EngineHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: Sender<Command>,
    /// Ids of dropped streams; at most as many as there are requests, since the engine empties it before every step.
    pub(crate) dropped: Sender<RequestId>,
    /// Never sends; closes when the engine and all that it held are gone.
    pub(crate) ended: crossbeam_channel::Receiver<Infallible>,
}

impl EngineHandle {
    /// Hands a request to the engine and returns its events.
    ///
    /// # Errors
    /// `InvalidRequest` (what is out of range), `QueueFull`, `EngineDead`.
    pub fn submit(&self, request: Request) -> Result<RequestStream> {
        self.validate(&request)?;
        let id = RequestId(self.shared.next_id.fetch_add(1, Relaxed));
        let seed = request.sampling.seed.unwrap_or_else(|| RandomState::new().hash_one(id.0));
        let (sender, events) = async_channel::unbounded();
        match self.commands.try_send(Command::Add { id, request: Box::new(request), seed, events: sender }) {
            // The engine may have ended meanwhile, and then nobody takes the command: only what was sent before `dead` was set is answered.
            Ok(()) if self.shared.dead.lock().is_some() && events.is_empty() => Err(EngineError::EngineDead(self.shared.dead_reason())),
            Ok(()) => Ok(RequestStream { id, events, engine: self.clone(), has_begun: false, ended: false }),
            Err(TrySendError::Full(_)) => Err(EngineError::QueueFull(self.commands.len())),
            Err(TrySendError::Disconnected(_)) => Err(EngineError::EngineDead(self.shared.dead_reason())),
        }
    }

    /// Longest prompt plus output, in tokens.
    pub fn max_model_len(&self) -> usize {
        self.shared.max_model_len
    }

    /// Tokens that can be sampled.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// Live numbers.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats.load()
    }

    /// Err with the reason once the engine has ended or hangs.
    ///
    /// # Errors
    /// Why it ended.
    pub fn health(&self) -> std::result::Result<(), String> {
        self.shared.fault(self.shared.started.elapsed()).map_or(Ok(()), Err)
    }

    /// Forgets all cached prefixes.
    pub fn clear_prefix_cache(&self) {
        let _ = self.commands.send(Command::ClearPrefixCache);
    }

    /// Lets running requests finish, refuses new ones, then ends the engine thread.
    pub fn shutdown(&self) {
        let _ = self.commands.send(Command::Shutdown);
    }

    /// Lets running requests finish, refuses new ones, then gives the engine's memory to other models: weights are kept on the host, cached
    /// prefixes are forgotten. Waits for it. Asleep already, it stays so.
    ///
    /// # Errors
    /// What the device says, and then the engine is awake as before; `EngineDead`.
    pub fn sleep(&self) -> Result<()> {
        self.rest(Command::Sleep)
    }

    /// Takes the memory back and accepts requests again. Waits for it. Awake already, it stays so.
    ///
    /// # Errors
    /// What the device says, and then the engine sleeps on; `EngineDead`.
    pub fn wake(&self) -> Result<()> {
        self.rest(Command::Wake)
    }

    fn rest(&self, command: impl FnOnce(Sender<Result<()>>) -> Command) -> Result<()> {
        let (sender, answer) = crossbeam_channel::bounded(1);
        let dead = || EngineError::EngineDead(self.shared.dead_reason());
        self.commands.send(command(sender)).map_err(|_| dead())?;
        // As with a request: an engine that ends drops what was sent before `dead` was set, and with it the sender; nobody takes what is sent
        // later.
        if self.shared.dead.lock().is_some() && answer.is_empty() {
            return Err(dead());
        }
        answer.recv().unwrap_or_else(|_| Err(dead()))
    }

    /// Ends the engine thread once running requests have finished, and waits until its device memory is free.
    pub fn unload(&self) {
        self.shutdown();
        let _ = self.ended.recv();
    }

    fn validate(&self, request: &Request) -> Result<()> {
        let shared = &self.shared;
        if request.prompt.is_empty() {
            return Err(EngineError::InvalidRequest("prompt is empty; at least one token is needed".into()));
        }
        if request.prompt.len() >= shared.max_model_len {
            let (len, max) = (request.prompt.len(), shared.max_model_len - 1);
            return Err(EngineError::InvalidRequest(format!("prompt is too long: {len} tokens > {max} maximum")));
        }
        if let Some(token) = request.prompt.iter().find(|&&t| t as usize >= shared.vocab_size) {
            return Err(EngineError::InvalidRequest(format!("prompt token {token} is outside the vocabulary of {}", shared.vocab_size)));
        }
        if request.sampling.n as usize > shared.max_seqs {
            let (n, max) = (request.sampling.n, shared.max_seqs);
            return Err(EngineError::InvalidRequest(format!("n is {n}, but at most {max} sequences run at once")));
        }
        request.sampling.validate(shared.vocab_size)
    }
}

/// The events of one request. Dropping it aborts what still runs.
pub struct RequestStream {
    id: RequestId,
    events: Receiver<Event>,
    engine: EngineHandle,
    /// An event came.
    has_begun: bool,
    ended: bool,
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        // In this order: an engine that has not taken the request yet finds it closed, one that has is told.
        self.events.close();
        if !self.ended {
            let _ = self.engine.dropped.send(self.id);
        }
    }
}

impl RequestStream {
    /// The next event; None after the final one.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await.ok();
        self.note(event)
    }

    /// The next event, waiting on this thread; None after the final one.
    pub fn next_blocking(&mut self) -> Option<Event> {
        let event = self.events.recv_blocking().ok();
        self.note(event)
    }

    /// Ends one of several outputs early; its `Finished` event still comes. The last running output is ended by dropping the stream.
    pub fn end_choice(&self, choice: u32) {
        // A full queue only means that the output runs to its own end; its tokens are ignored by whoever called this.
        let _ = self.engine.commands.try_send(Command::EndChoice { id: self.id, choice });
    }

    /// A channel closed without a final event means that the engine died: say so, once.
    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        match event {
            Some(event) => {
                self.has_begun = true;
                self.ended |= matches!(event, Event::Done(_) | Event::Failed { .. } | Event::Refused { .. });
                Some(event)
            }
            None if self.ended => None,
            None => {
                self.ended = true;
                let message = format!("engine ended: {}", self.engine.shared.dead_reason());
                Some(match self.has_begun {
                    true => Event::Failed { message, caller_fault: false },
                    false => Event::Refused { message },
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_does_not_end_is_a_fault() {
        let shared = Shared::new(1, 1, 1);
        let later = shared.started.elapsed() + MAX_STEP + Duration::from_secs(2);
        assert_eq!(shared.fault(later), None, "nothing is waited for");
        let while_waiting = |at| shared.waiting(|| shared.fault(at));
        assert_eq!(while_waiting(shared.started.elapsed()), None);
        assert!(while_waiting(later).is_some_and(|reason| reason.contains("the device hangs")));
        *shared.dead.lock() = Some("it ended".into());
        assert_eq!(shared.fault(later).as_deref(), Some("it ended"));
    }
}
