//! A suite on the GPU: forced decoding through the engine and through the bare decoder, against the golden and against what rounding to
//! bf16 makes of it (docs/numerics.md).

use std::path::Path;

use pagoda_engine::device::cuda::CudaDevice;
use pagoda_engine::loader::{DeviceChoice, EngineOptions};
use pagoda_engine::testing::rounded::{Point, RoundedDevice, Rounding};

use super::case::{Case, Suite};
use super::forced::{Reading, decoder, differences, follow, golden, judge_step, read};
use super::{case, engine};

/// Median difference between the GPU's prefill and the nearer of two rounding oracles, over that between the oracle and the golden. Another
/// order of sums gives up to a half, another place of rounding up to one.
const MAX_AGREEMENT: f32 = 0.7;
/// Share of steps that near ties of a router may spoil.
const MAX_TOUCHED: f32 = 0.03;

/// Whether there is a GPU that this binary can use; says so where there is none.
pub fn available() -> bool {
    let found = !CudaDevice::available().is_empty();
    if !found {
        println!("SKIPPED: no GPU, or built without CUDA kernels");
    }
    found
}

/// What is read of the cases of a suite.
struct Readings {
    golden: Vec<Reading>,
    rounded: Vec<Reading>,
    /// As `rounded`, but with a SiLU apart from its product.
    rounded_apart: Vec<Reading>,
    prefill: Vec<Reading>,
    decode: Vec<Reading>,
}

/// Suites whose weights stay e4m3 on the GPU: exact, so the oracle does not round them. With more than 64 tokens activations would be e4m3 as
/// well, which no golden bounds; the deterministic mode never does that.
fn stays_e4m3(name: &str) -> bool {
    name.starts_with("tinyq_fp8")
}

impl Readings {
    fn new(name: &str, cases: &[Case], path: &Path, options: &EngineOptions) -> Readings {
        let e4m3 = stays_e4m3(name);
        let rounding = if e4m3 { Rounding::cuda().without(Point::Weights) } else { Rounding::cuda() };
        let oracle = |rounding| {
            let mut device = decoder(RoundedDevice::new(rounding), path, cases);
            cases.iter().map(|case| read(&mut device, case)).collect()
        };
        let device = CudaDevice::new(0).expect("a GPU");
        let mut gpu = decoder(if e4m3 { device.deterministic() } else { device }, path, cases);
        let deterministic = options.deterministic || e4m3;
        let model = engine(path, &EngineOptions { device: DeviceChoice::Cuda, deterministic, ..options.clone() });
        Readings {
            golden: cases.iter().map(golden).collect(),
            rounded: oracle(rounding),
            rounded_apart: oracle(rounding.with(Point::SiluGateUp)),
            prefill: cases.iter().map(|case| read(&mut gpu, case)).collect(),
            decode: follow(&model.handle, cases),
        }
    }

    /// Median of the differences between two of them.
    fn median(a: &[Reading], b: &[Reading]) -> f32 {
        let mut all: Vec<f32> = a.iter().zip(b).flat_map(|(a, b)| differences(a, b)).collect();
        all.sort_by(f32::total_cmp);
        all[all.len() / 2]
    }

    /// Faults of `got`: what is close neither to the golden nor to the oracle, whose experts may be others.
    fn faults(&self, cases: &[Case], got: &[Reading]) -> Vec<String> {
        let mut faults = Vec::new();
        for (i, case) in cases.iter().enumerate() {
            let judge = |expected: &Reading, step| judge_step(case, expected, &got[i], step);
            let steps = (0..case.greedy.len()).filter(|step| judge(&self.rounded[i], *step).is_err());
            faults.extend(steps.filter_map(|step| judge(&self.golden[i], step).err()).map(|fault| format!("{} {fault}", case.id)));
        }
        faults
    }
}

/// Checks suite `name` on the GPU; `experts`: whether the model has a router.
pub fn check_suite_on_gpu(name: &str, path: &Path, options: &EngineOptions, experts: bool) {
    let Suite { cases, .. } = case::read(name);
    let readings = Readings::new(name, &cases, path, options);
    let rounding = Readings::median(&readings.rounded, &readings.golden);
    let nearest = |got| Readings::median(got, &readings.rounded).min(Readings::median(got, &readings.rounded_apart));
    let (prefill, decode) = (nearest(&readings.prefill), nearest(&readings.decode));
    println!("{name}: median difference of rounding {rounding:.4}, from rounding to the GPU's prefill {prefill:.4} and decode {decode:.4}");
    let num_steps = cases.iter().map(|case| case.greedy.len()).sum::<usize>();
    let allowed = if experts { (num_steps as f32 * MAX_TOUCHED) as usize } else { 0 };
    for (what, got) in [("prefill", &readings.prefill), ("decode", &readings.decode)] {
        let faults = readings.faults(&cases, got);
        println!("{name}: {what}: {} of {num_steps} steps outside of the bounds, allowed {allowed}", faults.len());
        assert!(faults.len() <= allowed, "{name}: {what}:\n{}", faults.join("\n"));
    }
    assert!(
        prefill < MAX_AGREEMENT * rounding,
        "{name}: prefill is {prefill} from the rounding oracle, which is {rounding} from the golden"
    );
}
