//! Where each weight of an encoder is called what: one table a family. `{p}` is the prefix that the checkpoint was saved with, `{l}` the
//! layer. Entries are stems: `.weight` and `.bias` are appended. Names follow the modelling files of transformers.

/// The names of one family.
pub struct EncoderNames {
    /// What a checkpoint may have been saved with in front, one of them.
    pub prefixes: &'static [&'static str],
    /// Token embedding.
    pub embedding: &'static str,
    /// Learned positions.
    pub positions: &'static str,
    /// Segments.
    pub token_types: &'static str,
    /// What is added to scores by distance.
    pub relative_bias: &'static str,
    /// Norm of the embeddings' sum.
    pub embedding_norm: &'static str,
    /// q, k, v: three matrices, or one that holds all.
    pub qkv: &'static [&'static str],
    /// Attention output.
    pub o: &'static str,
    /// Norm of attention: behind the sum (BERT) or before q, k, v (ModernBERT, where the first layer has none).
    pub attention_norm: &'static str,
    /// First matrix of the MLP.
    pub up: &'static str,
    /// Second matrix of the MLP.
    pub down: &'static str,
    /// Norm of the MLP.
    pub mlp_norm: &'static str,
    /// Norm behind the last layer.
    pub final_norm: &'static str,
    /// First matrix of a classifier's head.
    pub head_dense: &'static str,
    /// Norm of the head.
    pub head_norm: &'static str,
    /// Scores.
    pub head_out: &'static str,
}

/// BERT.
pub const BERT: EncoderNames = EncoderNames {
    prefixes: &["", "bert."],
    embedding: "{p}embeddings.word_embeddings",
    positions: "{p}embeddings.position_embeddings",
    token_types: "{p}embeddings.token_type_embeddings",
    relative_bias: "",
    embedding_norm: "{p}embeddings.LayerNorm",
    qkv: &[
        "{p}encoder.layer.{l}.attention.self.query",
        "{p}encoder.layer.{l}.attention.self.key",
        "{p}encoder.layer.{l}.attention.self.value",
    ],
    o: "{p}encoder.layer.{l}.attention.output.dense",
    attention_norm: "{p}encoder.layer.{l}.attention.output.LayerNorm",
    up: "{p}encoder.layer.{l}.intermediate.dense",
    down: "{p}encoder.layer.{l}.output.dense",
    mlp_norm: "{p}encoder.layer.{l}.output.LayerNorm",
    final_norm: "",
    head_dense: "{p}pooler.dense",
    head_norm: "",
    head_out: "classifier",
};

/// RoBERTa, XLM-RoBERTa, CamemBERT: BERT's names with another head.
pub const ROBERTA: EncoderNames =
    EncoderNames { prefixes: &["", "roberta."], head_dense: "classifier.dense", head_out: "classifier.out_proj", ..BERT };

/// DistilBERT: no segments.
pub const DISTILBERT: EncoderNames = EncoderNames {
    prefixes: &["", "distilbert."],
    token_types: "",
    qkv: &[
        "{p}transformer.layer.{l}.attention.q_lin",
        "{p}transformer.layer.{l}.attention.k_lin",
        "{p}transformer.layer.{l}.attention.v_lin",
    ],
    o: "{p}transformer.layer.{l}.attention.out_lin",
    attention_norm: "{p}transformer.layer.{l}.sa_layer_norm",
    up: "{p}transformer.layer.{l}.ffn.lin1",
    down: "{p}transformer.layer.{l}.ffn.lin2",
    mlp_norm: "{p}transformer.layer.{l}.output_layer_norm",
    head_dense: "pre_classifier",
    ..BERT
};

/// MPNet: no segments, and a bias of distances that all layers share.
pub const MPNET: EncoderNames = EncoderNames {
    prefixes: &["", "mpnet."],
    token_types: "",
    relative_bias: "{p}encoder.relative_attention_bias",
    qkv: &["{p}encoder.layer.{l}.attention.attn.q", "{p}encoder.layer.{l}.attention.attn.k", "{p}encoder.layer.{l}.attention.attn.v"],
    o: "{p}encoder.layer.{l}.attention.attn.o",
    attention_norm: "{p}encoder.layer.{l}.attention.LayerNorm",
    head_dense: "classifier.dense",
    head_out: "classifier.out_proj",
    ..BERT
};

/// ModernBERT.
pub const MODERNBERT: EncoderNames = EncoderNames {
    prefixes: &["", "model."],
    embedding: "{p}embeddings.tok_embeddings",
    positions: "",
    token_types: "",
    relative_bias: "",
    embedding_norm: "{p}embeddings.norm",
    qkv: &["{p}layers.{l}.attn.Wqkv"],
    o: "{p}layers.{l}.attn.Wo",
    attention_norm: "{p}layers.{l}.attn_norm",
    up: "{p}layers.{l}.mlp.Wi",
    down: "{p}layers.{l}.mlp.Wo",
    mlp_norm: "{p}layers.{l}.mlp_norm",
    final_norm: "{p}final_norm",
    head_dense: "head.dense",
    head_norm: "head.norm",
    head_out: "classifier",
};
