//! The thread of a pooling model over a scripted one.

use super::*;

/// Says each sequence's length and the size of its batch.
struct Lengths;

impl SequenceModel for Lengths {
    fn run(&mut self, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
        let one = |sequence: &Sequence| match sequence.ids[0] {
            7 => panic!("scripted"),
            8 => Err(EngineError::Device("scripted".into())),
            _ => Ok(vec![sequence.ids.len() as f32]),
        };
        sequences.iter().map(one).collect()
    }
}

fn started() -> PoolingHandle {
    let batch = BatchLimits { max_tokens: 8, max_seqs: 4 };
    start(Box::new(Lengths), PoolingLimits { batch, max_seq_len: 6, vocab_size: 10, max_waiting: 4 }).expect("a thread")
}

fn sequence(id: u32, len: usize) -> Sequence {
    Sequence { ids: vec![id; len], token_types: Vec::new() }
}

#[test]
fn outputs_come_in_the_order_of_the_sequences() {
    let handle = started();
    let outputs = handle.run_blocking((1..=6).map(|len| sequence(1, len)).collect()).expect("runs");
    assert_eq!(outputs, (1..=6).map(|len| vec![len as f32]).collect::<Vec<_>>());
    assert!(handle.run_blocking(Vec::new()).expect("nothing to do").is_empty());
    let stats = handle.stats();
    assert_eq!((stats.num_tokens, stats.num_running), (21, 0));
    assert!(stats.num_batches >= 3 && stats.max_running <= 4, "{stats:?}");
}

#[test]
fn wrong_sequences_are_refused_by_place() {
    let handle = started();
    for (sequences, expected) in [
        (vec![sequence(1, 1), sequence(1, 0)], "input[1] has no tokens"),
        (vec![sequence(1, 7)], "input[0] is too long: 7 tokens > 6 maximum"),
        (vec![sequence(10, 1)], "input[0]: token 10 is outside the vocabulary of 10"),
    ] {
        let message = handle.run_blocking(sequences).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_model_sleeps_when_all_is_done_and_an_unloaded_one_is_gone() {
    let handle = started();
    for _ in 0..2 {
        handle.sleep().expect("sleeps");
        let refusal = handle.run_blocking(vec![sequence(1, 1)]).expect_err("asleep").to_string();
        assert!(refusal.contains("sleeps"), "{refusal}");
        handle.sleep().expect("sleeps already");
        handle.wake().expect("wakes");
        assert_eq!(handle.run_blocking(vec![sequence(1, 2)]).expect("runs"), [[2.0]]);
    }
    let waiting = handle.clone();
    let answer = std::thread::spawn(move || waiting.run_blocking((0..40).map(|_| sequence(1, 3)).collect()));
    while handle.stats().num_batches < 5 {
        std::thread::yield_now();
    }
    handle.unload();
    assert_eq!(answer.join().expect("no panic").expect("finished first").len(), 40);
    assert!(matches!(handle.run_blocking(vec![sequence(1, 1)]), Err(EngineError::EngineDead(reason)) if reason.contains("unloaded")));
    assert!(handle.sleep().is_err());
}

#[test]
fn a_fault_fails_its_requests_and_a_panic_ends_the_thread() {
    let handle = started();
    assert!(matches!(handle.run_blocking(vec![sequence(8, 1)]), Err(EngineError::Device(_))));
    assert_eq!(handle.run_blocking(vec![sequence(1, 2)]).expect("goes on"), [[2.0]]);
    assert!(matches!(handle.run_blocking(vec![sequence(7, 1)]), Err(EngineError::EngineDead(_))));
    assert!(handle.health().is_err_and(|reason| reason.contains("panicked")));
    assert!(matches!(handle.run_blocking(vec![sequence(1, 1)]), Err(EngineError::EngineDead(_))));
}

/// The queue keeps what it holds when its thread ends: nobody may wait for that.
#[test]
fn who_asks_while_the_thread_ends_is_answered() {
    for _ in 0..200 {
        let handle = started();
        let ask = |is_sleep: bool| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                loop {
                    let asked = if is_sleep { handle.wake() } else { handle.run_blocking(vec![sequence(1, 1)]).map(drop) };
                    match asked {
                        Err(EngineError::EngineDead(_)) => return,
                        Ok(()) | Err(EngineError::QueueFull(_)) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        };
        let asking = [ask(false), ask(false), ask(true)];
        handle.unload();
        for thread in asking {
            thread.join().expect("answered");
        }
    }
}
