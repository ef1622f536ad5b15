//! The pool's books: which models are loaded, who uses them, who waits, and what is to be done next. No clock, thread or lock of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Lease, PoolLimits};
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
    /// Take back what was put aside.
    Wake(usize, Arc<dyn InferenceBackend>),
    /// Put aside: its weights stay in host memory.
    Sleep(usize, Arc<dyn InferenceBackend>),
    Unload(usize, Arc<dyn InferenceBackend>),
    /// Ask again then.
    WaitUntil(Instant),
    Nothing,
}

/// Where a model is.
enum Place {
    Cold,
    /// Or waking.
    Loading,
    /// Its weights are in host memory.
    Asleep(Arc<dyn InferenceBackend>),
    Ready {
        backend: Arc<dyn InferenceBackend>,
        /// It may not go before.
        stays_until: Instant,
        /// No new requests: another model waits for its room.
        is_closing: bool,
    },
    /// Or falling asleep.
    Unloading,
}

struct Slot {
    place: Place,
    need_bytes: usize,
    /// Host memory that its weights take from its first sleep on.
    kept_bytes: usize,
    /// They take it.
    is_kept: bool,
    num_users: usize,
    /// Number of the last use of any model: smaller was longer ago.
    last_used: u64,
    /// Counts of its former lives.
    retired: BackendStats,
}

pub(super) struct State {
    slots: Vec<Slot>,
    queue: VecDeque<Waiter>,
    limits: PoolLimits,
    num_uses: u64,
    /// A timer will ask again.
    wakes_at: Option<Instant>,
}

impl State {
    /// Of models that take so much memory, and so much host memory when they are put aside.
    pub(super) fn new(sizes: impl Iterator<Item = (usize, usize)>, limits: PoolLimits) -> State {
        let slot = |(need_bytes, kept_bytes)| Slot {
            place: Place::Cold,
            need_bytes,
            kept_bytes,
            is_kept: false,
            num_users: 0,
            last_used: 0,
            retired: BackendStats::default(),
        };
        State { slots: sizes.map(slot).collect(), queue: VecDeque::new(), limits, num_uses: 0, wakes_at: None }
    }

    /// How many of the first models fit together.
    pub(super) fn num_fitting(&self) -> usize {
        let totals = self.slots.iter().scan(0, |total, slot| {
            *total += slot.need_bytes;
            Some(*total)
        });
        totals.take_while(|total| *total <= self.limits.budget_bytes).count()
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
            Place::Cold | Place::Loading | Place::Asleep(_) | Place::Unloading => None,
        }
    }

    /// The model, if it is put aside.
    pub(super) fn sleeping_backend(&self, idx: usize) -> Option<Arc<dyn InferenceBackend>> {
        match &self.slots[idx].place {
            Place::Asleep(backend) => Some(Arc::clone(backend)),
            Place::Cold | Place::Loading | Place::Ready { .. } | Place::Unloading => None,
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
        let has_room = self.queue.len() < self.limits.max_waiting;
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
        match self.queue.iter().find(|waiter| matches!(self.slots[waiter.idx].place, Place::Cold | Place::Asleep(_))) {
            Some(waiter) => self.make_room(waiter.idx, now),
            None => self.reopen(now),
        }
    }

    /// Loads or wakes a model, or sends away what was not used for longest and stands in its way.
    fn make_room(&mut self, wanted: usize, now: Instant) -> Action {
        let taken: usize = self.slots.iter().filter(|slot| matches!(slot.place, Place::Ready { .. })).map(|slot| slot.need_bytes).sum();
        if taken + self.slots[wanted].need_bytes <= self.limits.budget_bytes {
            return match std::mem::replace(&mut self.slots[wanted].place, Place::Loading) {
                Place::Asleep(backend) => Action::Wake(wanted, backend),
                _ => Action::Load(wanted),
            };
        }
        let ready = (0..self.slots.len()).filter(|&idx| matches!(self.slots[idx].place, Place::Ready { .. }));
        // One that is going already goes first, then idle ones.
        let oldest = ready.min_by_key(|&idx| {
            let slot = &self.slots[idx];
            let is_closing = matches!(slot.place, Place::Ready { is_closing: true, .. });
            (!is_closing, slot.num_users > 0, slot.last_used)
        });
        let Some(idx) = oldest else { return Action::Nothing };
        self.send_away(idx, wanted, now)
    }

    fn send_away(&mut self, idx: usize, wanted: usize, now: Instant) -> Action {
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
        let action = match self.oldest_asleep(idx, wanted) {
            _ if self.can_be_kept(idx) => Action::Sleep(idx, backend),
            Some((other, sleeping)) => Action::Unload(other, sleeping),
            None => Action::Unload(idx, backend),
        };
        let (Action::Sleep(goes, _) | Action::Unload(goes, _)) = &action else { return action };
        self.slots[*goes].place = Place::Unloading;
        action
    }

    /// Host memory that the weights of models take.
    fn swapped_bytes(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_kept).map(|slot| slot.kept_bytes).sum()
    }

    /// Whether the host has room for a model's weights now.
    fn can_be_kept(&self, idx: usize) -> bool {
        let slot = &self.slots[idx];
        slot.kept_bytes > 0 && (slot.is_kept || self.swapped_bytes() + slot.kept_bytes <= self.limits.swap_bytes)
    }

    /// The model put aside that was not used for longest, if model `idx` can be kept once such models are gone; never the one `wanted`.
    fn oldest_asleep(&self, idx: usize, wanted: usize) -> Option<(usize, Arc<dyn InferenceBackend>)> {
        let asleep = |&other: &usize| other != wanted && matches!(self.slots[other].place, Place::Asleep(_));
        let freed: usize = (0..self.slots.len()).filter(asleep).map(|other| self.slots[other].kept_bytes).sum();
        let kept_bytes = self.slots[idx].kept_bytes;
        if kept_bytes == 0 || self.swapped_bytes() - freed + kept_bytes > self.limits.swap_bytes {
            return None;
        }
        let oldest = (0..self.slots.len()).filter(asleep).min_by_key(|&other| self.slots[other].last_used)?;
        Some((oldest, self.sleeping_backend(oldest)?))
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

    /// A model sleeps.
    pub(super) fn put_aside(&mut self, idx: usize, backend: Arc<dyn InferenceBackend>) {
        let slot = &mut self.slots[idx];
        slot.place = Place::Asleep(backend);
        slot.is_kept = true;
    }

    /// A model is gone; `is_loading`: it comes back at once.
    pub(super) fn unloaded(&mut self, idx: usize, stats: &BackendStats, is_loading: bool) {
        let slot = &mut self.slots[idx];
        slot.place = if is_loading { Place::Loading } else { Place::Cold };
        slot.is_kept = false;
        slot.retired.add_counts(stats);
    }
}
