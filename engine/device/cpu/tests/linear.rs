//! Linear layers: formats, shapes, stacked parts, and equality of the decode and prefill paths.

use super::*;

fn apply(device: &CpuDevice, x: &[f32], layer: &Linear<CpuDevice>) -> Vec<f32> {
    let rows = x.len() / layer.k;
    let mut out = empty(device, rows, layer.n);
    device.linear(&mut out, &tensor(device, layer.k, x), layer).unwrap();
    assert_eq!(out.rows, rows);
    out.values().to_vec()
}

fn check(device: &CpuDevice, parts: &[HostWeight], bias: Option<&[f32]>, x: &[f32]) {
    let layer = linear_layer(device, parts, bias);
    let out = apply(device, x, &layer);
    let weights: Vec<f32> = parts.iter().flat_map(dense).collect();
    for (t, x) in x.chunks_exact(layer.k).enumerate() {
        for (i, w) in weights.chunks_exact(layer.k).enumerate() {
            let (sum, size) = dot(x, w);
            let expected = sum + bias.map_or(0.0, |bias| f64::from(bias[i]));
            let error = (f64::from(out[t * layer.n + i]) - expected).abs();
            let what = (device.name(), parts[0].format, layer.n, layer.k, t, i);
            assert!(error <= 1e-6 * size + 1e-6, "{what:?}: {} expected {expected}", out[t * layer.n + i]);
        }
    }
}

#[test]
fn every_format_and_shape_equals_the_f64_product() {
    let mut random = Random(1);
    for device in devices() {
        for format in WeightFormat::ALL {
            let ks: &[usize] = match format.block().0 {
                1 => &[1, 15, 16, 17, 80, 131],
                32 => &[32, 96, 576],
                _ => &[256, 512],
            };
            for &k in ks {
                for n in [1, 3, 4, 6, 23] {
                    for rows in [0, 1, 2, 5, 17] {
                        let (weight, x) = (host_weight(&mut random, format, n, k), random.vec(rows * k));
                        check(&device, &[weight], None, &x);
                    }
                }
            }
        }
    }
}

#[test]
fn parts_of_several_formats_are_stacked_and_biased() {
    let mut random = Random(2);
    for device in devices() {
        let parts: Vec<HostWeight> = [(WeightFormat::Q4K, 130), (WeightFormat::Q6K, 7), (WeightFormat::BF16, 50)]
            .map(|(format, n)| host_weight(&mut random, format, n, 256))
            .to_vec();
        let bias = random.vec(187);
        for rows in [1, 2, 65] {
            check(&device, &parts, Some(&bias), &random.vec(rows * 256));
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_alone_and_in_any_batch() {
    let mut random = Random(3);
    for device in devices() {
        for format in WeightFormat::ALL {
            let k = if format.block().0 == 1 { 523 } else { 512 };
            let (bias, x) = (random.vec(150), random.vec(300 * k));
            let layer = linear_layer(&device, &[host_weight(&mut random, format, 150, k)], Some(&bias));
            let alone: Vec<f32> = x.chunks_exact(k).flat_map(|x| apply(&device, x, &layer)).collect();
            for rows in [2, 3, 4, 7, 300] {
                for (x, alone) in x.chunks(rows * k).zip(alone.chunks(rows * 150)) {
                    assert!(bits(&apply(&device, x, &layer)) == bits(alone), "{} {format:?} {rows} rows", device.name());
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn both_x86_levels_give_the_same_bits() {
    let levels = SimdLevel::available();
    if !levels.contains(&SimdLevel::Avx512) {
        return;
    }
    let mut random = Random(4);
    for format in WeightFormat::ALL {
        for rows in [1, 5] {
            let (weight, x) = (host_weight(&mut random, format, 40, 512), random.vec(rows * 512));
            let of = |level| {
                let device = CpuDevice::with_level(Some(1), level).unwrap();
                bits(&apply(&device, &x, &linear_layer(&device, std::slice::from_ref(&weight), None)))
            };
            assert!(of(SimdLevel::Avx2) == of(SimdLevel::Avx512), "{format:?} {rows} rows");
        }
    }
}

#[test]
fn a_weight_of_the_wrong_size_is_refused() {
    let device = CpuDevice::new(Some(1)).unwrap();
    let mut weight = host_weight(&mut Random(5), WeightFormat::Q4_0, 2, 64);
    weight.n = 3;
    assert!(device.load_weight(weight.clone()).is_err());
    (weight.n, weight.k) = (2, 48);
    assert!(device.load_weight(weight).is_err());
}
