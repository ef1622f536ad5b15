//! `vllm_remote`: a vLLM or pagoda server elsewhere. It knows vLLM's extras, so a client loses nothing: counts come with every chunk, prompts
//! are tokenised there, and reasoning and names of tools go along.

use crate::config::RemoteOptions;
use crate::registry::BackendKind;
use crate::remote::RemoteSettings;

/// How to reach the server; None: no address is set.
pub(crate) fn settings(options: &RemoteOptions) -> Option<RemoteSettings> {
    let settings = RemoteSettings::new(BackendKind::VllmRemote, options.url.as_ref()?);
    Some(RemoteSettings { api_key: options.api_key.clone(), timeout: options.timeout, ..settings })
}
