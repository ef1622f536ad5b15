//! What bf16 does to the recorded models, without a GPU: a second implementation of every op, exact or rounding where the CUDA device
//! rounds. See docs/numerics.md.
#![allow(clippy::print_stdout)]

mod harness;

use std::path::{Path, PathBuf};

use harness::case::{Case, Suite, read as read_suite};
use harness::forced::{decoder, differences, golden, judge_step, read, rms, worst};
use pagoda_engine::device::cpu::CpuDevice;
use pagoda_engine::testing::rounded::{RoundedDevice, Rounding, Route};
use pagoda_engine::testing::{ARCHS, Forced, GGUFS, write_tiny, write_tiny_gguf};

/// The seed of tests/data/golden.
const SEED: u64 = 1;
/// f32 sums in another order, at most.
const F32_TOLERANCE: f32 = 1e-3;
/// A router decision with a larger margin does not change by rounding alone. The margins are 1 to 2 in the mean; one logit in a hundred is
/// off by more than 0.1.
const ROUTER_TIE: f32 = 0.2;
/// The largest difference of a case, in its own units, in the mean over a suite.
const MEAN_UNITS: f32 = 2.0;

/// Every suite with its model, made in `folder`.
fn suites(folder: &Path) -> Vec<(Suite, PathBuf)> {
    let tiny = ARCHS.iter().map(|arch| (format!("tiny_{arch}"), write_tiny(folder, arch, SEED)));
    let gguf = GGUFS.iter().map(|name| (format!("tinygguf_{name}"), write_tiny_gguf(folder, name, SEED)));
    tiny.chain(gguf).map(|(name, path)| (read_suite(&name), path)).collect()
}

#[test]
fn two_implementations_and_the_goldens_agree_in_f32() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (suite, path) in suites(folder.path()) {
        let mut plain = decoder(RoundedDevice::new(Rounding::NONE), &path, &suite.cases);
        let mut cpu = decoder(CpuDevice::new(Some(1)).expect("a device"), &path, &suite.cases);
        for case in &suite.cases {
            let (expected, plain, cpu) = (golden(case), read(&mut plain, case), read(&mut cpu, case));
            for (what, reading) in [("plain", &plain), ("cpu", &cpu)] {
                let off = worst(&differences(&expected, reading));
                assert!(off < F32_TOLERANCE, "{} {}: {what} is off by {off}", suite.suite, case.id);
                assert_eq!(reading.best, case.greedy, "{} {}: {what}", suite.suite, case.id);
            }
        }
    }
}

/// The first token at which rounding changes a choice of experts, and a choice that no near tie explains.
fn changed_routes(exact: &[Route], rounded: &[Route], num_tokens: usize) -> (Option<usize>, Option<String>) {
    let mut first: Option<usize> = None;
    for (layer, (exact, rounded)) in exact.chunks(num_tokens).zip(rounded.chunks(num_tokens)).enumerate() {
        let before = first;
        for (token, (exact, rounded)) in exact.iter().zip(rounded).enumerate().filter(|(_, (a, b))| !a.agrees(b)) {
            // Behind a changed token of a lower layer nothing is as it was.
            if exact.margin() > ROUTER_TIE && before.is_none_or(|before| token < before) {
                return (
                    first,
                    Some(format!("layer {layer}, token {token}: {:?} for {:?}, margin {}", rounded.experts, exact.experts, exact.margin())),
                );
            }
            first = Some(first.map_or(token, |first| first.min(token)));
        }
    }
    (first, None)
}

/// Steps of a case that no changed choice of experts has touched.
fn untouched_steps(case: &Case, exact: &Forced<RoundedDevice>, rounded: &Forced<RoundedDevice>) -> Result<usize, String> {
    let num_tokens = case.prompt_ids.len() + case.greedy.len() - 1;
    let (first, fault) = changed_routes(&exact.device.take_routes(), &rounded.device.take_routes(), num_tokens);
    match fault {
        Some(fault) => Err(fault),
        None => Ok(first.map_or(case.greedy.len(), |first| (first + 1).saturating_sub(case.prompt_ids.len()))),
    }
}

#[test]
fn rounding_explains_what_a_gpu_may_answer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (suite, path) in suites(folder.path()) {
        let mut exact = decoder(RoundedDevice::new(Rounding::NONE), &path, &suite.cases);
        let mut rounded = decoder(RoundedDevice::new(Rounding::cuda()), &path, &suite.cases);
        let (mut ratios, mut all, mut touched) = (Vec::new(), Vec::new(), 0);
        for case in &suite.cases {
            let (expected, got) = (read(&mut exact, case), read(&mut rounded, case));
            let steps = untouched_steps(case, &exact, &rounded).unwrap_or_else(|fault| panic!("{} {}: {fault}", suite.suite, case.id));
            let judged: Result<Vec<f32>, String> = (0..steps).map(|step| judge_step(case, &expected, &got, step)).collect();
            let judged = judged.unwrap_or_else(|fault| panic!("{} {}: {fault}", suite.suite, case.id));
            all.extend(differences(&expected, &got));
            touched += usize::from(steps < case.greedy.len());
            if steps >= case.top5.len() {
                ratios.push(judged.into_iter().fold(0.0, f32::max));
            }
        }
        let mean = ratios.iter().sum::<f32>() / ratios.len().max(1) as f32;
        println!(
            "{}: rms {:.4}, largest {:.3}; {mean:.2} units in the mean of {} cases; other experts in {touched} of {}",
            suite.suite,
            rms(&all),
            worst(&all),
            ratios.len(),
            suite.cases.len()
        );
        assert!(mean < MEAN_UNITS, "{}: {mean} units in the mean, at most {MEAN_UNITS}", suite.suite);
    }
}
