//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use pagoda_backends::{BackendError, Choice, GenerateOutput, GenerateRequest, InferenceBackend, Prompt, StopReason, TokenInfo, Usage};

use super::completions_stream::CompletionStream;
use super::convert::{CompletionRequest, parse_completion};
use super::logprobs::{TextLogprobs, prompt_logprobs};
use super::types::{TextChoice, TextCompletion, finish_reason, stop_reason, token_ids};
use crate::app::SharedApp;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::ids::{new_id, unix_time};
use crate::{limits, sse};

/// What `echo` puts before an answer: the prompt's text, and its first token where logprobs want one.
#[derive(Clone, Debug, Default)]
pub(super) struct Echo {
    pub(super) text: String,
    pub(super) first_token: Option<TokenInfo>,
}

/// Answers with completions of one or many prompts, whole or streamed.
pub(crate) async fn completions(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let parsed = parse_completion(&fields, model.backend.default_config())?;
    let slot = app.slot()?;
    let echoes = app.bounded(async { Ok(echoes(&model.backend, &parsed).await?) }).await?;
    let requests = parsed.prompts.iter().map(|prompt| GenerateRequest { prompt: prompt.clone(), config: parsed.config.clone() });
    if parsed.format.stream {
        let streams = try_join_all(requests.map(|request| model.generate_stream(request)));
        let sources = app.bounded(async { Ok(streams.await?) }).await?;
        return sse::respond(&app, sources, CompletionStream::new(model_id, &parsed, echoes), slot).await;
    }
    let whole = try_join_all(requests.map(|request| model.generate(request)));
    let outputs = app.bounded(async { Ok(whole.await?) }).await?;
    if outputs.iter().flat_map(|output| &output.choices).any(|choice| choice.reason == StopReason::Aborted) {
        return Err(sse::aborted_error());
    }
    Ok(whole_answer(model_id, &parsed, outputs, &echoes))
}

/// One echo a prompt; empty ones without `echo`.
async fn echoes(backend: &Arc<dyn InferenceBackend>, parsed: &CompletionRequest) -> Result<Vec<Echo>, BackendError> {
    if !parsed.echo {
        return Ok(vec![Echo::default(); parsed.prompts.len()]);
    }
    try_join_all(parsed.prompts.iter().map(|prompt| echo(backend, prompt, parsed.format.logprobs))).await
}

async fn echo(backend: &Arc<dyn InferenceBackend>, prompt: &Prompt, logprobs: bool) -> Result<Echo, BackendError> {
    let text = match prompt {
        Prompt::Text { text, .. } => text.clone(),
        Prompt::Tokens(tokens) => backend.detokenize(tokens).await?,
        Prompt::Chat(_) => String::new(),
    };
    if !logprobs {
        return Ok(Echo { text, first_token: None });
    }
    let first_token = match backend.tokenize(prompt).await?.first() {
        Some(&id) => {
            let text = backend.detokenize(&[id]).await?;
            Some(TokenInfo { id, bytes: text.clone().into_bytes(), text, logprob: None, top: Vec::new() })
        }
        None => None,
    };
    Ok(Echo { text, first_token })
}

fn whole_answer(model_id: &str, parsed: &CompletionRequest, outputs: Vec<GenerateOutput>, echoes: &[Echo]) -> Response {
    let mut usage = Usage::default();
    let mut choices = Vec::new();
    for (output, echo) in outputs.iter().zip(echoes) {
        add(&mut usage, output.usage);
        for choice in &output.choices {
            choices.push(whole_choice(choices.len(), parsed, output, choice, echo));
        }
    }
    if parsed.prompt_only {
        usage.completion_tokens = 0;
    }
    let answer = TextCompletion {
        id: &new_id("cmpl-"),
        object: "text_completion",
        created: unix_time(),
        model: model_id,
        choices,
        usage: Some(usage.into()),
    };
    Json(answer).into_response()
}

fn whole_choice(index: usize, parsed: &CompletionRequest, output: &GenerateOutput, choice: &Choice, echo: &Echo) -> TextChoice {
    let format = parsed.format;
    let (text, tokens): (&str, &[TokenInfo]) = if parsed.prompt_only { ("", &[]) } else { (&choice.text, &choice.tokens) };
    let logprobs = format.logprobs.then(|| {
        let (mut lists, mut offset) = (TextLogprobs::default(), 0);
        if let Some(first) = &echo.first_token {
            lists.extend_first(first, format.token_names, &mut offset);
            lists.extend(&output.prompt_logprobs, format.token_names, &mut offset);
        }
        lists.extend(tokens, format.token_names, &mut offset);
        lists
    });
    TextChoice {
        index,
        text: format!("{}{text}", echo.text),
        logprobs,
        finish_reason: Some(if parsed.prompt_only { "length" } else { finish_reason(&choice.reason, false) }),
        stop_reason: stop_reason(&choice.reason),
        prompt_logprobs: parsed.prompt_logprobs.then(|| prompt_logprobs(&output.prompt_logprobs)),
        token_ids: format.token_ids.then(|| token_ids(tokens)),
        prompt_token_ids: format.token_ids.then(|| output.prompt_token_ids.clone()),
    }
}

/// Adds the counts of one prompt.
pub(super) fn add(total: &mut Usage, usage: Usage) {
    total.prompt_tokens += usage.prompt_tokens;
    total.cached_tokens += usage.cached_tokens;
    total.completion_tokens += usage.completion_tokens;
}
