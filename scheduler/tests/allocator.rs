//! Block allocator and prefix cache against a naive model that scans lists: 100,000 operations over a vocabulary of two tokens, in a pool
//! that is nearly always full. After each operation every answer and the whole state are compared.

use pagoda_scheduler::{BlockAllocator, BlockId};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const NUM_BLOCKS: usize = 12;
const BLOCK_SIZE: usize = 2;
const CASES: u32 = 500;
const OPERATIONS_PER_CASE: usize = 200;
const SEED: [u8; 32] = *b"blocks are lent and never lost..";

#[derive(Clone, Debug)]
enum Operation {
    /// A sequence starts with these tokens, with blocks that are found as far as they reach.
    Start { salt: u64, bits: u16, num_tokens: usize },
    /// A sequence gets one more token.
    Append { pick: usize, token: u32 },
    /// A second sequence over the same blocks.
    Fork { pick: usize },
    /// A sequence ends and gives its blocks back tail first, as the scheduler does.
    End { pick: usize },
    /// The same, head first: a prefix may be evicted before what comes after it.
    EndHeadFirst { pick: usize },
    /// The prefix cache is cleared.
    Clear,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0..2u64, any::<u16>(), 1..12usize).prop_map(|(salt, bits, num_tokens)| Operation::Start { salt, bits: bits & 0x3b, num_tokens }),
        12 => (any::<usize>(), 0..2u32).prop_map(|(pick, token)| Operation::Append { pick, token }),
        2 => any::<usize>().prop_map(|pick| Operation::Fork { pick }),
        5 => any::<usize>().prop_map(|pick| Operation::End { pick }),
        1 => any::<usize>().prop_map(|pick| Operation::EndHeadFirst { pick }),
    ]
    .prop_flat_map(|operation| prop_oneof![60 => Just(operation), 1 => Just(Operation::Clear)])
}

/// What a block holds: salt, the tokens of the whole prefix up to its end, and when that was recorded.
type Content = (u64, Vec<u32>, usize);

/// The rules of the allocator, written with lists and scans.
#[derive(Default)]
struct Model {
    ref_counts: Vec<u32>,
    contents: Vec<Option<Content>>,
    /// Oldest first.
    free: Vec<usize>,
    num_registered: usize,
    num_evictions: u64,
}

impl Model {
    fn allocate(&mut self) -> Option<usize> {
        let block = (!self.free.is_empty()).then(|| self.free.remove(0))?;
        self.num_evictions += u64::from(self.contents[block].take().is_some());
        self.ref_counts[block] = 1;
        Some(block)
    }

    fn retain(&mut self, block: usize) {
        self.free.retain(|free| *free != block);
        self.ref_counts[block] += 1;
    }

    fn release(&mut self, block: usize) {
        self.ref_counts[block] -= 1;
        if self.ref_counts[block] == 0 {
            if self.twins(block).len() > 1 {
                self.contents[block] = None;
            }
            let position = if self.contents[block].is_some() { self.free.len() } else { 0 };
            self.free.insert(position, block);
        }
    }

    fn register(&mut self, block: usize, parent: Option<usize>, salt: u64, prefix: &[u32]) {
        if self.contents[block].is_some() || parent.is_some_and(|parent| self.contents[parent].is_none()) {
            return;
        }
        self.contents[block] = Some((salt, prefix.to_vec(), self.num_registered));
        self.num_registered += 1;
        for twin in self.twins(block) {
            if self.ref_counts[twin] == 0 {
                self.contents[twin] = None;
                self.free.retain(|free| *free != twin);
                self.free.insert(0, twin);
            }
        }
    }

    /// All blocks that hold the same, itself included.
    fn twins(&self, block: usize) -> Vec<usize> {
        let Some((salt, prefix, _)) = &self.contents[block] else { return Vec::new() };
        self.holders(*salt, prefix)
    }

    /// All blocks that hold the end of `prefix`, in the order in which that was recorded.
    fn holders(&self, salt: u64, prefix: &[u32]) -> Vec<usize> {
        let holds = |content: &Content| content.0 == salt && content.1 == prefix;
        let known = self.contents.iter().enumerate().filter_map(|(block, content)| Some((block, content.as_ref()?)));
        let mut holders: Vec<(usize, usize)> =
            known.filter(|(_, content)| holds(content)).map(|(block, content)| (content.2, block)).collect();
        holders.sort_unstable();
        holders.into_iter().map(|(_, block)| block).collect()
    }

    fn find(&self, salt: u64, tokens: &[u32]) -> Vec<usize> {
        (1..=tokens.len() / BLOCK_SIZE).map_while(|n| self.holders(salt, &tokens[..n * BLOCK_SIZE]).first().copied()).collect()
    }
}

#[derive(Clone)]
struct Holder {
    salt: u64,
    tokens: Vec<u32>,
    blocks: Vec<usize>,
}

/// The allocator and its model, and the sequences that hold blocks of both.
struct Pair {
    allocator: BlockAllocator,
    model: Model,
    holders: Vec<Holder>,
    num_hits: usize,
}

impl Pair {
    fn new() -> Pair {
        let model = Model {
            ref_counts: vec![0; NUM_BLOCKS],
            contents: vec![None; NUM_BLOCKS],
            free: (0..NUM_BLOCKS).collect(),
            ..Model::default()
        };
        Pair { allocator: BlockAllocator::new(NUM_BLOCKS, BLOCK_SIZE), model, holders: Vec::new(), num_hits: 0 }
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Start { salt, bits, num_tokens } => {
                let tokens: Vec<u32> = (0..num_tokens).map(|bit| u32::from(bits >> bit & 1)).collect();
                self.start(salt, &tokens);
            }
            Operation::Append { pick, token } => {
                if let Some(index) = self.pick(pick) {
                    let mut holder = self.holders.swap_remove(index);
                    self.append(&mut holder, token);
                    self.holders.push(holder);
                }
            }
            Operation::Fork { pick } => {
                if let Some(index) = self.pick(pick) {
                    let mut copy = self.holders[index].clone();
                    // Only whole blocks can be shared by two that go on.
                    copy.tokens.truncate(copy.tokens.len() / BLOCK_SIZE * BLOCK_SIZE);
                    copy.blocks.truncate(copy.tokens.len() / BLOCK_SIZE);
                    copy.blocks.iter().for_each(|block| self.retain(*block));
                    self.holders.push(copy);
                }
            }
            Operation::End { pick } => {
                let holder = self.pick(pick).map(|index| self.holders.swap_remove(index));
                holder.iter().flat_map(|holder| holder.blocks.iter().rev()).for_each(|block| self.release(*block));
            }
            Operation::EndHeadFirst { pick } => {
                let holder = self.pick(pick).map(|index| self.holders.swap_remove(index));
                holder.iter().flat_map(|holder| &holder.blocks).for_each(|block| self.release(*block));
            }
            Operation::Clear => {
                self.allocator.clear_cache();
                self.model.contents.fill(None);
            }
        }
    }

    fn pick(&self, pick: usize) -> Option<usize> {
        pick.checked_rem(self.holders.len())
    }

    fn start(&mut self, salt: u64, tokens: &[u32]) {
        let found: Vec<usize> = self.allocator.find(salt, tokens).into_iter().map(|block| block.0 as usize).collect();
        assert_eq!(found, self.model.find(salt, tokens), "hits of {tokens:?} with salt {salt}");
        self.num_hits += found.len();
        found.iter().for_each(|block| self.retain(*block));
        let mut holder = Holder { salt, tokens: tokens[..found.len() * BLOCK_SIZE].to_vec(), blocks: found };
        for token in &tokens[holder.tokens.len()..] {
            self.append(&mut holder, *token);
        }
        self.holders.push(holder);
    }

    /// One token more; without effect when the pool is used up.
    fn append(&mut self, holder: &mut Holder, token: u32) {
        if holder.tokens.len().is_multiple_of(BLOCK_SIZE) {
            let block = self.allocator.allocate().map(|block| block.0 as usize);
            assert_eq!(block, self.model.allocate(), "the oldest free block");
            let Some(block) = block else { return };
            holder.blocks.push(block);
        }
        holder.tokens.push(token);
        if holder.tokens.len().is_multiple_of(BLOCK_SIZE) {
            let last = holder.blocks.len() - 1;
            let parent = last.checked_sub(1).map(|before| holder.blocks[before]);
            let parent_id = parent.map(|block| BlockId(block as u32));
            let block_tokens = &holder.tokens[last * BLOCK_SIZE..];
            self.allocator.register(BlockId(holder.blocks[last] as u32), parent_id, holder.salt, block_tokens);
            self.model.register(holder.blocks[last], parent, holder.salt, &holder.tokens);
        }
    }

    fn retain(&mut self, block: usize) {
        self.allocator.retain(BlockId(block as u32));
        self.model.retain(block);
    }

    fn release(&mut self, block: usize) {
        self.allocator.release(BlockId(block as u32));
        self.model.release(block);
    }

    fn check(&self) {
        self.allocator.check_integrity();
        assert_eq!(self.allocator.num_free(), self.model.free.len(), "free blocks");
        assert_eq!(self.allocator.num_evictions(), self.model.num_evictions, "evictions");
        let num_evictable = self.model.free.iter().filter(|block| self.model.contents[**block].is_some()).count();
        assert_eq!(self.allocator.num_evictable(), num_evictable, "evictable blocks");
        for block in 0..NUM_BLOCKS {
            let num_holders = self.holders.iter().flat_map(|holder| &holder.blocks).filter(|held| **held == block).count();
            assert_eq!(self.allocator.ref_count(BlockId(block as u32)), num_holders as u32, "holders of block {block}");
            assert_eq!(self.model.ref_counts[block], num_holders as u32, "holders of block {block} in the model");
        }
    }
}

#[test]
fn allocator_agrees_with_the_naive_model() {
    println!("seed {:?}", std::str::from_utf8(&SEED));
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &SEED));
    let (num_hits, num_evictions) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let operations = proptest::collection::vec(operation(), OPERATIONS_PER_CASE);
    let result = runner.run(&operations, |operations| {
        let mut pair = Pair::new();
        for operation in operations {
            pair.apply(operation);
            pair.check();
        }
        num_hits.set(num_hits.get() + pair.num_hits);
        num_evictions.set(num_evictions.get() + pair.model.num_evictions);
        while !pair.holders.is_empty() {
            pair.apply(Operation::End { pick: 0 });
        }
        pair.check();
        prop_assert_eq!(pair.allocator.num_free(), NUM_BLOCKS);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    println!("{} hits, {} evictions", num_hits.get(), num_evictions.get());
    assert!(num_hits.get() > 5_000 && num_evictions.get() > 5_000, "the operations reach what they are to test");
}
