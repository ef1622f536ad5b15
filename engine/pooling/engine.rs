//! The thread of a pooling model: takes requests, makes batches, runs them, answers. `PoolingHandle` is the way into it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use tracing::{error, trace};

use super::queue::{Member, Queue};
use super::{BatchLimits, Sequence, SequenceModel};
use crate::error::{EngineError, Result};

/// What answers a request, and where the answer is waited for.
type Reply = async_channel::Sender<Result<Vec<Vec<f32>>>>;
type Answer = async_channel::Receiver<Result<Vec<Vec<f32>>>>;

struct Job {
    sequences: Vec<Sequence>,
    reply: Reply,
}

/// Bounds of a running model.
#[derive(Clone, Copy, Debug)]
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
    jobs: Sender<Job>,
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
    let (jobs, received) = crossbeam_channel::bounded(limits.max_waiting);
    let of_thread = shared.clone();
    std::thread::Builder::new()
        .name("pagoda-pooling".into())
        .spawn(move || serve(model, &received, &of_thread))
        .map_err(|error| EngineError::Device(format!("the thread of a pooling model: {error}")))?;
    Ok(PoolingHandle { shared, jobs })
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
        match self.jobs.try_send(Job { sequences, reply }) {
            Ok(()) => Ok(Some(answer)),
            Err(TrySendError::Full(_)) => Err(EngineError::QueueFull(self.jobs.len())),
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
            num_waiting: shared.num_waiting.load(Relaxed) + self.jobs.len(),
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

    fn dead_error(&self) -> EngineError {
        EngineError::EngineDead(self.shared.dead.lock().clone().unwrap_or_else(|| "the pooling thread ended".into()))
    }
}

fn serve(mut model: Box<dyn SequenceModel>, jobs: &Receiver<Job>, shared: &Shared) {
    let mut queue: Queue<Reply> = Queue::default();
    loop {
        if queue.is_empty() {
            let Ok(job) = jobs.recv() else { return };
            queue.push(job.sequences, job.reply);
        }
        while let Ok(job) = jobs.try_recv() {
            queue.push(job.sequences, job.reply);
        }
        queue.retain(|reply| !reply.is_closed());
        let (members, sequences) = queue.next_batch(shared.limits.batch);
        if sequences.is_empty() {
            continue;
        }
        note_batch(shared, &sequences, queue.num_waiting());
        let outcome = catch_unwind(AssertUnwindSafe(|| model.run(&sequences)));
        shared.num_running.store(0, Relaxed);
        if !answer(&mut queue, &members, outcome, shared) {
            return;
        }
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
mod tests {
    use super::*;

    /// Says each sequence's length and the size of its batch.
    struct Lengths;

    impl SequenceModel for Lengths {
        fn run(&mut self, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
            let one = |sequence: &Sequence| match sequence.ids[0] {
                7 => panic!("scripted"),
                8 => Err(EngineError::Device("scripted".into())),
                _ => Ok(vec![sequence.ids.len() as f32]),
            };
            sequences.iter().map(one).collect()
        }
    }

    fn started() -> PoolingHandle {
        let batch = BatchLimits { max_tokens: 8, max_seqs: 4 };
        start(Box::new(Lengths), PoolingLimits { batch, max_seq_len: 6, vocab_size: 10, max_waiting: 4 }).expect("a thread")
    }

    fn sequence(id: u32, len: usize) -> Sequence {
        Sequence { ids: vec![id; len], token_types: Vec::new() }
    }

    #[test]
    fn outputs_come_in_the_order_of_the_sequences() {
        let handle = started();
        let outputs = handle.run_blocking((1..=6).map(|len| sequence(1, len)).collect()).expect("runs");
        assert_eq!(outputs, (1..=6).map(|len| vec![len as f32]).collect::<Vec<_>>());
        assert!(handle.run_blocking(Vec::new()).expect("nothing to do").is_empty());
        let stats = handle.stats();
        assert_eq!((stats.num_tokens, stats.num_running), (21, 0));
        assert!(stats.num_batches >= 3 && stats.max_running <= 4, "{stats:?}");
    }

    #[test]
    fn wrong_sequences_are_refused_by_place() {
        let handle = started();
        for (sequences, expected) in [
            (vec![sequence(1, 1), sequence(1, 0)], "input[1] has no tokens"),
            (vec![sequence(1, 7)], "input[0] is too long: 7 tokens > 6 maximum"),
            (vec![sequence(10, 1)], "input[0]: token 10 is outside the vocabulary of 10"),
        ] {
            let message = handle.run_blocking(sequences).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_fault_fails_its_requests_and_a_panic_ends_the_thread() {
        let handle = started();
        assert!(matches!(handle.run_blocking(vec![sequence(8, 1)]), Err(EngineError::Device(_))));
        assert_eq!(handle.run_blocking(vec![sequence(1, 2)]).expect("goes on"), [[2.0]]);
        assert!(matches!(handle.run_blocking(vec![sequence(7, 1)]), Err(EngineError::EngineDead(_))));
        assert!(handle.health().is_err_and(|reason| reason.contains("panicked")));
        assert!(matches!(handle.run_blocking(vec![sequence(1, 1)]), Err(EngineError::EngineDead(_))));
    }
}
