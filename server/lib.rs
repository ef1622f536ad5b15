//! HTTP front end of pagoda: Anthropic's and OpenAI's APIs over any backend.
#![forbid(unsafe_code)]
