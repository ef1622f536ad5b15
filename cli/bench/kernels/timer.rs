//! Seconds of one operation: many in a row, then one wait.

use std::time::Instant;

use anyhow::Result;
use pagoda_engine::device::Device;

use super::cases::Case;

/// Batches of which the fastest but one counts.
const NUM_BATCHES: usize = 4;
/// Operations of one recording at least: a replay costs the host some microseconds.
const MIN_RECORDED: usize = 16;
/// Rounds of one batch at most.
const MAX_ROUNDS: f64 = 100_000.0;

/// Seconds of one run of `case`, found within about `budget_s`. A round runs every copy of the inputs at least once.
pub fn time<D: Device>(device: &D, budget_s: f64, case: &mut Case<'_>) -> Result<f64> {
    let is_recorded = case.can_record && device.can_record();
    let per_round = if is_recorded { MIN_RECORDED.next_multiple_of(case.num_copies) } else { case.num_copies };
    let mut round = || -> Result<(), pagoda_engine::EngineError> {
        for i in 0..per_round {
            (case.run)(i % case.num_copies)?;
        }
        Ok(())
    };
    // Twice: kernels are loaded and tuned by the first run, and a recording needs that behind it.
    round()?;
    round()?;
    device.wait()?;
    let recording = match is_recorded {
        true => Some(device.record(&mut round)?),
        false => None,
    };
    let mut again = || match &recording {
        Some(recording) => device.replay(recording),
        None => round(),
    };
    let mut rounds = |num: usize| -> Result<f64> {
        let started = Instant::now();
        for _ in 0..num {
            again()?;
        }
        device.wait()?;
        Ok(started.elapsed().as_secs_f64() / num as f64)
    };
    let first = rounds(1)?.max(1e-7);
    let num = (budget_s / NUM_BATCHES as f64 / first).clamp(1.0, MAX_ROUNDS) as usize;
    let mut batches = Vec::with_capacity(NUM_BATCHES);
    for _ in 0..NUM_BATCHES {
        batches.push(rounds(num)?);
    }
    batches.sort_by(f64::total_cmp);
    Ok(batches[1] / per_round as f64)
}
