//! Random requests and configurations, and what each request's output has to be.

use pagoda_scheduler::{Finish, NewSequence, SchedulerConfig, SequenceId};

use crate::device::{Slot, attend, mix, sample};

/// splitmix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0, self.0 >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below((high - low + 1) as u64) as usize
    }

    /// Never for 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        (!items.is_empty()).then(|| items[self.between(0, items.len() - 1)])
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.between(0, index));
        }
    }
}

#[derive(Debug)]
pub struct Request {
    pub arrives_at: u64,
    pub use_prefix_cache: bool,
    first_id: u64,
    num_choices: u64,
    pub prompt: Vec<u32>,
    max_tokens: u32,
    priority: i32,
    pub salt: u64,
    seed: u64,
    /// By choice.
    expected: Vec<(Vec<u32>, Finish)>,
}

impl Request {
    pub fn ids(&self) -> impl Iterator<Item = SequenceId> + use<> {
        (self.first_id..self.first_id + self.num_choices).map(SequenceId)
    }

    pub fn new_sequence(&self) -> NewSequence {
        NewSequence {
            id: SequenceId(self.first_id),
            prompt: self.prompt.clone(),
            max_tokens: self.max_tokens,
            priority: self.priority,
            salt: self.salt,
            use_prefix_cache: self.use_prefix_cache,
            children: self.ids().skip(1).collect(),
        }
    }

    pub fn choice_seed(&self, branch: usize) -> u64 {
        self.seed + branch as u64
    }

    pub fn expected(&self, branch: usize) -> (&[u32], Finish) {
        let (output, finish) = &self.expected[branch];
        (output, *finish)
    }

    /// What the model gives when it reads its own tokens and nothing else.
    fn run_alone(&self, branch: usize, max_model_len: usize) -> (Vec<u32>, Finish) {
        let mut slots: Vec<Slot> = Vec::new();
        let mut tokens = self.prompt.clone();
        loop {
            while slots.len() < tokens.len() {
                let (token, position) = (tokens[slots.len()], slots.len());
                let prefix_hash = attend(slots.iter().copied(), token, position);
                slots.push(Slot { salt: self.salt, token, position, prefix_hash });
            }
            let (token, is_stop) = sample(slots[slots.len() - 1].prefix_hash, self.choice_seed(branch));
            tokens.push(token);
            let output = &tokens[self.prompt.len()..];
            let finish = match (is_stop, output.len() == self.max_tokens as usize, tokens.len() == max_model_len) {
                (true, _, _) => Finish::Stop,
                (_, true, _) => Finish::MaxTokens,
                (_, _, true) => Finish::ContextFull,
                _ => continue,
            };
            return (output.to_vec(), finish);
        }
    }

    /// Most tokens that its sequences compute if nothing is lost.
    fn num_tokens(&self) -> u64 {
        self.expected.iter().map(|(output, _)| (self.prompt.len() + output.len()) as u64).sum()
    }
}

pub struct Workload {
    pub seed: u64,
    pub config: SchedulerConfig,
    pub requests: Vec<Request>,
    /// Aborts per step are 1 in this many; 0 for none.
    pub abort_one_in: u64,
}

impl Workload {
    pub fn new(seed: u64) -> Workload {
        let mut rng = Rng(seed);
        let config = random_config(&mut rng);
        let num_priorities = if rng.one_in(2) { 1 } else { 3 };
        let num_salts = rng.between(1, 2) as u64;
        let max_gap = rng.pick(&[1, 4, 30]).unwrap_or(1);
        let mut workload = Workload { seed, config, requests: Vec::new(), abort_one_in: rng.pick(&[0, 0, 8, 40]).unwrap_or(0) };
        let (mut arrives_at, mut first_id) = (0, 0);
        for _ in 0..rng.between(10, 40) {
            arrives_at += rng.below(max_gap);
            let prompt_len = rng.between(1, config.max_model_len - 1);
            // Few beginnings: many prompts share some blocks.
            let beginning = rng.below(3) as u32;
            let shared = rng.between(0, prompt_len);
            let prompt = (0..prompt_len).map(|i| if i < shared { beginning * (i as u32 % 2) } else { rng.below(3) as u32 }).collect();
            let mut request = Request {
                arrives_at,
                use_prefix_cache: !rng.one_in(6),
                first_id,
                num_choices: if rng.one_in(3) { rng.between(1, config.max_num_seqs.min(4)) as u64 } else { 1 },
                prompt,
                max_tokens: rng.between(1, config.max_model_len) as u32,
                priority: rng.below(num_priorities) as i32,
                salt: rng.below(num_salts),
                seed: if rng.one_in(2) { 0 } else { rng.next() >> 1 },
                expected: Vec::new(),
            };
            first_id += request.num_choices;
            request.expected = (0..request.num_choices as usize).map(|branch| request.run_alone(branch, config.max_model_len)).collect();
            workload.requests.push(request);
        }
        workload
    }

    /// Most steps from arrival to end, made with `num_ahead` steps queued.
    ///
    /// In each step the first of all sequences in order of service computes a token or waits for its last token: with one priority
    /// it is never preempted and nobody is admitted before it, so those before `request` and itself bound the steps. With several
    /// priorities a sequence of a higher one may wait for lower ones that run, and those lose work to it; the bound is then a loose one.
    pub fn max_steps(&self, request: usize, num_ahead: usize) -> u64 {
        let waits = num_ahead as u64 + 1;
        let num_tokens = |requests: &[Request]| requests.iter().map(|request| request.num_tokens() + request.num_choices * waits).sum();
        if self.requests.iter().all(|request| request.priority == 0) {
            num_tokens(&self.requests[..=request])
        } else {
            2 * num_tokens(&self.requests)
        }
    }
}

/// From pools that hold one full sequence and not a block more to roomy ones.
fn random_config(rng: &mut Rng) -> SchedulerConfig {
    let block_size = rng.pick(&[1, 2, 4, 16]).unwrap_or(1);
    let max_model_len = rng.between(4, 40);
    let min_blocks = max_model_len.div_ceil(block_size);
    let max_blocks = min_blocks * rng.pick(&[1, 2, 2, 6]).unwrap_or(1);
    let max_num_seqs = rng.between(1, 8);
    let min_chunk = rng.between(1, 3);
    SchedulerConfig {
        block_size,
        num_blocks: rng.between(min_blocks, max_blocks),
        max_num_seqs,
        max_num_batched_tokens: max_num_seqs + 2 * (min_chunk - 1) + rng.pick(&[0, 1, 7, 100]).unwrap_or(0),
        min_chunk,
        max_model_len,
        prefix_caching: !rng.one_in(5),
        max_waiting: 1000,
    }
}
