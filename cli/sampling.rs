//! Sampling flags of `chat` and `generate`.

use anyhow::{Result, anyhow, ensure};
use pagoda_backends::GenerationConfig;

/// How to sample; what is not given is the model's default.
#[derive(clap::Args)]
pub struct Sampling {
    /// Output tokens at most
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    max_tokens: Option<u32>,
    /// 0 is greedy
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    temperature: Option<f32>,
    /// Nucleus, above 0 to 1
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    top_p: Option<f32>,
    /// Only the best N tokens; 0: all
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    top_k: Option<u32>,
    /// Divides the logits of tokens already there
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    repetition_penalty: Option<f32>,
    /// Makes sampling reproducible
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    seed: Option<u64>,
    /// Text that ends the output; may be given several times
    #[arg(long, value_name = "TEXT", help_heading = "Sampling")]
    stop: Vec<String>,
}

impl Sampling {
    /// The flags over a model's defaults.
    ///
    /// # Errors
    /// A value out of range, naming the flag.
    pub fn over(&self, defaults: GenerationConfig) -> Result<GenerationConfig> {
        let config = GenerationConfig {
            max_tokens: self.max_tokens.or(defaults.max_tokens),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.map_or(defaults.top_k, |top_k| (top_k > 0).then_some(top_k)),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            seed: self.seed.or(defaults.seed),
            stop_sequences: self.stop.clone(),
            ..defaults
        };
        ensure!(config.max_tokens != Some(0), "--max-tokens: `0`: expected a whole number, at least 1");
        // Only what was given: a service elsewhere has defaults of its own.
        let check = |flag: &str, value: Option<f32>, good: fn(f32) -> bool, expected: &str| match value.filter(|&value| !good(value)) {
            Some(value) => Err(anyhow!("{flag}: `{value}`: expected a number {expected}")),
            None => Ok(()),
        };
        check("--temperature", self.temperature, |value| (0.0..=2.0).contains(&value), "from 0 to 2")?;
        check("--top-p", self.top_p, |value| value > 0.0 && value <= 1.0, "above 0, at most 1")?;
        check("--repetition-penalty", self.repetition_penalty, |value| value > 0.0 && value.is_finite(), "above 0")?;
        Ok(config)
    }
}
