//! pagoda, embedded: a model in a few lines (`Pagoda`), and the crates behind it for everything else.

pub mod hub;

use futures_util::stream::{BoxStream, StreamExt};

pub use pagoda_backends as backends;
pub use pagoda_engine as engine;
pub use pagoda_server as server;

use backends::{
    BackendError, ChatMessage, ChatPrompt, GenerateEvent, GenerateRequest, GenerateStream, GenerationConfig, InferenceBackend, Prompt,
    VllmLocal,
};
use engine::EngineError;
use engine::loader::{self, EngineOptions};
use hub::{Hub, HubError, Report, Silent};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model was not found or could not be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model could not be loaded.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A request failed.
    #[error(transparent)]
    Request(#[from] BackendError),
}

/// A loaded model. Clones share it; requests of all clones run in one batch.
#[derive(Clone)]
pub struct Pagoda {
    backend: VllmLocal,
}

impl Pagoda {
    /// Loads a folder, a .gguf file, a hub id or an alias (fetched when it is not on this machine); None: the default model.
    ///
    /// # Errors
    /// An unknown model, a failed download, a damaged checkpoint, too little memory.
    pub fn load(model: Option<&str>) -> Result<Pagoda, Error> {
        Pagoda::load_with(model, &EngineOptions::default(), &mut Silent)
    }

    /// The same with options, telling how a download goes.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_with(model: Option<&str>, options: &EngineOptions, report: &mut dyn Report) -> Result<Pagoda, Error> {
        let located = Hub::of_this_process()?.resolve(model, report)?;
        Ok(Pagoda { backend: VllmLocal::new(loader::load(&located.path, options, &mut |_| {})?) })
    }

    /// Asks one question and streams the answer's text. Dropping the stream ends the request.
    ///
    /// # Errors
    /// A model without a chat template, a prompt that is too long, a full queue.
    pub async fn chat(&self, question: &str) -> Result<BoxStream<'static, Result<String, Error>>, Error> {
        let message = ChatMessage { role: "user".into(), content: question.into(), ..ChatMessage::default() };
        let prompt = Prompt::Chat(ChatPrompt { messages: vec![message], add_generation_prompt: true, ..ChatPrompt::default() });
        Ok(text_of(self.generate(prompt, self.backend.default_config()).await?))
    }

    /// Continues any prompt and streams events: text, tokens, logprobs, counts.
    ///
    /// # Errors
    /// As `chat`, and parameters out of range.
    pub async fn generate(&self, prompt: Prompt, config: GenerationConfig) -> Result<GenerateStream, Error> {
        Ok(self.backend.generate_stream(GenerateRequest { prompt, config }).await?)
    }

    /// The backend, for whatever this type has no word for; a server takes it too.
    pub fn backend(&self) -> &VllmLocal {
        &self.backend
    }
}

/// The text of a stream of events.
fn text_of(stream: GenerateStream) -> BoxStream<'static, Result<String, Error>> {
    let pieces = stream.filter_map(|event| async move {
        match event {
            GenerateEvent::Delta { text, .. } if !text.is_empty() => Some(Ok(text)),
            GenerateEvent::Failed(error) => Some(Err(error.into())),
            _ => None,
        }
    });
    pieces.boxed()
}
