//! The engine thread: drain commands -> schedule -> execute -> commit -> emit.
//!
//! Two loops with the same body: `step_plain` waits for each step before it makes the next; `step_ahead` makes and queues the next step
//! while the last one still runs. Both give the same tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded, unbounded};
use pagoda_scheduler::{NewSequence, Scheduler, SchedulerConfig, SequenceId, Step};
use tracing::{error, info, warn};

use super::command::{Command, RequestId};
use super::handle::{EngineHandle, Shared};
use super::live;
use super::requests::Requests;
use super::rest::RestState;
use super::stats::EngineStats;
use crate::error::{EngineError, Result};
use crate::request::{Event, FinishReason, Request};
use crate::runner::executor::{Executor, Immediate, StepRunner, panic_message};
use crate::runner::{StepInputs, StepOutputs};

/// Restarts of a failed engine before it gives up, when restarting is on.
const MAX_RESTARTS: u32 = 3;

/// What the engine thread needs to know beside the runner.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Pool and batch bounds.
    pub scheduler: SchedulerConfig,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
    /// Make the next step while the last one runs.
    pub step_ahead: bool,
    /// After a failed step: fail the requests, forget the cache and go on (at most a few times).
    pub restart_on_failure: bool,
}

/// Starts the engine thread over a function that runs one step.
///
/// # Errors
/// An invalid configuration, or the system has no thread to give.
pub fn start(config: EngineConfig, execute: impl FnMut(StepInputs) -> Result<StepOutputs> + Send + 'static) -> Result<EngineHandle> {
    start_runner(config, Immediate::new(execute))
}

/// Starts the engine thread over what launches and finishes steps.
///
/// # Errors
/// As `start`.
pub fn start_runner(config: EngineConfig, runner: impl StepRunner) -> Result<EngineHandle> {
    let scheduler = new_scheduler(&config)?;
    let executor = Executor::start(runner)?;
    let shared = Arc::new(Shared::new(config.vocab_size, config.scheduler.max_model_len, config.scheduler.max_num_seqs));
    let (sender, commands) = bounded(config.scheduler.max_waiting.max(1));
    let (dropping, dropped) = unbounded();
    let requests = Requests::new(config.scheduler.max_num_seqs, config.eos_token_ids.clone())?;
    let SchedulerConfig { num_blocks, block_size, .. } = config.scheduler;
    let stats = EngineStats { num_blocks, block_size, ..EngineStats::default() };
    shared.stats.store(&stats);
    let engine = Engine {
        config,
        scheduler,
        requests,
        commands,
        dropped,
        shared: shared.clone(),
        executor,
        in_flight: None,
        draining: false,
        rest: RestState::Awake,
        restarts: 0,
        stats,
        spare_inputs: Vec::new(),
        host_time: Duration::ZERO,
    };
    let thread = std::thread::Builder::new().name("pagoda-engine".into());
    let (alive, ended) = bounded(0);
    let run = move || {
        engine.run();
        // Now that the engine has let go of the device.
        drop(alive);
    };
    thread.spawn(run).map_err(|e| EngineError::Device(format!("cannot start the engine thread: {e}")))?;
    live::note(ended.clone());
    Ok(EngineHandle { shared, commands: sender, dropped: dropping, ended })
}

fn new_scheduler(config: &EngineConfig) -> Result<Scheduler> {
    Scheduler::new(config.scheduler).map_err(|e| EngineError::Option { option: "scheduler", reason: e.to_string() })
}

pub(super) struct Engine {
    pub(super) config: EngineConfig,
    pub(super) scheduler: Scheduler,
    pub(super) requests: Requests,
    commands: Receiver<Command>,
    /// Requests whose streams were dropped before their end.
    dropped: Receiver<RequestId>,
    shared: Arc<Shared>,
    pub(super) executor: Executor,
    /// The step that was queued and not yet committed.
    in_flight: Option<Step>,
    draining: bool,
    pub(super) rest: RestState,
    restarts: u32,
    pub(super) stats: EngineStats,
    /// Of committed steps, to be filled again: at most as many as steps in flight.
    pub(super) spare_inputs: Vec<StepInputs>,
    /// Spent outside waiting for steps.
    host_time: Duration,
}

impl Engine {
    fn run(mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let reason = ended.unwrap_or_else(|panic| {
            let reason = format!("the engine thread panicked: {}", panic_message(&*panic));
            error!(reason, "engine failed");
            reason
        });
        *self.shared.dead.lock() = Some(reason.clone());
        self.requests.fail_all(&reason);
        self.publish();
        self.refuse_queued(&reason);
    }

    /// Answers what is still in the queue, which keeps its messages when nobody receives them any more. `dead` is set by now, so that what
    /// comes later is refused by the handle.
    fn refuse_queued(&self, reason: &str) {
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Add { events, .. } = command {
                let _ = events.try_send(Event::Refused { message: format!("engine ended: {reason}") });
            }
        }
    }

    /// Serves until told to end or unable to go on; returns why.
    fn serve(&mut self) -> String {
        while self.receive() {
            let result = if self.config.step_ahead { self.step_ahead() } else { self.step_plain() };
            if let Err(fault) = result
                && !self.recover(&fault)
            {
                return fault.to_string();
            }
            let started = Instant::now();
            self.publish();
            self.add_host_time(started.elapsed());
        }
        info!("engine ended");
        "the engine was shut down".into()
    }

    /// Makes a step, runs it, commits it.
    fn step_plain(&mut self) -> Result<()> {
        let Some(step) = self.schedule_and_submit()? else { return Ok(()) };
        let outputs = self.shared.waiting(|| self.executor.wait())?;
        self.commit(&step, outputs);
        Ok(())
    }

    /// Makes and queues a step, then commits the one before it.
    fn step_ahead(&mut self) -> Result<()> {
        let next = self.schedule_and_submit()?;
        if let Some(step) = std::mem::replace(&mut self.in_flight, next) {
            let outputs = self.shared.waiting(|| self.executor.wait())?;
            self.commit(&step, outputs);
        }
        Ok(())
    }

    fn schedule_and_submit(&mut self) -> Result<Option<Step>> {
        let started = Instant::now();
        let step = self.scheduler.schedule();
        if step.is_empty() && self.in_flight.is_none() && self.scheduler.has_work() {
            return Err(EngineError::Device("the scheduler has work but made an empty step".into()));
        }
        for &id in &step.preempted {
            self.requests.suspend(id);
        }
        if step.is_empty() {
            return Ok(None);
        }
        let inputs = self.inputs_of(&step);
        self.note_step(&step);
        self.executor.submit(inputs)?;
        self.add_host_time(started.elapsed());
        Ok(Some(step))
    }

    fn note_step(&mut self, step: &Step) {
        let slots = self.scheduler.kv_slots();
        self.stats.num_steps += 1;
        self.stats.num_tokens += step.num_tokens as u64;
        self.stats.step_sizes.note(step.num_tokens);
        self.stats.max_running = self.stats.max_running.max(step.sequences.len());
        self.stats.kv_slots_allocated += slots.num_allocated as u64;
        self.stats.kv_slots_used += slots.num_used as u64;
    }

    pub(super) fn add_host_time(&mut self, spent: Duration) {
        self.host_time += spent;
        self.stats.host_us = self.host_time.as_micros() as u64;
    }

    /// Makes numbers and events known.
    fn publish(&mut self) {
        let scheduled = self.scheduler.stats();
        self.stats.num_running = scheduled.num_running;
        self.stats.num_waiting = scheduled.num_waiting;
        self.stats.num_used_blocks = scheduled.num_used_blocks;
        self.stats.num_preemptions = scheduled.num_preemptions;
        self.stats.prefix_queries = scheduled.num_prefix_query_tokens;
        self.stats.prefix_hits = scheduled.num_prefix_hit_tokens;
        self.shared.stats.store(&self.stats);
        self.requests.flush();
    }

    /// Takes what was said; waits when there is nothing to do. False: time to end.
    fn receive(&mut self) -> bool {
        self.drop_closed();
        loop {
            let idle = self.in_flight.is_none() && !self.scheduler.has_work();
            if idle && self.draining {
                return false;
            }
            if idle {
                self.fall_asleep();
            }
            let full = self.scheduler.num_waiting() >= self.config.scheduler.max_waiting;
            let command = if idle {
                self.idle();
                self.commands.recv().map_err(|_| TryRecvError::Disconnected)
            } else if full {
                return true;
            } else {
                self.commands.try_recv()
            };
            match command {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !idle,
            }
        }
    }

    fn idle(&mut self) {
        if cfg!(debug_assertions) {
            self.scheduler.check_integrity();
        }
        self.publish();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add { events, .. } if self.draining => {
                let _ = events.try_send(Event::Refused { message: "the engine is shutting down".into() });
            }
            Command::Add { events, .. } if !self.rest.is_awake() => {
                let _ = events.try_send(Event::Refused { message: "the model sleeps; wake it first".into() });
            }
            Command::Add { id, request, seed, events } => self.add(id, *request, seed, events),
            Command::Sleep(answer) => self.sleep(answer),
            Command::Wake(answer) => self.wake(&answer),
            Command::EndChoice { id, choice } => self.end_choice(id, choice),
            Command::ClearPrefixCache => self.scheduler.clear_prefix_cache(),
            Command::Shutdown => self.draining = true,
        }
    }

    fn add(&mut self, id: RequestId, request: Request, seed: u64, events: async_channel::Sender<Event>) {
        // Its stream was dropped while it was in the queue, so that nobody will tell.
        if events.is_closed() {
            return;
        }
        let sequences = self.requests.insert(id, &request, seed, events.clone());
        let (first, children) = sequences.split_first().expect("a request has at least one output");
        let sequence = NewSequence {
            id: *first,
            max_tokens: request.sampling.max_tokens,
            priority: request.priority,
            salt: request.cache_salt,
            use_prefix_cache: request.sampling.prompt_logprobs.is_none(),
            children: children.to_vec(),
            prompt: request.prompt,
        };
        if let Err(refusal) = self.scheduler.add(sequence) {
            self.requests.remove(id);
            let _ = events.try_send(Event::Failed { message: refusal.to_string(), caller_fault: true });
        }
    }

    /// Aborts requests whose streams were dropped.
    fn drop_closed(&mut self) {
        while let Ok(id) = self.dropped.try_recv() {
            self.abort_all(id);
        }
    }

    fn abort_all(&mut self, id: RequestId) {
        for sequence in self.requests.remove(id) {
            self.scheduler.abort(sequence);
        }
    }

    fn end_choice(&mut self, id: RequestId, choice: u32) {
        let Some(sequence) = self.requests.get(id).and_then(|a| a.sequences.get(choice as usize)).copied() else { return };
        if self.scheduler.abort(sequence) {
            self.requests.finish(sequence, FinishReason::Aborted);
        }
    }

    /// After a failed step: fails all requests; with `restart_on_failure` starts over with an empty pool, unless the device is lost.
    /// False: give up.
    fn recover(&mut self, fault: &EngineError) -> bool {
        error!(%fault, "step failed");
        self.requests.fail_all(&format!("the engine failed: {fault}"));
        self.restarts += 1;
        let is_lost = matches!(fault, EngineError::DeviceLost(_));
        if is_lost || !self.config.restart_on_failure || self.restarts > MAX_RESTARTS {
            return false;
        }
        if self.in_flight.take().is_some() {
            let _ = self.executor.wait();
        }
        match new_scheduler(&self.config) {
            Ok(scheduler) => {
                warn!(restarts = self.restarts, "engine restarted");
                self.scheduler = scheduler;
                true
            }
            Err(_) => false,
        }
    }
}

/// Sequences in the order in which a step samples them.
pub(super) fn sampling_order(step: &Step) -> impl Iterator<Item = SequenceId> + '_ {
    step.sequences.iter().flat_map(|s| s.samples.iter().copied())
}
