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

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        Case {
            id: "c".into(),
            prompt_ids: vec![1],
            greedy: vec![5, 6, 7],
            gap: vec![1.0, 0.01, 1.0],
            top5: vec![vec![(5, -0.5), (8, -1.5), (9, -3.0)], vec![(6, -0.7), (8, -0.71)]],
            bf16_dlogprob: Some(0.1),
            bf16_flips: vec![2],
        }
    }

    fn answer(tokens: &[u32]) -> Answer {
        Answer { tokens: tokens.to_vec(), tops: case().top5 }
    }

    #[test]
    fn equal_answers_and_near_ties_pass() {
        assert_eq!(compare(&case(), &answer(&[5, 6, 7]), Precision::F32), Ok(0.0));
        assert_eq!(compare(&case(), &answer(&[5, 8, 1]), Precision::F32), Ok(0.0), "a tie at step 1");
        assert_eq!(compare(&case(), &answer(&[5, 6, 1]), Precision::Rounded), Ok(0.0), "bf16 flips step 2");
    }

    #[test]
    fn faults_are_named() {
        let check = |answer: &Answer, expected: &str| {
            let message = compare(&case(), answer, Precision::F32).expect_err(expected);
            assert!(message.contains(expected), "{message}");
        };
        check(&answer(&[5, 6]), "2 tokens, expected 3");
        check(&answer(&[8, 6, 7]), "parts at step 0");
        check(&answer(&[5, 9, 7]), "parts at step 1");
        check(&answer(&[5, 6, 1]), "parts at step 2");
        let mut off = answer(&[5, 6, 7]);
        off.tops[0][2].1 = -3.06;
        check(&off, "off by");
        off.tops[0][2].1 = f32::NAN;
        check(&Answer { tops: Vec::new(), ..off.clone() }, "no logprob");
        off.tops[0].remove(1);
        check(&off, "token 8 is not among");
    }
}
