//! What a request may ask of the form of its answer.
//!
//! The native engine makes grammars of them; a remote kind passes them on in its upstream's words.

use crate::Json;

/// What the text of an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// The form.
    pub form: ConstraintForm,
    /// It holds for the text as the model writes it, calls of tools included. Else it holds for an answer in text, beside which a model
    /// that was offered tools may call one.
    pub raw: bool,
    /// JSON without any white space between its tokens.
    pub compact_json: bool,
    /// Name of the request's field that asks for it, for messages.
    pub field: String,
}

/// The form of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum ConstraintForm {
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid under a schema.
    JsonSchema {
        /// JSON Schema, draft 2020-12 unless it says another.
        schema: Json,
        /// What the request calls it.
        name: Option<String>,
    },
    /// The whole text matches this regular expression.
    Regex(String),
    /// The text is one of these.
    Choice(Vec<String>),
    /// The text follows this grammar: EBNF with `::=`, or Lark.
    Grammar(String),
    /// vLLM's `structural_tag`, parsed from its JSON.
    StructuralTag(Json),
}
