//! `PrefixCache`: which blocks hold which tokens. Used by the block allocator alone; knows neither references nor free blocks.
//!
//! The prefixes form a forest: a node is one full block's tokens after its parent's. Nodes are found by a hash of the tokens chained on the
//! parent's hash and the salt; a match also compares parent, salt and tokens, so that a collision of hashes is never a hit.
//!
//! ```text
//! salt 7:  [a b c d] --> [e f g h] --> [i j k l]       node: the tokens, and the blocks that hold their keys and values
//!                    \-> [e f x y]                     (two, while sequences that computed the same tokens side by side run)
//! ```
//! Hash-chained blocks are an idea of vLLM (Apache-2.0), the tree of prefixes one of SGLang (Apache-2.0).

use std::collections::BTreeSet;

use crate::block_allocator::BlockId;

type NodeId = u32;

#[derive(Debug)]
struct Node {
    hash: u64,
    parent: Option<NodeId>,
    salt: u64,
    tokens: Box<[u32]>,
    /// Oldest first; the first is the one that is found.
    blocks: Vec<BlockId>,
    num_children: usize,
}

/// The forest of known prefixes.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    nodes: Vec<Option<Node>>,
    unused_nodes: Vec<NodeId>,
    by_hash: BTreeSet<(u64, NodeId)>,
    node_of_block: Vec<Option<NodeId>>,
}

impl PrefixCache {
    pub(crate) fn new(num_blocks: usize) -> PrefixCache {
        PrefixCache { nodes: Vec::new(), unused_nodes: Vec::new(), by_hash: BTreeSet::new(), node_of_block: vec![None; num_blocks] }
    }

    /// Blocks that hold the longest known prefix of `tokens`, whole blocks only.
    pub(crate) fn find(&self, salt: u64, tokens: &[u32], block_size: usize) -> Vec<BlockId> {
        let mut found = Vec::new();
        let mut parent = None;
        for block_tokens in tokens.chunks_exact(block_size) {
            let hash = self.hash_after(parent, salt, block_tokens);
            let Some(node_id) = self.node_with(hash, parent, salt, block_tokens) else { break };
            let Some(block) = self.node(node_id).blocks.first() else { break };
            found.push(*block);
            parent = Some(node_id);
        }
        found
    }

    /// Records that `block` holds `tokens` after what `parent` holds. Returns the block that held the same before, if any.
    /// Nothing is recorded when `parent` itself is unknown (the cache was cleared since it was computed) or `block` is known already.
    pub(crate) fn attach(&mut self, block: BlockId, parent: Option<BlockId>, salt: u64, tokens: &[u32]) -> Option<BlockId> {
        let parent = match parent {
            None => None,
            Some(parent_block) => Some(self.node_of_block[parent_block.0 as usize]?),
        };
        if self.contains(block) {
            return None;
        }
        let hash = self.hash_after(parent, salt, tokens);
        let node_id = match self.node_with(hash, parent, salt, tokens) {
            Some(node_id) => node_id,
            None => self.insert_node(Node { hash, parent, salt, tokens: tokens.into(), blocks: Vec::new(), num_children: 0 }),
        };
        self.node_of_block[block.0 as usize] = Some(node_id);
        let blocks = &mut self.node_mut(node_id).blocks;
        blocks.push(block);
        blocks.first().copied().filter(|first| *first != block)
    }

    /// Forgets what `block` holds. Whether anything was known.
    pub(crate) fn detach(&mut self, block: BlockId) -> bool {
        let Some(node_id) = self.node_of_block[block.0 as usize].take() else { return false };
        self.node_mut(node_id).blocks.retain(|other| *other != block);
        self.remove_unused(node_id);
        true
    }

    /// Whether it is known what `block` holds.
    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.node_of_block[block.0 as usize].is_some()
    }

    /// Whether another block holds the same as `block`.
    pub(crate) fn has_twin(&self, block: BlockId) -> bool {
        self.node_of_block[block.0 as usize].is_some_and(|node_id| self.node(node_id).blocks.len() > 1)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = PrefixCache::new(self.node_of_block.len());
    }

    fn hash_after(&self, parent: Option<NodeId>, salt: u64, tokens: &[u32]) -> u64 {
        chained_hash(parent.map_or(salt, |parent| self.node(parent).hash), tokens)
    }

    fn node_with(&self, hash: u64, parent: Option<NodeId>, salt: u64, tokens: &[u32]) -> Option<NodeId> {
        let same_hash = self.by_hash.range((hash, NodeId::MIN)..=(hash, NodeId::MAX)).map(|(_, node_id)| *node_id);
        same_hash.into_iter().find(|node_id| {
            let node = self.node(*node_id);
            node.parent == parent && node.salt == salt && *node.tokens == *tokens
        })
    }

    fn insert_node(&mut self, node: Node) -> NodeId {
        if let Some(parent) = node.parent {
            self.node_mut(parent).num_children += 1;
        }
        let node_id = self.unused_nodes.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            NodeId::try_from(self.nodes.len() - 1).expect("there are fewer nodes than 2^32")
        });
        self.by_hash.insert((node.hash, node_id));
        self.nodes[node_id as usize] = Some(node);
        node_id
    }

    /// Removes the node and those above it, as far as they have neither blocks nor children.
    fn remove_unused(&mut self, node_id: NodeId) {
        let mut next = Some(node_id);
        while let Some(node_id) = next {
            let node = self.node(node_id);
            if !node.blocks.is_empty() || node.num_children > 0 {
                return;
            }
            let (hash, parent) = (node.hash, node.parent);
            self.by_hash.remove(&(hash, node_id));
            self.nodes[node_id as usize] = None;
            self.unused_nodes.push(node_id);
            if let Some(parent) = parent {
                self.node_mut(parent).num_children -= 1;
            }
            next = parent;
        }
    }

    fn node(&self, node_id: NodeId) -> &Node {
        self.nodes[node_id as usize].as_ref().expect("a node that is referred to exists")
    }

    fn node_mut(&mut self, node_id: NodeId) -> &mut Node {
        self.nodes[node_id as usize].as_mut().expect("a node that is referred to exists")
    }

    /// Panics unless nodes, blocks and hashes refer to each other as they should.
    pub(crate) fn check_integrity(&self, block_size: usize) {
        let live = || self.nodes.iter().enumerate().filter_map(|(index, node)| Some((index as NodeId, node.as_ref()?)));
        assert_eq!(live().count(), self.by_hash.len(), "every node is found by its hash, and nothing else is");
        assert_eq!(live().count() + self.unused_nodes.len(), self.nodes.len(), "a node is in use or unused");
        let mut num_children = vec![0; self.nodes.len()];
        for (node_id, node) in live() {
            assert!(self.by_hash.contains(&(node.hash, node_id)), "node {node_id} is not found by its hash");
            assert_eq!(node.hash, self.hash_after(node.parent, node.salt, &node.tokens), "hash of node {node_id}");
            assert_eq!(self.node_with(node.hash, node.parent, node.salt, &node.tokens), Some(node_id), "two nodes hold the same tokens");
            assert_eq!(node.tokens.len(), block_size, "node {node_id} is a full block");
            assert!(!node.blocks.is_empty() || node.num_children > 0, "node {node_id} is of no use");
            for block in &node.blocks {
                assert_eq!(self.node_of_block[block.0 as usize], Some(node_id), "node of {block:?}");
            }
            if let Some(parent) = node.parent {
                assert_eq!(self.node(parent).salt, node.salt, "node {node_id} has its parent's salt");
                num_children[parent as usize] += 1;
            }
        }
        for (node_id, node) in live() {
            assert_eq!(node.num_children, num_children[node_id as usize], "children of node {node_id}");
        }
        let num_known = self.node_of_block.iter().flatten().count();
        assert_eq!(num_known, live().map(|(_, node)| node.blocks.len()).sum::<usize>(), "every known block is in its node once");
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
        let mut cache = PrefixCache::new(4);
        assert_eq!(cache.attach(BlockId(2), ROOT, 7, &[1, 2]), None);
        assert_eq!(cache.attach(BlockId(0), Some(BlockId(2)), 7, &[3, 4]), None);
        cache.check_integrity(2);
        let check = |salt, tokens: &[u32], expected: &[u32]| {
            let found: Vec<u32> = cache.find(salt, tokens, 2).into_iter().map(|block| block.0).collect();
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
        let mut cache = PrefixCache::new(4);
        cache.attach(BlockId(0), ROOT, 0, &[1, 2]);
        assert_eq!(cache.attach(BlockId(1), ROOT, 0, &[1, 2]), Some(BlockId(0)));
        cache.attach(BlockId(2), Some(BlockId(1)), 0, &[3, 4]);
        assert!(cache.has_twin(BlockId(0)) && !cache.has_twin(BlockId(2)));
        assert!(cache.detach(BlockId(0)));
        assert_eq!(cache.find(0, &[1, 2, 3, 4], 2), [BlockId(1), BlockId(2)]);
        cache.check_integrity(2);
    }

    #[test]
    fn a_parent_lives_as_long_as_its_children() {
        let mut cache = PrefixCache::new(4);
        cache.attach(BlockId(0), ROOT, 0, &[1, 2]);
        cache.attach(BlockId(1), Some(BlockId(0)), 0, &[3, 4]);
        assert!(cache.detach(BlockId(0)) && !cache.detach(BlockId(0)));
        assert_eq!(cache.find(0, &[1, 2, 3, 4], 2), []);
        assert_eq!(cache.attach(BlockId(3), ROOT, 0, &[1, 2]), None);
        assert_eq!(cache.find(0, &[1, 2, 3, 4], 2), [BlockId(3), BlockId(1)]);
        cache.detach(BlockId(1));
        cache.detach(BlockId(3));
        cache.check_integrity(2);
        assert!(cache.by_hash.is_empty());
    }

    #[test]
    fn nothing_is_recorded_after_an_unknown_parent() {
        let mut cache = PrefixCache::new(4);
        cache.attach(BlockId(0), ROOT, 0, &[1, 2]);
        cache.clear();
        assert_eq!(cache.attach(BlockId(1), Some(BlockId(0)), 0, &[3, 4]), None);
        assert!(!cache.contains(BlockId(1)));
        cache.check_integrity(2);
    }

    #[test]
    fn equal_hashes_are_told_apart() {
        // In the place of each hash of 1 2 | 3 4 there is something else already: other tokens, another salt, another parent.
        let tokens = [1, 2, 3, 4];
        let hashes = [chained_hash(0, &tokens[..2]), chained_hash(chained_hash(0, &tokens[..2]), &tokens[2..])];
        let mut cache = PrefixCache::new(5);
        let others = [(hashes[0], 0, [8, 9]), (hashes[0], 1, [1, 2]), (hashes[1], 0, [3, 4])];
        for (block, (hash, salt, tokens)) in others.into_iter().enumerate() {
            let blocks = vec![BlockId(block as u32)];
            let node = Node { hash, parent: None, salt, tokens: tokens.into(), blocks, num_children: 0 };
            cache.node_of_block[block] = Some(cache.insert_node(node));
        }
        assert_eq!(cache.find(0, &tokens, 2), []);
        assert_eq!(cache.attach(BlockId(3), ROOT, 0, &tokens[..2]), None);
        assert_eq!(cache.find(0, &tokens, 2), [BlockId(3)]);
        assert_eq!(cache.attach(BlockId(4), Some(BlockId(3)), 0, &tokens[2..]), None);
        assert_eq!(cache.find(0, &tokens, 2), [BlockId(3), BlockId(4)]);
    }
}
