//! The pool: every task once, nested and concurrent regions, panics, and the option's range.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::threads::Pool;
use super::*;

fn counts_of(pool: &Pool, tasks: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, |task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 5] {
        let pool = Pool::new(threads).unwrap();
        for round in 0..300 {
            let tasks = round % 40;
            assert_eq!(counts_of(&pool, tasks), vec![1; tasks], "{threads} threads, round {round}");
        }
    }
}

#[test]
fn regions_inside_and_beside_each_other_do_not_wait_forever() {
    let pool = Pool::new(3).unwrap();
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    pool.run(8, |_| {
                        pool.run(4, |_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 4 * 100 * 8 * 4);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    let pool = Pool::new(3).unwrap();
    for victim in 0..16 {
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(16, |task| assert_ne!(task, victim, "on purpose"))));
        assert!(result.is_err());
        assert_eq!(counts_of(&pool, 20), vec![1; 20]);
    }
}

#[test]
fn the_number_of_threads_is_checked() {
    assert!(CpuDevice::new(Some(0)).is_err());
    assert!(CpuDevice::new(Some(super::super::MAX_THREADS + 1)).is_err());
    assert_eq!(CpuDevice::new(Some(2)).unwrap().threads(), 2);
    assert!(CpuDevice::new(None).unwrap().threads() >= 1);
}
