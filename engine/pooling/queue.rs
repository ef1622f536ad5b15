//! Which sequences make the next batch. Pure: no clock, no thread.
//!
//! Sequences are packed without padding, so nothing is gained by sorting them by length. Requests take turns, one sequence at a time: a
//! short request does not wait for all of a long one.

use std::collections::{HashMap, VecDeque};

use super::{BatchLimits, Sequence};

/// Names a request within the queue.
pub type RequestId = u64;

/// One sequence of a batch and where its vector goes.
#[derive(Debug, PartialEq)]
pub struct Member {
    /// Its request.
    pub request: RequestId,
    /// Its place among the request's sequences.
    pub index: usize,
}

/// Requests with sequences that wait or run; `T` is what answers a request.
pub struct Queue<T> {
    requests: HashMap<RequestId, Pending<T>>,
    /// Requests with waiting sequences, the next to take its turn first.
    turns: VecDeque<RequestId>,
    next_id: RequestId,
    num_waiting: usize,
}

struct Pending<T> {
    waiting: VecDeque<Sequence>,
    next_index: usize,
    outputs: Vec<Vec<f32>>,
    num_left: usize,
    answer: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue { requests: HashMap::new(), turns: VecDeque::new(), next_id: 0, num_waiting: 0 }
    }
}

impl<T> Queue<T> {
    /// Adds a request of at least one sequence.
    pub fn push(&mut self, sequences: Vec<Sequence>, answer: T) {
        assert!(!sequences.is_empty(), "a request without sequences needs no batch");
        let (id, num_left) = (self.next_id, sequences.len());
        self.next_id += 1;
        self.num_waiting += num_left;
        let outputs = vec![Vec::new(); num_left];
        self.requests.insert(id, Pending { waiting: sequences.into(), next_index: 0, outputs, num_left, answer });
        self.turns.push_back(id);
    }

    /// Whether no sequence waits.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Sequences that wait.
    pub fn num_waiting(&self) -> usize {
        self.num_waiting
    }

    /// Forgets requests whose answer nobody waits for.
    pub fn retain(&mut self, is_wanted: impl Fn(&T) -> bool) {
        self.requests.retain(|_, pending| {
            let wanted = is_wanted(&pending.answer);
            if !wanted {
                self.num_waiting -= pending.waiting.len();
            }
            wanted
        });
        self.turns.retain(|id| self.requests.contains_key(id));
    }

    /// Takes the next batch: in turns, until the next sequence does not fit.
    pub fn next_batch(&mut self, limits: BatchLimits) -> (Vec<Member>, Vec<Sequence>) {
        let (mut members, mut sequences, mut num_tokens) = (Vec::new(), Vec::new(), 0);
        while let Some(&request) = self.turns.front() {
            let pending = self.requests.get_mut(&request).expect("a turn belongs to a request");
            let sequence = pending.waiting.front().expect("a request with a turn has waiting sequences");
            let fits = num_tokens + sequence.ids.len() <= limits.max_tokens && sequences.len() < limits.max_seqs;
            if !fits && !sequences.is_empty() {
                break;
            }
            num_tokens += sequence.ids.len();
            self.turns.pop_front();
            sequences.extend(pending.waiting.pop_front());
            members.push(Member { request, index: pending.next_index });
            pending.next_index += 1;
            if !pending.waiting.is_empty() {
                self.turns.push_back(request);
            }
        }
        self.num_waiting -= sequences.len();
        (members, sequences)
    }

    /// Takes in what a batch gave; `done` gets each request that is complete with it.
    pub fn finish(&mut self, members: &[Member], outputs: Vec<Vec<f32>>, mut done: impl FnMut(T, Vec<Vec<f32>>)) {
        for (member, output) in members.iter().zip(outputs) {
            // A request may have been forgotten meanwhile.
            let Some(pending) = self.requests.get_mut(&member.request) else { continue };
            pending.outputs[member.index] = output;
            pending.num_left -= 1;
            if pending.num_left == 0
                && let Some(pending) = self.requests.remove(&member.request)
            {
                done(pending.answer, pending.outputs);
            }
        }
    }

    /// Takes out the requests of a batch that failed.
    pub fn fail(&mut self, members: &[Member], mut failed: impl FnMut(T)) {
        for member in members {
            if let Some(pending) = self.requests.remove(&member.request) {
                self.num_waiting -= pending.waiting.len();
                failed(pending.answer);
            }
        }
        self.turns.retain(|id| self.requests.contains_key(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits = BatchLimits { max_tokens: 10, max_seqs: 3 };

    fn sequences(lens: &[usize]) -> Vec<Sequence> {
        lens.iter().map(|len| Sequence { ids: vec![1; *len], token_types: Vec::new() }).collect()
    }

    fn places(members: &[Member]) -> Vec<(RequestId, usize)> {
        members.iter().map(|member| (member.request, member.index)).collect()
    }

    #[test]
    fn requests_take_turns_within_the_limits() {
        let mut queue = Queue::default();
        queue.push(sequences(&[4, 4, 4, 1]), "long");
        queue.push(sequences(&[2]), "short");
        let (members, taken) = queue.next_batch(LIMITS);
        assert_eq!(places(&members), [(0, 0), (1, 0), (0, 1)]);
        assert_eq!((taken.len(), queue.num_waiting()), (3, 2));
        let mut done = Vec::new();
        queue.finish(&members, vec![vec![0.0], vec![1.0], vec![2.0]], |answer, outputs| done.push((answer, outputs)));
        assert_eq!(done, [("short", vec![vec![1.0]])]);
        let (members, _) = queue.next_batch(LIMITS);
        assert_eq!(places(&members), [(0, 2), (0, 3)]);
        assert!(queue.is_empty());
        done.clear();
        queue.finish(&members, vec![vec![3.0], vec![4.0]], |answer, outputs| done.push((answer, outputs)));
        assert_eq!(done, [("long", vec![vec![0.0], vec![2.0], vec![3.0], vec![4.0]])]);
    }

    #[test]
    fn a_sequence_that_does_not_fit_is_not_overtaken() {
        let mut queue = Queue::default();
        queue.push(sequences(&[3, 9, 1]), ());
        assert_eq!(places(&queue.next_batch(LIMITS).0), [(0, 0)]);
        assert_eq!(places(&queue.next_batch(LIMITS).0), [(0, 1), (0, 2)]);
    }

    #[test]
    fn what_nobody_waits_for_or_what_failed_is_forgotten() {
        let mut queue = Queue::default();
        queue.push(sequences(&[1, 1]), 1);
        queue.push(sequences(&[1, 1, 1, 1]), 2);
        queue.push(sequences(&[1]), 3);
        queue.retain(|answer| *answer != 3);
        let (members, _) = queue.next_batch(BatchLimits { max_tokens: 3, max_seqs: 9 });
        let mut failed = Vec::new();
        queue.fail(&members, |answer| failed.push(answer));
        assert_eq!((failed, queue.num_waiting(), queue.is_empty()), (vec![1, 2], 0, true));
        queue.finish(&members, vec![vec![]; 3], |_, _| panic!("nobody is left to answer"));
    }
}
