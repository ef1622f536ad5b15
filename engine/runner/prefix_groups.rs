//! Which sequences of a step begin with the same blocks of the cache: their shared keys can be read once for all of them.
//!
//! Only sequences with one query token take part. A block belongs to one content, so equal blocks at equal places are equal keys.

use std::collections::HashMap;

use crate::device::StepInts;

/// Sequences that make a group worth a pass of its own (H100, 28 query and 4 kv heads of 128: level at 32, 1.7 times faster at 64).
const MIN_MEMBERS: usize = 32;
/// Keys that they have to share.
const MIN_KEYS: usize = 1024;
/// Keys of a shared prefix are a multiple of this: tiles of kernels.
const KEYS_MULTIPLE: usize = 16;

/// Sequences and how many blocks they share.
#[derive(Debug, PartialEq, Eq)]
struct PrefixGroup {
    members: Vec<usize>,
    blocks: usize,
}

/// Groups of a step of which everything else is laid out, in the order of their first members. `stride`: of the block tables.
fn find(ints: &StepInts, stride: usize, block_size: usize) -> Vec<PrefixGroup> {
    let least = MIN_KEYS.div_ceil(block_size);
    if ints.context_lens.len() < MIN_MEMBERS || !block_size.is_multiple_of(KEYS_MULTIPLE) {
        return Vec::new();
    }
    let mut by_block: HashMap<i32, PrefixGroup> = HashMap::new();
    for (seq, (&context_len, rows)) in ints.context_lens.iter().zip(ints.cu_seqlens_q.windows(2)).enumerate() {
        // Blocks that are complete and not about to be written.
        let blocks = if rows[1] - rows[0] == 1 { (context_len as usize).saturating_sub(1) / block_size } else { 0 };
        if blocks < least {
            continue;
        }
        let table = |seq: usize| &ints.block_tables[seq * stride..];
        let group = by_block.entry(table(seq)[least - 1]).or_insert_with(|| PrefixGroup { members: Vec::new(), blocks });
        let shared = common(table(group.members.first().copied().unwrap_or(seq)), table(seq), group.blocks.min(blocks));
        if shared >= least {
            group.members.push(seq);
            group.blocks = shared;
        }
    }
    let mut groups: Vec<PrefixGroup> = by_block.into_values().filter(|group| group.members.len() >= MIN_MEMBERS).collect();
    groups.sort_by_key(|group| group.members[0]);
    groups
}

/// Leading blocks that are the same, at most `most`.
fn common(a: &[i32], b: &[i32], most: usize) -> usize {
    if a[..most] == b[..most] {
        return most;
    }
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Finds the groups of a step and lays them out in `ints` as `StepTensors` says; their number. The arrays stay empty when there is no
/// group, and have lengths that follow from the number of sequences when there is one.
pub fn write(ints: &mut StepInts, stride: usize, block_size: usize) -> usize {
    let groups = find(ints, stride, block_size);
    if groups.is_empty() {
        return 0;
    }
    let num_seqs = ints.context_lens.len();
    let members: usize = groups.iter().map(|group| group.members.len()).sum();
    let longest = groups.iter().map(|group| group.blocks * block_size).max().unwrap_or(0);
    ints.prefix_groups.extend([groups.len() as i32, members as i32, longest as i32]);
    ints.prefix_lens.resize(num_seqs, 0);
    for group in &groups {
        let keys = (group.blocks * block_size) as i32;
        ints.prefix_groups.extend([ints.prefix_members.len() as i32, group.members.len() as i32, keys]);
        for &member in &group.members {
            ints.prefix_members.push(member as i32);
            ints.prefix_lens[member] = keys;
        }
    }
    ints.prefix_groups.resize(3 + 3 * (num_seqs / MIN_MEMBERS), 0);
    ints.prefix_members.resize(num_seqs, 0);
    groups.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIDE: usize = 128;

    /// Sequences given as (first block of the prefix, its blocks, blocks of their own); the last key is the last of the last block.
    fn step(seqs: impl IntoIterator<Item = (i32, i32, i32)>) -> StepInts {
        let mut ints = StepInts { cu_seqlens_q: vec![0], ..StepInts::default() };
        for (seq, (first, prefix, own)) in seqs.into_iter().enumerate() {
            ints.cu_seqlens_q.push(seq as i32 + 1);
            ints.context_lens.push((prefix + own) * 16);
            ints.block_tables.extend((first..first + prefix).chain((0..own).map(|i| 100_000 + 1000 * seq as i32 + i)));
            ints.block_tables.resize((seq + 1) * STRIDE, 0);
        }
        ints
    }

    fn groups(ints: &StepInts) -> Vec<(Vec<usize>, usize)> {
        find(ints, STRIDE, 16).into_iter().map(|group| (group.members, group.blocks)).collect()
    }

    #[test]
    fn sequences_with_the_same_blocks_are_a_group() {
        assert_eq!(groups(&step((0..32).map(|_| (500, 70, 2)))), [((0..32).collect(), 70)]);
        assert_eq!(groups(&step((0..31).map(|_| (500, 70, 2)))), []);
        assert_eq!(groups(&step((0..40).map(|_| (500, 63, 9)))), []);
        let mut two = step((0..70).map(|i| if i % 2 == 0 { (500, 64, 1) } else { (900, 65, 1) }));
        let evens: Vec<usize> = (0..70).step_by(2).collect();
        let odds: Vec<usize> = (1..70).step_by(2).collect();
        assert_eq!(groups(&two), [(evens.clone(), 64), (odds.clone(), 65)]);
        two.block_tables[5 * STRIDE + 10] = 7;
        two.cu_seqlens_q.iter_mut().skip(4).for_each(|row| *row += 1);
        let rest: Vec<usize> = odds.into_iter().filter(|&i| i != 3 && i != 5).collect();
        assert_eq!(groups(&two), [(evens, 64), (rest, 65)]);
    }

    #[test]
    fn a_group_shares_what_all_of_it_has_computed() {
        let mut ints = step((0..33).map(|i| (500, 70 + i, 1)));
        assert_eq!(groups(&ints), [((0..33).collect(), 70)]);
        // The last key of a block is still to be computed.
        ints.context_lens[4] = 66 * 16;
        assert_eq!(groups(&ints), [((0..33).collect(), 65)]);
        ints.context_lens[4] = 64 * 16;
        assert_eq!(groups(&ints), [((0..33).filter(|&i| i != 4).collect(), 70)]);
    }

    #[test]
    fn the_layout_follows_the_number_of_sequences() {
        let fill_up = |mut ints: StepInts| {
            for row in ints.context_lens.len()..40 {
                ints.cu_seqlens_q.push(row as i32 + 1);
                ints.context_lens.push(0);
            }
            ints.block_tables.resize(40 * STRIDE, 0);
            ints
        };
        let mut ints = fill_up(step((0..36).map(|i| (if i == 4 { 0 } else { 500 }, 64, 1))));
        assert_eq!(write(&mut ints, STRIDE, 16), 1);
        assert_eq!(ints.prefix_groups, [1, 35, 1024, 0, 35, 1024]);
        let members: Vec<i32> = (0..36).filter(|&i| i != 4).chain([0; 5]).collect();
        let lens: Vec<i32> = (0..40).map(|i| if i == 4 || i >= 36 { 0 } else { 1024 }).collect();
        assert_eq!((ints.prefix_members, ints.prefix_lens), (members, lens));
        let mut ints = fill_up(step((0..31).map(|_| (500, 64, 1))));
        assert_eq!(write(&mut ints, STRIDE, 16), 0);
        assert!(ints.prefix_groups.is_empty() && ints.prefix_members.is_empty() && ints.prefix_lens.is_empty());
    }
}
