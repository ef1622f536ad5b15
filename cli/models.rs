//! Which models a command runs and how they get from a name to a backend.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use pagoda::hub::{Hub, Located, Report};
use pagoda_backends::config::Config;
use pagoda_backends::pool::local::{LocalModel, local_pool};
use pagoda_backends::registry::{BackendKind, ModelConfig, ModelSource};
use pagoda_backends::remote::serving::Wanted;
use pagoda_backends::{InferenceBackend, factory};
use pagoda_engine::loader::{self, EngineOptions, LoadProgress, LoadedModel};
use tokio::runtime::Handle;
use tracing::info;

use super::progress::Progress;
use super::{context, remote};

/// One model to run: what the user named, and what the configuration says about it.
pub struct Target {
    /// As the user wrote it; None: the default model.
    reference: Option<String>,
    /// Its entry in the configuration.
    pub entry: Option<ModelConfig>,
    /// Kind of backend.
    pub kind: BackendKind,
    /// Why that kind.
    pub reason: String,
}

/// A running model.
pub struct Running {
    /// What runs it.
    pub backend: Arc<dyn InferenceBackend>,
    /// Name to show and serve.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// Seconds since 1970.
    pub created: u64,
}

/// The models of a command: the argument's, else the configured ones, else the default. Checked as far as no file is needed.
pub fn targets(config: &Config, argument: Option<&str>) -> Result<Vec<Target>> {
    let reference = argument.or(config.model.as_deref());
    let known = |name: &str| config.models.iter().find(|model| model.name == name || model.aliases.iter().any(|alias| alias == name));
    let targets: Vec<Target> = match reference {
        Some(name) => vec![target(config, Some(name), known(name))],
        None if config.models.is_empty() => vec![target(config, None, None)],
        None => config.models.iter().map(|entry| target(config, Some(&entry.name), Some(entry))).collect(),
    };
    for target in &targets {
        factory::check(target.kind, target.entry.as_ref(), config)?;
    }
    Ok(targets)
}

/// The one model of a command that runs one: the first of `targets`.
pub fn target_for(config: &Config, argument: Option<&str>) -> Result<Target> {
    targets(config, argument)?.into_iter().next().context("no model is configured")
}

fn target(config: &Config, reference: Option<&str>, entry: Option<&ModelConfig>) -> Target {
    let (kind, reason) = factory::detect(config, entry);
    Target { reference: reference.map(str::to_string), entry: entry.cloned(), kind, reason: reason.into() }
}

impl Target {
    fn source(&self) -> Option<String> {
        match self.entry.as_ref().map(|entry| &entry.source) {
            Some(ModelSource::Hub(id)) => Some(id.clone()),
            Some(ModelSource::Path(path)) => Some(path.display().to_string()),
            None => self.reference.clone(),
        }
    }

    /// Finds the files, fetching them when they are not on this machine.
    pub fn locate(&self, hub: &Hub, report: &mut dyn Report) -> Result<Located> {
        Ok(hub.resolve(self.source().as_deref(), report)?)
    }

    /// Finds the files without any network.
    pub fn find(&self, hub: &Hub) -> Result<Option<PathBuf>> {
        Ok(hub.find(self.source().as_deref())?.map(|located| located.path))
    }

    /// The same with the kind that its files ask for, once they are here.
    pub fn settled(&self, config: &Config, path: &Path) -> Result<Target> {
        let Target { reference, entry, kind, reason } = self;
        let (kind, reason) = match factory::detect_files(config, entry.as_ref(), path)? {
            Some(reason) => (BackendKind::HuggingFace, reason),
            None => (*kind, reason.clone()),
        };
        factory::check(kind, entry.as_ref(), config)?;
        Ok(Target { reference: reference.clone(), entry: entry.clone(), kind, reason })
    }

    /// The model of a command that runs one: the first that runs.
    pub fn load(&self, hub: &Hub, config: &Config, progress: &mut Progress) -> Result<Running> {
        self.start(hub, config, progress)?.into_iter().next().context("the service has no model")
    }

    /// Everything this target runs: one model here, or what a service elsewhere serves.
    fn start(&self, hub: &Hub, config: &Config, progress: &mut Progress) -> Result<Vec<Running>> {
        if !factory::is_remote(self.kind) {
            return Ok(vec![self.load_files(hub, config, progress)?]);
        }
        info!(kind = self.kind.as_str(), reason = self.reason, "backend");
        let wanted = Wanted { name: self.reference.as_deref(), entry: self.entry.as_ref(), model_type: config.model_type };
        let served = remote::load(self.kind, wanted, config)?;
        Ok(served.into_iter().map(|served| self.running(served.name, served.backend)).collect())
    }

    /// Finds the files and loads them.
    fn load_files(&self, hub: &Hub, config: &Config, progress: &mut Progress) -> Result<Running> {
        let located = self.locate(hub, progress)?;
        let Target { kind, reason, entry, .. } = self.settled(config, &located.path)?;
        info!(kind = kind.as_str(), reason, "backend");
        let started = Instant::now();
        let loaded = factory::create(kind, &located.path, entry.as_ref(), config, &mut shown(progress, &located.name));
        // Where another kind has to stand in, why is half of the answer.
        let backend = if kind == self.kind { loaded? } else { loaded.context(reason)? };
        progress.finish();
        let name = self.entry.as_ref().map_or(located.name, |entry| entry.name.clone());
        info!(model = name, seconds = started.elapsed().as_secs_f32(), "model loaded");
        Ok(self.running(name, backend))
    }

    fn running(&self, name: String, backend: Arc<dyn InferenceBackend>) -> Running {
        let aliases = self.entry.as_ref().map_or_else(Vec::new, |entry| entry.aliases.clone());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        Running { backend, name, aliases, created }
    }
}

/// The models of a server. A single one is loaded for good; several share their memory, as far as they run on pagoda's own engine.
pub fn load_all(targets: &[Target], hub: &Hub, config: &Config, progress: &mut Progress) -> Result<Vec<Running>> {
    let mut running = Vec::with_capacity(targets.len());
    let (mut local, mut places) = (Vec::new(), Vec::new());
    for target in targets {
        if targets.len() == 1 || target.kind != BackendKind::VllmLocal {
            running.extend(target.start(hub, config, progress)?);
            continue;
        }
        let located = target.locate(hub, progress)?;
        if target.settled(config, &located.path)?.kind == BackendKind::VllmLocal {
            let name = target.entry.as_ref().map_or(located.name, |entry| entry.name.clone());
            local.push(LocalModel { name: name.clone(), path: located.path, entry: target.entry.clone() });
            places.push((running.len() + places.len(), name, target));
        } else {
            running.extend(target.start(hub, config, progress)?);
        }
    }
    if local.is_empty() {
        return Ok(running);
    }
    let (pool, on_demand) = local_pool(local, config)?;
    for ((at, name, target), backend) in places.into_iter().zip(on_demand) {
        running.insert(at, target.running(name, Arc::new(backend)));
    }
    if config.native.load_at_start {
        Handle::current().block_on(pool.preload())?;
    }
    Ok(running)
}

/// Loads a model for `command`, which measures the engine alone: no server, no backend around it. `adjust` has the last word on the options.
pub fn load_engine(config: &Config, argument: Option<&str>, command: &str, adjust: impl FnOnce(&mut EngineOptions)) -> Result<LoadedModel> {
    let target = target_for(config, argument)?;
    ensure!(target.kind == BackendKind::VllmLocal, "--backend: `{}`: {command} measures vllm_local", target.kind.as_str());
    let mut progress = Progress::new();
    let located = target.locate(&context::hub()?, &mut progress)?;
    let target = target.settled(config, &located.path)?;
    ensure!(target.kind == BackendKind::VllmLocal, "{command} measures vllm_local; {}", target.reason);
    let mut options = factory::options_for(target.entry.as_ref(), config);
    adjust(&mut options);
    let model = loader::load(&located.path, &options, &mut shown(&mut progress, &located.name))?;
    progress.finish();
    Ok(model)
}

/// Shows on the terminal where the load of `name` has come to.
fn shown<'a>(progress: &'a mut Progress, name: &'a str) -> impl FnMut(LoadProgress) + 'a {
    let mut is_first = true;
    move |load| {
        if std::mem::take(&mut is_first) {
            progress.start(&format!("loading {name}"), Some(load.total_bytes as u64));
        }
        progress.advance(load.done_bytes as u64);
    }
}
