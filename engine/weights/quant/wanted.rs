//! What a user asks weights to be, against what a checkpoint is.

use super::config::{Method, QuantConfig};
use super::quantize::at_load::LoadFormat;

/// The option `quantization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Four bits, whichever: NF4 made at load, or what the checkpoint has.
    FourBit,
    /// bitsandbytes: prequantised, or NF4 made at load.
    Bitsandbytes,
    /// An AWQ checkpoint.
    Awq,
    /// A GPTQ checkpoint.
    Gptq,
    /// A checkpoint that Marlin's kernels would take: GPTQ, AWQ, or in its own layout.
    Marlin,
    /// FP8: as stored, or made at load.
    Fp8,
    /// FP4: as stored, or NVFP4 made at load.
    Fp4,
}

impl Quantization {
    /// The name of the option's value.
    pub fn name(self) -> &'static str {
        match self {
            Quantization::FourBit => "4 bits",
            Quantization::Bitsandbytes => "bitsandbytes",
            Quantization::Awq => "awq",
            Quantization::Gptq => "gptq",
            Quantization::Marlin => "marlin",
            Quantization::Fp8 => "fp8",
            Quantization::Fp4 => "fp4",
        }
    }

    /// The value of that name.
    pub fn parse(name: &str) -> Option<Quantization> {
        use Quantization::{Awq, Bitsandbytes, Fp4, Fp8, Gptq, Marlin};
        [Bitsandbytes, Awq, Gptq, Marlin, Fp8, Fp4].into_iter().find(|value| value.name() == name)
    }

    /// What dense weights become while they are loaded.
    ///
    /// # Errors
    /// The checkpoint is of another method, or is dense where only a quantised one will do.
    pub fn load_format(self, stored: Option<&QuantConfig>) -> Result<Option<LoadFormat>, String> {
        use Quantization::{Awq, Bitsandbytes, FourBit, Fp4, Fp8, Gptq, Marlin};
        match (self, stored.map(|config| &config.method)) {
            (FourBit, Some(_)) => Ok(None),
            (FourBit | Bitsandbytes, None) => Ok(Some(LoadFormat::Nf4)),
            (Fp8, None) => Ok(Some(LoadFormat::Fp8)),
            (Fp4, None) => Ok(Some(LoadFormat::Fp4)),
            (Bitsandbytes, Some(Method::Bitsandbytes))
            | (Awq | Marlin, Some(Method::Awq))
            | (Gptq | Marlin, Some(Method::Gptq(_) | Method::Marlin))
            | (Fp8, Some(Method::Fp8 | Method::CompressedTensors | Method::ModelOpt))
            | (Fp4, Some(Method::CompressedTensors | Method::ModelOpt)) => Ok(None),
            (wanted, Some(method)) => {
                Err(format!("{}: the checkpoint is quantised by {}; leave the option unset", wanted.name(), method.name()))
            }
            (wanted, None) => {
                let name = wanted.name();
                Err(format!(
                    "{name}: the weights are not quantised, and {name} needs calibration; bitsandbytes, fp8 and fp4 quantise at load"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wanted: Quantization, stored: Option<Method>, expected: Result<Option<LoadFormat>, &str>) {
        let config = stored.map(|method| QuantConfig { method, block: [128, 128] });
        match (wanted.load_format(config.as_ref()), expected) {
            (Err(said), Err(expected)) => assert!(said.contains(expected), "{said}"),
            (got, expected) => assert_eq!(got, expected.map_err(String::from), "{wanted:?}"),
        }
    }

    #[test]
    fn what_is_stored_and_what_is_wanted() {
        check(Quantization::Bitsandbytes, None, Ok(Some(LoadFormat::Nf4)));
        check(Quantization::FourBit, None, Ok(Some(LoadFormat::Nf4)));
        check(Quantization::FourBit, Some(Method::Awq), Ok(None));
        check(Quantization::Fp8, None, Ok(Some(LoadFormat::Fp8)));
        check(Quantization::Fp4, None, Ok(Some(LoadFormat::Fp4)));
        check(Quantization::Marlin, Some(Method::Awq), Ok(None));
        check(Quantization::Bitsandbytes, Some(Method::Bitsandbytes), Ok(None));
        check(Quantization::Awq, None, Err("awq: the weights are not quantised, and awq needs calibration"));
        check(Quantization::Bitsandbytes, Some(Method::Awq), Err("bitsandbytes: the checkpoint is quantised by awq"));
        assert_eq!(Quantization::parse("fp4"), Some(Quantization::Fp4));
        assert_eq!(Quantization::parse("4 bits"), None);
    }
}
