//! rms_norm_eps reaches every norm. The activations of the golden models are too large for a wrong one to show, so this model has tiny
//! embeddings, and an independent f64 decoder of one llama layer says what its logprobs should be.

mod harness;

use std::path::{Path, PathBuf};

use harness::{engine, small_options};
use pagoda_engine::request::{Event, Request};
use pagoda_engine::sampling::SamplingParams;
use pagoda_engine::testing::{TinyTensor, safetensors_file, tiny_config, tiny_tensors, write_tiny};
use serde_json::{Value, json};

const SEED: u64 = 1;
const PROMPT: [u32; 12] = [3, 141, 59, 265, 358, 97, 9, 323, 84, 626, 433, 83];
/// The embedding is divided by 2^7: its root mean square is about 0.008.
const EMBEDDING_SHIFT: u16 = 7;

struct Model {
    config: Value,
    tensors: Vec<TinyTensor>,
}

impl Model {
    /// The tiny llama with one layer, plain rope, small embeddings and the given epsilon.
    fn new(eps: f64) -> Model {
        let mut config = tiny_config("llama");
        config["num_hidden_layers"] = json!(1);
        config["rope_scaling"] = Value::Null;
        config["rms_norm_eps"] = json!(eps);
        let mut tensors = tiny_tensors("llama", SEED);
        tensors.retain(|t| !t.name.starts_with("model.layers.1."));
        let embedding = tensors.iter_mut().find(|t| t.name == "model.embed_tokens.weight").expect("an embedding");
        for bits in &mut embedding.bits {
            let exponent = *bits >> 7 & 0xff;
            *bits = if exponent > EMBEDDING_SHIFT { *bits - (EMBEDDING_SHIFT << 7) } else { 0 };
        }
        Model { config, tensors }
    }

    fn write(&self, folder: &Path) -> PathBuf {
        let path = write_tiny(folder, "llama", SEED); // for its tokeniser files
        std::fs::write(path.join("config.json"), self.config.to_string()).expect("config.json");
        std::fs::write(path.join("model.safetensors"), safetensors_file(&self.tensors)).expect("model.safetensors");
        path
    }

    fn size(&self, key: &str) -> usize {
        usize::try_from(self.config[key].as_u64().expect(key)).expect(key)
    }

    fn number(&self, key: &str) -> f64 {
        self.config[key].as_f64().expect(key)
    }

    fn weight(&self, name: &str) -> Vec<f64> {
        let tensor = self.tensors.iter().find(|t| t.name == format!("{name}.weight")).expect(name);
        tensor.values().into_iter().map(f64::from).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + self.number("rms_norm_eps")).sqrt();
        x.iter().zip(self.weight(name)).map(|(v, w)| v * scale * w).collect()
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.weight(name).chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, v)| w * v).sum()).collect()
    }

    /// Rotates each head of `x` for `position`: element i with i + half.
    fn rope(&self, x: &mut [f64], position: usize) {
        let head_dim = self.size("head_dim");
        let half = head_dim / 2;
        for head in x.chunks_mut(head_dim) {
            for i in 0..half {
                let angle = position as f64 * self.number("rope_theta").powf(-2.0 * i as f64 / head_dim as f64);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = b * angle.cos() + a * angle.sin();
            }
        }
    }

    /// Causal attention of the last of `keys`; queries `[heads, head_dim]`, keys and values `[kv_heads, head_dim]` a position.
    fn attention(&self, query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let head_dim = self.size("head_dim");
        let group = self.size("num_attention_heads") / self.size("num_key_value_heads");
        let one = |(head, q): (usize, &[f64])| {
            let part = |row: &[f64]| row[head / group * head_dim..][..head_dim].to_vec();
            let dot = |k: &Vec<f64>| part(k).iter().zip(q).map(|(a, b)| a * b).sum::<f64>() / (head_dim as f64).sqrt();
            let weights: Vec<f64> = keys.iter().map(|k| dot(k).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut out = vec![0.0; head_dim];
            for (weight, value) in weights.iter().zip(values) {
                out.iter_mut().zip(part(value)).for_each(|(o, v)| *o += weight / total * v);
            }
            out
        };
        query.chunks(head_dim).enumerate().flat_map(one).collect()
    }

    /// Log probability of each prompt token after the first.
    fn prompt_logprobs(&self) -> Vec<f64> {
        let hidden = self.size("hidden_size");
        let embedding = self.weight("model.embed_tokens");
        let (mut keys, mut values, mut logprobs) = (Vec::new(), Vec::new(), Vec::new());
        let layer = |name: &str| format!("model.layers.0.{name}");
        let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(a, b)| *a += b);
        for (position, pair) in PROMPT.windows(2).enumerate() {
            let mut x = embedding[pair[0] as usize * hidden..][..hidden].to_vec();
            let normed = self.norm(&layer("input_layernorm"), &x);
            let mut query = self.linear(&layer("self_attn.q_proj"), &normed);
            let mut key = self.linear(&layer("self_attn.k_proj"), &normed);
            self.rope(&mut query, position);
            self.rope(&mut key, position);
            keys.push(key);
            values.push(self.linear(&layer("self_attn.v_proj"), &normed));
            add(&mut x, self.linear(&layer("self_attn.o_proj"), &self.attention(&query, &keys, &values)));
            let normed = self.norm(&layer("post_attention_layernorm"), &x);
            let gate = self.linear(&layer("mlp.gate_proj"), &normed);
            let up = self.linear(&layer("mlp.up_proj"), &normed);
            let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            add(&mut x, self.linear(&layer("mlp.down_proj"), &gated));
            let logits = self.linear("lm_head", &self.norm("model.norm", &x));
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            logprobs.push(logits[pair[1] as usize] - total.ln());
        }
        logprobs
    }
}

fn engine_logprobs(model: &Model) -> Vec<f64> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let loaded = engine(&model.write(folder.path()), &small_options());
    let sampling = SamplingParams { max_tokens: 1, prompt_logprobs: Some(0), ..SamplingParams::default() };
    let mut stream = loaded.handle.submit(Request { prompt: PROMPT.to_vec(), sampling, priority: 0, cache_salt: 0 }).expect("accepted");
    while let Some(event) = stream.next_blocking() {
        if let Event::PromptLogprobs(entries) = event {
            return entries.iter().map(|entry| f64::from(entry.logprob)).collect();
        }
    }
    panic!("no prompt logprobs came");
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

#[test]
fn logprobs_follow_the_epsilon_of_the_checkpoint() {
    let epsilons = [1e-6, 1e-5, 1e-3];
    let expected: Vec<Vec<f64>> = epsilons.iter().map(|eps| Model::new(*eps).prompt_logprobs()).collect();
    for (eps, expected) in epsilons.iter().zip(&expected) {
        let difference = largest_difference(&engine_logprobs(&Model::new(*eps)), expected);
        assert!(difference < 2e-3, "epsilon {eps}: logprobs are off by {difference}");
    }
    for pair in expected.windows(2) {
        let difference = largest_difference(&pair[0], &pair[1]);
        assert!(difference > 0.1, "the model does not tell epsilons apart: {difference}");
    }
}
