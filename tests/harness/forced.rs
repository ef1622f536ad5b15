//! Forced decoding: every step of a golden is judged on the golden's own tokens, so that one early near tie does not spoil the rest.

use std::path::Path;
use std::sync::Arc;

use pagoda_engine::core::EngineHandle;
use pagoda_engine::device::Device;
use pagoda_engine::request::Request;
use pagoda_engine::sampling::SamplingParams;
use pagoda_engine::testing::Forced;

use super::case::Case;
use super::drive::{collect, greedy};

/// Alternatives that are asked for: a token of the golden's best five may have fallen behind.
const TOP: u32 = 20;

/// What was thought of each golden token.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Best token of each step.
    pub best: Vec<u32>,
    /// Logprobs of the tokens of `Case::top5`, in their order; NaN where a token is not among the best.
    pub logprobs: Vec<Vec<f32>>,
}

/// The tokens of `case.top5[step]`.
fn wanted(case: &Case, step: usize) -> Vec<u32> {
    case.top5.get(step).map_or(Vec::new(), |top| top.iter().map(|(token, _)| *token).collect())
}

/// Runs the cases through an engine, all at once. Where an answer parts from the golden, the rest is asked for again with the golden's
/// tokens in the prompt: prefill and decode are both seen.
pub fn follow(engine: &EngineHandle, cases: &[Case]) -> Vec<Reading> {
    let mut readings = vec![Reading::default(); cases.len()];
    loop {
        let open = |(case, reading): (&Case, &Reading)| (reading.best.len() < case.greedy.len()).then(|| rest(case, reading.best.len()));
        let requests: Vec<Option<Request>> = cases.iter().zip(&readings).map(open).collect();
        if requests.iter().all(Option::is_none) {
            return readings;
        }
        let submit = |request: Option<Request>| request.map(|request| engine.submit(request).expect("accepted"));
        let streams: Vec<_> = requests.into_iter().map(submit).collect();
        for ((stream, case), reading) in streams.into_iter().zip(cases).zip(&mut readings) {
            let Some(stream) = stream else { continue };
            let (answer, _) = collect(stream);
            for (token, top) in answer.tokens.iter().zip(&answer.tops) {
                let step = reading.best.len();
                let find = |id: &u32| top.iter().find(|(t, _)| t == id).map_or(f32::NAN, |(_, logprob)| *logprob);
                reading.logprobs.push(wanted(case, step).iter().map(find).collect());
                reading.best.push(*token);
                if *token != case.greedy[step] {
                    break;
                }
            }
        }
    }
}

/// The request for steps `first ..` of a case.
fn rest(case: &Case, first: usize) -> Request {
    let prompt: Vec<u32> = case.prompt_ids.iter().chain(&case.greedy[..first]).copied().collect();
    let request = greedy(&prompt, case.greedy.len() - first);
    Request { sampling: SamplingParams { logprobs: Some(TOP), ..request.sampling }, ..request }
}

/// A device and a checkpoint, with room for the longest case.
pub fn decoder<D: Device>(device: D, path: &Path, cases: &[Case]) -> Forced<D> {
    let longest = cases.iter().map(|c| c.prompt_ids.len() + c.greedy.len()).max().expect("cases");
    Forced::load(Arc::new(device), path, longest).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// One pass over prompt and golden tokens, without an engine.
pub fn read<D: Device>(forced: &mut Forced<D>, case: &Case) -> Reading {
    let steps = case.greedy.len();
    let tokens: Vec<u32> = case.prompt_ids.iter().chain(&case.greedy[..steps - 1]).copied().collect();
    // The golden token stands first: every step asks for at least one.
    let ids: Vec<Vec<u32>> = (0..steps).map(|step| std::iter::once(case.greedy[step]).chain(wanted(case, step)).collect()).collect();
    let rows = forced.logprobs(&tokens, case.prompt_ids.len() - 1, &ids, 1).expect("the device works");
    Reading {
        best: rows.iter().map(|row| row[0].top[0].0).collect(),
        logprobs: rows.iter().map(|row| row[1..].iter().map(|entry| entry.logprob).collect()).collect(),
    }
}

/// The logprobs that the golden has, in the order of a reading.
pub fn golden(case: &Case) -> Reading {
    let logprobs = (0..case.greedy.len()).map(|step| case.top5.get(step).map_or(Vec::new(), |top| top.iter().map(|(_, l)| *l).collect()));
    Reading { best: case.greedy.clone(), logprobs: logprobs.collect() }
}

/// Differences of the logprobs of two readings of one case.
pub fn differences(a: &Reading, b: &Reading) -> Vec<f32> {
    assert_eq!(a.logprobs.len(), b.logprobs.len(), "steps of two readings");
    a.logprobs.iter().zip(&b.logprobs).flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs())).collect()
}

/// The largest; NaN counts as the largest of all.
pub fn worst(differences: &[f32]) -> f32 {
    differences.iter().copied().fold(0.0, |worst, d| if d.is_nan() || worst.is_nan() { f32::NAN } else { d.max(worst) })
}

/// Root of the mean square.
pub fn rms(differences: &[f32]) -> f32 {
    (differences.iter().map(|d| d * d).sum::<f32>() / differences.len().max(1) as f32).sqrt()
}

/// Largest difference of a logprob of a rounding device, in units of `unit`.
const MAX_DIFFERENCE: f32 = 4.0;
/// Largest gap at which a rounding device may prefer another token, in units of `unit`.
const MAX_TIE: f32 = 3.0;

/// What one rounding experiment did to the case: the largest of 80 differences of logprobs. Another experiment's largest is another draw:
/// over the dense tiny suites its mean is 1.3 and its maximum 3.3 of these units (docs/numerics.md).
pub fn unit(case: &Case) -> f32 {
    case.bf16_dlogprob.unwrap_or(0.05).max(0.05)
}

/// Judges one step of a rounding device's reading: Ok(largest difference in units), or what is wrong.
pub fn judge_step(case: &Case, expected: &Reading, got: &Reading, step: usize) -> Result<f32, String> {
    let unit = unit(case);
    let mut largest = 0.0f32;
    for (rank, (want, got)) in expected.logprobs[step].iter().zip(&got.logprobs[step]).enumerate() {
        match (want - got).abs() / unit {
            difference if difference <= MAX_DIFFERENCE => largest = largest.max(difference),
            difference if difference.is_nan() && rank > 1 => {}
            _ => return Err(format!("step {step}: logprob {got} for {want}, at most {MAX_DIFFERENCE} x {unit} apart")),
        }
    }
    let (want, got, gap) = (expected.best[step], got.best[step], case.gap[step]);
    match got == want || got == case.greedy[step] || gap < MAX_TIE * unit {
        true => Ok(largest),
        false => Err(format!("step {step}: token {got} for {want}, gap {gap}, a tie is below {MAX_TIE} x {unit}")),
    }
}
