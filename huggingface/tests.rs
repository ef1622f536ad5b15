//! Tests of NF4's operations; whole models are tested from the other side of the socket (`tests/huggingface.rs`).

use candle_core::{DType, Device, Result, Tensor};

use crate::books::NF4;
use crate::four_bit::{BLOCK, dynamic_map, nested, nf4};
use crate::nf4::Nf4;

/// Numbers that look random and are the same everywhere.
fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next() + next() + next()).collect()
}

fn matrix(n: usize, k: usize, seed: u32) -> Result<Tensor> {
    Tensor::from_vec(noise(n * k, seed), (n, k), &Device::Cpu)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// bitsandbytes' formula, weight by weight.
fn dequantised(weights: &[f32]) -> Vec<f32> {
    let (blocks, map) = (nf4(weights, BLOCK), dynamic_map());
    let nested = nested(&blocks.absmax, &map, 256);
    let absmax = |block: usize| map[usize::from(nested.codes[block])] * nested.absmax[block / 256] + nested.offset;
    let code = |i: usize| blocks.codes[i / 2] >> (4 * (1 - i % 2)) & 15;
    (0..weights.len()).map(|i| NF4[usize::from(code(i))] * absmax(i / BLOCK)).collect()
}

#[test]
fn weights_come_back_as_bitsandbytes_would_give_them() -> Result<()> {
    for (n, k) in [(1, 64), (3, 128), (17, 192), (300, 64)] {
        let weight = matrix(n, k, 7)?;
        let packed = Nf4::new(&weight, &Device::Cpu)?;
        let expected = dequantised(&values(&weight)?);
        assert_eq!(values(&packed.dense(0, n, DType::F32)?)?, expected, "{n} x {k}");
        assert_eq!(values(&packed.dense(n - 1, 1, DType::F32)?)?, expected[(n - 1) * k..], "the last row of {n} x {k}");
    }
    Ok(())
}

#[test]
fn products_of_codes_are_those_of_the_weights() -> Result<()> {
    for (t, n, k) in [(1, 1, 64), (1, 33, 128), (4, 16, 192), (5, 40, 64), (9, 17, 128)] {
        let packed = Nf4::new(&matrix(n, k, 3)?, &Device::Cpu)?;
        let x = matrix(t, k, 11)?;
        let expected = values(&x.matmul(&packed.dense(0, n, DType::F32)?.t()?)?)?;
        for (got, expected) in values(&packed.forward(&x)?)?.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-4, "{t} x {n} x {k}: {got} for {expected}");
        }
    }
    Ok(())
}

#[test]
fn a_weight_takes_little_more_than_half_a_byte() -> Result<()> {
    let (n, k) = (512, 512);
    let packed = Nf4::new(&matrix(n, k, 1)?, &Device::Cpu)?;
    assert_eq!(packed.bytes(), n * k / 2 + n * k / 64 + n * k / 64 / 256 * 4);
    Ok(())
}

/// What a GPU does with candle's own operations, done here: they are the same on any device.
#[test]
fn looked_up_weights_are_the_same() -> Result<()> {
    let (n, k) = (300, 128);
    let packed = Nf4::new(&matrix(n, k, 5)?, &Device::Cpu)?;
    assert_eq!(values(&packed.looked_up(2, 9, DType::F32)?)?, values(&packed.dense(2, 9, DType::F32)?)?);
    Ok(())
}
