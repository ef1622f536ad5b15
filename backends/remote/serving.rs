//! Which models of a service are served, and under which names.

use std::sync::Arc;

use super::{ListedModel, Remote, RemoteError, RemoteService, RemoteSettings};
use crate::ToolDialect;
use crate::config::RemoteOptions;
use crate::registry::{ModelConfig, ModelSource, ModelType};

/// What a command asks a service for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// A model named by the user; None: any.
    pub name: Option<&'a str>,
    /// Its entry in the configuration.
    pub entry: Option<&'a ModelConfig>,
    /// What models are for of which no entry says so; None: what the service says.
    pub model_type: Option<ModelType>,
}

/// A model of a service under the name it is served by.
pub struct ServedRemote {
    /// For clients.
    pub name: String,
    /// What answers.
    pub backend: Arc<Remote>,
}

/// Why no model can be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServingError {
    /// The configuration.
    #[error(transparent)]
    Settings(#[from] RemoteError),
    /// A model of a service has no files here.
    #[error("model `{0}`: path: a model of a service elsewhere is named by hub_id, its id there")]
    Path(String),
    /// The models are not known and the service does not tell.
    #[error("{option} is not set, and the service does not list its models: {reason}")]
    NotListed {
        /// The flag that names the model.
        option: String,
        /// Why.
        reason: String,
    },
}

/// The models to serve: the one that is named, else all that the service lists. A named one is served even while the service is away.
/// `dialect`: how they write calls in text; None: not known.
///
/// # Errors
/// A wrong configuration; a list that is needed and does not come.
pub async fn models(
    settings: &RemoteSettings,
    options: &RemoteOptions,
    wanted: Wanted<'_>,
    dialect: Option<ToolDialect>,
) -> Result<Vec<ServedRemote>, ServingError> {
    let service = RemoteService::new(settings)?;
    let named = named(options, wanted)?;
    let listed = service.models().await;
    let context_length = wanted.entry.and_then(|entry| entry.context_length);
    let said = wanted.entry.and_then(|entry| entry.model_type).or(wanted.model_type);
    let served = |name: String, id: &str, listed: Option<ListedModel>| {
        let (window, told) = listed.map_or((None, None), |model| (model.max_model_len, model.model_type));
        let backend = Arc::new(service.model_for(id, context_length.or(window), said.or(told), dialect.unwrap_or_default()));
        ServedRemote { name, backend }
    };
    match (named, listed) {
        (Some((name, id)), listed) => {
            let listed = entry_of(&id, listed);
            Ok(vec![served(name, &id, listed)])
        }
        (None, Ok(list)) if !list.is_empty() => {
            Ok(list.into_iter().map(|model| served(model.id.clone(), &model.id.clone(), Some(model))).collect())
        }
        (None, outcome) => {
            let reason = outcome.err().map_or_else(|| "its list is empty".to_owned(), |error| error.to_string());
            Err(ServingError::NotListed { option: settings.option("model"), reason })
        }
    }
}

/// Name to serve and id there. The option names the model for every request, unless an entry of the configuration does.
fn named(options: &RemoteOptions, wanted: Wanted<'_>) -> Result<Option<(String, String)>, ServingError> {
    match (wanted.entry, wanted.name, &options.model) {
        (Some(entry), _, _) => match &entry.source {
            ModelSource::Hub(id) => Ok(Some((entry.name.clone(), id.clone()))),
            ModelSource::Path(_) => Err(ServingError::Path(entry.name.clone())),
        },
        (None, Some(name), Some(id)) => Ok(Some((name.to_owned(), id.clone()))),
        (None, Some(name), None) => Ok(Some((name.to_owned(), name.to_owned()))),
        (None, None, Some(id)) => Ok(Some((id.clone(), id.clone()))),
        (None, None, None) => Ok(None),
    }
}

/// What the list says about a model; the rest is only worth a line in the log.
fn entry_of(id: &str, listed: Result<Vec<ListedModel>, crate::BackendError>) -> Option<ListedModel> {
    match listed {
        Ok(list) => {
            let model = list.into_iter().find(|model| model.id == id);
            if model.is_none() {
                tracing::warn!(model = id, "the service does not list this model; requests are sent all the same");
            }
            model
        }
        Err(error) => {
            tracing::warn!(model = id, reason = %error, "the service does not answer yet; requests are sent all the same");
            None
        }
    }
}
