//! Weights of 8 bits on the CUDA device against the CPU device.
//!
//! Where tokens are many the GPU rounds activations to e4m3. The inputs here are e4m3 values times a power of two already, with the largest
//! one in every 128 columns, so that this rounding changes nothing and the bounds of all other products hold.
use half::{bf16, f16};
use pagoda_engine::device::{DType, Device, HostMatrix, HostWeight, Linear, MatrixLoad, MatrixUse, Tensor};
use pagoda_engine::models::config::Activation;
use pagoda_engine::weights::format::WeightFormat;
use pagoda_engine::weights::mapped::MappedBytes;
use pagoda_engine::weights::quant::books::e4m3;
use pagoda_engine::weights::quant::{Code, CodedMatrix, LoadFormat, ScaleValues, Scales, Zeros};

use crate::cuda_pair::{Case, Inputs, Pair, noise};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// e4m3, a scale for the tensor.
    Tensor,
    /// e4m3, a scale a row.
    Channel,
    /// e4m3, a scale for 128 x 128.
    Block,
    /// Integers, a scale a row.
    Int8,
}

const FORMS: [Form; 4] = [Form::Tensor, Form::Channel, Form::Block, Form::Int8];

/// Bytes that are no NaN.
fn codes(seed: u64, len: usize) -> Vec<u8> {
    let byte = |v: &f32| ((v + 1.0) * 127.99) as u8;
    noise(seed, len).iter().map(byte).map(|b| if b & 0x7f == 0x7f { b ^ 1 } else { b }).collect()
}

fn matrix(seed: u64, n: usize, k: usize, form: Form) -> HostMatrix {
    let (rows, cols) = match form {
        Form::Tensor => (n, k),
        Form::Channel | Form::Int8 => (1, k),
        Form::Block => (128, 128),
    };
    let count = n.div_ceil(rows) * k.div_ceil(cols);
    let size = if form == Form::Int8 { 1.0 / 64.0 } else { 1.0 / 100.0 } / (k as f32).sqrt();
    let scales: Vec<u8> = noise(seed + 1, count).iter().flat_map(|v| (size * (1.5 + v)).to_le_bytes()).collect();
    let scales = Scales::new(rows, cols, k, ScaleValues::F32(MappedBytes::from_slice(&scales)));
    let (code, zeros) = if form == Form::Int8 { (Code::U8, Zeros::Same(128.0)) } else { (Code::E4M3, Zeros::None) };
    let codes = MappedBytes::from_slice(&codes(seed, n * k));
    HostMatrix::from(CodedMatrix { name: "test".into(), n, k, code, codes, scales, zeros, order: None })
}

/// Activations that are e4m3 exactly: see the head.
fn exact_inputs(rows: usize, k: usize) -> Vec<f32> {
    let values = codes(3, rows * k);
    let at = |i: usize, byte: u8| if (i % k).is_multiple_of(128) { 0x7e } else { byte };
    values.iter().enumerate().map(|(i, byte)| e4m3(at(i, *byte)) / 512.0).collect()
}

fn stored(usage: MatrixUse) -> MatrixLoad {
    MatrixLoad { usage, quantize: None }
}

/// Stacked parts, bias, both output types, gate and up.
struct Product {
    rows: usize,
    parts: Vec<usize>,
    k: usize,
    bias: bool,
    form: Form,
}

impl Case for Product {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let n = self.parts.iter().sum();
        let load =
            |(i, n): (usize, &usize)| device.load_matrix(matrix(10 * i as u64, *n, self.k, self.form), stored(MatrixUse::Projection));
        let parts = self.parts.iter().enumerate().map(|part| load(part).unwrap()).collect();
        let bias = self.bias.then(|| device.load_vector(&noise(20, n)).unwrap());
        let linear = Linear { parts, bias, n, k: self.k };
        let x = inputs.rows_of(&exact_inputs(self.rows, self.k), self.rows, self.k, device.activation_dtype());
        let mut out = device.alloc(self.rows + 3, n, device.activation_dtype()).unwrap();
        device.linear(&mut out, &x, &linear).unwrap();
        let mut logits = device.alloc(self.rows, n, DType::F32).unwrap();
        device.linear(&mut logits, &x, &linear).unwrap();
        let mut outputs = vec![out, logits];
        if n.is_multiple_of(16) {
            let mut gated = device.alloc(self.rows, n / 2, device.activation_dtype()).unwrap();
            let mut scratch = device.alloc(self.rows, n, device.activation_dtype()).unwrap();
            device.linear_gated(&mut gated, &mut scratch, &x, &linear, Activation::Silu).unwrap();
            outputs.push(gated);
        }
        outputs
    }
}

#[test]
fn products_of_bytes_agree() {
    let Some(pair) = Pair::new() else { return };
    for form in FORMS {
        for rows in [1, 8, 9, 17, 33, 64, 65, 128, 129, 300] {
            for (parts, k, bias) in [
                (vec![64], 128, false),
                (vec![48, 16, 16], 144, true),
                (vec![130, 7], 272, true),
                (vec![1024, 256, 256], 1024, true),
                (vec![384, 384], 896, false),
            ] {
                let what = format!("{rows} x {parts:?} x {k} bias {bias} {form:?}");
                pair.check(&what, &Product { rows, parts, k, bias, form });
            }
        }
    }
}

/// Each kernel once.
pub fn check_smallest(pair: &Pair) {
    for form in FORMS {
        for rows in [1, 9, 65] {
            pair.check("product of bytes", &Product { rows, parts: vec![48, 16], k: 144, bias: true, form });
        }
        pair.check_bits("embedding of bytes", &Embedding { form });
    }
    for into in [LoadFormat::Fp8, LoadFormat::Int8] {
        pair.check_bits("quantised at load", &QuantisedAtLoad { into, format: WeightFormat::BF16, n: 48, k: 144 });
    }
}

#[test]
fn a_token_gives_the_same_bits_alone_and_among_many() {
    let Some(pair) = Pair::deterministic() else { return };
    for form in FORMS {
        let case = |rows| Product { rows, parts: vec![384, 384], k: 896, bias: true, form };
        let alone = pair.first_rows(&case(1));
        for rows in [2, 9, 33, 64, 65, 200] {
            assert_eq!(pair.first_rows(&case(rows)), alone, "{form:?}, {rows} rows");
        }
    }
}

/// Rows of the identity times a matrix that the device quantised: its weights, column by column.
struct QuantisedAtLoad {
    into: LoadFormat,
    format: WeightFormat,
    n: usize,
    k: usize,
}

impl Case for QuantisedAtLoad {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let (n, k) = (self.n, self.k);
        let to_bytes = |v: &f32| match self.format {
            WeightFormat::F32 => (v * 1.001).to_le_bytes().to_vec(),
            WeightFormat::F16 => f16::from_f32(v * 1.001).to_le_bytes().to_vec(),
            _ => bf16::from_f32(*v).to_le_bytes().to_vec(),
        };
        let bytes: Vec<u8> = noise(5, n * k).iter().flat_map(to_bytes).collect();
        let dense = HostWeight { name: "test".into(), format: self.format, n, k, bytes: MappedBytes::from_slice(&bytes) };
        let load = MatrixLoad { usage: MatrixUse::Projection, quantize: Some(self.into) };
        let linear = Linear { parts: vec![device.load_matrix(HostMatrix::Rows(dense), load).unwrap()], bias: None, n, k };
        let columns = |first: usize| {
            let rows = 64.min(k - first);
            let mut basis = vec![0.0; rows * k];
            (0..rows).for_each(|row| basis[row * k + first + row] = 1.0);
            let x = inputs.rows_of(&basis, rows, k, device.activation_dtype());
            let mut out = device.alloc(rows, n, DType::F32).unwrap();
            device.linear(&mut out, &x, &linear).unwrap();
            out
        };
        (0..k).step_by(64).map(columns).collect()
    }
}

#[test]
fn weights_quantised_by_the_gpu_are_those_of_the_cpu() {
    let Some(pair) = Pair::new() else { return };
    for format in [WeightFormat::BF16, WeightFormat::F16, WeightFormat::F32] {
        for (into, n, k) in
            [(LoadFormat::Fp8, 48, 144), (LoadFormat::Fp8, 200, 512), (LoadFormat::Int8, 48, 144), (LoadFormat::Int8, 200, 3584)]
        {
            pair.check_bits(&format!("{format:?} {n} x {k} as {into:?} at load"), &QuantisedAtLoad { into, format, n, k });
        }
    }
}

/// Rows of a table by index.
struct Embedding {
    form: Form,
}

impl Case for Embedding {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let table = device.load_matrix(matrix(7, 200, 272, self.form), stored(MatrixUse::Table)).unwrap();
        let step = inputs.step(&[0, 199, 3, 128, 127, 3]);
        let mut out = device.alloc(8, 272, device.residual_dtype()).unwrap();
        device.embedding(&mut out, &table, &step, 1.5).unwrap();
        vec![out]
    }
}

#[test]
fn rows_of_tables_of_bytes_agree() {
    let Some(pair) = Pair::new() else { return };
    for form in FORMS {
        pair.check_bits(&format!("embedding {form:?}"), &Embedding { form });
    }
}
