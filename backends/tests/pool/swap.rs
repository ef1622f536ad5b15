//! Models that are put aside in host memory instead of being unloaded.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::join_all;
use pagoda_backends::InferenceBackend;
use pagoda_backends::pool::PoolLimits;

use super::ask;
use super::named::pool_within;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thirty_two_clients_swap_models_without_loading_them_again() {
    let sizes: [(&str, usize); 2] = [("a", 6), ("b", 6)];
    let (log, _pool, models) = pool_within(&sizes, PoolLimits { budget_bytes: 10, swap_bytes: 12, max_waiting: 1000 }, None);
    let client = |client: usize| {
        let models = &models;
        async move {
            for turn in 0..20 {
                let idx = (client + turn / (client % 5 + 1)) % models.len();
                assert_eq!(ask(&models[idx]).await, sizes[idx].0);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), join_all((0..32).map(client))).await.expect("nobody waits for ever");
    let count = |counter: &AtomicUsize| counter.load(SeqCst);
    assert!(count(&log.most_bytes) <= 10, "{} of 10 bytes", count(&log.most_bytes));
    assert_eq!(models.iter().map(|model| model.stats().num_steps).sum::<u64>(), 32 * 20, "nothing is lost, no count either");
    // Each is loaded once, and its weights go to the host once, however often they come back.
    assert_eq!((count(&log.num_loads), count(&log.num_copies_out)), (2, 2));
    let num_swaps = log.lives.lock().unwrap().iter().filter(|life| life.starts_with('z')).count();
    assert!(num_swaps >= 2 && count(&log.num_copies_in) + 1 >= num_swaps, "{num_swaps} swaps, {} copies", count(&log.num_copies_in));
}

/// Which models sleep and which are unloaded when these are asked for in turn.
#[tokio::test]
async fn host_memory_has_a_bound_too() {
    let three = [("a", 3), ("b", 3), ("c", 3)];
    let cases: [(usize, &[usize], &[&str]); 4] = [
        (0, &[0, 1], &["+a", "-a", "+b"]),
        // Room for one: the other cannot be kept while the first is asked for.
        (3, &[0, 1, 0, 1], &["+a", "za", "+b", "-b", "wa", "za", "+b"]),
        (6, &[0, 1, 0, 1], &["+a", "za", "+b", "zb", "wa", "za", "wb"]),
        // The sleeper that was not used for longest makes room.
        (6, &[0, 1, 2, 0], &["+a", "za", "+b", "zb", "+c", "-b", "zc", "wa"]),
    ];
    for (swap_bytes, turns, expected) in cases {
        let (log, _pool, models) = pool_within(&three, PoolLimits { budget_bytes: 3, swap_bytes, max_waiting: 9 }, None);
        for &idx in turns {
            assert_eq!(ask(&models[idx]).await, three[idx].0);
        }
        assert_eq!(*log.lives.lock().unwrap(), expected, "{swap_bytes} bytes");
        assert!(log.most_kept_bytes.load(SeqCst) <= swap_bytes && log.most_bytes.load(SeqCst) <= 3, "{swap_bytes} bytes");
    }
}

#[tokio::test]
async fn a_model_that_neither_sleeps_nor_wakes_is_loaded_anew() {
    let limits = PoolLimits { budget_bytes: 3, swap_bytes: 9, max_waiting: 9 };
    let (log, _pool, models) = pool_within(&[("a", 3), ("b", 3)], limits, None);
    log.sleep_fails.store(true, SeqCst);
    assert_eq!((ask(&models[0]).await, ask(&models[1]).await), ("a".into(), "b".into()));
    log.sleep_fails.store(false, SeqCst);
    log.wake_fails.store(true, SeqCst);
    assert_eq!((ask(&models[0]).await, ask(&models[1]).await), ("a".into(), "b".into()));
    assert_eq!(*log.lives.lock().unwrap(), ["+a", "-a", "+b", "zb", "+a", "za", "-b", "+b"]);
    assert_eq!(models[0].stats().num_steps + models[1].stats().num_steps, 4);
}
