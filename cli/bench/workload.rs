//! The workloads and their prompts: random tokens from a seed, so that two runs and two engines see the same.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use pagoda_engine::loader::LoadedModel;
use serde_json::{Value, json};

/// Requests of one shape, all sent at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Name on the command line.
    pub name: &'static str,
    /// How many.
    pub requests: usize,
    /// Prompt tokens that all requests share.
    pub shared_len: usize,
    /// All prompt tokens of a request.
    pub input_len: usize,
    /// Output tokens of a request.
    pub output_len: usize,
    /// Outputs are JSON under the schema of `schema`.
    pub is_json: bool,
}

/// The standard workloads.
pub const WORKLOADS: &[Workload] = &[
    Workload::plain("c1", 1, 128, 256),
    Workload::plain("c8", 8, 512, 256),
    Workload::plain("c64", 64, 512, 256),
    Workload::plain("c512", 512, 512, 256),
    Workload::plain("prefill", 4, 8192, 1),
    Workload { name: "prefix", requests: 256, shared_len: 2048, input_len: 2112, output_len: 64, is_json: false },
    Workload::plain("long", 16, 16384, 128),
    Workload { is_json: true, ..Workload::plain("json64", 64, 512, 256) },
];

impl Workload {
    /// Requests that share nothing.
    pub const fn plain(name: &'static str, requests: usize, input_len: usize, output_len: usize) -> Workload {
        Workload { name, requests, shared_len: 0, input_len, output_len, is_json: false }
    }

    /// The same with lengths multiplied.
    pub fn scaled(self, scale: f64) -> Workload {
        let times = |len: usize| (len as f64 * scale).round() as usize;
        Workload {
            shared_len: times(self.shared_len),
            input_len: times(self.input_len).max(times(self.shared_len) + 1),
            output_len: times(self.output_len).max(1),
            ..self
        }
    }

    /// The same with some numbers replaced. A given prompt length keeps the shared share.
    pub fn with(self, requests: Option<usize>, input_len: Option<usize>, output_len: Option<usize>) -> Workload {
        let input = input_len.unwrap_or(self.input_len);
        Workload {
            requests: requests.unwrap_or(self.requests),
            shared_len: self.shared_len * input / self.input_len,
            input_len: input,
            output_len: output_len.unwrap_or(self.output_len),
            ..self
        }
    }
}

/// What constrained outputs have to be: JSON as programs ask for it, which does not end before a workload does.
pub fn schema() -> Value {
    let text = json!({"type": "string", "maxLength": 40});
    let properties = json!({
        "name": text, "count": {"type": "integer"}, "share": {"type": "number"}, "unit": {"enum": ["piece", "gram", "litre"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 5}, "note": {"anyOf": [text, {"type": "null"}]},
    });
    let names: Vec<&String> = properties.as_object().into_iter().flat_map(|properties| properties.keys()).collect();
    let item = json!({"type": "object", "properties": properties, "required": names});
    json!({"type": "array", "items": item, "minItems": 1000})
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrival {
    /// All at once.
    Together,
    /// One by one at random, so many a second on average (a Poisson process).
    Poisson(f64),
}

/// Source of random prompts and arrivals.
#[derive(Clone)]
pub struct Prompts {
    state: u64,
    tokens: Arc<[u32]>,
}

impl Prompts {
    /// Draws from the ordinary tokens of a model.
    ///
    /// # Errors
    /// A vocabulary without ordinary tokens.
    pub fn new(seed: u64, model: &LoadedModel) -> Result<Prompts> {
        let size = model.config.vocab_size.min(model.tokenizer.vocab_size()) as u32;
        let tokens: Vec<u32> = (0..size).filter(|&token| !model.tokenizer.is_special(token)).collect();
        ensure!(!tokens.is_empty(), "the model's vocabulary has no ordinary tokens");
        Ok(Prompts { state: seed, tokens: tokens.into() })
    }

    /// Draws from the first `vocab` tokens of a model elsewhere.
    pub fn of_vocab(seed: u64, vocab: u32) -> Prompts {
        Prompts { state: seed, tokens: (0..vocab).collect() }
    }

    /// Another source that goes its own way from here.
    pub fn fork(&mut self) -> Prompts {
        Prompts { state: self.next(), tokens: self.tokens.clone() }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// When each of `num` requests is sent, counted from the first.
    pub fn arrivals(&mut self, num: usize, arrival: Arrival) -> Vec<Duration> {
        let mut at = 0.0;
        let mut next = |_| match arrival {
            Arrival::Together => Duration::ZERO,
            Arrival::Poisson(per_s) => {
                let now = Duration::from_secs_f64(at);
                let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
                at += -(1.0 - uniform).ln() / per_s;
                now
            }
        };
        (0..num).map(&mut next).collect()
    }

    /// The prompts of one run; every run gets new ones, so that no run finds another's in the prefix cache.
    pub fn draw(&mut self, workload: &Workload) -> Vec<Vec<u32>> {
        let shared: Vec<u32> = (0..workload.shared_len).map(|_| self.token()).collect();
        let own = workload.input_len - workload.shared_len;
        (0..workload.requests)
            .map(|_| {
                let mut prompt = shared.clone();
                prompt.extend((0..own).map(|_| self.token()));
                prompt
            })
            .collect()
    }

    fn token(&mut self) -> u32 {
        let idx = self.below(self.tokens.len());
        self.tokens[idx]
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_scale() {
        let find = |name: &str| *WORKLOADS.iter().find(|workload| workload.name == name).expect("known");
        let prefix = find("prefix").scaled(0.125);
        assert_eq!((prefix.shared_len, prefix.input_len, prefix.output_len), (256, 264, 8));
        let tiny = find("prefill").scaled(1e-6);
        assert_eq!((tiny.input_len, tiny.output_len), (1, 1));
        let replaced = find("prefix").with(Some(3), Some(1056), Some(5));
        assert_eq!((replaced.requests, replaced.shared_len, replaced.input_len, replaced.output_len), (3, 1024, 1056, 5));
    }

    #[test]
    fn prompts_follow_the_seed_and_share_their_beginning() {
        let prompts = |seed| Prompts { state: seed, tokens: Arc::from([3, 5, 7]) };
        let workload = Workload { name: "x", requests: 2, shared_len: 20, input_len: 50, output_len: 1, is_json: false };
        let (a, b) = (prompts(1).draw(&workload), prompts(1).draw(&workload));
        assert_eq!(a, b);
        assert_ne!(a, prompts(2).draw(&workload));
        assert_eq!(a[0][..20], a[1][..20]);
        assert_ne!(a[0], a[1]);
        assert!(a.iter().all(|prompt| prompt.len() == 50 && prompt.iter().all(|token| [3, 5, 7].contains(token))));
    }
    #[test]
    fn arrivals_have_the_rate_asked_for() {
        let mut prompts = Prompts::of_vocab(1, 10);
        let arrivals = prompts.arrivals(4000, Arrival::Poisson(20.0));
        assert!(arrivals.is_sorted() && arrivals[0].is_zero());
        let rate = 4000.0 / arrivals[3999].as_secs_f64();
        assert!((19.0..21.0).contains(&rate), "{rate}");
        assert_eq!(prompts.arrivals(2, Arrival::Together), [Duration::ZERO; 2]);
        assert_ne!(prompts.fork().next(), prompts.fork().next());
    }
}
