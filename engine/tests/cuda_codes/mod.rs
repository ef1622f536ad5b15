//! Coded matrices made from a seed, and the ways to and from a GPU without a device of the engine.

use std::sync::Arc;

use half::{bf16, f16};
use pagoda_engine::device::{HostMatrix, HostWeight};
use pagoda_engine::weights::format::WeightFormat;
use pagoda_engine::weights::mapped::MappedBytes;
use pagoda_engine::weights::quant::books::{Book, E2M1, FP4, INT4, NF4, UINT4};
use pagoda_engine::weights::quant::coded::Nibble;
use pagoda_engine::weights::quant::{Code, CodedMatrix, LoadFormat, ScaleValues, Scales, Zeros};
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::w4::{W4Codes, W4Layout, W4Matrix, w4_pack};
use pagoda_kernels::{DeviceMemory, Gpu};

use crate::cuda_pair::noise;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    /// 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f32 {
        ((self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0) as f32
    }
}

/// A 4-bit format as far as kernels see it.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Values.
    pub book: Book,
    /// Which half of a byte comes first.
    pub first: Nibble,
    /// Columns of a scale; 0: all.
    pub group: usize,
    /// Whether there are zero points.
    pub zeros: bool,
}

/// The formats of checkpoints: bitsandbytes, GPTQ without groups and with, AWQ, NVFP4, MXFP4.
pub fn formats() -> Vec<Format> {
    let format = |book, first, group, zeros| Format { book, first, group, zeros };
    vec![
        format(NF4, Nibble::High, 64, false),
        format(FP4, Nibble::High, 128, false),
        format(INT4, Nibble::Low, 0, false),
        format(INT4, Nibble::Low, 32, false),
        format(UINT4, Nibble::Low, 128, true),
        format(UINT4, Nibble::Low, 32, true),
        format(UINT4, Nibble::High, 64, true),
        format(E2M1, Nibble::Low, 16, false),
        format(E2M1, Nibble::Low, 32, false),
    ]
}

/// A random matrix of the format, with scales that f16 holds exactly.
pub fn coded(random: &mut Random, format: &Format, n: usize, k: usize) -> CodedMatrix {
    let group = if format.group == 0 { k } else { format.group };
    let count = n * k.div_ceil(group);
    let scales: Vec<u8> = (0..count).flat_map(|_| f16::from_f32(random.unit() * 0.02).to_le_bytes()).collect();
    let codes: Vec<u8> = (0..n * k / 2).map(|_| random.next() as u8).collect();
    let zeros: Vec<u8> = (0..count).map(|_| (random.next() % 16) as u8).collect();
    CodedMatrix {
        name: "test".into(),
        n,
        k,
        code: Code::Four { book: format.book, first: format.first },
        codes: MappedBytes::from_slice(&codes),
        scales: Scales::new(1, group, k, ScaleValues::F16(MappedBytes::from_slice(&scales))),
        zeros: if format.zeros { Zeros::Groups { codes: MappedBytes::from_slice(&zeros), plus: 1 } } else { Zeros::None },
        order: None,
    }
}

/// A permutation of `k` columns.
pub fn permutation(random: &mut Random, k: usize) -> Arc<[u32]> {
    let mut columns: Vec<u32> = (0..k as u32).collect();
    (1..k).for_each(|i| columns.swap(i, random.next() as usize % (i + 1)));
    columns.into()
}

/// All scales in f32, `[n, groups]`.
pub fn scales_of(matrix: &CodedMatrix) -> Vec<f32> {
    let mut scales = vec![0.0; matrix.n * matrix.scales.per_row];
    scales.chunks_exact_mut(matrix.scales.per_row).enumerate().for_each(|(row, out)| matrix.scales.read_row(row, out));
    scales
}

/// A GPU's memory, filled from the host.
pub fn upload(gpu: &Arc<Gpu>, bytes: &[u8]) -> DeviceMemory {
    let memory = DeviceMemory::zeroed(gpu, bytes.len()).unwrap();
    gpu.copy_to_device(memory.bytes(), bytes).unwrap();
    gpu.synchronize().unwrap();
    memory
}

/// What is in a GPU's memory.
pub fn download(gpu: &Gpu, from: DeviceBytes) -> Vec<u8> {
    let mut bytes = vec![0; from.len()];
    gpu.copy_to_host(&mut bytes, from).unwrap();
    bytes
}

/// A matrix in tiles, with its memory.
pub struct Packed {
    /// The matrix.
    pub matrix: W4Matrix,
    _tiles: DeviceMemory,
}

/// Packs a matrix without an order; `interleaved`: as gate and up.
pub fn pack(gpu: &Arc<Gpu>, from: &CodedMatrix, interleaved: bool) -> Packed {
    let Code::Four { book, first } = from.code else { panic!("4-bit codes") };
    let layout = W4Layout { n: from.n, k: from.k, group: from.scales.cols, zeros: !matches!(from.zeros, Zeros::None), interleaved };
    assert!(layout.is_supported(), "{layout:?}");
    let scales = scales_of(from);
    let largest = scales.iter().fold(0.0f32, |max, scale| max.max(scale.abs()));
    // What lies behind the tiles stays as it is: `poisoned` is looked at below.
    const GUARD: usize = 64;
    let tiles = upload(gpu, &vec![0xa5; layout.bytes() + GUARD]);
    let (scale_factor, short_scales) = W4Matrix::scales_in(largest, from.scales.unit());
    let matrix = W4Matrix { tiles: tiles.bytes().first(layout.bytes()), layout, book, scale_factor, short_scales };
    let codes = upload(gpu, from.codes.as_slice());
    let scales = upload(gpu, bytemuck::cast_slice(&scales));
    let zeros = match &from.zeros {
        Zeros::Groups { codes, plus } => Some((upload(gpu, codes.as_slice()), *plus)),
        _ => None,
    };
    let source = W4Codes {
        codes: codes.bytes(),
        first_high: first == Nibble::High,
        scales: scales.bytes(),
        zeros: zeros.as_ref().map(|(memory, plus)| (memory.bytes(), *plus)),
    };
    w4_pack(&matrix, &source, gpu.stream().unwrap()).unwrap();
    assert!(download(gpu, tiles.bytes().from(layout.bytes())).iter().all(|byte| *byte == 0xa5), "{layout:?}: wrote behind the tiles");
    Packed { matrix, _tiles: tiles }
}

/// Kinds of parts of a layer.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Codes of a format.
    Coded(Format),
    /// In act order, all parts in the same one.
    Ordered(Format),
    /// bf16 that is quantised to this, like all dense parts of the layer.
    AtLoad(LoadFormat),
    /// Blocks of GGUF.
    Blocks(WeightFormat),
    /// bf16.
    Dense,
}

impl Kind {
    /// A part `[n, k]`.
    pub fn part(&self, seed: u64, n: usize, k: usize) -> HostMatrix {
        let mut random = Random(seed);
        let rows =
            |format: WeightFormat, bytes: &[u8]| HostWeight { name: "test".into(), format, n, k, bytes: MappedBytes::from_slice(bytes) };
        let halves = || noise(seed, n * k).iter().flat_map(|v| bf16::from_f32(v * 0.1).to_le_bytes()).collect::<Vec<u8>>();
        match self {
            Kind::Coded(format) => HostMatrix::from(coded(&mut random, format, n, k)),
            Kind::Ordered(format) => {
                let order = Some(permutation(&mut Random(k as u64), k));
                HostMatrix::from(CodedMatrix { order, ..coded(&mut random, format, n, k) })
            }
            Kind::AtLoad(_) | Kind::Dense => HostMatrix::Rows(rows(WeightFormat::BF16, &halves())),
            Kind::Blocks(format) => {
                let (values, _) = format.block();
                let blocks: Vec<u8> = (0..n * k / values).flat_map(|_| block(&mut random, *format)).collect();
                HostMatrix::Rows(rows(*format, &blocks))
            }
        }
    }
}

/// A block of GGUF: random bytes with scales that give weights of about 0.1.
fn block(random: &mut Random, format: WeightFormat) -> Vec<u8> {
    let (_, bytes) = format.block();
    let mut block: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
    // Where the halves are, and how large.
    let halves: &[(usize, f32)] = match format {
        WeightFormat::Q4_0 => &[(0, 0.02)],
        WeightFormat::Q4_1 => &[(0, 0.02), (2, 0.1)],
        WeightFormat::Q5_0 => &[(0, 0.01)],
        WeightFormat::Q5_1 => &[(0, 0.01), (2, 0.1)],
        WeightFormat::Q8_0 => &[(0, 0.001)],
        WeightFormat::Q4K => &[(0, 0.0003), (2, 0.002)],
        WeightFormat::Q5K => &[(0, 0.00015), (2, 0.002)],
        WeightFormat::Q6K => &[(208, 0.00005)],
        dense => unreachable!("{dense:?} has no blocks"),
    };
    for (at, size) in halves {
        block[*at..*at + 2].copy_from_slice(&f16::from_f32(random.unit() * size).to_le_bytes());
    }
    block
}
