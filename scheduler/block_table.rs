//! `BlockTable`: the blocks of one sequence, logical to physical. Knows tokens only to register full blocks.
//!
//! ```text
//! position   0 .. block_size   .. 2 * block_size   .. num_computed
//! blocks     [ found, shared ] [ full: registered ] [ partial: own, or shared after a fork until the first write ]
//! ```

use crate::block_allocator::{BlockAllocator, BlockId};
use crate::step::BlockCopy;

/// Blocks held by one sequence. Given back by `release`, which takes it by value: once.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    blocks: Vec<BlockId>,
    /// Blocks from the first on that were offered to the prefix cache.
    num_registered: usize,
}

impl BlockTable {
    /// Holds blocks that were found in the prefix cache.
    pub(crate) fn from_hits(blocks: Vec<BlockId>, allocator: &mut BlockAllocator) -> BlockTable {
        for block in &blocks {
            allocator.retain(*block);
        }
        BlockTable { num_registered: blocks.len(), blocks }
    }

    pub(crate) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Blocks to allocate before positions `start..end` can be written; `start` is where the last write ended.
    pub(crate) fn num_missing(&self, start: usize, end: usize, allocator: &BlockAllocator) -> usize {
        let num_new = end.div_ceil(allocator.block_size()) - self.blocks.len();
        num_new + usize::from(self.shared_tail(start, allocator).is_some())
    }

    /// Makes positions `start..end` writable; `num_missing` blocks are free. The copy is to be made before anything is written.
    pub(crate) fn prepare_write(&mut self, start: usize, end: usize, allocator: &mut BlockAllocator) -> Option<BlockCopy> {
        let copy = self.shared_tail(start, allocator).map(|src| {
            let dst = allocator.allocate().expect("free blocks were counted before");
            allocator.release(src);
            *self.blocks.last_mut().expect("the shared block is in the table") = dst;
            BlockCopy { src, dst }
        });
        while self.blocks.len() * allocator.block_size() < end {
            self.blocks.push(allocator.allocate().expect("free blocks were counted before"));
        }
        copy
    }

    /// The block that a write at `start` continues, if others hold it too.
    fn shared_tail(&self, start: usize, allocator: &BlockAllocator) -> Option<BlockId> {
        let is_continued = !start.is_multiple_of(allocator.block_size());
        self.blocks.last().copied().filter(|tail| is_continued && allocator.ref_count(*tail) > 1)
    }

    /// A second table over the same blocks.
    pub(crate) fn fork(&self, allocator: &mut BlockAllocator) -> BlockTable {
        for block in &self.blocks {
            allocator.retain(*block);
        }
        BlockTable { blocks: self.blocks.clone(), num_registered: self.num_registered }
    }

    /// Where the first block ends that was not offered to the prefix cache.
    pub(crate) fn end_of_next_registered(&self, block_size: usize) -> usize {
        (self.num_registered + 1) * block_size
    }

    /// Makes the full blocks of `tokens` findable. All of `tokens` are known, and computed or being computed.
    pub(crate) fn register(&mut self, salt: u64, tokens: &[u32], allocator: &mut BlockAllocator) {
        let block_size = allocator.block_size();
        for index in self.num_registered..tokens.len() / block_size {
            let parent = index.checked_sub(1).map(|before| self.blocks[before]);
            allocator.register(self.blocks[index], parent, salt, &tokens[index * block_size..][..block_size]);
            self.num_registered = index + 1;
        }
    }

    /// The prefix cache was cleared: what these blocks hold, and what comes after it, is not to be found any more.
    pub(crate) fn skip_registering(&mut self) {
        self.num_registered = self.blocks.len();
    }

    /// Gives all blocks back, the tail first: it is reused before the head.
    pub(crate) fn release(self, allocator: &mut BlockAllocator) {
        for block in self.blocks.into_iter().rev() {
            allocator.release(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_writer_of_a_shared_block_copies_the_last_does_not() {
        let mut allocator = BlockAllocator::new(8, 4);
        let mut parent = BlockTable::default();
        assert_eq!(parent.num_missing(0, 6, &allocator), 2);
        assert_eq!(parent.prepare_write(0, 6, &mut allocator), None);
        let mut child = parent.fork(&mut allocator);
        assert_eq!(parent.num_missing(6, 7, &allocator), 1);
        let copy = parent.prepare_write(6, 7, &mut allocator);
        assert_eq!(copy, Some(BlockCopy { src: child.blocks()[1], dst: parent.blocks()[1] }));
        assert_eq!((child.num_missing(6, 7, &allocator), child.prepare_write(6, 7, &mut allocator)), (0, None));
        assert_eq!(parent.blocks()[0], child.blocks()[0]);
        parent.release(&mut allocator);
        child.release(&mut allocator);
        assert_eq!(allocator.num_free(), 8);
    }

    #[test]
    fn a_full_shared_block_is_never_copied() {
        let mut allocator = BlockAllocator::new(8, 4);
        let mut parent = BlockTable::default();
        parent.prepare_write(0, 4, &mut allocator);
        let mut child = parent.fork(&mut allocator);
        assert_eq!((child.num_missing(4, 5, &allocator), child.prepare_write(4, 5, &mut allocator)), (1, None));
        assert_eq!(child.blocks().len(), 2);
    }

    #[test]
    fn full_blocks_are_registered_once_and_found() {
        let mut allocator = BlockAllocator::new(8, 2);
        let mut table = BlockTable::default();
        table.prepare_write(0, 5, &mut allocator);
        table.register(0, &[1, 2, 3], &mut allocator);
        assert_eq!(allocator.find(0, &[1, 2, 3, 4, 5]).len(), 1);
        table.register(0, &[1, 2, 3, 4, 5], &mut allocator);
        let hits = BlockTable::from_hits(allocator.find(0, &[1, 2, 3, 4, 5]), &mut allocator);
        assert_eq!(hits.blocks(), &table.blocks()[..2]);
        table.release(&mut allocator);
        assert_eq!(allocator.num_free(), 6);
        hits.release(&mut allocator);
        assert_eq!((allocator.num_free(), allocator.num_evictable()), (8, 2));
    }
}
