//! `BlockAllocator`: hands out the blocks of the KV cache and counts who holds them. Used by block tables; knows no sequences.
//!
//! A free block stays findable by what it holds until it is handed out again. Free blocks, in the order in which they are:
//!
//! ```text
//! oldest                                                            newest
//! [ hold nothing that can be found | tail blocks ... head blocks | ... ]      a sequence gives its blocks back tail first, so that
//!   ^ allocate() takes this one                              ^ release()      the head, which more sequences share, goes last
//! ```
//! A free list through the blocks with reuse in order of age is an idea of vLLM (Apache-2.0).

use crate::prefix_cache::PrefixCache;

/// Number of a block of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// The pool of blocks, with the prefix cache over them.
#[derive(Debug)]
pub struct BlockAllocator {
    block_size: usize,
    ref_counts: Vec<u32>,
    free: FreeList,
    cache: PrefixCache,
    num_evictable: usize,
    num_evictions: u64,
}

impl BlockAllocator {
    /// `num_blocks` free blocks that hold nothing, of `block_size` tokens each.
    pub fn new(num_blocks: usize, block_size: usize) -> BlockAllocator {
        let mut free = FreeList { links: vec![Links::default(); num_blocks], ..FreeList::default() };
        for index in 0..u32::try_from(num_blocks).expect("the number of blocks was checked with the config") {
            free.push_newest(BlockId(index));
        }
        let cache = PrefixCache::new(num_blocks, block_size);
        BlockAllocator { block_size, ref_counts: vec![0; num_blocks], free, cache, num_evictable: 0, num_evictions: 0 }
    }

    /// The oldest free block, held once by the caller; what it held is forgotten. `None` when no block is free.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.oldest?;
        self.free.remove(block);
        if self.cache.detach(block) {
            self.num_evictable -= 1;
            self.num_evictions += 1;
        }
        self.ref_counts[block.0 as usize] = 1;
        Some(block)
    }

    /// One holder more, of a block in use or of a free one that was found.
    pub fn retain(&mut self, block: BlockId) {
        let ref_count = &mut self.ref_counts[block.0 as usize];
        *ref_count += 1;
        if *ref_count == 1 {
            assert!(self.cache.contains(block), "{block:?} is free and holds nothing");
            self.free.remove(block);
            self.num_evictable -= 1;
        }
    }

    /// One holder less. Without holders the block is free: the newest if it can be found, else (nothing known, or another block holds
    /// the same) the oldest.
    pub fn release(&mut self, block: BlockId) {
        let ref_count = &mut self.ref_counts[block.0 as usize];
        assert!(*ref_count > 0, "{block:?} is released more often than held");
        *ref_count -= 1;
        if *ref_count > 0 {
            return;
        }
        if self.cache.has_twin(block) {
            self.cache.detach(block);
        }
        if self.cache.contains(block) {
            self.free.push_newest(block);
            self.num_evictable += 1;
        } else {
            self.free.push_oldest(block);
        }
    }

    /// Blocks that hold the longest known prefix of `tokens`, whole blocks only; they are not held yet.
    pub fn find(&self, salt: u64, tokens: &[u32]) -> Vec<BlockId> {
        self.cache.find(salt, tokens)
    }

    /// Makes a block in use findable: it holds `tokens` (a full block), after what `parent` holds.
    /// Without effect when it is findable already, or when `parent` is not.
    pub fn register(&mut self, block: BlockId, parent: Option<BlockId>, salt: u64, tokens: &[u32]) {
        assert!(self.ref_count(block) > 0, "{block:?} is free and cannot be registered");
        assert_eq!(tokens.len(), self.block_size, "tokens of a full block");
        let Some(twin) = self.cache.attach(block, parent, salt, tokens) else { return };
        // Of two that hold the same, a free one is of no use any more. So a free block that is found has no twin.
        if self.ref_count(twin) == 0 {
            self.cache.detach(twin);
            self.num_evictable -= 1;
            self.free.remove(twin);
            self.free.push_oldest(twin);
        }
    }

    /// Forgets what all blocks hold. Those in use stay in use.
    pub fn clear_cache(&mut self) {
        self.cache.clear();
        self.num_evictable = 0;
    }

    /// Holders of a block.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts[block.0 as usize]
    }

    /// Tokens a block holds.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// All blocks.
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks that nobody holds, findable or not.
    pub fn num_free(&self) -> usize {
        self.free.len
    }

    /// Free blocks that can be found by what they hold.
    pub fn num_evictable(&self) -> usize {
        self.num_evictable
    }

    /// How often a free block that could be found was handed out, so far.
    pub fn num_evictions(&self) -> u64 {
        self.num_evictions
    }

    /// Panics unless counts, free list and cache agree. Looks at every block.
    pub fn check_integrity(&self) {
        self.cache.check_integrity();
        let free = self.free.to_vec();
        assert_eq!(free.len(), self.free.len, "length of the free list");
        assert_eq!(free.len(), self.ref_counts.iter().filter(|count| **count == 0).count(), "every block without holders is free");
        assert!(free.iter().all(|block| self.ref_count(*block) == 0), "a block in use is in the free list");
        assert_eq!(self.num_evictable, free.iter().filter(|block| self.cache.contains(**block)).count(), "findable free blocks");
        assert!(!free.iter().any(|block| self.cache.has_twin(*block)), "a free block has a twin");
    }
}

/// Doubly linked through the blocks themselves: a block leaves from anywhere in constant time.
#[derive(Debug, Default)]
struct FreeList {
    links: Vec<Links>,
    oldest: Option<BlockId>,
    newest: Option<BlockId>,
    len: usize,
}

/// Neighbours of a free block; of no meaning while it is in use.
#[derive(Clone, Copy, Debug, Default)]
struct Links {
    older: Option<BlockId>,
    newer: Option<BlockId>,
}

impl FreeList {
    fn push_newest(&mut self, block: BlockId) {
        self.links[block.0 as usize] = Links { older: self.newest, newer: None };
        match self.newest {
            Some(newest) => self.links[newest.0 as usize].newer = Some(block),
            None => self.oldest = Some(block),
        }
        self.newest = Some(block);
        self.len += 1;
    }

    fn push_oldest(&mut self, block: BlockId) {
        self.links[block.0 as usize] = Links { older: None, newer: self.oldest };
        match self.oldest {
            Some(oldest) => self.links[oldest.0 as usize].older = Some(block),
            None => self.newest = Some(block),
        }
        self.oldest = Some(block);
        self.len += 1;
    }

    fn remove(&mut self, block: BlockId) {
        let Links { older, newer } = self.links[block.0 as usize];
        match older {
            Some(older) => self.links[older.0 as usize].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.links[newer.0 as usize].older = older,
            None => self.newest = older,
        }
        self.len -= 1;
    }

    /// Oldest first. Panics when the links of the two directions disagree or run in circles.
    fn to_vec(&self) -> Vec<BlockId> {
        let mut blocks = Vec::with_capacity(self.len);
        let (mut next, mut before) = (self.oldest, None);
        while let Some(block) = next {
            assert!(blocks.len() < self.len, "free list runs in circles at {block:?}");
            assert_eq!(self.links[block.0 as usize].older, before, "back link of {block:?}");
            blocks.push(block);
            (before, next) = (next, self.links[block.0 as usize].newer);
        }
        assert_eq!(self.newest, before, "end of the free list");
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocate(allocator: &mut BlockAllocator, num_blocks: usize) -> Vec<BlockId> {
        (0..num_blocks).map(|_| allocator.allocate().expect("a block is free")).collect()
    }

    #[test]
    fn every_block_is_handed_out_once() {
        let mut allocator = BlockAllocator::new(3, 2);
        assert_eq!(allocate(&mut allocator, 3), [BlockId(0), BlockId(1), BlockId(2)]);
        assert_eq!(allocator.allocate(), None);
        allocator.retain(BlockId(1));
        allocator.release(BlockId(1));
        assert_eq!((allocator.allocate(), allocator.num_free()), (None, 0));
        allocator.release(BlockId(1));
        allocator.check_integrity();
        assert_eq!(allocator.allocate(), Some(BlockId(1)));
    }

    #[test]
    fn useless_blocks_go_first_then_the_oldest_tail() {
        let mut allocator = BlockAllocator::new(4, 2);
        let blocks = allocate(&mut allocator, 4);
        allocator.register(blocks[0], None, 0, &[1, 2]);
        allocator.register(blocks[1], Some(blocks[0]), 0, &[3, 4]);
        allocator.register(blocks[3], None, 0, &[5, 6]);
        for block in [blocks[1], blocks[0], blocks[3], blocks[2]] {
            allocator.release(block);
            allocator.check_integrity();
        }
        assert_eq!((allocator.num_free(), allocator.num_evictable()), (4, 3));
        assert_eq!(allocate(&mut allocator, 2), [blocks[2], blocks[1]]);
        assert_eq!(allocator.num_evictions(), 1);
        assert_eq!(allocator.find(0, &[1, 2, 3, 4]), [blocks[0]]);
        allocator.retain(blocks[0]);
        assert_eq!(allocator.allocate(), Some(blocks[3]));
        assert_eq!(allocator.allocate(), None);
        allocator.check_integrity();
    }

    #[test]
    fn a_free_twin_becomes_the_oldest() {
        let mut allocator = BlockAllocator::new(3, 1);
        let blocks = allocate(&mut allocator, 3);
        for (block, token) in [(0, 5), (1, 6)] {
            allocator.register(blocks[block], None, 0, &[token]);
            allocator.release(blocks[block]);
        }
        allocator.register(blocks[2], None, 0, &[6]);
        allocator.check_integrity();
        assert_eq!((allocator.num_free(), allocator.num_evictable()), (2, 1));
        assert_eq!(allocator.find(0, &[6]), [blocks[2]]);
        assert_eq!(allocator.allocate(), Some(blocks[1]));
    }

    #[test]
    fn clearing_leaves_blocks_in_use_alone() {
        let mut allocator = BlockAllocator::new(3, 1);
        let blocks = allocate(&mut allocator, 2);
        allocator.register(blocks[0], None, 0, &[5]);
        allocator.register(blocks[1], Some(blocks[0]), 0, &[6]);
        allocator.release(blocks[1]);
        allocator.clear_cache();
        allocator.check_integrity();
        assert_eq!((allocator.find(0, &[5, 6]), allocator.num_evictable(), allocator.num_free()), (vec![], 0, 2));
        allocator.release(blocks[0]);
        assert_eq!(allocator.num_free(), 3);
    }
}
