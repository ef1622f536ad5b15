//! The thread of a pooling model: takes requests, makes batches, runs them, answers. `PoolingHandle` is the way into it.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use tracing::{error, trace};

use super::queue::{Member, Queue};
use super::{BatchLimits, Sequence, SequenceModel};
use crate::core::live;
use crate::error::{EngineError, Result};

/// What answers a request, and where the answer is waited for.
type Reply = async_channel::Sender<Result<Vec<Vec<f32>>>>;
type Answer = async_channel::Receiver<Result<Vec<Vec<f32>>>>;

/// What the thread is told.
enum Order {
    Run {
        sequences: Vec<Sequence>,
        reply: Reply,
    },
    /// Finish what waits, give the memory to other models.
    Sleep(Sender<Result<()>>),
    /// Take it back.
    Wake(Sender<Result<()>>),
    /// Finish what waits, then end.
    Shutdown,
}

/// Bounds of a running model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolingLimits {
    /// Of a batch.
    pub batch: BatchLimits,
    /// Tokens of a sequence.
    pub max_seq_len: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Requests that may wait for the thread.
    pub max_waiting: usize,
}

/// Live numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolingStats {
    /// Sequences in the running batch.
    pub num_running: usize,
    /// Sequences that wait, as of the last batch.
    pub num_waiting: usize,
    /// Batches since start.
    pub num_batches: u64,
    /// Tokens since start.
    pub num_tokens: u64,
    /// Most sequences ever seen in one batch.
    pub max_running: usize,
}

struct Shared {
    limits: PoolingLimits,
    dead: Mutex<Option<String>>,
    num_running: AtomicUsize,
    num_waiting: AtomicUsize,
    num_batches: AtomicU64,
    num_tokens: AtomicU64,
    max_running: AtomicUsize,
}

/// A handle on a running pooling model. Cheap to clone; the thread ends when all handles are gone.
#[derive(Clone)]
pub struct PoolingHandle {
    shared: Arc<Shared>,
    orders: Sender<Order>,
    /// Never sends; closes when the model is gone with all that it held.
    ended: Receiver<Infallible>,
}

/// Starts the thread of `model`.
///
/// # Errors
/// `Device` when the system gives no thread.
pub(crate) fn start(model: Box<dyn SequenceModel>, limits: PoolingLimits) -> Result<PoolingHandle> {
    assert!(limits.max_seq_len <= limits.batch.max_tokens && limits.batch.max_seqs > 0, "a batch holds the longest sequence");
    let shared = Arc::new(Shared {
        limits,
        dead: Mutex::new(None),
        num_running: AtomicUsize::new(0),
        num_waiting: AtomicUsize::new(0),
        num_batches: AtomicU64::new(0),
        num_tokens: AtomicU64::new(0),
        max_running: AtomicUsize::new(0),
    });
    let (orders, received) = crossbeam_channel::bounded(limits.max_waiting);
    let (alive, ended) = crossbeam_channel::bounded(0);
    let worker = Worker { model, queue: Queue::default(), shared: shared.clone(), is_asleep: false };
    let run = move || {
        let shared = worker.shared.clone();
        worker.serve(&received);
        // Now that the worker has let go of the device.
        refuse_queued(&shared, &received);
        drop(alive);
    };
    std::thread::Builder::new()
        .name("pagoda-pooling".into())
        .spawn(run)
        .map_err(|error| EngineError::Device(format!("the thread of a pooling model: {error}")))?;
    live::note(ended.clone());
    Ok(PoolingHandle { shared, orders, ended })
}

impl PoolingHandle {
    /// One vector a sequence, in their order. Dropping the future forgets what has not run yet.
    ///
    /// # Errors
    /// `InvalidRequest` (an empty sequence, one that is too long, an unknown token), `QueueFull`, `EngineDead`, a device fault.
    pub async fn run(&self, sequences: Vec<Sequence>) -> Result<Vec<Vec<f32>>> {
        let Some(reply) = self.submit(sequences)? else { return Ok(Vec::new()) };
        reply.recv().await.unwrap_or_else(|_| Err(self.dead_error()))
    }

    /// As `run`, waiting on this thread.
    ///
    /// # Errors
    /// As `run`.
    pub fn run_blocking(&self, sequences: Vec<Sequence>) -> Result<Vec<Vec<f32>>> {
        let Some(reply) = self.submit(sequences)? else { return Ok(Vec::new()) };
        reply.recv_blocking().unwrap_or_else(|_| Err(self.dead_error()))
    }

    fn submit(&self, sequences: Vec<Sequence>) -> Result<Option<Answer>> {
        sequences.iter().enumerate().try_for_each(|(idx, sequence)| self.validate(idx, sequence))?;
        if sequences.is_empty() {
            return Ok(None);
        }
        let (reply, answer) = async_channel::bounded(1);
        match self.orders.try_send(Order::Run { sequences, reply }) {
            // The thread may have ended meanwhile, and then nobody takes the order: only what was sent before `dead` was set is answered.
            Ok(()) if self.shared.dead.lock().is_some() && answer.is_empty() => Err(self.dead_error()),
            Ok(()) => Ok(Some(answer)),
            Err(TrySendError::Full(_)) => Err(EngineError::QueueFull(self.orders.len())),
            Err(TrySendError::Disconnected(_)) => Err(self.dead_error()),
        }
    }

    fn validate(&self, idx: usize, sequence: &Sequence) -> Result<()> {
        let limits = &self.shared.limits;
        let (len, max) = (sequence.ids.len(), limits.max_seq_len);
        if len == 0 {
            return Err(EngineError::InvalidRequest(format!("input[{idx}] has no tokens; at least one is needed")));
        }
        if len > max {
            return Err(EngineError::InvalidRequest(format!("input[{idx}] is too long: {len} tokens > {max} maximum")));
        }
        if let Some(token) = sequence.ids.iter().find(|id| **id as usize >= limits.vocab_size) {
            let reason = format!("input[{idx}]: token {token} is outside the vocabulary of {}", limits.vocab_size);
            return Err(EngineError::InvalidRequest(reason));
        }
        assert!(sequence.token_types.is_empty() || sequence.token_types.len() == len, "a segment for each token");
        Ok(())
    }

    /// Bounds of the model.
    pub fn limits(&self) -> &PoolingLimits {
        &self.shared.limits
    }

    /// Live numbers.
    pub fn stats(&self) -> PoolingStats {
        let shared = &self.shared;
        PoolingStats {
            num_running: shared.num_running.load(Relaxed),
            num_waiting: shared.num_waiting.load(Relaxed) + self.orders.len(),
            num_batches: shared.num_batches.load(Relaxed),
            num_tokens: shared.num_tokens.load(Relaxed),
            max_running: shared.max_running.load(Relaxed),
        }
    }

    /// Err with the reason once the thread has ended.
    ///
    /// # Errors
    /// Why it ended.
    pub fn health(&self) -> std::result::Result<(), String> {
        self.shared.dead.lock().clone().map_or(Ok(()), Err)
    }

    /// Finishes what waits, then gives the model's memory to others; weights are kept on the host. Waits for it.
    ///
    /// # Errors
    /// What the device says, and then it is awake as before; `EngineDead`.
    pub fn sleep(&self) -> Result<()> {
        self.rest(Order::Sleep)
    }

    /// Takes the memory back. Waits for it.
    ///
    /// # Errors
    /// What the device says, and then it sleeps on; `EngineDead`.
    pub fn wake(&self) -> Result<()> {
        self.rest(Order::Wake)
    }

    fn rest(&self, order: impl FnOnce(Sender<Result<()>>) -> Order) -> Result<()> {
        let (sender, answer) = crossbeam_channel::bounded(1);
        self.orders.send(order(sender)).map_err(|_| self.dead_error())?;
        // As with a request: what comes after the end is not taken.
        if self.shared.dead.lock().is_some() && answer.is_empty() {
            return Err(self.dead_error());
        }
        answer.recv().unwrap_or_else(|_| Err(self.dead_error()))
    }

    /// Ends the thread once what waits is done, and waits until its memory is free.
    pub fn unload(&self) {
        let _ = self.orders.send(Order::Shutdown);
        let _ = self.ended.recv();
    }

    fn dead_error(&self) -> EngineError {
        EngineError::EngineDead(self.shared.dead.lock().clone().unwrap_or_else(|| "the pooling thread ended".into()))
    }
}

/// Ends what is still in the queue, which keeps its orders when nobody receives them any more: their senders learn it when the replies are
/// dropped. `dead` is set first, so that what comes later is refused by the handle.
fn refuse_queued(shared: &Shared, orders: &Receiver<Order>) {
    shared.dead.lock().get_or_insert_with(|| "the pooling thread ended".into());
    while let Ok(order) = orders.try_recv() {
        drop(order);
    }
}

/// The thread's side.
struct Worker {
    model: Box<dyn SequenceModel>,
    queue: Queue<Reply>,
    shared: Arc<Shared>,
    is_asleep: bool,
}

impl Worker {
    fn serve(mut self, orders: &Receiver<Order>) {
        loop {
            if self.queue.is_empty() {
                let Ok(order) = orders.recv() else { return };
                if !self.obey(order) {
                    return;
                }
            }
            while let Ok(order) = orders.try_recv() {
                if !self.obey(order) {
                    return;
                }
            }
            if !self.run_batch() {
                return;
            }
        }
    }

    /// False when the thread must end.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            // A receiver that is gone wants no answer.
            Order::Run { reply, .. } if self.is_asleep => {
                drop(reply.try_send(Err(EngineError::Device("the model sleeps; wake it first".into()))));
                true
            }
            Order::Run { sequences, reply } => {
                self.queue.push(sequences, reply);
                true
            }
            Order::Sleep(answer) => {
                let is_alive = self.finish();
                if is_alive {
                    let outcome = if self.is_asleep { Ok(()) } else { self.model.sleep() };
                    self.is_asleep |= outcome.is_ok();
                    let _ = answer.send(outcome);
                }
                is_alive
            }
            Order::Wake(answer) => {
                let outcome = if self.is_asleep { self.model.wake() } else { Ok(()) };
                self.is_asleep &= outcome.is_err();
                let _ = answer.send(outcome);
                true
            }
            Order::Shutdown => {
                if self.finish() {
                    *self.shared.dead.lock() = Some("the model was unloaded".into());
                }
                false
            }
        }
    }

    /// Runs all that waits; false when the thread must end.
    fn finish(&mut self) -> bool {
        while !self.queue.is_empty() {
            if !self.run_batch() {
                return false;
            }
        }
        true
    }

    fn run_batch(&mut self) -> bool {
        self.queue.retain(|reply| !reply.is_closed());
        let (members, sequences) = self.queue.next_batch(self.shared.limits.batch);
        if sequences.is_empty() {
            return true;
        }
        note_batch(&self.shared, &sequences, self.queue.num_waiting());
        let outcome = catch_unwind(AssertUnwindSafe(|| self.model.run(&sequences)));
        self.shared.num_running.store(0, Relaxed);
        answer(&mut self.queue, &members, outcome, &self.shared)
    }
}

fn note_batch(shared: &Shared, sequences: &[Sequence], num_waiting: usize) {
    let num_tokens: usize = sequences.iter().map(|sequence| sequence.ids.len()).sum();
    trace!(num_sequences = sequences.len(), num_tokens, "batch");
    shared.num_running.store(sequences.len(), Relaxed);
    shared.num_waiting.store(num_waiting, Relaxed);
    shared.max_running.fetch_max(sequences.len(), Relaxed);
    shared.num_batches.fetch_add(1, Relaxed);
    shared.num_tokens.fetch_add(num_tokens as u64, Relaxed);
}

/// Answers the requests that a batch completes or fails; false when the thread must end.
fn answer(queue: &mut Queue<Reply>, members: &[Member], outcome: std::thread::Result<Result<Vec<Vec<f32>>>>, shared: &Shared) -> bool {
    // A receiver that is gone wants no answer.
    match outcome {
        Ok(Ok(outputs)) => queue.finish(members, outputs, |reply, outputs| drop(reply.try_send(Ok(outputs)))),
        Ok(Err(fault @ EngineError::DeviceLost(_))) => {
            let reason = fault.to_string();
            *shared.dead.lock() = Some(reason.clone());
            queue.fail(members, |reply| drop(reply.try_send(Err(EngineError::DeviceLost(reason.clone())))));
            return false;
        }
        Ok(Err(fault)) => {
            error!(%fault, "a batch of a pooling model failed");
            queue.fail(members, |reply| drop(reply.try_send(Err(EngineError::Device(fault.to_string())))));
        }
        Err(_panic) => {
            // Requests in the queue are told so when their replies are dropped.
            *shared.dead.lock() = Some("the pooling thread panicked".into());
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests;
