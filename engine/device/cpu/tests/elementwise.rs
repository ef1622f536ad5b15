//! Norms, activations, rope, embedding, gather and soft cap against f64, over columns that fill vectors and columns that do not.

use super::*;
use crate::device::{KvShape, RopeKvParams, RopeStyle, RopeTable};
use crate::models::config::Activation;

const ROWS: [usize; 5] = [0, 1, 2, 17, 65];

fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| f64::from(*x) / (mean + eps).sqrt() * f64::from(*w)).collect()
}

#[test]
fn norms_equal_f64() {
    let mut random = Random(21);
    for device in devices() {
        for cols in [1, 15, 16, 17, 576, 1000] {
            for rows in ROWS {
                let what = format!("{} [{rows}, {cols}]", device.name());
                let (x, before, weight) = (random.vec(rows * cols), random.vec(rows * cols), random.vec(cols));
                let (x_t, w) = (tensor(&device, cols, &x), vector(&device, &weight));
                let expected: Vec<f64> = x.chunks(cols).flat_map(|x| rms_norm(x, &weight, 1e-3)).collect();

                let mut out = empty(&device, rows, cols);
                device.rms_norm(&mut out, &x_t, &w, 1e-3).unwrap();
                assert_close(out.values(), &expected, 1e-5, &what);

                let mut residual = tensor(&device, cols, &before);
                device.norm_add(&mut residual, &x_t, &w, 1e-3).unwrap();
                let sum: Vec<f64> = before.iter().zip(&expected).map(|(b, e)| f64::from(*b) + e).collect();
                assert_close(residual.values(), &sum, 1e-5, &what);

                let mut residual = tensor(&device, cols, &before);
                device.add_rms_norm(&mut out, &mut residual, &x_t, &w, 1e-3).unwrap();
                let sum: Vec<f32> = before.iter().zip(&x).map(|(b, x)| b + x).collect();
                assert_eq!(residual.values(), sum, "{what}");
                let expected: Vec<f64> = sum.chunks(cols).flat_map(|x| rms_norm(x, &weight, 1e-3)).collect();
                assert_close(out.values(), &expected, 1e-5, &what);
            }
        }
    }
}

/// The error function by its series, for |x| < 6.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn activate(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x.powi(3))).tanh()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

#[test]
fn gated_activations_equal_f64() {
    let mut random = Random(22);
    for device in devices() {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            for cols in [1, 16, 23, 1536] {
                for rows in ROWS {
                    let x: Vec<f32> = random.vec(rows * 2 * cols).iter().map(|x| 6.0 * x).collect();
                    let mut out = empty(&device, rows, cols);
                    device.gated_activation(&mut out, &tensor(&device, 2 * cols, &x), activation).unwrap();
                    let gated = |row: &[f32]| -> Vec<f64> {
                        let (gate, up) = row.split_at(cols);
                        gate.iter().zip(up).map(|(g, u)| activate(f64::from(*g), activation) * f64::from(*u)).collect()
                    };
                    let expected: Vec<f64> = x.chunks(2 * cols).flat_map(gated).collect();
                    assert_close(out.values(), &expected, 3e-6, &format!("{} {activation:?} [{rows}, {cols}]", device.name()));
                }
            }
        }
    }
}

#[test]
fn activations_of_extreme_inputs_are_their_limits() {
    for device in devices() {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            let mut out = empty(&device, 1, 4);
            let x = tensor(&device, 8, &[-1e4, 1e4, -200.0, f32::NAN, 1.0, 1.0, 1.0, 1.0]);
            device.gated_activation(&mut out, &x, activation).unwrap();
            let out = out.values();
            assert!(out[0].abs() < 1e-30 && out[2].abs() < 1e-30, "{} {activation:?} {out:?}", device.name());
            assert_eq!(out[1], 1e4);
            assert!(out[3].is_nan());
        }
    }
}

#[test]
fn the_soft_cap_equals_f64() {
    for device in devices() {
        let x: Vec<f32> = Random(23).vec(3 * 5001).iter().map(|x| 100.0 * x).collect();
        let mut capped = tensor(&device, 5001, &x);
        device.soft_cap(&mut capped, 30.0).unwrap();
        let expected: Vec<f64> = x.iter().map(|x| 30.0 * (f64::from(*x) / 30.0).tanh()).collect();
        assert_close(capped.values(), &expected, 1e-5, &device.name());
    }
}

#[test]
fn embedding_rows_are_dequantised_and_scaled() {
    let mut random = Random(24);
    for device in devices() {
        for format in WeightFormat::ALL {
            let host = host_weight(&mut random, format, 40, 256);
            let (table, values) = (device.load_weight(host.clone()).unwrap(), dense(&host));
            let mut step = attention::step(16, &[70], &[0], 5);
            step.token_ids = (0..70).map(|_| random.below(40) as i32).collect();
            for scale in [1.0, 24.0] {
                let mut out = empty(&device, 70, 256);
                device.embedding(&mut out, &table, &step, scale).unwrap();
                let row = |id: &i32| values[*id as usize * 256..][..256].iter().map(|x| x * scale);
                let expected: Vec<f32> = step.token_ids.iter().flat_map(row).collect();
                assert_eq!(bits(out.values()), bits(&expected), "{} {format:?}", device.name());
            }
        }
    }
}

#[test]
fn rope_turns_pairs_and_norms_heads_first() {
    let (heads, kv_heads, dim) = (3, 1, 20);
    let (cols, rotated) = ((heads + 2 * kv_heads) * dim, (heads + kv_heads) * dim);
    let mut random = Random(25);
    for device in devices() {
        for (style, rotary_dim) in
            [(RopeStyle::HalfSplit, 20), (RopeStyle::Interleaved, 20), (RopeStyle::HalfSplit, 8), (RopeStyle::Interleaved, 8)]
        {
            for normed in [false, true] {
                let half = rotary_dim / 2;
                let angle = |position: usize, i: usize| position as f64 * 0.3_f64.powi(i as i32);
                let table = |f: fn(f64) -> f64| -> Vec<f32> { (0..40 * half).map(|at| f(angle(at / half, at % half)) as f32).collect() };
                let (cos, sin) = (vector(&device, &table(f64::cos)), vector(&device, &table(f64::sin)));
                let rope = RopeTable { cos, sin, rotary_dim, style };
                let weights = [random.vec(dim), random.vec(dim)];
                let norms = weights.each_ref().map(|w| vector(&device, w));
                let x = random.vec(36 * cols);
                let mut qkv = tensor(&device, cols, &x);
                let shape = KvShape { num_blocks: 3, block_size: 16, num_kv_heads: kv_heads, head_dim: dim, dtype: DType::F32 };
                let mut kv = device.alloc_kv(shape).unwrap();
                let params = RopeKvParams {
                    num_heads: heads,
                    num_kv_heads: kv_heads,
                    head_dim: dim,
                    q_norm: normed.then_some(&norms[0]),
                    k_norm: normed.then_some(&norms[1]),
                    eps: 1e-4,
                    rope: &rope,
                };
                device.rope_kv_store(&mut qkv, &mut kv, &attention::step(16, &[36], &[0], 3), &params).unwrap();
                for (t, (x, out)) in x.chunks(cols).zip(qkv.values().chunks(cols)).enumerate() {
                    for (h, head) in x[..rotated].chunks(dim).enumerate() {
                        let head: Vec<f64> = match normed {
                            true => rms_norm(head, &weights[h / heads], 1e-4),
                            false => head.iter().map(|x| f64::from(*x)).collect(),
                        };
                        let mut expected = head.clone();
                        for i in 0..half {
                            let (a, b) = if style == RopeStyle::HalfSplit { (i, i + half) } else { (2 * i, 2 * i + 1) };
                            let (sin, cos) = angle(t, i).sin_cos();
                            (expected[a], expected[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
                        }
                        assert_close(&out[h * dim..][..dim], &expected, 1e-5, &format!("{} {style:?} {rotary_dim}", device.name()));
                    }
                    let (key, value) = (&out[heads * dim..rotated], &x[rotated..]);
                    for i in 0..dim {
                        assert_eq!(kv.k.get(kv.k_at(t / 16, 0, t % 16) + i * 16), key[i]);
                        assert_eq!(kv.v.get(kv.v_at(t / 16, 0, t % 16) + i), value[i]);
                    }
                }
            }
        }
    }
}
