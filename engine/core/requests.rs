//! The engine thread's books: which sequence belongs to which request, sampler slots, and what each client still has to hear.

use std::sync::Arc;

use async_channel::Sender;
use pagoda_scheduler::{IdMap, SequenceId};

use super::command::RequestId;
use super::deliveries::Deliveries;
use crate::error::Result;
use crate::request::{Event, FinishReason, Request, Usage};
use crate::runner::{PromptRows, SlotState};
use crate::sampling::{SamplingParams, TokenHistory, TokenLogprobs};

/// One request in the engine.
pub(super) struct Active {
    pub(super) events: Sender<Event>,
    pub(super) params: Arc<SamplingParams>,
    pub(super) stop_ids: Arc<[u32]>,
    pub(super) prompt_len: usize,
    pub(super) sequences: Vec<SequenceId>,
    seed: u64,
    open_choices: usize,
    usage: Usage,
    started: bool,
    prompt_logprobs: Vec<TokenLogprobs>,
    prompt_rows_taken: usize,
}

impl Active {
    /// Rows of the chunk `start .. end` of a prompt whose logprobs were not asked for yet: after a preemption the same chunk runs again,
    /// and must not report twice.
    pub(super) fn take_prompt_rows(&mut self, tokens: &[u32], start: usize, end: usize) -> Option<PromptRows> {
        let top = self.params.prompt_logprobs? as usize;
        let first = start.max(self.prompt_rows_taken);
        let last = end.min(self.prompt_len - 1);
        if first >= last {
            return None;
        }
        self.prompt_rows_taken = last;
        Some(PromptRows { top, first: first - start, next_tokens: tokens[first + 1..last + 1].to_vec() })
    }
}

/// Where a sequence belongs.
#[derive(Clone, Copy)]
pub(super) struct Member {
    pub(super) request: RequestId,
    pub(super) choice: u32,
    /// Sampler slot while it runs.
    pub(super) slot: Option<usize>,
}

/// All requests and sequences.
pub(super) struct Requests {
    active: IdMap<RequestId, Active>,
    members: IdMap<SequenceId, Member>,
    free_slots: Vec<usize>,
    next_sequence: u64,
    eos_ids: Vec<u32>,
    deliveries: Deliveries,
}

impl Requests {
    /// # Errors
    /// The system has no thread to give.
    pub(super) fn new(max_seqs: usize, eos_ids: Vec<u32>) -> Result<Requests> {
        let free_slots = (0..max_seqs).rev().collect();
        let deliveries = Deliveries::start()?;
        Ok(Requests { active: IdMap::default(), members: IdMap::default(), free_slots, next_sequence: 0, eos_ids, deliveries })
    }

    /// Sends off the events of the calls before.
    pub(super) fn flush(&mut self) {
        self.deliveries.flush();
    }

    /// Registers a request; returns the ids of its sequences, one per output.
    pub(super) fn insert(&mut self, id: RequestId, request: &Request, seed: u64, events: Sender<Event>) -> Vec<SequenceId> {
        let n = request.sampling.n.max(1);
        let sequences: Vec<SequenceId> = (0..u64::from(n)).map(|i| SequenceId(self.next_sequence + i)).collect();
        self.next_sequence += u64::from(n);
        for (choice, &sequence) in sequences.iter().enumerate() {
            self.members.insert(sequence, Member { request: id, choice: choice as u32, slot: None });
        }
        let mut stop_ids = request.sampling.stop_token_ids.clone();
        if !request.sampling.ignore_eos {
            stop_ids.extend_from_slice(&self.eos_ids);
        }
        let active = Active {
            events,
            params: Arc::new(request.sampling.clone()),
            stop_ids: stop_ids.into(),
            prompt_len: request.prompt.len(),
            sequences: sequences.clone(),
            seed,
            open_choices: n as usize,
            usage: Usage { prompt_tokens: request.prompt.len(), ..Usage::default() },
            started: false,
            prompt_logprobs: Vec::new(),
            prompt_rows_taken: 0,
        };
        self.active.insert(id, active);
        sequences
    }

    pub(super) fn member(&self, id: SequenceId) -> Option<Member> {
        self.members.get(&id).copied()
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Active> {
        self.active.get(&id)
    }

    pub(super) fn of(&self, id: SequenceId) -> Option<&Active> {
        self.active.get(&self.members.get(&id)?.request)
    }

    /// Gives a sequence that starts to run a sampler slot and the state it begins with.
    pub(super) fn admit(&mut self, id: SequenceId, tokens: &[u32]) -> (usize, SlotState) {
        let slot = self.free_slots.pop().expect("as many slots as running sequences");
        let member = self.members.get_mut(&id).expect("scheduled sequences are registered");
        member.slot = Some(slot);
        let active = &self.active[&member.request];
        let (prompt, output) = tokens.split_at(active.prompt_len);
        let state = SlotState {
            params: active.params.clone(),
            seed: active.seed,
            choice: member.choice,
            stop_ids: active.stop_ids.clone(),
            history: TokenHistory::new(&active.params, prompt, output),
        };
        (slot, state)
    }

    /// Takes the slot of a sequence that was preempted.
    pub(super) fn suspend(&mut self, id: SequenceId) {
        if let Some(slot) = self.members.get_mut(&id).and_then(|m| m.slot.take()) {
            self.free_slots.push(slot);
        }
    }

    /// The request runs for the first time.
    pub(super) fn start(&mut self, id: SequenceId, cached_tokens: usize) {
        let Some(member) = self.member(id) else { return };
        let Some(active) = self.active.get_mut(&member.request) else { return };
        if !active.started {
            active.started = true;
            active.usage.cached_tokens = cached_tokens;
            self.deliveries.send(&active.events, Event::Started { cached_tokens });
        }
    }

    /// Collects prompt logprobs and sends them when the prompt is complete.
    pub(super) fn prompt_logprobs(&mut self, id: SequenceId, entries: Vec<TokenLogprobs>) {
        let Some(member) = self.member(id) else { return };
        let Some(active) = self.active.get_mut(&member.request) else { return };
        active.prompt_logprobs.extend(entries);
        if active.prompt_logprobs.len() + 1 == active.prompt_len {
            self.deliveries.send(&active.events, Event::PromptLogprobs(std::mem::take(&mut active.prompt_logprobs)));
        }
    }

    /// The request of a sequence that runs, and the sequence's slot.
    pub(super) fn running(&mut self, id: SequenceId) -> (&mut Active, usize) {
        let member = self.members[&id];
        let active = self.active.get_mut(&member.request).expect("a member's request is active");
        (active, member.slot.expect("running sequences have slots"))
    }

    /// The slot of a sequence that runs.
    pub(super) fn slot_of(&self, id: SequenceId) -> usize {
        self.members[&id].slot.expect("running sequences have slots")
    }

    /// Whether the token ends the sequence.
    pub(super) fn is_stop(&self, id: SequenceId, token: u32) -> bool {
        self.of(id).is_some_and(|active| active.stop_ids.contains(&token))
    }

    /// Sends a token.
    pub(super) fn token(&mut self, id: SequenceId, token: u32, logprobs: Option<TokenLogprobs>) {
        let Some(member) = self.member(id) else { return };
        let Some(active) = self.active.get_mut(&member.request) else { return };
        active.usage.completion_tokens += 1;
        self.deliveries.send(&active.events, Event::Token { choice: member.choice, token, logprobs });
    }

    /// One output ended; the last one ends the request.
    pub(super) fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        self.suspend(id);
        let Some(member) = self.members.remove(&id) else { return };
        let Some(active) = self.active.get_mut(&member.request) else { return };
        self.deliveries.send(&active.events, Event::Finished { choice: member.choice, reason });
        active.open_choices -= 1;
        if active.open_choices == 0 {
            self.deliveries.send(&active.events, Event::Done(active.usage));
            self.active.remove(&member.request);
        }
    }

    /// Requests whose client is gone.
    pub(super) fn closed(&self) -> Vec<RequestId> {
        self.active.iter().filter(|(_, a)| a.events.is_closed()).map(|(&id, _)| id).collect()
    }

    /// Forgets a request; returns its sequences.
    pub(super) fn remove(&mut self, id: RequestId) -> Vec<SequenceId> {
        let sequences = self.active.remove(&id).map(|a| a.sequences).unwrap_or_default();
        for &sequence in &sequences {
            self.suspend(sequence);
            self.members.remove(&sequence);
        }
        sequences
    }

    /// Fails every request with the same message.
    pub(super) fn fail_all(&mut self, message: &str) {
        for (_, active) in self.active.drain() {
            self.deliveries.send(&active.events, Event::Failed { message: message.into(), caller_fault: false });
        }
        for (_, member) in self.members.drain() {
            self.free_slots.extend(member.slot);
        }
    }
}
