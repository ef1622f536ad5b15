//! A pool of models on pagoda's own engine: how much memory each may take, and how it is loaded.

use std::path::PathBuf;
use std::sync::Arc;

use pagoda_engine::EngineError;
use pagoda_engine::description::{Description, describe, swap_memory, usable_memory};
use pagoda_engine::loader::{self, EngineOptions};
use pagoda_engine::pooling::{self, PoolingKind};
use pagoda_engine::text::ChatTemplate;

use super::{ModelPool, OnDemand, PoolLimits, PoolModel};
use crate::config::Config;
use crate::factory::{self, FactoryError, options_for, template_from, tool_dialect};
use crate::pooling_local::kind_of;
use crate::registry::ModelConfig;
use crate::{BackendError, InferenceBackend, LocalText, PoolingLocal};

/// A model whose files are at hand.
pub struct LocalModel {
    /// Name, for logs.
    pub name: String,
    /// Its folder or file.
    pub path: PathBuf,
    /// Its entry in the configuration.
    pub entry: Option<ModelConfig>,
}

/// How models share their memory.
#[derive(Clone, Copy, Debug)]
struct Budget {
    /// Of all.
    bytes: usize,
    /// Of one that generates: an equal part of what those that pool leave.
    share_bytes: usize,
}

impl Budget {
    fn new(models: &[LocalModel], config: &Config) -> Result<Budget, FactoryError> {
        let bytes = budget_bytes(config)?;
        let (mut taken, mut num_generating) = (0, 0);
        for model in models {
            match kind_of(&model.path, factory::model_type(model.entry.as_ref(), config))? {
                Some(kind) => taken += pooling::describe(&model.path, Some(kind), &within(model, config, bytes))?.plan.total_bytes(),
                None => num_generating += 1,
            }
        }
        let left = bytes.checked_sub(taken).filter(|left| *left > 0).unwrap_or(bytes);
        Ok(Budget { bytes, share_bytes: left / num_generating.max(1) })
    }
}

/// A pool of models, and each of them as a backend, in the order given. Those that pool take what they need. Each of the others plans its
/// memory within an equal share of the rest, or takes what one sequence needs at least; a model that fits with none of the others is loaded
/// alone.
///
/// # Errors
/// Whatever the engine says about files and options; a model that does not fit into the budget by itself.
pub fn local_pool(models: Vec<LocalModel>, config: &Config) -> Result<(Arc<ModelPool>, Vec<OnDemand>), FactoryError> {
    let budget = Budget::new(&models, config)?;
    let (mut pooled, mut faces) = (Vec::with_capacity(models.len()), Vec::with_capacity(models.len()));
    for model in models {
        let (model, face) = match kind_of(&model.path, factory::model_type(model.entry.as_ref(), config))? {
            Some(kind) => pooling_model(model, kind, config, budget)?,
            None => generating_model(model, config, budget)?,
        };
        pooled.push(model);
        faces.push(face);
    }
    let limits = PoolLimits { budget_bytes: budget.bytes, swap_bytes: swap_bytes(config)?, max_waiting: config.native.max_waiting };
    let pool = ModelPool::new(pooled, limits).map_err(FactoryError::Pool)?;
    let on_demand = faces.into_iter().enumerate().map(|(idx, face)| OnDemand::new(&pool, idx, face));
    let on_demand = on_demand.collect();
    Ok((pool, on_demand))
}

/// A model of a pool, and what answers for it while it is not loaded.
type Pooled = (PoolModel, Arc<dyn InferenceBackend>);

fn generating_model(model: LocalModel, config: &Config, budget: Budget) -> Result<Pooled, FactoryError> {
    let (options, description) = fitted(&model, config, budget)?;
    let template = config.native.chat_template.as_deref().map(|file| template_from(file, &model.path)).transpose()?;
    let (need_bytes, kept_bytes) = (description.plan.total_bytes(), description.plan.weight_bytes + description.plan.dense_copy_bytes);
    let text = text_side(description, template).writing(tool_dialect(model.entry.as_ref(), config));
    let face = Arc::new(text.clone());
    let load = Box::new(move || load(&model.path, &options, &text));
    Ok((PoolModel { name: model.name, need_bytes, kept_bytes, load }, face))
}

fn pooling_model(model: LocalModel, kind: PoolingKind, config: &Config, budget: Budget) -> Result<Pooled, FactoryError> {
    let options = within(&model, config, budget.bytes);
    let description = pooling::describe(&model.path, Some(kind), &options)?;
    let (need_bytes, kept_bytes) = (description.plan.total_bytes(), description.plan.weight_bytes);
    let face = PoolingLocal::without_engine(description);
    let side = face.clone();
    let load = Box::new(move || -> Result<Arc<dyn InferenceBackend>, BackendError> {
        let handle = pooling::load_engine(&model.path, Some(kind), &options);
        Ok(Arc::new(side.with_engine(handle.map_err(|error| BackendError::Unavailable(error.to_string()))?)))
    });
    Ok((PoolModel { name: model.name, need_bytes, kept_bytes, load }, Arc::new(face)))
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

/// The options under which model `idx` of several runs that share their memory.
///
/// # Errors
/// As `local_pool`.
pub fn pooled_options(models: &[LocalModel], idx: usize, config: &Config) -> Result<EngineOptions, FactoryError> {
    let (budget, model) = (Budget::new(models, config)?, &models[idx]);
    match kind_of(&model.path, factory::model_type(model.entry.as_ref(), config))? {
        Some(_) => Ok(within(model, config, budget.bytes)),
        None => Ok(fitted(model, config, budget)?.0),
    }
}

/// A model's options with this much memory.
fn within(model: &LocalModel, config: &Config, limit_bytes: usize) -> EngineOptions {
    EngineOptions { memory_limit_bytes: Some(limit_bytes), memory_utilization: 1.0, ..options_for(model.entry.as_ref(), config) }
}

fn text_side(description: Description, template: Option<ChatTemplate>) -> LocalText {
    let Description { tokenizer, chat_template, config, generation, plan } = description;
    LocalText::new(tokenizer, template.or(chat_template), config.eos_token_ids, &generation, plan.max_model_len)
}

/// Options under which a model plans with its share, or with as little as it can where that is more.
fn fitted(model: &LocalModel, config: &Config, budget: Budget) -> Result<(EngineOptions, Description), FactoryError> {
    let options = within(model, config, budget.share_bytes);
    match describe(&model.path, &options) {
        Ok(description) => return Ok((options, description)),
        Err(EngineError::OutOfMemory { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut options = within(model, config, budget.bytes);
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
