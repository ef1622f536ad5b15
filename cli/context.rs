//! What every command starts with: the resolved configuration, the model sources, logging.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use pagoda::hub::Hub;
use pagoda_backends::config::Config;
use pagoda_backends::settings::{ConfigError, Sources};

use super::logging;

/// Reads a variable of this process's environment.
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Resolves the configuration and starts logging.
pub fn config(flags: &BTreeMap<&'static str, String>, file: Option<&Path>) -> Result<Config> {
    let config = resolve(flags, file)?;
    logging::start(&config.log_level, config.log_json)?;
    Ok(config)
}

/// The same for commands whose terminal belongs to the answer: warnings only, unless a level was asked for.
pub fn quiet_config(flags: &BTreeMap<&'static str, String>, file: Option<&Path>) -> Result<Config> {
    let config = resolve(flags, file)?;
    let is_set = config.settings.iter().any(|setting| setting.spec.key == "log_level" && setting.is_set());
    logging::start(if is_set { &config.log_level } else { "warn" }, config.log_json)?;
    Ok(config)
}

fn resolve(flags: &BTreeMap<&'static str, String>, file: Option<&Path>) -> Result<Config> {
    let file = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| ConfigError::File { path: path.into(), reason: error.to_string() })?;
            Some((path.to_path_buf(), text))
        }
        None => None,
    };
    Ok(Config::resolve(&Sources { cli: flags, env: &env, file })?)
}

/// The model sources of this user.
pub fn hub() -> Result<Hub> {
    Ok(Hub::of_this_process()?)
}
