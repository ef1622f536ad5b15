//! Sampling on the GPU beside the CPU's sampler: the same tokens from the same logits, whatever the parameters, the batch and the row;
//! counts and results that stay on the device from step to step. Skips aloud where there is no GPU or no kernel.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

use pagoda_engine::device::cuda::CudaDevice;
use pagoda_engine::device::{DType, Device};
use pagoda_engine::sampling::{SampleOutput, SampleRow, SamplingParams, TokenHistory, TokenLogprobs, sample_row, token_logprobs};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Of about unit variance.
    fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.unit()).sum::<f32>() * 1.732 - 3.464
    }
}

const NUM_SHAPES: usize = 10;

/// A row of logits of one of `NUM_SHAPES` kinds.
fn logits_of(random: &mut Random, shape: usize, vocab: usize) -> Vec<f32> {
    let mut row: Vec<f32> = (0..vocab).map(|_| random.normal()).collect();
    let scale = [3.0, 1.0, 0.2][shape % 3];
    row.iter_mut().for_each(|x| *x *= scale);
    let at = random.below(vocab);
    match shape {
        3 => row.iter_mut().for_each(|x| *x = (*x * 8.0).round() / 8.0),
        4 => row.fill(0.75),
        5 => {
            row.fill(f32::NEG_INFINITY);
            row[at] = -3.0;
        }
        6 => row.iter_mut().step_by(3).for_each(|x| *x = f32::NAN),
        7 => row.fill(f32::NAN),
        8 => row[at] = f32::INFINITY,
        9 => row[at] = 40.0,
        _ => {}
    }
    row
}

const NUM_PARAMS: usize = 14;

/// One of `NUM_PARAMS` ways to sample, with lists and penalties now and then.
fn params_of(random: &mut Random, kind: usize, vocab: usize) -> SamplingParams {
    let base = SamplingParams { temperature: [0.3, 0.7, 1.0, 2.0][random.below(4)], ..SamplingParams::default() };
    let mut params = match kind {
        0 => SamplingParams::default(),
        1 => base,
        2 => SamplingParams { top_k: 1, ..base },
        3 => SamplingParams { top_k: 2 + random.below(63) as u32, ..base },
        4 => SamplingParams { top_k: 65 + random.below(2000) as u32, ..base },
        5 => SamplingParams { top_p: 0.9, ..base },
        6 => SamplingParams { top_p: 1e-5, ..base },
        7 => SamplingParams { min_p: 0.1, ..base },
        8 => SamplingParams { top_k: 20, top_p: 0.8, min_p: 0.01, ..base },
        9 => SamplingParams { top_k: 500, top_p: 0.8, min_p: 0.01, ..base },
        10 => SamplingParams { top_p: 0.999, min_p: 1.0, ..base },
        11 => SamplingParams { top_k: u32::MAX, top_p: 0.5, ..base },
        12 => SamplingParams { top_k: (vocab as u32).saturating_sub(2), top_p: 0.99, ..base },
        _ => SamplingParams { temperature: 1e-9, ..base },
    };
    let tokens = |random: &mut Random, count: usize| (0..count).map(|_| random.below(vocab) as u32).collect::<Vec<u32>>();
    if random.below(3) == 0 {
        params.logprobs = Some(random.below(21) as u32);
    }
    if random.below(3) == 0 {
        params.repetition_penalty = [1.0, 1.3, 0.8][random.below(3)];
        params.presence_penalty = random.unit() - 0.5;
        params.frequency_penalty = random.unit() - 0.3;
    }
    if random.below(3) == 0 {
        params.logit_bias = tokens(random, 40).into_iter().map(|token| (token, token as f32 % 7.0 - 3.0)).collect();
        params.bad_words = tokens(random, 5).into_iter().map(|token| vec![token]).collect();
        params.min_tokens = 3;
    }
    if random.below(12) == 0 {
        params.bad_words.push(tokens(random, 2));
    }
    params
}

/// A sequence of the test, as the runner keeps it.
struct Sequence {
    params: SamplingParams,
    seed: u64,
    stop_ids: Vec<u32>,
    history: TokenHistory,
    allowed: Option<Vec<u32>>,
}

impl Sequence {
    fn new(random: &mut Random, kind: usize, vocab: usize) -> Sequence {
        let params = params_of(random, kind, vocab);
        let mut tokens = |count: usize| (0..count).map(|_| random.below(vocab) as u32).collect::<Vec<u32>>();
        let (prompt, output, stop_ids) = (tokens(50), tokens(20), tokens(3));
        let history = TokenHistory::new(&params, &prompt, &output);
        let allowed = (random.below(4) == 0).then(|| (0..vocab.div_ceil(32)).map(|_| random.next() as u32).collect());
        Sequence { params, seed: random.next(), stop_ids, history, allowed }
    }

    fn row(&self, logits_row: usize, slot: usize, output_index: u32) -> SampleRow<'_> {
        SampleRow {
            logits_row,
            slot,
            params: &self.params,
            seed: self.seed,
            stop_ids: &self.stop_ids,
            output_index,
            choice: slot as u32 % 3,
            history: &self.history,
            allowed: self.allowed.as_deref(),
        }
    }
}

fn device() -> Option<CudaDevice> {
    if CudaDevice::available().is_empty() {
        eprintln!("skipped: no GPU, or built without CUDA kernels");
        return None;
    }
    Some(CudaDevice::new(0).unwrap())
}

fn near(got: f32, want: f32) -> bool {
    got == want || (got - want).abs() <= 4e-6 * want.abs().max(1.0)
}

fn same_logprobs(got: &TokenLogprobs, want: &TokenLogprobs) -> bool {
    let ids = |entry: &TokenLogprobs| entry.top.iter().map(|&(id, _)| id).collect::<Vec<u32>>();
    let values = got.top.iter().zip(&want.top).all(|(got, want)| near(got.1, want.1));
    (got.token, got.rank, ids(got)) == (want.token, want.rank, ids(want)) && near(got.logprob, want.logprob) && values
}

fn compare(what: &str, got: &SampleOutput, want: &SampleOutput, params: &SamplingParams) {
    let same = got.token == want.token
        && match (&got.logprobs, &want.logprobs) {
            (Some(got), Some(want)) => same_logprobs(got, want),
            (None, None) => true,
            _ => false,
        };
    assert!(same, "{what}: {got:?}, on the CPU {want:?}, for {params:?}");
}

/// Runs `steps` steps of `num_seqs` sequences on both samplers. On the GPU the next step is queued before the last one is read, as in the
/// engine, unless a row needs the history.
fn check(gpu: &CudaDevice, seed: u64, num_seqs: usize, vocab: usize, steps: u32) {
    let random = &mut Random(seed);
    gpu.prepare_sampling(num_seqs + 3, vocab).unwrap();
    let mut sequences: Vec<Sequence> = (0..num_seqs).map(|i| Sequence::new(random, (i + seed as usize) % NUM_PARAMS, vocab)).collect();
    let mut last_tokens = gpu.alloc_ints(num_seqs + 3).unwrap();
    let rows: Vec<SampleRow<'_>> = sequences.iter().enumerate().map(|(i, s)| s.row(0, i + 3, 0)).collect();
    gpu.admit(&rows).unwrap();
    let ahead = !sequences.iter().any(|s| gpu.needs_history(&s.params));
    let mut logits = gpu.alloc(num_seqs, vocab, DType::F32).unwrap();
    let mut running = None;
    let mut expected: Vec<Vec<SampleOutput>> = Vec::new();
    let read = |pending, step: usize, expected: &[Vec<SampleOutput>], sequences: &[Sequence]| {
        let got = gpu.sampled(pending).unwrap();
        for (i, got) in got.iter().enumerate() {
            let what = format!("seed {seed}, {num_seqs} rows of {vocab}, step {step}, row {i}");
            compare(&what, got, &expected[step][i], &sequences[i].params);
        }
    };
    for step in 0..steps {
        let values: Vec<Vec<f32>> = (0..num_seqs).map(|i| logits_of(random, (i / 3 + step as usize) % NUM_SHAPES, vocab)).collect();
        gpu.write(&mut logits, &values.concat()).unwrap();
        let row_of = |i: usize| num_seqs - 1 - i;
        let rows: Vec<SampleRow<'_>> = sequences.iter().enumerate().map(|(i, s)| s.row(row_of(i), i + 3, step)).collect();
        expected.push(rows.iter().map(|row| sample_row(&mut values[row.logits_row].clone(), row)).collect());
        let pending = gpu.sample(&mut logits, &rows, &mut last_tokens).unwrap();
        for (sequence, output) in sequences.iter_mut().zip(&expected[step as usize]) {
            sequence.history.push(output.token);
        }
        match (ahead, running.replace((pending, step as usize))) {
            (true, Some((pending, step))) => read(pending, step, &expected, &sequences),
            (true, None) => {}
            (false, _) => {
                let (pending, step) = running.take().expect("put above");
                read(pending, step, &expected, &sequences);
            }
        }
    }
    if let Some((pending, step)) = running {
        read(pending, step, &expected, &sequences);
    }
}

/// Every way to sample over few logits, for compute-sanitizer (scripts/gpu-table.sh).
#[test]
fn smallest_rows_are_the_cpu_samplers() {
    let Some(gpu) = device() else { return };
    check(&gpu, 42, NUM_PARAMS, 700, 2);
    check_given_tokens(&gpu, &mut Random(21), 7);
}

#[test]
fn tokens_are_the_cpu_samplers() {
    let Some(gpu) = device() else { return };
    for (seed, (num_seqs, vocab)) in
        [(1, 1), (3, 2), (42, 17), (28, 64), (28, 513), (64, 1000), (140, 4097), (70, 32_000)].into_iter().enumerate()
    {
        check(&gpu, seed as u64, num_seqs, vocab, 4);
    }
    for seed in 0..28 {
        check(&gpu, 100 + seed, 1, 5003, 3);
    }
}

#[test]
fn tokens_are_the_cpu_samplers_at_full_size() {
    let Some(gpu) = device() else { return };
    for (seed, num_seqs) in [(1, 1), (2, 14), (3, 40)] {
        check(&gpu, seed, num_seqs, 151_936, 2);
    }
    check(&gpu, 4, 14, 262_208, 2);
}

#[test]
fn greedy_rows_of_a_large_batch() {
    let Some(gpu) = device() else { return };
    let (num_seqs, vocab) = (512, 20_001);
    let random = &mut Random(9);
    gpu.prepare_sampling(num_seqs, vocab).unwrap();
    let (params, history) = (SamplingParams::default(), TokenHistory::default());
    let row = |i: usize| SampleRow {
        logits_row: i,
        slot: num_seqs - 1 - i,
        params: &params,
        seed: 0,
        stop_ids: &[],
        output_index: 0,
        choice: 0,
        history: &history,
        allowed: None,
    };
    let rows: Vec<SampleRow<'_>> = (0..num_seqs).map(row).collect();
    gpu.admit(&rows).unwrap();
    let values: Vec<Vec<f32>> = (0..num_seqs).map(|i| logits_of(random, i % NUM_SHAPES, vocab)).collect();
    let mut logits = gpu.alloc(num_seqs, vocab, DType::F32).unwrap();
    gpu.write(&mut logits, &values.concat()).unwrap();
    let mut last_tokens = gpu.alloc_ints(num_seqs).unwrap();
    let pending = gpu.sample(&mut logits, &rows, &mut last_tokens).unwrap();
    for (i, got) in gpu.sampled(pending).unwrap().iter().enumerate() {
        assert_eq!(*got, sample_row(&mut values[i].clone(), &rows[i]), "row {i}");
    }
}

/// 20,480 draws from six tokens: chi-square against the softmax, bound: the 99.9 % quantile at 5 degrees of freedom.
#[test]
fn draws_follow_the_distribution() {
    let Some(gpu) = device() else { return };
    let base = [1.0f32, 0.0, 2.0, -1.0, 1.5, 0.5];
    for (vocab, top_k) in [(6, 0), (6, 6), (100, 6), (3000, 0)] {
        let num_seqs = 512;
        gpu.prepare_sampling(num_seqs, vocab).unwrap();
        let params = SamplingParams { temperature: 0.9, top_k, ..SamplingParams::default() };
        let history = TokenHistory::default();
        let mut row = vec![f32::NEG_INFINITY; vocab];
        let place = |i: usize| i * (vocab / 6);
        (0..6).for_each(|i| row[place(i)] = base[i]);
        let mut logits = gpu.alloc(1, vocab, DType::F32).unwrap();
        gpu.write(&mut logits, &row).unwrap();
        let mut last_tokens = gpu.alloc_ints(num_seqs).unwrap();
        let mut counts = [0.0f64; 6];
        for step in 0..40 {
            let rows: Vec<SampleRow<'_>> = (0..num_seqs)
                .map(|slot| SampleRow {
                    logits_row: 0,
                    slot,
                    params: &params,
                    seed: 77,
                    stop_ids: &[],
                    output_index: step,
                    choice: slot as u32,
                    history: &history,
                    allowed: None,
                })
                .collect();
            let pending = gpu.sample(&mut logits, &rows, &mut last_tokens).unwrap();
            for output in gpu.sampled(pending).unwrap() {
                let at = (0..6).find(|&i| place(i) == output.token as usize).expect("a token with a logit");
                counts[at] += 1.0;
            }
        }
        let weight = |i: usize| (f64::from(base[i]) / 0.9).exp();
        let total: f64 = (0..6).map(weight).sum();
        let expected = |i: usize| 40.0 * num_seqs as f64 * weight(i) / total;
        let chi: f64 = (0..6).map(|i| (counts[i] - expected(i)).powi(2) / expected(i)).sum();
        assert!(chi < 20.5, "chi-square {chi} for {vocab} logits, top_k {top_k}: {counts:?}");
    }
}

#[test]
fn logprobs_of_given_tokens() {
    let Some(gpu) = device() else { return };
    let random = &mut Random(21);
    for vocab in [7, 1000, 151_936] {
        check_given_tokens(&gpu, random, vocab);
    }
}

fn check_given_tokens(gpu: &CudaDevice, random: &mut Random, vocab: usize) {
    gpu.prepare_sampling(8, vocab).unwrap();
    let values: Vec<Vec<f32>> = (0..NUM_SHAPES).map(|shape| logits_of(random, shape, vocab)).collect();
    let mut logits = gpu.alloc(NUM_SHAPES, vocab, DType::F32).unwrap();
    gpu.write(&mut logits, &values.concat()).unwrap();
    let rows: Vec<(usize, u32)> = (0..3 * NUM_SHAPES).map(|i| (i % NUM_SHAPES, random.below(vocab) as u32)).collect();
    for top in [0, 1, 20] {
        let got = gpu.row_logprobs(&logits, &rows, top).unwrap();
        for (got, &(row, token)) in got.iter().zip(&rows) {
            let want = token_logprobs(&values[row], token, top);
            assert!(same_logprobs(got, &want), "vocab {vocab}, shape {row}, top {top}: {got:?}, on the CPU {want:?}");
        }
    }
}
