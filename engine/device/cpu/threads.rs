//! A small pool of worker threads: spin for a while, then park. Called by every op that is worth splitting.
//!
//! A step of a small model on the CPU is some two hundred parallel regions of 10 to 100 us, so what counts is the cost of a region. A worker
//! joins a region if it comes in time; the caller never waits for one that did not. Regions do not nest: a second caller, or a task that
//! starts a region, runs it alone, which gives the same result because no op's arithmetic depends on who runs which task.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

/// Spins of a worker before it parks: about 100 us.
const SPINS_BEFORE_PARK: u32 = 3000;
/// Spins of the caller before it lets others run.
const SPINS_BEFORE_YIELD: u32 = 2000;

/// `state`: the region's number in the high half, whether workers may still join, and how many are inside.
const EPOCH: u64 = 1 << 32;
const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// What the workers of a region call; written before it opens, read only by workers inside it.
struct Region {
    task: *const Task<'static>,
    tasks: usize,
}

struct Shared {
    state: AtomicU64,
    next: AtomicUsize,
    region: UnsafeCell<Region>,
    panicked: AtomicBool,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
}

// SAFETY: `region` is written only by the caller that holds `Pool::busy`, while no worker is inside.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `region` is followed only inside a region, while the caller keeps the task alive.
unsafe impl Send for Shared {}

/// Worker threads, and the thread that calls `run`.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    busy: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads in all, the caller's included.
    ///
    /// # Errors
    /// What spawning a thread answers.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let num_workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            region: UnsafeCell::new(Region { task: &(|_: usize| ()), tasks: 0 }),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(num_workers), busy: Mutex::new(()) };
        for index in 0..num_workers {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new().name(format!("pagoda-cpu-{index}")).spawn(move || work(&shared, index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)` .. `task(tasks - 1)`, each once, on any thread and in any order; returns when all are done.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let guard = if self.workers.is_empty() || tasks < 2 { None } else { self.busy.try_lock() };
        let Some(_busy) = guard else {
            (0..tasks).for_each(task);
            return;
        };
        let shared = &*self.shared;
        let task: &Task<'_> = &task;
        // SAFETY: this only forgets the lifetime; `Close` waits for every worker inside before `task` goes out of scope.
        let erased = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        // SAFETY: no worker is inside: the last region was closed and waited for, and `busy` keeps other callers out.
        unsafe { *shared.region.get() = Region { task: erased, tasks } };
        shared.next.store(0, Ordering::Relaxed);
        let epoch = shared.state.load(Ordering::Relaxed) & !(EPOCH - 1);
        shared.state.store(epoch.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers) {
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let close = Close(shared);
        drain(&shared.next, tasks, task);
        drop(close);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a worker of the cpu device panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker ends only by the flag; its own panics are caught per region.
            drop(worker.join());
        }
    }
}

/// Closes the region and waits for the workers inside, also when the caller's own task panics.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0;
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

fn drain(next: &AtomicUsize, tasks: usize, task: &Task<'_>) {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= tasks {
            return;
        }
        task(index);
    }
}

fn work(shared: &Shared, index: usize) {
    let mut done = 0;
    loop {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let state = wait(shared, index, done);
        done = state & !(EPOCH - 1);
        if state & OPEN == 0 || !join(shared, done) {
            continue;
        }
        // SAFETY: this worker is inside the region, so the caller has written it and waits.
        let region = unsafe { &*shared.region.get() };
        // SAFETY: the task outlives the region.
        let task = unsafe { &*region.task };
        if catch_unwind(AssertUnwindSafe(|| drain(&shared.next, region.tasks, task))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.state.fetch_sub(1, Ordering::Release);
    }
}

/// Enters region `epoch` if it is still open.
fn join(shared: &Shared, epoch: u64) -> bool {
    let enter = |state: u64| (state & !(EPOCH - 1) == epoch && state & OPEN != 0).then(|| state + 1);
    shared.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_ok()
}

/// Waits for a region other than `done`: spins, then parks. Returns the state it saw.
fn wait(shared: &Shared, index: usize, done: u64) -> u64 {
    for _ in 0..SPINS_BEFORE_PARK {
        let state = shared.state.load(Ordering::Acquire);
        if state & !(EPOCH - 1) != done && state & OPEN != 0 {
            return state;
        }
        std::hint::spin_loop();
    }
    shared.asleep[index].store(true, Ordering::SeqCst);
    loop {
        let state = shared.state.load(Ordering::SeqCst);
        if state & !(EPOCH - 1) != done || shared.stop.load(Ordering::SeqCst) {
            shared.asleep[index].store(false, Ordering::SeqCst);
            return state;
        }
        std::thread::park();
    }
}

/// A mutable slice whose parts the tasks of one region write without overlap.
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a task gets at elements only through `slice`, whose callers promise that no two tasks' ranges overlap.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Lends `slice` to the tasks of a region.
    pub fn new(slice: &'a mut [T]) -> SharedMut<'a, T> {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements `start .. start + len`.
    ///
    /// # Safety
    /// While the returned slice lives, nobody else has a slice of any of these elements.
    #[expect(clippy::mut_from_ref, reason = "that is the point: the caller promises disjointness")]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "range {start}+{len} of {}", self.len);
        // SAFETY: in bounds by the assertion.
        let first = unsafe { self.start.add(start) };
        // SAFETY: in bounds, alive for 'a, and not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(first, len) }
    }

    /// Element `index` = `value`.
    ///
    /// # Safety
    /// As `slice`.
    pub unsafe fn set(&self, index: usize, value: T) {
        // SAFETY: the caller promises what `slice` asks for.
        let element = unsafe { self.slice(index, 1) };
        element[0] = value;
    }
}
