//! Scales of keys and values that a checkpoint was calibrated with, for a cache of e4m3.

use super::checkpoint::{Checkpoint, LinearRole};
use crate::device::KvScales;
use crate::error::Result;

impl Checkpoint {
    /// The scales of a layer's cache; None where the checkpoint has none. Names as vLLM reads them: `k_scale` and `v_scale` of the attention
    /// or of its projections (llm-compressor, ModelOpt), `kv_scale` for both (older ones). One value, or one a head.
    ///
    /// # Errors
    /// A scale of another shape or type, or one that is not a finite number above 0.
    pub fn kv_scales(&self, layer: usize) -> Result<Option<KvScales>> {
        let stems = self.plan(LinearRole::Qkv).stems(layer);
        let Some((attention, _)) = stems[0].rsplit_once('.') else { return Ok(None) };
        let find = |letter: &str| {
            let names = [
                format!("{attention}.{letter}_scale"),
                format!("{attention}.{letter}_proj.{letter}_scale"),
                format!("{attention}.attn.{letter}_scale"),
                format!("{attention}.kv_scale"),
            ];
            names.into_iter().find(|name| self.store.contains(name)).map(|name| self.kv_scale(&name)).transpose()
        };
        Ok(find("k")?.zip(find("v")?).map(|(k, v)| KvScales { k, v }))
    }

    fn kv_scale(&self, name: &str) -> Result<Vec<f32>> {
        let heads = self.config.num_kv_heads;
        let values = self.store.scales(name, heads)?;
        match values.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
            Some(scale) => Err(self.store.error(name, format_args!("is {scale}, expected finite numbers above 0"))),
            None => Ok(if values.len() == 1 { vec![values[0]; heads] } else { values }),
        }
    }
}
