//! Hands events to clients. Waking a client costs more than all else that a token costs the engine thread, so a step of many sequences
//! leaves its events to a thread of their own. That thread also keeps the channels: what both threads touch, however briefly, travels
//! between their cores at every token.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use async_channel::Sender;
use crossbeam_channel::{Receiver, bounded};
use pagoda_scheduler::IdMap;
use parking_lot::Mutex;

use super::command::RequestId;
use crate::error::{EngineError, Result};
use crate::request::Event;

/// Events that are handed over at once: waking the thread would cost as much.
const DIRECT_EVENTS: usize = 8;
/// Batches that may wait for the thread; then the engine thread waits for it.
const MAX_BATCHES: usize = 16;

/// What is to be done for a client.
enum Delivery {
    /// A request begins; its events go there.
    Open(RequestId, Sender<Event>),
    /// An event of an open request.
    Send(RequestId, Event),
    /// Nothing more comes.
    Close(RequestId),
}

type Batch = Vec<Delivery>;
/// Of the open requests. Used by one thread at a time: by the engine's only while the other has nothing to deliver.
type Channels = Mutex<IdMap<RequestId, Sender<Event>>>;

/// Events on their way. Those of one request arrive in the order in which they were sent.
pub(super) struct Deliveries {
    batch: Batch,
    channels: Arc<Channels>,
    queue: Option<crossbeam_channel::Sender<Batch>>,
    /// Emptied batches, for their memory.
    spare: Receiver<Batch>,
    /// Batches that the thread has not delivered yet.
    queued: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Deliveries {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(super) fn start() -> Result<Deliveries> {
        let (queue, batches) = bounded::<Batch>(MAX_BATCHES);
        let (emptied, spare) = bounded(MAX_BATCHES);
        let queued = Arc::new(AtomicUsize::new(0));
        let channels = Arc::new(Channels::default());
        let (delivered, open) = (queued.clone(), channels.clone());
        let run = move || {
            for mut batch in batches {
                deliver(&mut batch, &open);
                delivered.fetch_sub(1, Ordering::Release);
                let _ = emptied.try_send(batch);
            }
        };
        let thread = std::thread::Builder::new().name("pagoda-events".into()).spawn(run);
        let thread = thread.map_err(|e| EngineError::Device(format!("cannot start the events thread: {e}")))?;
        Ok(Deliveries { batch: Vec::new(), channels, queue: Some(queue), spare, queued, thread: Some(thread) })
    }

    /// A request begins whose events go to `to`.
    pub(super) fn open(&mut self, id: RequestId, to: Sender<Event>) {
        self.batch.push(Delivery::Open(id, to));
    }

    /// Takes an event of an open request; `flush` sends it off.
    pub(super) fn send(&mut self, id: RequestId, event: Event) {
        self.batch.push(Delivery::Send(id, event));
    }

    /// A request ends: its channel goes once its last event is there.
    pub(super) fn close(&mut self, id: RequestId) {
        self.batch.push(Delivery::Close(id));
    }

    /// Sends off what was taken.
    pub(super) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.batch.len() <= DIRECT_EVENTS && self.queued.load(Ordering::Acquire) == 0 {
            deliver(&mut self.batch, &self.channels);
            return;
        }
        let batch = std::mem::replace(&mut self.batch, self.spare.try_recv().unwrap_or_default());
        self.queued.fetch_add(1, Ordering::Relaxed);
        let queue = self.queue.as_ref().expect("present until drop");
        if let Err(mut refused) = queue.send(batch) {
            deliver(&mut refused.0, &self.channels);
        }
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.flush();
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A client that is gone does not take its events; the engine thread sees that by itself.
fn deliver(batch: &mut Batch, channels: &Channels) {
    let mut open = channels.lock();
    for delivery in batch.drain(..) {
        match delivery {
            Delivery::Open(id, to) => {
                open.insert(id, to);
            }
            Delivery::Send(id, event) => {
                if let Some(to) = open.get(&id) {
                    let _ = to.try_send(event);
                }
            }
            Delivery::Close(id) => {
                open.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::FinishReason;

    #[test]
    fn events_arrive_in_order_whichever_way_they_go() {
        let mut deliveries = Deliveries::start().unwrap();
        let (sender, events) = async_channel::unbounded();
        let id = RequestId(7);
        deliveries.open(id, sender);
        let mut sent = 0;
        for count in [1, DIRECT_EVENTS, DIRECT_EVENTS + 1, 300, 1, 2, 40, 3] {
            for _ in 0..count {
                deliveries.send(id, Event::Token { choice: 0, token: sent, logprobs: None });
                sent += 1;
            }
            deliveries.flush();
        }
        deliveries.send(id, Event::Finished { choice: 0, reason: FinishReason::Eos });
        deliveries.close(id);
        deliveries.send(id, Event::Finished { choice: 1, reason: FinishReason::Eos });
        drop(deliveries);
        for expected in 0..sent {
            assert!(matches!(events.recv_blocking(), Ok(Event::Token { token, .. }) if token == expected));
        }
        assert!(matches!(events.recv_blocking(), Ok(Event::Finished { choice: 0, .. })));
        assert!(events.recv_blocking().is_err());
    }
}
