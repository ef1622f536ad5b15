//! The sampler against hand-made rows of logits.
