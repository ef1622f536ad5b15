//! `PrefixCache`: which blocks hold which tokens. Used by the block allocator alone; knows neither references nor free blocks.
//!
//! The prefixes form a forest: a node is one full block's tokens after its parent's. Nodes are found by a hash of the tokens chained on the
//! parent's hash and the salt; a match also compares parent, salt and tokens, so that a collision of hashes is never a hit.
//!
//! ```text
//! salt 7:  [a b c d] --> [e f g h] --> [i j k l]       node: the tokens, and the blocks that hold their keys and values
//!                    \-> [e f x y]                     (two, while sequences that computed the same tokens side by side run)
//! ```
//! All memory is taken, and written, at the start: a host's memory does not grow while blocks are used for the first time, and a block costs
//! no allocation.
//!
//! Hash-chained blocks are an idea of vLLM (Apache-2.0), the tree of prefixes one of SGLang (Apache-2.0).

use crate::block_allocator::BlockId;

type NodeId = u32;

#[derive(Debug)]
struct Node {
    hash: u64,
    salt: u64,
    parent: Option<NodeId>,
    num_children: u32,
    /// The newest of the blocks that hold its tokens.
    newest_block: Option<BlockId>,
    next_in_bucket: Option<NodeId>,
}

/// What is known of a block.
#[derive(Clone, Copy, Debug)]
struct Holder {
    node: NodeId,
    /// The blocks of a node form a ring, in which the oldest, which is the one that is found, follows the newest.
    next: BlockId,
}

/// The forest of known prefixes.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    block_size: usize,
    nodes: Vec<Option<Node>>,
    /// `[nodes, block_size]`
    tokens: Vec<u32>,
    unused_nodes: Vec<NodeId>,
    /// The first node of those whose hashes have the same low bits. A power of two of them, at least as many as blocks.
    buckets: Vec<Option<NodeId>>,
    holders: Vec<Option<Holder>>,
}

impl PrefixCache {
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> PrefixCache {
        PrefixCache {
            block_size,
            nodes: (0..num_blocks).map(|_| None).collect(),
            tokens: vec![u32::MAX; num_blocks * block_size],
            unused_nodes: (0..num_blocks as NodeId).rev().collect(),
            buckets: vec![None; num_blocks.next_power_of_two()],
            holders: vec![None; num_blocks],
        }
    }

    /// Blocks that hold the longest known prefix of `tokens`, whole blocks only.
    pub(crate) fn find(&self, salt: u64, tokens: &[u32]) -> Vec<BlockId> {
        let mut found = Vec::new();
        let mut parent = None;
        for block_tokens in tokens.chunks_exact(self.block_size) {
            let hash = self.hash_after(parent, salt, block_tokens);
            let Some(node_id) = self.node_with(hash, parent, salt, block_tokens) else { break };
            let Some(block) = self.blocks_of(node_id).next() else { break };
            found.push(block);
            parent = Some(node_id);
        }
        found
    }

    /// Records that `block` holds `tokens` after what `parent` holds. Returns the block that held the same before, if any.
    /// Nothing is recorded when `parent` itself is unknown (the cache was cleared since it was computed) or `block` is known already.
    pub(crate) fn attach(&mut self, block: BlockId, parent: Option<BlockId>, salt: u64, tokens: &[u32]) -> Option<BlockId> {
        let parent = match parent {
            None => None,
            Some(parent_block) => Some(self.holder(parent_block)?.node),
        };
        if self.contains(block) {
            return None;
        }
        let hash = self.hash_after(parent, salt, tokens);
        let node_id = match self.node_with(hash, parent, salt, tokens) {
            Some(node_id) => node_id,
            None => self.insert_node(Node { hash, salt, parent, num_children: 0, newest_block: None, next_in_bucket: None }, tokens),
        };
        let newest = self.node_mut(node_id).newest_block.replace(block);
        let oldest = newest.map(|newest| {
            let holder = self.holders[newest.0 as usize].as_mut().expect("a block of a node knows its node");
            std::mem::replace(&mut holder.next, block)
        });
        self.holders[block.0 as usize] = Some(Holder { node: node_id, next: oldest.unwrap_or(block) });
        oldest
    }

    /// Forgets what `block` holds. Whether anything was known.
    pub(crate) fn detach(&mut self, block: BlockId) -> bool {
        let Some(Holder { node, next }) = self.holders[block.0 as usize].take() else { return false };
        if next == block {
            self.node_mut(node).newest_block = None;
            self.remove_unused(node);
            return true;
        }
        let mut before = next;
        while let Some(holder) = self.holder(before).filter(|holder| holder.next != block) {
            before = holder.next;
        }
        self.holders[before.0 as usize].as_mut().expect("the ring is closed").next = next;
        let newest = &mut self.node_mut(node).newest_block;
        *newest = newest.map(|newest| if newest == block { before } else { newest });
        true
    }

    /// Whether it is known what `block` holds.
    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.holder(block).is_some()
    }

    /// Whether another block holds the same as `block`.
    pub(crate) fn has_twin(&self, block: BlockId) -> bool {
        self.holder(block).is_some_and(|holder| holder.next != block)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.nodes.fill_with(|| None);
        self.unused_nodes.clear();
        self.unused_nodes.extend((0..self.nodes.len() as NodeId).rev());
        self.buckets.fill(None);
        self.holders.fill(None);
    }

    fn hash_after(&self, parent: Option<NodeId>, salt: u64, tokens: &[u32]) -> u64 {
        chained_hash(parent.map_or(salt, |parent| self.node(parent).hash), tokens)
    }

    fn node_with(&self, hash: u64, parent: Option<NodeId>, salt: u64, tokens: &[u32]) -> Option<NodeId> {
        self.nodes_in_bucket(self.bucket_of(hash)).find(|node_id| {
            let node = self.node(*node_id);
            node.hash == hash && node.parent == parent && node.salt == salt && self.tokens_of(*node_id) == tokens
        })
    }

    fn bucket_of(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    fn nodes_in_bucket(&self, bucket: usize) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::successors(self.buckets[bucket], |node_id| self.node(*node_id).next_in_bucket)
    }

    /// Oldest first.
    fn blocks_of(&self, node_id: NodeId) -> impl Iterator<Item = BlockId> + '_ {
        let newest = self.node(node_id).newest_block;
        let oldest = newest.and_then(|newest| self.holder(newest)).map(|holder| holder.next);
        std::iter::successors(oldest, move |block| self.holder(*block).map(|holder| holder.next).filter(|_| Some(*block) != newest))
    }

    fn insert_node(&mut self, node: Node, tokens: &[u32]) -> NodeId {
        if let Some(parent) = node.parent {
            self.node_mut(parent).num_children += 1;
        }
        // There may be more nodes than blocks: those without a block that have children.
        let node_id = self.unused_nodes.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.tokens.resize(self.nodes.len() * self.block_size, 0);
            NodeId::try_from(self.nodes.len() - 1).expect("there are fewer nodes than 2^32")
        });
        let bucket = self.bucket_of(node.hash);
        let next_in_bucket = self.buckets[bucket].replace(node_id);
        self.nodes[node_id as usize] = Some(Node { next_in_bucket, ..node });
        let first = node_id as usize * self.block_size;
        self.tokens[first..][..self.block_size].copy_from_slice(tokens);
        node_id
    }

    /// Removes the node and those above it, as far as they have neither blocks nor children.
    fn remove_unused(&mut self, node_id: NodeId) {
        let mut next = Some(node_id);
        while let Some(node_id) = next {
            let node = self.node(node_id);
            if node.newest_block.is_some() || node.num_children > 0 {
                return;
            }
            let parent = node.parent;
            self.leave_bucket(node_id);
            self.nodes[node_id as usize] = None;
            self.unused_nodes.push(node_id);
            if let Some(parent) = parent {
                self.node_mut(parent).num_children -= 1;
            }
            next = parent;
        }
    }

    fn leave_bucket(&mut self, node_id: NodeId) {
        let &Node { hash, next_in_bucket: after, .. } = self.node(node_id);
        let bucket = self.bucket_of(hash);
        let before = self.nodes_in_bucket(bucket).find(|other| self.node(*other).next_in_bucket == Some(node_id));
        match before {
            Some(before) => self.node_mut(before).next_in_bucket = after,
            None => self.buckets[bucket] = after,
        }
    }

    fn tokens_of(&self, node_id: NodeId) -> &[u32] {
        &self.tokens[node_id as usize * self.block_size..][..self.block_size]
    }

    fn holder(&self, block: BlockId) -> Option<Holder> {
        self.holders[block.0 as usize]
    }

    fn node(&self, node_id: NodeId) -> &Node {
        self.nodes[node_id as usize].as_ref().expect("a node that is referred to exists")
    }

    fn node_mut(&mut self, node_id: NodeId) -> &mut Node {
        self.nodes[node_id as usize].as_mut().expect("a node that is referred to exists")
    }

    /// Panics unless nodes, blocks and hashes refer to each other as they should.
    pub(crate) fn check_integrity(&self) {
        let live = || self.nodes.iter().enumerate().filter_map(|(index, node)| Some((index as NodeId, node.as_ref()?)));
        let num_in_buckets: usize = (0..self.buckets.len()).map(|bucket| self.nodes_in_bucket(bucket).count()).sum();
        assert_eq!(live().count(), num_in_buckets, "every node is found by its hash, and nothing else is");
        assert_eq!(live().count() + self.unused_nodes.len(), self.nodes.len(), "a node is in use or unused");
        let mut num_children = vec![0; self.nodes.len()];
        for (node_id, node) in live() {
            let tokens = self.tokens_of(node_id);
            assert!(self.nodes_in_bucket(self.bucket_of(node.hash)).any(|other| other == node_id), "node {node_id} is in another bucket");
            assert_eq!(node.hash, self.hash_after(node.parent, node.salt, tokens), "hash of node {node_id}");
            assert_eq!(self.node_with(node.hash, node.parent, node.salt, tokens), Some(node_id), "two nodes hold the same tokens");
            assert!(node.newest_block.is_some() || node.num_children > 0, "node {node_id} is of no use");
            for block in self.blocks_of(node_id) {
                assert_eq!(self.holder(block).map(|holder| holder.node), Some(node_id), "node of {block:?}");
            }
            if let Some(parent) = node.parent {
                assert_eq!(self.node(parent).salt, node.salt, "node {node_id} has its parent's salt");
                num_children[parent as usize] += 1;
            }
        }
        for (node_id, node) in live() {
            assert_eq!(node.num_children, num_children[node_id as usize], "children of node {node_id}");
        }
        let num_known = self.holders.iter().flatten().count();
        assert_eq!(
            num_known,
            live().map(|(node_id, _)| self.blocks_of(node_id).count()).sum::<usize>(),
            "every known block is in its node once"
        );
    }
}

/// FNV-1a over 32-bit words with the finaliser of splitmix64 (both public domain): the multiplication alone moves nothing downwards.
fn chained_hash(parent: u64, tokens: &[u32]) -> u64 {
    let mut hash = parent ^ 0xcbf2_9ce4_8422_2325;
    for token in tokens {
        hash = (hash ^ u64::from(*token)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Option<BlockId> = None;

    #[test]
    fn finds_the_longest_prefix_of_its_own_salt() {
        let mut cache = PrefixCache::new(4, 2);
        assert_eq!(cache.attach(BlockId(2), ROOT, 7, &[1, 2]), None);
        assert_eq!(cache.attach(BlockId(0), Some(BlockId(2)), 7, &[3, 4]), None);
        cache.check_integrity();
        let check = |salt, tokens: &[u32], expected: &[u32]| {
            let found: Vec<u32> = cache.find(salt, tokens).into_iter().map(|block| block.0).collect();
            assert_eq!(found, expected, "salt {salt}, tokens {tokens:?}");
        };
        check(7, &[1, 2, 3, 4, 5], &[2, 0]);
        check(7, &[1, 2, 3], &[2]);
        check(7, &[1, 2, 4, 3], &[2]);
        check(7, &[1], &[]);
        check(7, &[3, 4], &[]);
        check(8, &[1, 2, 3, 4], &[]);
    }

    #[test]
    fn a_twin_takes_over_when_the_first_block_goes() {
        let mut cache = PrefixCache::new(4, 2);
        cache.attach(BlockId(0), ROOT, 0, &[1, 2]);
        assert_eq!(cache.attach(BlockId(1), ROOT, 0, &[1, 2]), Some(BlockId(0)));
        cache.attach(BlockId(2), Some(BlockId(1)), 0, &[3, 4]);
        assert!(cache.has_twin(BlockId(0)) && !cache.has_twin(BlockId(2)));
        assert!(cache.detach(BlockId(0)));
        assert_eq!(cache.find(0, &[1, 2, 3, 4]), [BlockId(1), BlockId(2)]);
        cache.check_integrity();
    }

    #[test]
    fn of_several_twins_the_oldest_is_found() {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
            let mut cache = PrefixCache::new(4, 2);
            let mut left: Vec<BlockId> = (0..4).map(BlockId).collect();
            for &block in &left {
                assert_eq!(cache.attach(block, ROOT, 0, &[1, 2]), (block != left[0]).then_some(left[0]));
            }
            for gone in order.map(BlockId) {
                assert_eq!(cache.find(0, &[1, 2]), left[..1], "{order:?}");
                assert_eq!(cache.has_twin(gone), left.len() > 1);
                cache.detach(gone);
                left.retain(|block| *block != gone);
                cache.check_integrity();
            }
            assert_eq!(cache.find(0, &[1, 2]), []);
        }
    }

    #[test]
    fn a_parent_lives_as_long_as_its_children() {
        let mut cache = PrefixCache::new(4, 2);
        cache.attach(BlockId(0), ROOT, 0, &[1, 2]);
        cache.attach(BlockId(1), Some(BlockId(0)), 0, &[3, 4]);
        assert!(cache.detach(BlockId(0)) && !cache.detach(BlockId(0)));
        assert_eq!(cache.find(0, &[1, 2, 3, 4]), []);
        assert_eq!(cache.attach(BlockId(3), ROOT, 0, &[1, 2]), None);
        assert_eq!(cache.find(0, &[1, 2, 3, 4]), [BlockId(3), BlockId(1)]);
        cache.detach(BlockId(1));
        cache.detach(BlockId(3));
        cache.check_integrity();
        assert!(cache.buckets.iter().all(Option::is_none));
    }

    #[test]
    fn nothing_is_recorded_after_an_unknown_parent() {
        let mut cache = PrefixCache::new(4, 2);
        cache.attach(BlockId(0), ROOT, 0, &[1, 2]);
        cache.clear();
        assert_eq!(cache.attach(BlockId(1), Some(BlockId(0)), 0, &[3, 4]), None);
        assert!(!cache.contains(BlockId(1)));
        cache.check_integrity();
    }

    #[test]
    fn equal_hashes_are_told_apart() {
        // In the place of each hash of 1 2 | 3 4 there is something else already: other tokens, another salt, another parent.
        let tokens = [1, 2, 3, 4];
        let hashes = [chained_hash(0, &tokens[..2]), chained_hash(chained_hash(0, &tokens[..2]), &tokens[2..])];
        let mut cache = PrefixCache::new(5, 2);
        let others = [(hashes[0], 0, [8, 9]), (hashes[0], 1, [1, 2]), (hashes[1], 0, [3, 4])];
        for (block, (hash, salt, tokens)) in others.into_iter().enumerate() {
            let next = BlockId(block as u32);
            let node = Node { hash, salt, parent: None, num_children: 0, newest_block: Some(next), next_in_bucket: None };
            cache.holders[block] = Some(Holder { node: cache.insert_node(node, &tokens), next });
        }
        assert_eq!(cache.find(0, &tokens), []);
        assert_eq!(cache.attach(BlockId(3), ROOT, 0, &tokens[..2]), None);
        assert_eq!(cache.find(0, &tokens), [BlockId(3)]);
        assert_eq!(cache.attach(BlockId(4), Some(BlockId(3)), 0, &tokens[2..]), None);
        assert_eq!(cache.find(0, &tokens), [BlockId(3), BlockId(4)]);
    }
}
