//! The scheduler with random work and a fake device that models what is in every slot, against outputs worked out without any scheduler
//! (what an infinite pool gives). Arrivals, aborts, tiny pools, priorities, several choices, preemption, early stops; the same work in
//! the plain loop and one and more steps ahead.
//!
//! The fake model hashes everything that it reads through the block table, so that a wrong block, a lost copy, an early reuse or a false
//! hit changes the output from there on. The device runs steps in order and as late as it may, and the sequences of a step in any order.

mod device;
mod workload;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use device::{Device, QueuedStep};
use pagoda_scheduler::{Committed, Scheduler, SequenceId, Step};
use workload::{Rng, Workload};

const SEEDS: std::ops::Range<u64> = 0..1000;

/// What happened over all seeds: the work must reach what it is to test.
#[derive(Debug, Default)]
struct Totals {
    num_steps: u64,
    num_preemptions: u64,
    num_resumed: u64,
    num_hit_tokens: u64,
    num_evictions: u64,
    num_copies: u64,
    num_forked: u64,
    num_aborted: u64,
    num_dropped_tokens: u64,
    num_inputs_in_flight: u64,
    num_chunks: u64,
}

/// What the caller of the scheduler knows about a sequence.
#[derive(Debug)]
struct Progress {
    request: usize,
    branch: usize,
    added_at: u64,
    output: Vec<u32>,
    next_start: usize,
    is_over: bool,
}

struct Simulation<'a> {
    workload: &'a Workload,
    scheduler: Scheduler,
    device: Device,
    rng: Rng,
    queued: VecDeque<QueuedStep>,
    progress: BTreeMap<SequenceId, Progress>,
    /// Most steps that are queued while the next one is made.
    num_ahead: usize,
    tick: u64,
    totals: &'a mut Totals,
}

impl<'a> Simulation<'a> {
    fn new(workload: &'a Workload, num_ahead: usize, totals: &'a mut Totals) -> Simulation<'a> {
        let scheduler = Scheduler::new(workload.config).expect("the workload's config is valid");
        let device = Device::new(workload.config.num_blocks, workload.config.block_size);
        let (queued, progress) = (VecDeque::new(), BTreeMap::new());
        let rng = Rng(workload.seed ^ 0x5eed);
        Simulation { workload, scheduler, device, rng, queued, progress, num_ahead, tick: 0, totals }
    }

    /// The engine's loop.
    fn run(&mut self) {
        let mut arrivals: VecDeque<usize> = (0..self.workload.requests.len()).collect();
        while !arrivals.is_empty() || self.scheduler.has_work() {
            while arrivals.front().is_some_and(|request| self.workload.requests[*request].arrives_at <= self.tick) {
                arrivals.pop_front().into_iter().for_each(|request| self.arrive(request));
            }
            self.abort_some();
            let step = self.scheduler.schedule();
            self.check_step(&step);
            let is_empty = step.is_empty();
            if !is_empty {
                self.queued.push_back(self.device.prepare(step, &self.scheduler));
            }
            assert!(!is_empty || !self.queued.is_empty() || !self.scheduler.has_work(), "nothing runs and nothing will");
            while self.queued.len() > if is_empty { 0 } else { self.num_ahead } {
                self.execute_and_commit();
            }
            self.tick += 1;
        }
        while !self.queued.is_empty() {
            self.execute_and_commit();
        }
        self.finish();
    }

    fn arrive(&mut self, index: usize) {
        let request = &self.workload.requests[index];
        self.scheduler.add(request.new_sequence()).expect("the workload asks for what can run");
        for (branch, id) in request.ids().enumerate() {
            let progress = Progress { request: index, branch, added_at: self.tick, output: Vec::new(), next_start: 0, is_over: false };
            self.progress.insert(id, progress);
        }
    }

    fn abort_some(&mut self) {
        while self.rng.one_in(self.workload.abort_one_in) {
            let ids: Vec<SequenceId> = self.progress.keys().copied().collect();
            let Some(id) = self.rng.pick(&ids) else { return };
            let is_parent_alone = self.scheduler.tokens(id).is_some() && self.progress[&id].branch == 0;
            // Children that do not exist yet go with their parent.
            let request = &self.workload.requests[self.progress[&id].request];
            let unborn: Vec<SequenceId> = request.ids().skip(1).filter(|child| self.scheduler.tokens(*child).is_none()).collect();
            let was_over = self.progress[&id].is_over;
            assert_eq!(self.scheduler.abort(id), !was_over, "abort of {id:?}");
            self.totals.num_aborted += u64::from(!was_over);
            for gone in std::iter::once(id).chain(unborn.into_iter().filter(|_| is_parent_alone)) {
                self.progress.get_mut(&gone).expect("the sequence was added").is_over = true;
                assert!(self.scheduler.tokens(gone).is_none() && !self.scheduler.abort(gone), "{gone:?} is gone");
            }
            self.scheduler.check_integrity();
        }
    }

    fn check_step(&mut self, step: &Step) {
        let config = &self.workload.config;
        self.scheduler.check_integrity();
        let num_tokens: usize = step.sequences.iter().map(|scheduled| scheduled.num_tokens).sum();
        assert_eq!(step.num_tokens, num_tokens);
        assert!(num_tokens <= config.max_num_batched_tokens, "{num_tokens} tokens in a step");
        assert!(self.scheduler.num_running() <= config.max_num_seqs, "{} sequences run", self.scheduler.num_running());
        let ids: BTreeSet<SequenceId> = step.sequences.iter().map(|scheduled| scheduled.id).collect();
        assert_eq!(ids.len(), step.sequences.len(), "a sequence is in the step twice");
        let sources: BTreeSet<_> = step.block_copies.iter().map(|copy| copy.src).collect();
        let targets: BTreeSet<_> = step.block_copies.iter().map(|copy| copy.dst).collect();
        assert!(targets.len() == step.block_copies.len() && sources.is_disjoint(&targets), "the copies depend on their order");
        for id in &step.preempted {
            assert!(!ids.contains(id), "{id:?} is preempted and scheduled");
            self.progress.get_mut(id).expect("the sequence was added").next_start = usize::MAX;
        }
        for scheduled in &step.sequences {
            let request = &self.workload.requests[self.progress[&scheduled.id].request];
            let progress = self.progress.get_mut(&scheduled.id).expect("the sequence was added");
            if let Some(admission) = scheduled.admitted {
                assert_eq!(admission.resumed, progress.next_start == usize::MAX, "resumption of {:?}", scheduled.id);
                assert!(request.use_prefix_cache && config.prefix_caching || admission.cached_tokens == 0, "a hit that was not wanted");
                progress.next_start = admission.cached_tokens;
                self.totals.num_resumed += u64::from(admission.resumed);
            }
            assert!(scheduled.num_tokens > 0);
            let prompt_len = request.prompt.len();
            let is_chunk = scheduled.start < prompt_len && prompt_len >= config.min_chunk;
            assert!(!is_chunk || scheduled.num_tokens >= config.min_chunk, "a chunk of {} tokens", scheduled.num_tokens);
            assert_eq!(scheduled.start, progress.next_start, "start of {:?}", scheduled.id);
            progress.next_start += scheduled.num_tokens;
            let next_start = progress.next_start;
            for child in scheduled.samples.iter().skip(1) {
                self.progress.get_mut(child).expect("children were announced").next_start = next_start;
                self.totals.num_forked += 1;
            }
            self.totals.num_inputs_in_flight += u64::from(scheduled.input_in_flight);
            self.totals.num_chunks += u64::from(scheduled.samples.is_empty());
        }
        self.totals.num_copies += step.block_copies.len() as u64;
        self.totals.num_steps += 1;
    }

    fn execute_and_commit(&mut self) {
        let queued = self.queued.pop_front().expect("a step is queued");
        let sampled = self.device.execute(&queued, &mut self.rng, |id| {
            let progress = &self.progress[&id];
            let request = &self.workload.requests[progress.request];
            (request.salt, request.choice_seed(progress.branch))
        });
        let committed = self.scheduler.commit(&queued.step, &sampled);
        self.scheduler.check_integrity();
        self.totals.num_dropped_tokens += (sampled.len() - committed.len()) as u64;
        for Committed { id, token, finished } in committed {
            let progress = self.progress.get_mut(&id).expect("the sequence was added");
            assert!(!progress.is_over, "{id:?} goes on after its end");
            progress.output.push(token);
            let request = &self.workload.requests[progress.request];
            let (expected, finish) = request.expected(progress.branch);
            assert!(expected.starts_with(&progress.output), "{id:?} gives {:?}, expected {expected:?}", progress.output);
            assert_eq!(finished, (expected.len() == progress.output.len()).then_some(finish), "end of {id:?}");
            assert_eq!(self.scheduler.tokens(id).is_none(), finished.is_some(), "{id:?} exists until it ends");
            progress.is_over = finished.is_some();
            if finished.is_some() {
                let num_steps = self.tick - progress.added_at;
                let bound = self.workload.max_steps(progress.request, self.num_ahead);
                assert!(num_steps <= bound, "{id:?} took {num_steps} steps, more than {bound}");
            }
        }
    }

    fn finish(&mut self) {
        assert!(self.progress.values().all(|progress| progress.is_over), "a sequence was lost");
        let stats = self.scheduler.stats();
        assert_eq!((stats.num_used_blocks, stats.num_running, stats.num_waiting), (0, 0, 0));
        self.totals.num_preemptions += stats.num_preemptions;
        self.totals.num_hit_tokens += stats.num_prefix_hit_tokens;
        self.totals.num_evictions += stats.num_evictions;
        self.scheduler.clear_prefix_cache();
        assert_eq!(self.scheduler.stats().num_evictable_blocks, 0);
        self.scheduler.check_integrity();
    }
}

#[test]
fn outputs_are_those_of_an_infinite_pool() {
    let mut totals = Totals::default();
    for seed in SEEDS {
        let workload = Workload::new(seed);
        for num_ahead in [0, 1, 3] {
            println!("seed {seed}, {num_ahead} steps ahead, {:?}", workload.config);
            Simulation::new(&workload, num_ahead, &mut totals).run();
        }
    }
    println!("{totals:?}");
    let Totals { num_preemptions, num_resumed, num_hit_tokens, num_evictions, num_copies, num_forked, .. } = totals;
    let Totals { num_aborted, num_dropped_tokens, num_inputs_in_flight, num_chunks, .. } = totals;
    for (what, count) in [
        ("preemptions", num_preemptions),
        ("resumptions", num_resumed),
        ("hits", num_hit_tokens),
        ("evictions", num_evictions),
        ("copies", num_copies),
        ("forks", num_forked),
        ("aborts", num_aborted),
        ("dropped tokens", num_dropped_tokens),
        ("inputs in flight", num_inputs_in_flight),
        ("chunks", num_chunks),
    ] {
        assert!(count > 1000, "only {count} {what}: the work does not reach what it is to test");
    }
}
