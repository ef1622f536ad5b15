//! `Step`: what one iteration of the engine computes. A plain value, made by `schedule()`, run by the runner, given back to `commit()`.

use crate::block_allocator::BlockId;
use crate::sequence::SequenceId;

/// One iteration: which sequences advance by how many tokens, and which blocks are copied first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Consecutive number of the step.
    pub id: u64,
    /// Sequences of the step. A sequence occurs once.
    pub sequences: Vec<ScheduledSequence>,
    /// Copy-on-write, to be done before anything else of the step: whole blocks.
    pub block_copies: Vec<BlockCopy>,
    /// Sequences that lost their blocks while this step was made; they wait again.
    pub preempted: Vec<SequenceId>,
    /// Sum of the sequences' `num_tokens`, at most `max_num_batched_tokens`.
    pub num_tokens: usize,
}

impl Step {
    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}

/// One sequence's share of a step: tokens `start .. start + num_tokens` of the sequence are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledSequence {
    /// The sequence.
    pub id: SequenceId,
    /// Position of the first token (== tokens computed or in flight before this step).
    pub start: usize,
    /// Tokens computed in this step, >= 1.
    pub num_tokens: usize,
    /// Prompt tokens taken from the prefix cache; present when the sequence enters `running` (again) with this step.
    pub admitted: Option<Admission>,
    /// The last input token is still in flight: its value is in the sampler slot of `id`, not in `tokens(id)`.
    pub input_in_flight: bool,
    /// Sequences that get a token sampled from the last computed position: empty for a chunk that does not reach the end of the
    /// known tokens; `[id]` for most; `[id, children...]` when the prompt of a request with several choices is complete.
    pub samples: Samples,
}

/// Sequences that get a token from one position. Behaves like a slice; takes no memory of its own unless there are several.
#[derive(Clone, Debug, Default)]
pub enum Samples {
    /// Nobody.
    #[default]
    None,
    /// The sequence itself.
    One([SequenceId; 1]),
    /// The sequence and its children.
    Several(Vec<SequenceId>),
}

impl std::ops::Deref for Samples {
    type Target = [SequenceId];

    fn deref(&self) -> &[SequenceId] {
        match self {
            Samples::None => &[],
            Samples::One(one) => one,
            Samples::Several(several) => several,
        }
    }
}

impl<'a> IntoIterator for &'a Samples {
    type Item = &'a SequenceId;
    type IntoIter = std::slice::Iter<'a, SequenceId>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Samples {
    fn eq(&self, other: &Samples) -> bool {
        **self == **other
    }
}

impl Eq for Samples {}

impl<const N: usize> PartialEq<[SequenceId; N]> for Samples {
    fn eq(&self, other: &[SequenceId; N]) -> bool {
        **self == other[..]
    }
}

/// A sequence starts running with this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Tokens whose keys and values were found in the prefix cache; `start` of the step equals it.
    pub cached_tokens: usize,
    /// False the first time, true after a preemption.
    pub resumed: bool,
}

/// Copy of one whole block, source to destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Shared block.
    pub src: BlockId,
    /// The writer's own block.
    pub dst: BlockId,
}

/// A sampled token on its way into `commit()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledToken {
    /// Whose token.
    pub id: SequenceId,
    /// The token.
    pub token: u32,
    /// It ends the sequence (EOS or a stop token; the caller decides).
    pub is_stop: bool,
}

/// What `commit()` made of one sampled token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Whose token.
    pub id: SequenceId,
    /// The token.
    pub token: u32,
    /// Set when the sequence ended with it; its blocks are free (and findable) from now on.
    pub finished: Option<Finish>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The token was a stop token.
    Stop,
    /// `max_tokens` output tokens.
    MaxTokens,
    /// `max_model_len` tokens in all.
    ContextFull,
}
