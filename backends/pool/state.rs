//! The pool's books: which models are loaded, who uses them, who waits, and what is to be done next. No clock, thread or lock of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::Lease;
use crate::{BackendError, BackendStats, InferenceBackend};

/// A request that waits for a model.
pub(super) struct Waiter {
    pub(super) idx: usize,
    pub(super) granted: oneshot::Sender<Result<Lease, BackendError>>,
}

/// What is to be done.
pub(super) enum Action {
    /// Hand the model to whoever waited; it counts as used already.
    Grant(Waiter, Arc<dyn InferenceBackend>),
    Load(usize),
    Unload(usize, Arc<dyn InferenceBackend>),
    /// Ask again then.
    WaitUntil(Instant),
    Nothing,
}

/// Where a model is.
enum Place {
    Cold,
    Loading,
    Ready {
        backend: Arc<dyn InferenceBackend>,
        /// It may not go before.
        stays_until: Instant,
        /// No new requests: another model waits for its room.
        is_closing: bool,
    },
    Unloading,
}

struct Slot {
    place: Place,
    need_bytes: usize,
    num_users: usize,
    /// Number of the last use of any model: smaller was longer ago.
    last_used: u64,
    /// Counts of its former lives.
    retired: BackendStats,
}

pub(super) struct State {
    slots: Vec<Slot>,
    queue: VecDeque<Waiter>,
    budget_bytes: usize,
    max_waiting: usize,
    num_uses: u64,
    /// A timer will ask again.
    wakes_at: Option<Instant>,
}

impl State {
    pub(super) fn new(needs: Vec<usize>, budget_bytes: usize, max_waiting: usize) -> State {
        let slot = |need_bytes| Slot { place: Place::Cold, need_bytes, num_users: 0, last_used: 0, retired: BackendStats::default() };
        let slots = needs.into_iter().map(slot).collect();
        State { slots, queue: VecDeque::new(), budget_bytes, max_waiting, num_uses: 0, wakes_at: None }
    }

    /// How many of the first models fit together.
    pub(super) fn num_fitting(&self) -> usize {
        let totals = self.slots.iter().scan(0, |total, slot| {
            *total += slot.need_bytes;
            Some(*total)
        });
        totals.take_while(|total| *total <= self.budget_bytes).count()
    }

    pub(super) fn num_waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests that wait for a model.
    pub(super) fn num_waiting_for(&self, idx: usize) -> usize {
        self.queue.iter().filter(|waiter| waiter.idx == idx).count()
    }

    /// Counts of a model's former lives.
    pub(super) fn retired(&self, idx: usize) -> BackendStats {
        self.slots[idx].retired
    }

    /// The model, if it is loaded.
    pub(super) fn loaded_backend(&self, idx: usize) -> Option<Arc<dyn InferenceBackend>> {
        match &self.slots[idx].place {
            Place::Ready { backend, .. } => Some(Arc::clone(backend)),
            Place::Cold | Place::Loading | Place::Unloading => None,
        }
    }

    /// The model, if it takes requests and nobody waited for it before.
    pub(super) fn take(&mut self, idx: usize) -> Option<Arc<dyn InferenceBackend>> {
        if self.queue.iter().any(|waiter| waiter.idx == idx) {
            return None;
        }
        self.use_now(idx)
    }

    fn use_now(&mut self, idx: usize) -> Option<Arc<dyn InferenceBackend>> {
        let slot = &mut self.slots[idx];
        let Place::Ready { backend, is_closing: false, .. } = &slot.place else { return None };
        slot.num_users += 1;
        Some(Arc::clone(backend))
    }

    /// Lets a request wait; false: too many do.
    pub(super) fn push(&mut self, waiter: Waiter) -> bool {
        self.queue.retain(|waiter| !waiter.granted.is_closed());
        let has_room = self.queue.len() < self.max_waiting;
        if has_room {
            self.queue.push_back(waiter);
        }
        has_room
    }

    pub(super) fn release(&mut self, idx: usize) {
        self.num_uses += 1;
        let slot = &mut self.slots[idx];
        slot.num_users -= 1;
        slot.last_used = self.num_uses;
    }

    /// What is to be done now; whoever asks does it and asks again.
    pub(super) fn next(&mut self, now: Instant) -> Action {
        self.queue.retain(|waiter| !waiter.granted.is_closed());
        let ready = self.queue.iter().position(|waiter| matches!(self.slots[waiter.idx].place, Place::Ready { is_closing: false, .. }));
        if let Some(waiter) = ready.and_then(|at| self.queue.remove(at))
            && let Some(backend) = self.use_now(waiter.idx)
        {
            return Action::Grant(waiter, backend);
        }
        if self.slots.iter().any(|slot| matches!(slot.place, Place::Loading | Place::Unloading)) {
            return Action::Nothing;
        }
        match self.queue.iter().find(|waiter| matches!(self.slots[waiter.idx].place, Place::Cold)) {
            Some(waiter) => self.make_room(waiter.idx, now),
            None => self.reopen(now),
        }
    }

    /// Loads a model, or unloads what was not used for longest and stands in its way.
    fn make_room(&mut self, wanted: usize, now: Instant) -> Action {
        let taken: usize = self.slots.iter().filter(|slot| matches!(slot.place, Place::Ready { .. })).map(|slot| slot.need_bytes).sum();
        if taken + self.slots[wanted].need_bytes <= self.budget_bytes {
            self.slots[wanted].place = Place::Loading;
            return Action::Load(wanted);
        }
        let ready = (0..self.slots.len()).filter(|&idx| matches!(self.slots[idx].place, Place::Ready { .. }));
        // One that is going already goes first, then idle ones.
        let oldest = ready.min_by_key(|&idx| {
            let slot = &self.slots[idx];
            let is_closing = matches!(slot.place, Place::Ready { is_closing: true, .. });
            (!is_closing, slot.num_users > 0, slot.last_used)
        });
        let Some(idx) = oldest else { return Action::Nothing };
        self.send_away(idx, now)
    }

    fn send_away(&mut self, idx: usize, now: Instant) -> Action {
        let slot = &mut self.slots[idx];
        let Place::Ready { backend, stays_until, is_closing } = &mut slot.place else { return Action::Nothing };
        if now < *stays_until {
            let time = *stays_until;
            return self.wait_until(time, now);
        }
        *is_closing = true;
        if slot.num_users > 0 {
            return Action::Nothing;
        }
        let backend = Arc::clone(backend);
        slot.place = Place::Unloading;
        Action::Unload(idx, backend)
    }

    /// One timer at a time.
    fn wait_until(&mut self, time: Instant, now: Instant) -> Action {
        if self.wakes_at.is_some_and(|wakes_at| wakes_at > now && wakes_at <= time) {
            return Action::Nothing;
        }
        self.wakes_at = Some(time);
        Action::WaitUntil(time)
    }

    /// Nobody waits for another model any more: those that were to go stay.
    fn reopen(&mut self, now: Instant) -> Action {
        let mut reopened = false;
        for slot in &mut self.slots {
            if let Place::Ready { is_closing, .. } = &mut slot.place {
                reopened |= std::mem::replace(is_closing, false);
            }
        }
        match self.queue.iter().any(|waiter| reopened && matches!(self.slots[waiter.idx].place, Place::Ready { .. })) {
            true => self.next(now),
            false => Action::Nothing,
        }
    }

    /// A load ended. A failed one gives those who waited for it.
    pub(super) fn loaded(
        &mut self,
        idx: usize,
        outcome: Result<Arc<dyn InferenceBackend>, BackendError>,
        stays_until: Instant,
    ) -> Option<(Vec<Waiter>, BackendError)> {
        match outcome {
            Ok(backend) => {
                self.num_uses += 1;
                self.slots[idx].last_used = self.num_uses;
                self.slots[idx].place = Place::Ready { backend, stays_until, is_closing: false };
                None
            }
            Err(error) => {
                self.slots[idx].place = Place::Cold;
                let (failed, others) = self.queue.drain(..).partition(|waiter| waiter.idx == idx);
                self.queue = others;
                let failed: VecDeque<Waiter> = failed;
                Some((failed.into(), error))
            }
        }
    }

    pub(super) fn unloaded(&mut self, idx: usize, stats: &BackendStats) {
        let slot = &mut self.slots[idx];
        slot.place = Place::Cold;
        slot.retired.add_counts(stats);
    }
}
