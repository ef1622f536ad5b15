//! When an answer counts as the golden's: the same tokens up to a near tie, and close logprobs until then. The rules are those of
//! check_engine.py, which compares over HTTP.

use super::case::Case;

/// What the engine answered: tokens, and the best (token, logprob) of each step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Sampled tokens.
    pub tokens: Vec<u32>,
    /// Best five of each step.
    pub tops: Vec<Vec<(u32, f32)>>,
}

/// How exact the engine's arithmetic is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Precision {
    /// Everything in f32, like the reference.
    F32,
    /// Rounds where the bf16 bounds of a case allow it (bf16 or quantised activations).
    Rounded,
}

impl Precision {
    /// (largest gap of a near tie, largest difference of a logprob).
    fn bounds(self, case: &Case) -> (f32, f32) {
        let rounding = case.bf16_dlogprob.unwrap_or(0.05);
        match self {
            Precision::F32 => (0.05, 0.05),
            Precision::Rounded => ((1.5 * rounding).clamp(0.05, 0.35), (2.0 * rounding).max(0.1)),
        }
    }
}

/// Ok(largest logprob difference), or what is wrong.
pub fn compare(case: &Case, answer: &Answer, precision: Precision) -> Result<f32, String> {
    let (tie, tolerance) = precision.bounds(case);
    let parted = case.greedy.iter().zip(&answer.tokens).position(|(want, got)| want != got);
    let same = parted.unwrap_or(answer.tokens.len().min(case.greedy.len()));
    match parted {
        None if answer.tokens.len() != case.greedy.len() => {
            return Err(format!("{} tokens, expected {}", answer.tokens.len(), case.greedy.len()));
        }
        Some(step) => check_tie(case, answer, step, tie, precision)?,
        None => {}
    }
    let mut worst = 0.0f32;
    let mut num_compared = 0;
    // Step `same` still follows the golden's tokens.
    for (step, (want, got)) in case.top5.iter().zip(&answer.tops).enumerate().take(same + 1) {
        for (rank, (token, logprob)) in want.iter().enumerate() {
            match got.iter().find(|(t, _)| t == token) {
                Some((_, l)) => {
                    worst = worst.max((l - logprob).abs());
                    num_compared += 1;
                }
                None if rank < 2 => return Err(format!("step {step}: token {token} is not among the best five {got:?}")),
                None => {}
            }
        }
    }
    match () {
        () if num_compared == 0 => Err("no logprob could be compared".to_string()),
        () if worst.is_nan() || worst > tolerance => Err(format!("a logprob is off by {worst}, at most {tolerance}")),
        () => Ok(worst),
    }
}

/// The tokens part at `step`: fine if the golden's two best were nearly equal and the answer took the other one.
fn check_tie(case: &Case, answer: &Answer, step: usize, tie: f32, precision: Precision) -> Result<(), String> {
    let (want, got, gap) = (case.greedy[step], answer.tokens[step], case.gap[step]);
    if precision == Precision::Rounded && case.bf16_flips.contains(&step) {
        return Ok(());
    }
    let tied = case.top5.get(step).is_none_or(|top| top.iter().any(|(t, l)| *t == got && top[0].1 - l < tie));
    match gap < tie && tied {
        true => Ok(()),
        false => Err(format!("parts at step {step}: {got} for {want}, gap {gap}, a tie is below {tie}")),
    }
}
