//! The CUDA device beside the CPU device, inputs that are the same on both, and the comparison of what they compute.

use std::sync::Arc;

use half::bf16;
use pagoda_engine::device::cpu::CpuDevice;
use pagoda_engine::device::cuda::CudaDevice;
use pagoda_engine::device::encoder::EncoderDevice;
use pagoda_engine::device::{DType, Device, HostWeight, Linear, RowGather, StepTensors, Tensor};
use pagoda_engine::sampling::{SampleRow, SamplingParams, TokenHistory};
use pagoda_engine::weights::format::WeightFormat;
use pagoda_engine::weights::mapped::MappedBytes;

/// Largest ‖gpu - cpu‖ / ‖cpu‖.
const TOLERANCE: f64 = 1e-2;

/// Largest |gpu - cpu| of one element, in units of its size and its row's root mean square together: one wrong element among many does not
/// show in the norm of all.
const ELEMENT_TOLERANCE: f64 = 0.05;

/// SplitMix64 in [-1, 1), rounded to bf16 so that every device starts from the same numbers.
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| bf16::from_f64(next()).to_f32()).collect()
}

/// Something to compute on a device; all outputs are compared.
pub trait Case {
    /// Computes it.
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>>;
}

/// Something to compute with the ops of encoders.
pub trait EncoderCase {
    /// Computes it.
    fn run<D: EncoderDevice>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>>;
}

/// Makes inputs on a device, through the trait alone.
pub struct Inputs<'a, D: Device>(pub &'a D);

impl<D: Device> Inputs<'_, D> {
    /// `[n, k]` noise of about unit output, f32 in the checkpoint.
    pub fn weight(&self, seed: u64, n: usize, k: usize) -> D::Weight {
        self.matrix(&noise(seed, n * k), n, k)
    }

    fn matrix(&self, values: &[f32], n: usize, k: usize) -> D::Weight {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bytes = MappedBytes::from_slice(&bytes);
        self.0.load_weight(HostWeight { name: Arc::from("test"), format: WeightFormat::F32, n, k, bytes }).unwrap()
    }

    /// `[rows, cols]` noise as activations.
    pub fn tensor(&self, seed: u64, rows: usize, cols: usize) -> Tensor<D> {
        self.rows_of(&noise(seed, rows * cols), rows, cols, self.0.activation_dtype())
    }

    /// `[rows, cols]` noise as a residual stream.
    pub fn residual(&self, seed: u64, rows: usize, cols: usize) -> Tensor<D> {
        self.rows_of(&noise(seed, rows * cols), rows, cols, self.0.residual_dtype())
    }

    /// `[rows, cols]` of one value.
    pub fn filled(&self, value: f32, rows: usize, cols: usize) -> Tensor<D> {
        self.rows_of(&vec![value; rows * cols], rows, cols, self.0.activation_dtype())
    }

    /// `[rows, cols]` of these values.
    pub fn rows_of(&self, values: &[f32], rows: usize, cols: usize, dtype: DType) -> Tensor<D> {
        let table = self.matrix(values, rows, cols);
        let mut step = self.step(&vec![0; rows]);
        let ids: Vec<i32> = (0..rows as i32).collect();
        self.0.write_ints(&mut step.token_ids, &ids).unwrap();
        let mut out = self.0.alloc(rows, cols, dtype).unwrap();
        self.0.embedding(&mut out, &table, &step, 1.0).unwrap();
        out
    }

    /// `[rows, cols]` noise as f32 logits: a product with the identity.
    pub fn logits(&self, seed: u64, rows: usize, cols: usize) -> Tensor<D> {
        // `rows` basis vectors times a matrix `[cols, k]` picks columns of the matrix.
        let k = rows.next_multiple_of(8);
        let mut basis = vec![0.0; rows * k];
        (0..rows).for_each(|row| basis[row * k + row] = 1.0);
        let x = self.rows_of(&basis, rows, k, self.0.activation_dtype());
        let linear = Linear { parts: vec![self.weight(seed, cols, k)], bias: None, n: cols, k };
        let mut logits = self.0.alloc(rows, cols, DType::F32).unwrap();
        self.0.linear(&mut logits, &x, &linear).unwrap();
        logits
    }

    /// Step tensors with room for tests, and these token ids.
    pub fn step(&self, token_ids: &[i32]) -> StepTensors<D> {
        let room = token_ids.len().max(64);
        let ints = |len| self.0.alloc_ints(len).unwrap();
        let mut step = StepTensors {
            num_tokens: token_ids.len(),
            num_seqs: 0,
            max_query_len: 0,
            max_context_len: 0,
            token_ids: ints(room),
            token_source: ints(room),
            positions: ints(room),
            slot_mapping: ints(room),
            cu_seqlens_q: ints(room + 1),
            context_lens: ints(room),
            block_tables: ints(room * 64),
            max_blocks_per_seq: 0,
            num_prefix_groups: 0,
            prefix_groups: ints(3 + 3 * room),
            prefix_members: ints(room),
            prefix_lens: ints(room),
            logit_rows: ints(room),
            first_logit_row: 0,
            num_logit_rows: 0,
            gather: RowGather::Head,
        };
        self.0.write_ints(&mut step.token_ids, token_ids).unwrap();
        step
    }

    /// A step of sequences given as (position of the first token, tokens, block table).
    pub fn paged_step(&self, seqs: &[(usize, usize, Vec<u32>)], block_size: usize) -> StepTensors<D> {
        let num_tokens = seqs.iter().map(|s| s.1).sum();
        let mut step = self.step(&vec![0; num_tokens]);
        let seqs: Vec<_> = seqs.iter().filter(|s| s.1 > 0).collect();
        let (mut positions, mut slots, mut cu, mut contexts, mut tables) = (vec![], vec![], vec![0], vec![], vec![]);
        let stride = seqs.iter().map(|s| s.2.len()).max().unwrap_or(0);
        for (start, len, blocks) in &seqs {
            for position in *start..start + len {
                positions.push(position as i32);
                slots.push((blocks[position / block_size] as usize * block_size + position % block_size) as i32);
            }
            cu.push(positions.len() as i32);
            contexts.push((start + len) as i32);
            tables.extend(blocks.iter().map(|b| *b as i32));
            tables.resize(contexts.len() * stride, 0);
            step.max_query_len = step.max_query_len.max(*len);
            step.max_context_len = step.max_context_len.max(start + len);
        }
        step.num_seqs = seqs.len();
        step.max_blocks_per_seq = stride;
        step.block_tables = self.0.alloc_ints(tables.len().max(1)).unwrap();
        self.0.write_ints(&mut step.positions, &positions).unwrap();
        self.0.write_ints(&mut step.slot_mapping, &slots).unwrap();
        self.0.write_ints(&mut step.cu_seqlens_q, &cu).unwrap();
        self.0.write_ints(&mut step.context_lens, &contexts).unwrap();
        self.0.write_ints(&mut step.block_tables, &tables).unwrap();
        step
    }
}

/// Both devices.
pub struct Pair {
    cpu: CpuDevice,
    /// The CUDA device, for what it refuses.
    pub gpu: CudaDevice,
}

impl Pair {
    /// None, with the reason on stderr, where there is no GPU or no kernel.
    pub fn new() -> Option<Pair> {
        if CudaDevice::available().is_empty() {
            eprintln!("skipped: no GPU, or built without CUDA kernels");
            return None;
        }
        Some(Pair { cpu: CpuDevice::new(None).unwrap(), gpu: CudaDevice::new(0).unwrap() })
    }

    /// The GPU alone, in its deterministic mode; None as `new`.
    pub fn deterministic() -> Option<Pair> {
        let Pair { cpu, gpu } = Pair::new()?;
        Some(Pair { cpu, gpu: gpu.deterministic() })
    }

    /// The first row of every output on the GPU, as bits.
    pub fn first_rows(&self, case: &impl Case) -> Vec<Vec<u32>> {
        let first = |tensor: &Tensor<CudaDevice>| self.gpu.read(tensor).unwrap()[..tensor.cols].iter().map(|v| v.to_bits()).collect();
        case.run(&self.gpu, &Inputs(&self.gpu)).iter().map(first).collect()
    }

    /// Runs a case on both; twice on the GPU, which must give the same bits.
    pub fn check(&self, what: &str, case: &impl Case) {
        let on_gpu = || case.run(&self.gpu, &Inputs(&self.gpu));
        self.compare(what, &case.run(&self.cpu, &Inputs(&self.cpu)), [on_gpu(), on_gpu()]);
    }

    /// The same for the ops of encoders.
    pub fn check_encoder(&self, what: &str, case: &impl EncoderCase) {
        let on_gpu = || case.run(&self.gpu, &Inputs(&self.gpu));
        self.compare(what, &case.run(&self.cpu, &Inputs(&self.cpu)), [on_gpu(), on_gpu()]);
    }

    fn compare(&self, what: &str, expected: &[Tensor<CpuDevice>], [got, again]: [Vec<Tensor<CudaDevice>>; 2]) {
        let mut worst = 0.0f64;
        for (i, ((expected, got), again)) in expected.iter().zip(&got).zip(&again).enumerate() {
            assert_eq!((got.rows, got.cols), (expected.rows, expected.cols), "{what}: shape of output {i}");
            let cols = got.cols;
            let (expected, got, again) = (expected.values(), self.gpu.read(got).unwrap(), self.gpu.read(again).unwrap());
            let same = got.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{what}: output {i} differs between two runs");
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let difference = norm(&mut expected.iter().zip(&got).map(|(e, g)| f64::from(*g) - f64::from(*e)));
            let error = difference / norm(&mut expected.iter().map(|e| f64::from(*e))).max(1e-30);
            assert!(error < TOLERANCE, "{what}: output {i} is off by {error:.2e} (‖gpu - cpu‖ / ‖cpu‖), at most {TOLERANCE:.0e}");
            worst = worst.max(error);
            check_elements(&format!("{what}: output {i}"), expected, &got, cols);
        }
        eprintln!("{what}: {worst:.1e}");
    }

    /// Runs a case on both, which must give the same bits.
    pub fn check_bits(&self, what: &str, case: &impl Case) {
        let expected = case.run(&self.cpu, &Inputs(&self.cpu));
        let got = case.run(&self.gpu, &Inputs(&self.gpu));
        for (i, (expected, got)) in expected.iter().zip(&got).enumerate() {
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let (expected, got) = (bits(expected.values()), bits(&self.gpu.read(got).unwrap()));
            let differing = expected.iter().zip(&got).filter(|(e, g)| e != g).count();
            assert_eq!((got.len(), differing), (expected.len(), 0), "{what}: output {i}, elements that differ");
        }
    }

    /// Tokens and logprobs of `rows` rows under many parameters, and what is left in `last_tokens`.
    pub fn check_sampling(&self, rows: usize, vocab: usize) {
        let cpu = sample(&self.cpu, rows, vocab);
        let gpu = sample(&self.gpu, rows, vocab);
        assert_eq!((&cpu.0, &cpu.1), (&gpu.0, &gpu.1), "sampling of {rows} rows of {vocab}");
        assert_eq!(cpu.2.values(), self.gpu.read(&gpu.2).unwrap(), "last tokens of {rows} rows of {vocab}");
        eprintln!("sampling {rows} x {vocab}: {:?}", gpu.0);
    }
}

/// Every element beside its own row.
fn check_elements(what: &str, expected: &[f32], got: &[f32], cols: usize) {
    for (row, (expected, got)) in expected.chunks(cols).zip(got.chunks(cols)).enumerate() {
        let rms = (expected.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>() / cols as f64).sqrt();
        for (col, (e, g)) in expected.iter().zip(got).enumerate() {
            let error = f64::from((g - e).abs()) / (rms + f64::from(e.abs())).max(1e-30);
            assert!(error <= ELEMENT_TOLERANCE, "{what}: row {row}, column {col} is {g}, expected {e}, the row's rms is {rms:.3}");
        }
    }
}

/// Sampled tokens, printed logprobs, and `last_tokens` as digits of base 256 in a tensor.
fn sample<D: Device>(device: &D, rows: usize, vocab: usize) -> (Vec<u32>, Vec<String>, Tensor<D>) {
    let inputs = Inputs(device);
    let plain = SamplingParams::default();
    let hot = SamplingParams { temperature: 0.8, top_p: 0.9, top_k: 50, seed: Some(3), ..plain.clone() };
    let params = [
        plain.clone(),
        hot.clone(),
        SamplingParams { logprobs: Some(5), ..plain.clone() },
        SamplingParams { logit_bias: vec![(17, 50.0)], ..plain.clone() },
        SamplingParams { min_p: 0.2, ..hot },
        SamplingParams { repetition_penalty: 1.5, frequency_penalty: 0.5, ..plain },
    ];
    let history = TokenHistory::default();
    device.prepare_sampling(2 * rows * params.len(), vocab).unwrap();
    let mut logits = inputs.logits(rows as u64, rows, vocab);
    let mut last_tokens = device.alloc_ints(2 * rows * params.len()).unwrap();
    let entries = device.row_logprobs(&logits, &[(rows - 1, 7), (0, 11)], 4).unwrap();
    let list: Vec<SampleRow<'_>> = (0..rows * params.len())
        .map(|i| SampleRow {
            logits_row: i % rows,
            slot: 2 * i + 1,
            params: &params[i / rows],
            seed: 99,
            stop_ids: &[],
            output_index: i as u32,
            choice: 0,
            history: &history,
            allowed: None,
        })
        .collect();
    device.admit(&list).unwrap();
    let outputs = device.sample(&mut logits, &list, &mut last_tokens).and_then(|pending| device.sampled(pending)).unwrap();
    let tokens: Vec<u32> = outputs.iter().map(|o| o.token).collect();
    let printed = entries.iter().map(|e| format!("{e:.2?}")).chain(outputs.iter().map(|o| format!("{:.2?}", o.logprobs)));

    let digits: Vec<f32> = (0..vocab).flat_map(|id| (0..8).map(move |digit| ((id >> (8 * digit).min(31)) & 255) as f32)).collect();
    let mut step = inputs.step(&vec![0; list.len()]);
    let slots: Vec<i32> = list.iter().map(|row| row.slot as i32).collect();
    device.write_ints(&mut step.token_source, &slots).unwrap();
    device.resolve_tokens(&mut step, &last_tokens).unwrap();
    let mut digits_of_tokens = device.alloc(list.len(), 8, device.activation_dtype()).unwrap();
    device.embedding(&mut digits_of_tokens, &inputs.matrix(&digits, vocab, 8), &step, 1.0).unwrap();
    (tokens, printed.collect(), digits_of_tokens)
}
