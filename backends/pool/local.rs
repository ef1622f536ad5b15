//! A pool of models on pagoda's own engine: how much memory each may take, and how it is loaded.

use std::path::PathBuf;
use std::sync::Arc;

use pagoda_engine::EngineError;
use pagoda_engine::description::{Description, describe, swap_memory, usable_memory};
use pagoda_engine::loader::{self, EngineOptions};
use pagoda_engine::text::ChatTemplate;

use super::{ModelPool, OnDemand, PoolLimits, PoolModel};
use crate::config::Config;
use crate::factory::{FactoryError, options_for, template_from};
use crate::registry::ModelConfig;
use crate::{BackendError, InferenceBackend, LocalText};

/// A model whose files are at hand.
pub struct LocalModel {
    /// Name, for logs.
    pub name: String,
    /// Its folder or file.
    pub path: PathBuf,
    /// Its entry in the configuration.
    pub entry: Option<ModelConfig>,
}

/// A pool of models, and each of them as a backend, in the order given. Each plans its memory within an equal share of the budget, or
/// takes what one sequence needs at least; a model that fits with none of the others is loaded alone.
///
/// # Errors
/// Whatever the engine says about files and options; a model that does not fit into the budget by itself.
pub fn local_pool(models: Vec<LocalModel>, config: &Config) -> Result<(Arc<ModelPool>, Vec<OnDemand>), FactoryError> {
    let budget_bytes = budget_bytes(config)?;
    let share_bytes = budget_bytes / models.len().max(1);
    let (mut pooled, mut faces) = (Vec::with_capacity(models.len()), Vec::with_capacity(models.len()));
    for model in models {
        let (options, description) = fitted(&model, config, share_bytes, budget_bytes)?;
        let template = config.native.chat_template.as_deref().map(|file| template_from(file, &model.path)).transpose()?;
        let need_bytes = description.plan.total_bytes();
        let kept_bytes = description.plan.weight_bytes + description.plan.dense_copy_bytes;
        let text = text_side(description, template);
        faces.push(text.clone());
        pooled.push(PoolModel { name: model.name, need_bytes, kept_bytes, load: Box::new(move || load(&model.path, &options, &text)) });
    }
    let limits = PoolLimits { budget_bytes, swap_bytes: swap_bytes(config)?, max_waiting: config.native.max_waiting };
    let pool = ModelPool::new(pooled, limits).map_err(FactoryError::Pool)?;
    let on_demand = faces.into_iter().enumerate().map(|(idx, face)| OnDemand::new(&pool, idx, Arc::new(face)));
    let on_demand = on_demand.collect();
    Ok((pool, on_demand))
}

/// Memory of several models together.
///
/// # Errors
/// No such device.
pub fn budget_bytes(config: &Config) -> Result<usize, FactoryError> {
    match config.native.model_memory_bytes {
        Some(bytes) => Ok(bytes),
        None => Ok(usable_memory(&options_for(None, config))?),
    }
}

/// Host memory for the weights of models that are put aside.
///
/// # Errors
/// No such device.
pub fn swap_bytes(config: &Config) -> Result<usize, FactoryError> {
    match config.native.swap_bytes {
        Some(bytes) => Ok(bytes),
        None => Ok(swap_memory(&options_for(None, config))?),
    }
}

/// The options under which a model runs that shares its memory with others, `num_models` in all.
///
/// # Errors
/// As `local_pool`.
pub fn pooled_options(model: &LocalModel, num_models: usize, config: &Config) -> Result<EngineOptions, FactoryError> {
    let budget_bytes = budget_bytes(config)?;
    Ok(fitted(model, config, budget_bytes / num_models.max(1), budget_bytes)?.0)
}

fn text_side(description: Description, template: Option<ChatTemplate>) -> LocalText {
    let Description { tokenizer, chat_template, config, generation, plan } = description;
    LocalText::new(tokenizer, template.or(chat_template), config.eos_token_ids, &generation, plan.max_model_len)
}

/// Options under which a model plans with its share, or with as little as it can where that is more.
fn fitted(
    model: &LocalModel,
    config: &Config,
    share_bytes: usize,
    budget_bytes: usize,
) -> Result<(EngineOptions, Description), FactoryError> {
    let within =
        |limit| EngineOptions { memory_limit_bytes: Some(limit), memory_utilization: 1.0, ..options_for(model.entry.as_ref(), config) };
    let options = within(share_bytes);
    match describe(&model.path, &options) {
        Ok(description) => return Ok((options, description)),
        Err(EngineError::OutOfMemory { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut options = within(budget_bytes);
    let plan = describe(&model.path, &options)?.plan;
    let one_sequence = plan.max_model_len.div_ceil(plan.block_size) * plan.block_size * plan.kv_bytes_per_token;
    options.kv_cache_bytes = options.kv_cache_bytes.or(Some(one_sequence));
    options.max_model_len = Some(plan.max_model_len);
    let description = describe(&model.path, &options)?;
    Ok((options, description))
}

fn load(path: &std::path::Path, options: &EngineOptions, text: &LocalText) -> Result<Arc<dyn InferenceBackend>, BackendError> {
    let handle = loader::load_engine(path, options, &mut |_| {}).map_err(|error| BackendError::Unavailable(error.to_string()))?;
    Ok(Arc::new(text.with_engine(handle)))
}
