//! The size of a checkpoint's weights, found while every tensor that the decoder will ask for is checked: name, shape, format.

use super::checkpoint::{Checkpoint, LinearRole, VectorRole};
use crate::device::{MatrixForm, MatrixUse};
use crate::error::{EngineError, Result};

/// How large weights are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightSize {
    /// Bytes in memory, as a checkpoint's formats have them.
    pub bytes: usize,
    /// Numbers.
    pub values: usize,
    /// The stacked matrices of every linear layer; the other numbers are vectors.
    pub layers: Vec<(Vec<MatrixForm>, MatrixUse)>,
}

impl WeightSize {
    fn vector(bytes: usize, values: usize) -> WeightSize {
        WeightSize { bytes, values, layers: Vec::new() }
    }

    /// Every matrix.
    pub fn matrices(&self) -> impl Iterator<Item = (&MatrixForm, MatrixUse)> {
        self.layers.iter().flat_map(|(forms, usage)| forms.iter().map(|form| (form, *usage)))
    }

    /// Numbers that are in no matrix.
    pub fn vector_values(&self) -> usize {
        self.values - self.matrices().map(|(form, _)| form.values()).sum::<usize>()
    }
}

impl std::iter::Sum for WeightSize {
    fn sum<I: Iterator<Item = WeightSize>>(sizes: I) -> WeightSize {
        sizes.fold(WeightSize::default(), |mut all, next| {
            all.bytes += next.bytes;
            all.values += next.values;
            all.layers.extend(next.layers);
            all
        })
    }
}

impl Checkpoint {
    /// Checks every tensor that the decoder will ask for and returns their size.
    pub(super) fn check(&self) -> Result<WeightSize> {
        let c = &self.config;
        let mut sizes = vec![self.check_linear(LinearRole::Embedding, 0)?, self.check_vector(VectorRole::FinalNorm, 0)?];
        if !c.tie_word_embeddings {
            sizes.push(self.check_linear(LinearRole::LmHead, 0)?);
        }
        for (layer, layer_config) in c.layers.iter().enumerate() {
            let mut linears = vec![LinearRole::Qkv, LinearRole::O];
            match c.moe.filter(|_| layer_config.moe) {
                None => linears.extend([LinearRole::GateUp, LinearRole::Down]),
                Some(moe) => {
                    linears.push(LinearRole::Router);
                    linears.extend((0..moe.num_experts).flat_map(|e| [LinearRole::ExpertGateUp(e), LinearRole::ExpertDown(e)]));
                }
            }
            for role in linears {
                sizes.push(self.check_linear(role, layer)?);
            }
            let mut vectors = vec![VectorRole::InputNorm, VectorRole::MlpNorm];
            if c.post_norms {
                vectors.extend([VectorRole::PostAttentionNorm, VectorRole::PostMlpNorm]);
            }
            if c.qk_norm {
                vectors.extend([VectorRole::QNorm, VectorRole::KNorm]);
            }
            for role in vectors {
                sizes.push(self.check_vector(role, layer)?);
            }
        }
        Ok(sizes.into_iter().sum())
    }

    /// Stem, rows and columns of every matrix that may be quantised.
    pub(super) fn projections(&self) -> Vec<(String, usize, usize)> {
        let c = &self.config;
        let mut all = Vec::new();
        for (layer, layer_config) in c.layers.iter().enumerate() {
            let mut roles = vec![LinearRole::Qkv, LinearRole::O];
            match c.moe.filter(|_| layer_config.moe) {
                None => roles.extend([LinearRole::GateUp, LinearRole::Down]),
                Some(moe) => roles.extend((0..moe.num_experts).flat_map(|e| [LinearRole::ExpertGateUp(e), LinearRole::ExpertDown(e)])),
            }
            for role in roles {
                let plan = self.plan(role);
                all.extend(plan.stems(layer).into_iter().zip(plan.part_rows()).map(|(stem, n)| (stem, n, plan.k)));
            }
        }
        all
    }

    fn check_linear(&self, role: LinearRole, layer: usize) -> Result<WeightSize> {
        let plan = self.plan(role);
        let parts = self.parts(&plan, layer)?;
        let mut size = WeightSize {
            bytes: parts.iter().map(|part| part.bytes).sum(),
            values: parts.iter().map(|part| part.form.values()).sum(),
            layers: vec![(parts.iter().map(|part| part.form).collect(), plan.usage)],
        };
        for (name, len) in self.biases(&plan, layer) {
            if plan.bias {
                size.bytes += self.store.check_vector(&name, len)?;
                size.values += len;
            } else if self.store.contains(&name) && !self.is_stray_bias(&name) {
                let reason = format!("tensor `{name}` is there, but the configuration says that this layer has no bias");
                return Err(EngineError::Checkpoint { path: self.path.clone(), reason });
            }
        }
        Ok(size)
    }

    /// AutoGPTQ writes a bias of zeros for layers that have none.
    fn is_stray_bias(&self, name: &str) -> bool {
        let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        self.quantization.is_some() && self.store.tensors.get(name).is_some_and(|bias| zeros(bias.bytes.as_slice()))
    }

    fn check_vector(&self, role: VectorRole, layer: usize) -> Result<WeightSize> {
        let (name, len) = self.vector_name(role, layer)?;
        Ok(WeightSize::vector(self.store.check_vector(&name, len)?, len))
    }
}
