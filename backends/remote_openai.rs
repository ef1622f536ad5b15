//! `remote_openai`: any OpenAI-compatible service. Fields beyond OpenAI's are sent only when a client asked for them, and the service may
//! refuse them; what it does not count is estimated.

use crate::config::RemoteOptions;
use crate::registry::BackendKind;
use crate::remote::RemoteSettings;

/// How to reach the service; None: no address is set.
pub(crate) fn settings(options: &RemoteOptions) -> Option<RemoteSettings> {
    let settings = RemoteSettings::new(BackendKind::RemoteOpenai, options.url.as_ref()?);
    Some(RemoteSettings { api_key: options.api_key.clone(), timeout: options.timeout, ..settings })
}
