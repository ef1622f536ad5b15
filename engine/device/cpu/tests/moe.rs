//! Mixture of experts against f64, and a token alone against the same token in a batch.

use super::*;
use crate::device::MoeWeights;
use crate::models::config::Activation;

const HIDDEN: usize = 64;
const INNER: usize = 96;
const EXPERTS: usize = 5;

struct Hosts {
    router: HostWeight,
    gate_up: Vec<[HostWeight; 2]>,
    down: Vec<HostWeight>,
}

fn hosts(random: &mut Random) -> Hosts {
    let mut of = |n, k| host_weight(random, WeightFormat::BF16, n, k);
    Hosts {
        router: of(EXPERTS, HIDDEN),
        gate_up: (0..EXPERTS).map(|_| [of(INNER, HIDDEN), of(INNER, HIDDEN)]).collect(),
        down: (0..EXPERTS).map(|_| of(HIDDEN, INNER)).collect(),
    }
}

fn run(device: &CpuDevice, hosts: &Hosts, x: &[f32], top_k: usize, renormalise: bool) -> Vec<f32> {
    let weights = MoeWeights {
        router: linear_layer(device, std::slice::from_ref(&hosts.router), None),
        gate_up: hosts.gate_up.iter().map(|parts| linear_layer(device, parts, None)).collect(),
        down: hosts.down.iter().map(|part| linear_layer(device, std::slice::from_ref(part), None)).collect(),
        top_k,
        renormalise,
        activation: Activation::Silu,
    };
    let mut out = empty(device, x.len() / HIDDEN, HIDDEN);
    device.moe(&mut out, &tensor(device, HIDDEN, x), &weights).unwrap();
    out.values().to_vec()
}

fn product(weight: &HostWeight, x: &[f64]) -> Vec<f64> {
    dense(weight).chunks(weight.k).map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
}

fn reference(hosts: &Hosts, x: &[f32], top_k: usize, renormalise: bool) -> Vec<f64> {
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let scores = product(&hosts.router, &x);
    let total: f64 = scores.iter().map(|s| s.exp()).sum();
    let mut ranked: Vec<(usize, f64)> = scores.iter().map(|s| s.exp() / total).enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(top_k);
    let sum: f64 = if renormalise { ranked.iter().map(|r| r.1).sum() } else { 1.0 };
    let mut out = vec![0.0; HIDDEN];
    for (expert, probability) in ranked {
        let [gate, up] = hosts.gate_up[expert].each_ref().map(|part| product(part, &x));
        let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        for (out, x) in out.iter_mut().zip(product(&hosts.down[expert], &inner)) {
            *out += probability / sum * x;
        }
    }
    out
}

#[test]
fn experts_are_chosen_and_summed() {
    let mut random = Random(31);
    let hosts = hosts(&mut random);
    for device in devices() {
        for (top_k, renormalise) in [(1, false), (2, true), (3, false), (5, true)] {
            for rows in [0, 1, 2, 17, 65] {
                let x = random.vec(rows * HIDDEN);
                let out = run(&device, &hosts, &x, top_k, renormalise);
                let expected: Vec<f64> = x.chunks(HIDDEN).flat_map(|x| reference(&hosts, x, top_k, renormalise)).collect();
                assert_close(&out, &expected, 1e-4, &format!("{} top {top_k} of {rows} rows", device.name()));
            }
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_alone_and_in_a_batch() {
    let mut random = Random(32);
    let hosts = hosts(&mut random);
    for device in devices() {
        let x = random.vec(40 * HIDDEN);
        let alone: Vec<f32> = x.chunks(HIDDEN).flat_map(|x| run(&device, &hosts, x, 2, true)).collect();
        assert!(bits(&run(&device, &hosts, &x, 2, true)) == bits(&alone), "{}", device.name());
    }
}
