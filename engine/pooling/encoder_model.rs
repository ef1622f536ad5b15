//! An encoder as a `SequenceModel`: one step a batch.

use std::sync::Arc;

use super::head::Classifier;
use super::{BatchLimits, Sequence, SequenceModel};
use crate::device::encoder::{EncoderDevice, EncoderStep, Pooling};
use crate::error::Result;
use crate::models::encoder::{Encoder, EncoderWorkspace};
use crate::models::encoder_config::Positions;

/// A loaded encoder with its buffers.
pub struct EncoderModel<D: EncoderDevice> {
    device: Arc<D>,
    encoder: Encoder<D>,
    workspace: EncoderWorkspace<D>,
    step: EncoderStep<D>,
    pooling: Pooling,
    classifier: Option<Classifier>,
    ints: Ints,
}

/// The arrays of a step on the host, kept from batch to batch.
#[derive(Default)]
struct Ints {
    token_ids: Vec<i32>,
    positions: Vec<i32>,
    token_types: Vec<i32>,
    cu_seqlens: Vec<i32>,
}

impl Ints {
    fn fill(&mut self, sequences: &[Sequence], offset: usize, num_token_types: usize) {
        for array in [&mut self.token_ids, &mut self.positions, &mut self.token_types, &mut self.cu_seqlens] {
            array.clear();
        }
        self.cu_seqlens.push(0);
        for sequence in sequences {
            let len = sequence.ids.len();
            self.token_ids.extend(sequence.ids.iter().map(|id| *id as i32));
            self.positions.extend((offset..offset + len).map(|position| position as i32));
            // A model with one segment has no row for a second.
            let last = num_token_types.saturating_sub(1) as u32;
            self.token_types.extend((0..len).map(|i| sequence.token_types.get(i).map_or(0, |kind| (*kind).min(last)) as i32));
            self.cu_seqlens.push(self.token_ids.len() as i32);
        }
    }
}

impl<D: EncoderDevice> EncoderModel<D> {
    /// Takes the buffers for batches within `limits`.
    ///
    /// # Errors
    /// A device that is out of memory.
    pub fn new(
        device: Arc<D>,
        encoder: Encoder<D>,
        classifier: Option<Classifier>,
        pooling: Pooling,
        limits: BatchLimits,
    ) -> Result<EncoderModel<D>> {
        let workspace = EncoderWorkspace::new(&*device, &encoder.config, limits.max_tokens, limits.max_seqs)?;
        let step = EncoderStep::alloc(&*device, limits.max_tokens, limits.max_seqs)?;
        Ok(EncoderModel { device, encoder, workspace, step, pooling, classifier, ints: Ints::default() })
    }

    fn write_step(&mut self, sequences: &[Sequence]) -> Result<()> {
        let config = &self.encoder.config;
        let offset = match config.positions {
            Positions::Learned { offset, .. } => offset,
            Positions::Rotary { .. } => 0,
        };
        self.ints.fill(sequences, offset, config.num_token_types);
        let (device, step, ints) = (&*self.device, &mut self.step, &self.ints);
        device.write_ints(&mut step.token_ids, &ints.token_ids)?;
        device.write_ints(&mut step.positions, &ints.positions)?;
        device.write_ints(&mut step.token_types, &ints.token_types)?;
        device.write_ints(&mut step.cu_seqlens, &ints.cu_seqlens)?;
        step.num_tokens = ints.token_ids.len();
        step.num_seqs = sequences.len();
        step.max_seq_len = sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
        Ok(())
    }
}

impl<D: EncoderDevice> SequenceModel for EncoderModel<D> {
    fn run(&mut self, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
        self.write_step(sequences)?;
        self.encoder.forward(&*self.device, &mut self.workspace, &self.step)?;
        let pooled = self.encoder.pooled(&*self.device, &mut self.workspace, &self.step, self.pooling)?;
        let rows = pooled.chunks_exact(self.encoder.config.hidden_size);
        Ok(match &self.classifier {
            Some(classifier) => rows.map(|row| classifier.scores(row)).collect(),
            None => rows.map(<[f32]>::to_vec).collect(),
        })
    }

    fn sleep(&mut self) -> Result<()> {
        self.device.sleep(&mut [])
    }

    fn wake(&mut self) -> Result<()> {
        self.device.wake()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_packed_and_segments_stay_within_the_table() {
        let sequence = |ids: &[u32], token_types: &[u32]| Sequence { ids: ids.to_vec(), token_types: token_types.to_vec() };
        let mut ints = Ints::default();
        let sequences = [sequence(&[5, 6, 7], &[0, 1, 1]), sequence(&[8], &[])];
        ints.fill(&sequences, 2, 2);
        assert_eq!((&ints.token_ids[..], &ints.positions[..]), (&[5, 6, 7, 8][..], &[2, 3, 4, 2][..]));
        assert_eq!((&ints.token_types[..], &ints.cu_seqlens[..]), (&[0, 1, 1, 0][..], &[0, 3, 4][..]));
        ints.fill(&sequences, 0, 1);
        assert_eq!((&ints.token_types[..], ints.positions[0]), (&[0, 0, 0, 0][..], 0));
    }
}
