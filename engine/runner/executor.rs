//! Runs steps in order on a thread of their own, so that the device always has the next step before it ends the last one.
//!
//! `submit` queues a step and returns; `wait` gives the oldest queued step's outputs. The thread launches a step as soon as it is queued,
//! at most `MAX_QUEUED` ahead, and waits for results only when it has nothing to launch. A panic inside a step comes out of `wait` as an
//! error, and the thread goes on.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{StepInputs, StepOutputs};
use crate::error::{EngineError, Result};

/// Steps that may be queued at once, and launched before the first of them is finished.
pub const MAX_QUEUED: usize = 2;

/// How long the thread looks for the next step without sleeping: the engine needs some 50 us to make one.
const MAX_SPIN: Duration = Duration::from_millis(1);
/// Longest sleep between two looks after that. The next step wakes the thread at once; a step that ends is seen so much later.
const PAUSE: Duration = Duration::from_micros(200);

/// What runs steps: a model on a device, or a stand-in of it.
pub trait StepRunner: Send + 'static {
    /// Queues a step on the device.
    ///
    /// # Errors
    /// A device fault; the step has no results then.
    fn launch(&mut self, inputs: StepInputs) -> Result<()>;
    /// Whether the oldest launched step is done.
    fn is_ready(&self) -> bool;
    /// Waits for the oldest launched step.
    ///
    /// # Errors
    /// A device fault; the step's results are lost.
    fn finish(&mut self) -> Result<StepOutputs>;
    /// Queues what the oldest launched step kept back until the tokens of the one before it were known. Called after every `finish`, when
    /// its outputs are on their way. Faults come out of that step's `finish`.
    fn resume(&mut self) {}
    /// Gives memory to other models, while no step is launched. Nothing is launched before `wake`.
    ///
    /// # Errors
    /// What the device says; then all is as it was.
    fn sleep(&mut self) -> Result<()> {
        Ok(())
    }
    /// Takes the memory back; the KV cache is empty.
    ///
    /// # Errors
    /// What the device says; it may be tried again.
    fn wake(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What the thread is told.
enum Order {
    Step(StepInputs),
    /// Only while no step is queued.
    Rest(Rest, Sender<Result<()>>),
}

/// Whether the runner gives its memory away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It does.
    Sleep,
    /// It takes it back.
    Wake,
}

/// A function as a runner: every step is done when it was launched.
pub struct Immediate<F> {
    execute: F,
    done: VecDeque<StepOutputs>,
}

impl<F> Immediate<F> {
    /// Wraps `execute`, which runs one step.
    pub fn new(execute: F) -> Immediate<F> {
        Immediate { execute, done: VecDeque::new() }
    }
}

impl<F: FnMut(StepInputs) -> Result<StepOutputs> + Send + 'static> StepRunner for Immediate<F> {
    fn launch(&mut self, inputs: StepInputs) -> Result<()> {
        self.done.push_back((self.execute)(inputs)?);
        Ok(())
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<StepOutputs> {
        Ok(self.done.pop_front().expect("a step was launched"))
    }
}

/// A queue of steps in front of a runner.
pub struct Executor {
    orders: Option<Sender<Order>>,
    outputs: Receiver<Result<StepOutputs>>,
    thread: Option<JoinHandle<()>>,
}

impl Executor {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(runner: impl StepRunner) -> Result<Executor> {
        let (orders, queue) = bounded::<Order>(MAX_QUEUED);
        let (results, outputs) = bounded(MAX_QUEUED);
        let run = move || run_steps(runner, &queue, &results);
        let thread = std::thread::Builder::new().name("pagoda-step".into()).spawn(run);
        let thread = thread.map_err(|e| EngineError::Device(format!("cannot start the step thread: {e}")))?;
        Ok(Executor { orders: Some(orders), outputs, thread: Some(thread) })
    }

    /// Queues a step.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn submit(&self, step: StepInputs) -> Result<()> {
        self.order(Order::Step(step))
    }

    /// Has the runner sleep or wake, and waits for it. No step is queued.
    ///
    /// # Errors
    /// What the runner answers, or the thread is gone.
    pub fn rest(&self, rest: Rest) -> Result<()> {
        let (sender, answer) = bounded(1);
        self.order(Order::Rest(rest, sender))?;
        answer.recv().unwrap_or_else(|_| Err(ended()))
    }

    fn order(&self, order: Order) -> Result<()> {
        let orders = self.orders.as_ref().expect("present until drop");
        orders.send(order).map_err(|_| ended())
    }

    /// Waits for the oldest queued step.
    ///
    /// # Errors
    /// What the step answered, or the thread is gone.
    pub fn wait(&self) -> Result<StepOutputs> {
        self.outputs.recv().unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.orders = None;
        while self.outputs.recv().is_ok() {}
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ended() -> EngineError {
    EngineError::Device("the step thread ended".into())
}

/// The thread: launches what comes, finishes what is done.
fn run_steps(mut runner: impl StepRunner, orders: &Receiver<Order>, results: &Sender<Result<StepOutputs>>) {
    // What the launch of every unfinished step answered, oldest first.
    let mut launched: VecDeque<Result<()>> = VecDeque::with_capacity(MAX_QUEUED);
    loop {
        let next = match launched.front() {
            None => match orders.recv() {
                Ok(order) => Some(order),
                Err(_) => return,
            },
            Some(Ok(())) if launched.len() < MAX_QUEUED => order_before_ready(&runner, orders),
            Some(_) => None,
        };
        match next {
            Some(Order::Step(step)) => {
                launched.push_back(guarded(|| runner.launch(step)));
                continue;
            }
            Some(Order::Rest(rest, answer)) => {
                assert!(launched.is_empty(), "{rest:?} while steps run");
                let _ = answer.send(guarded(|| if rest == Rest::Sleep { runner.sleep() } else { runner.wake() }));
                continue;
            }
            None => {}
        }
        let result = launched.pop_front().expect("looked at above").and_then(|()| guarded(|| runner.finish()));
        if results.send(result).is_err() {
            return;
        }
        let _ = guarded(|| {
            runner.resume();
            Ok(())
        });
    }
}

/// The next order, if it comes before the oldest launched one is done. It mostly comes at once; where nothing follows, as after a prompt that
/// ends with its first token, the one under way may take long.
fn order_before_ready(runner: &impl StepRunner, orders: &Receiver<Order>) -> Option<Order> {
    let started = Instant::now();
    while !runner.is_ready() {
        let pause = if started.elapsed() < MAX_SPIN { Duration::ZERO } else { PAUSE };
        match orders.recv_timeout(pause) {
            Ok(order) => return Some(order),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => std::thread::yield_now(),
        }
    }
    None
}

/// A panic as an error.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(EngineError::Device(format!("step panicked: {}", panic_message(&*panic)))))
}

/// The message of a caught panic.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_string(),
        (None, Some(text)) => text.clone(),
        (None, None) => "unknown panic".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn step(id: u64) -> StepInputs {
        StepInputs { id, ..StepInputs::default() }
    }

    fn outputs(id: u64) -> StepOutputs {
        StepOutputs { id, ..StepOutputs::default() }
    }

    #[test]
    fn steps_come_back_in_order_and_a_panic_does_not_end_the_thread() {
        let executor = Executor::start(Immediate::new(|step: StepInputs| {
            assert!(step.id != 2, "step two is bad");
            Ok(outputs(step.id))
        }))
        .unwrap();
        executor.submit(step(1)).unwrap();
        executor.submit(step(2)).unwrap();
        assert_eq!(executor.wait().unwrap().id, 1);
        let error = executor.wait().unwrap_err().to_string();
        assert!(error.contains("step two is bad"), "{error}");
        executor.submit(step(3)).unwrap();
        assert_eq!(executor.wait().unwrap().id, 3);
    }

    /// A device that is done with a step when the next one was launched, or when it is told to be.
    struct Slow {
        launched: VecDeque<u64>,
        most: Arc<AtomicUsize>,
    }

    impl StepRunner for Slow {
        fn launch(&mut self, inputs: StepInputs) -> Result<()> {
            if inputs.id == 3 {
                return Err(EngineError::Device("three does not start".into()));
            }
            self.launched.push_back(inputs.id);
            self.most.fetch_max(self.launched.len(), SeqCst);
            Ok(())
        }

        fn is_ready(&self) -> bool {
            self.launched.len() > 1 || self.launched.front().is_some_and(|id| id % 2 == 0)
        }

        fn finish(&mut self) -> Result<StepOutputs> {
            Ok(outputs(self.launched.pop_front().unwrap()))
        }
    }

    #[test]
    fn a_step_is_launched_while_the_one_before_runs_and_errors_keep_their_place() {
        let most = Arc::new(AtomicUsize::new(0));
        let executor = Executor::start(Slow { launched: VecDeque::new(), most: most.clone() }).unwrap();
        executor.submit(step(1)).unwrap();
        executor.submit(step(2)).unwrap();
        assert_eq!((executor.wait().unwrap().id, executor.wait().unwrap().id), (1, 2));
        assert_eq!(most.load(SeqCst), 2);
        executor.submit(step(3)).unwrap();
        executor.submit(step(4)).unwrap();
        assert!(executor.wait().unwrap_err().to_string().contains("three does not start"));
        assert_eq!(executor.wait().unwrap().id, 4);
    }
}
