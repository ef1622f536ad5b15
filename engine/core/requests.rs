//! The engine thread's books: which sequence belongs to which request, sampler slots, and what each client still has to hear.

use std::sync::Arc;

use async_channel::Sender;
use pagoda_scheduler::{IdMap, SequenceId};

use super::command::RequestId;
use super::deliveries::Deliveries;
use crate::error::Result;
use crate::grammar::SlotMask;
use crate::request::{Event, FinishReason, Request, Usage};
use crate::runner::{PromptRows, SlotState};
use crate::sampling::{SamplingParams, TokenHistory, TokenLogprobs};

/// One request in the engine.
pub(super) struct Active {
    pub(super) params: Arc<SamplingParams>,
    stop_ids: Arc<[u32]>,
    prompt_len: usize,
    /// For the masks of a grammar; else `params` has it.
    min_tokens: u32,
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

/// A sequence, with what every step asks for: its request is another look into another map.
struct Member {
    request: RequestId,
    choice: u32,
    /// Sampler slot while it runs.
    slot: Option<usize>,
    /// Of its request.
    stop_ids: Arc<[u32]>,
    /// Of its request.
    prompt_len: usize,
    /// Output tokens so far.
    num_tokens: usize,
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
        let mut stop_ids = request.sampling.stop_token_ids.clone();
        if !request.sampling.ignore_eos {
            stop_ids.extend_from_slice(&self.eos_ids);
        }
        let (stop_ids, prompt_len): (Arc<[u32]>, usize) = (stop_ids.into(), request.prompt.len());
        for (choice, &sequence) in (0..).zip(&sequences) {
            let member = Member { request: id, choice, slot: None, stop_ids: stop_ids.clone(), prompt_len, num_tokens: 0 };
            self.members.insert(sequence, member);
        }
        self.deliveries.open(id, events);
        let mut params = request.sampling.clone();
        // A grammar's masks hold stop tokens back themselves, as long as anything else may come.
        let min_tokens = if params.grammar.is_some() { std::mem::take(&mut params.min_tokens) } else { 0 };
        let active = Active {
            params: Arc::new(params),
            stop_ids,
            prompt_len,
            min_tokens,
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
            mask: active.params.grammar.as_ref().map(|g| SlotMask::start(g, active.stop_ids.clone(), active.min_tokens, output)),
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
        let Some(&Member { request, .. }) = self.members.get(&id) else { return };
        let Some(active) = self.active.get_mut(&request) else { return };
        if !active.started {
            active.started = true;
            active.usage.cached_tokens = cached_tokens;
            self.deliveries.send(request, Event::Started { cached_tokens });
        }
    }

    /// Collects prompt logprobs and sends them when the prompt is complete.
    pub(super) fn prompt_logprobs(&mut self, id: SequenceId, entries: Vec<TokenLogprobs>) {
        let Some(&Member { request, .. }) = self.members.get(&id) else { return };
        let Some(active) = self.active.get_mut(&request) else { return };
        active.prompt_logprobs.extend(entries);
        if active.prompt_logprobs.len() + 1 == active.prompt_len {
            self.deliveries.send(request, Event::PromptLogprobs(std::mem::take(&mut active.prompt_logprobs)));
        }
    }

    /// The slot of a sequence that runs, and the length of its prompt.
    pub(super) fn running(&self, id: SequenceId) -> (usize, usize) {
        let member = &self.members[&id];
        (member.slot.expect("running sequences have slots"), member.prompt_len)
    }

    /// See `Active::take_prompt_rows`.
    pub(super) fn take_prompt_rows(&mut self, id: SequenceId, tokens: &[u32], start: usize, end: usize) -> Option<PromptRows> {
        self.active.get_mut(&self.members[&id].request)?.take_prompt_rows(tokens, start, end)
    }

    /// The slot of a sequence that runs.
    pub(super) fn slot_of(&self, id: SequenceId) -> usize {
        self.members[&id].slot.expect("running sequences have slots")
    }

    /// Whether the token ends the sequence.
    pub(super) fn is_stop(&self, id: SequenceId, token: u32) -> bool {
        self.members.get(&id).is_some_and(|member| member.stop_ids.contains(&token))
    }

    /// Sends a token.
    pub(super) fn token(&mut self, id: SequenceId, token: u32, logprobs: Option<TokenLogprobs>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.num_tokens += 1;
        self.deliveries.send(member.request, Event::Token { choice: member.choice, token, logprobs });
    }

    /// One output ended; the last one ends the request.
    pub(super) fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        self.suspend(id);
        let Some(Member { request, choice, num_tokens, .. }) = self.members.remove(&id) else { return };
        let Some(active) = self.active.get_mut(&request) else { return };
        self.deliveries.send(request, Event::Finished { choice, reason });
        active.usage.completion_tokens += num_tokens;
        active.open_choices -= 1;
        if active.open_choices == 0 {
            self.deliveries.send(request, Event::Done(active.usage));
            self.deliveries.close(request);
            self.active.remove(&request);
        }
    }

    /// Forgets a request; returns its sequences.
    pub(super) fn remove(&mut self, id: RequestId) -> Vec<SequenceId> {
        let Some(Active { sequences, .. }) = self.active.remove(&id) else { return Vec::new() };
        self.deliveries.close(id);
        for &sequence in &sequences {
            self.suspend(sequence);
            self.members.remove(&sequence);
        }
        sequences
    }

    /// Fails the request of a sequence by its own fault; returns its sequences.
    pub(super) fn fail(&mut self, id: SequenceId, message: String) -> Vec<SequenceId> {
        let Some(&Member { request, .. }) = self.members.get(&id) else { return Vec::new() };
        self.deliveries.send(request, Event::Failed { message, caller_fault: true });
        self.remove(request)
    }

    /// Fails every request with the same message.
    pub(super) fn fail_all(&mut self, message: &str) {
        for (id, _) in self.active.drain() {
            self.deliveries.send(id, Event::Failed { message: message.into(), caller_fault: false });
            self.deliveries.close(id);
        }
        for (_, member) in self.members.drain() {
            self.free_slots.extend(member.slot);
        }
    }
}
