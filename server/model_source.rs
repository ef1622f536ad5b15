//! `ModelSource`: the models a server answers for. A cheap shared handle that may start empty, so that the port is open while weights load.

use std::ops::Deref;
use std::sync::Arc;

use futures_util::StreamExt;
use pagoda_backends::{
    BackendError, EmbedRequest, Embeddings, GenerateOutput, GenerateRequest, GenerateStream, InferenceBackend, ScoreRequest, Scores,
    collect,
};
use parking_lot::RwLock;

use crate::error::{ApiError, ErrorKind};
use crate::metrics::{Meter, Recording};

/// Seconds after which a client should ask again while weights load.
const LOADING_RETRY_S: u32 = 2;

/// A model and the backend that runs it.
#[derive(Clone)]
pub struct ServedModel {
    /// Its id in every API.
    pub name: String,
    /// Other ids it answers to.
    pub aliases: Vec<String>,
    /// What runs it.
    pub backend: Arc<dyn InferenceBackend>,
    /// When it was loaded, seconds since 1970.
    pub created: u64,
}

impl ServedModel {
    /// All ids, the name first.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }
}

/// A served model and what is counted of its requests. Whoever generates does it through this, so that every request counts.
pub(crate) struct Model {
    served: ServedModel,
    pub(crate) meter: Arc<Meter>,
}

impl Deref for Model {
    type Target = ServedModel;

    fn deref(&self) -> &ServedModel {
        &self.served
    }
}

impl Model {
    fn all_of(models: Vec<ServedModel>) -> Arc<Vec<Arc<Model>>> {
        Arc::new(models.into_iter().map(|served| Arc::new(Model { served, meter: Arc::default() })).collect())
    }

    /// The answer as it comes.
    pub(crate) async fn generate_stream(&self, request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        let mut recording = Recording::new(Arc::clone(&self.meter), &request.config);
        match self.backend.generate_stream(request).await {
            Ok(events) => Ok(events.inspect(move |event| recording.note(event)).boxed()),
            Err(error) => {
                recording.refused(&error);
                Err(error)
            }
        }
    }

    /// Vectors of texts.
    pub(crate) async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, BackendError> {
        let recording = Recording::of_prompt(Arc::clone(&self.meter));
        let outcome = self.backend.embed(request).await;
        match &outcome {
            Ok(answer) => recording.answered(answer.prompt_tokens),
            Err(error) => recording.refused(error),
        }
        outcome
    }

    /// Scores of pairs of texts.
    pub(crate) async fn score(&self, request: ScoreRequest) -> Result<Scores, BackendError> {
        let recording = Recording::of_prompt(Arc::clone(&self.meter));
        let outcome = self.backend.score(request).await;
        match &outcome {
            Ok(answer) => recording.answered(answer.prompt_tokens),
            Err(error) => recording.refused(error),
        }
        outcome
    }

    /// The whole answer.
    pub(crate) async fn generate(&self, request: GenerateRequest) -> Result<GenerateOutput, BackendError> {
        collect(self.generate_stream(request).await?).await
    }
}

/// Shared, fillable list of models.
#[derive(Clone)]
pub struct ModelSource(Arc<RwLock<State>>);

#[derive(Clone)]
enum State {
    Loading,
    Ready(Arc<Vec<Arc<Model>>>),
    Failed(String),
}

impl ModelSource {
    /// Models that are still loading: `/health` and requests answer 503 until `set_ready`.
    pub fn loading() -> Self {
        ModelSource(Arc::new(RwLock::new(State::Loading)))
    }

    /// Models that can serve at once.
    pub fn ready(models: Vec<ServedModel>) -> Self {
        ModelSource(Arc::new(RwLock::new(State::Ready(Model::all_of(models)))))
    }

    /// The models are there.
    pub fn set_ready(&self, models: Vec<ServedModel>) {
        *self.0.write() = State::Ready(Model::all_of(models));
    }

    /// Loading failed for good; requests are told the reason.
    pub fn set_failed(&self, reason: impl Into<String>) {
        *self.0.write() = State::Failed(reason.into());
    }

    /// Every model, in the order given.
    pub(crate) fn all(&self) -> Result<Arc<Vec<Arc<Model>>>, ApiError> {
        match &*self.0.read() {
            State::Ready(models) => Ok(Arc::clone(models)),
            State::Loading => Err(ApiError::new(ErrorKind::Unavailable, "model is loading").retry_after(LOADING_RETRY_S)),
            State::Failed(reason) => Err(ApiError::new(ErrorKind::Unavailable, format!("model could not be loaded: {reason}"))),
        }
    }

    /// The model of this id.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Model>, ApiError> {
        let models = self.all()?;
        models.iter().find(|model| model.ids().any(|known| known == id)).cloned().ok_or_else(|| ApiError::model_not_found(id))
    }

    /// The model of this id, or the first one where the request names none.
    pub(crate) fn find_or_first(&self, id: Option<&str>) -> Result<Arc<Model>, ApiError> {
        match id {
            Some(id) => self.find(id),
            None => self.all()?.first().cloned().ok_or_else(|| ApiError::model_not_found("")),
        }
    }
}
