//! `Queue`: sequences in the order in which they are served. Both the waiting and the running sequences are one.

use std::collections::BTreeMap;

use crate::sequence::SequenceId;

/// Place of a sequence in the order of service; smaller is served first and preempted last.
///
/// A sequence keeps its rank for life. Within a priority sequences are admitted by arrival, so whatever was preempted arrived
/// before everything that never ran: going back to waiting with the old rank *is* going to the head of the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Class; lower is served first.
    pub priority: i32,
    /// Number of the arrival; children have their parent's.
    pub arrival: u64,
    /// 0 for a sequence that was added, 1.. for its children.
    pub branch: usize,
}

/// Sequences by rank.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    by_rank: BTreeMap<Rank, SequenceId>,
}

impl Queue {
    pub(crate) fn insert(&mut self, rank: Rank, id: SequenceId) {
        let before = self.by_rank.insert(rank, id);
        assert!(before.is_none(), "rank {rank:?} is taken by {before:?}");
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, rank: Rank) -> bool {
        self.by_rank.remove(&rank).is_some()
    }

    pub(crate) fn contains(&self, rank: Rank) -> bool {
        self.by_rank.contains_key(&rank)
    }

    /// Served next.
    pub(crate) fn first(&self) -> Option<SequenceId> {
        self.by_rank.first_key_value().map(|(_, id)| *id)
    }

    /// Preempted next: the last to arrive of the lowest priority.
    pub(crate) fn last(&self) -> Option<SequenceId> {
        self.by_rank.last_key_value().map(|(_, id)| *id)
    }

    /// In order of service.
    pub(crate) fn iter(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.by_rank.values().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_rank.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_rank.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_priority_then_arrival_then_branch() {
        let rank = |priority, arrival, branch| Rank { priority, arrival, branch };
        let mut queue = Queue::default();
        let ranks = [rank(0, 5, 1), rank(1, 1, 0), rank(0, 5, 0), rank(-1, 9, 0), rank(0, 6, 0)];
        for (number, rank) in ranks.into_iter().enumerate() {
            queue.insert(rank, SequenceId(number as u64));
        }
        assert_eq!(queue.iter().map(|id| id.0).collect::<Vec<_>>(), [3, 2, 0, 4, 1]);
        assert_eq!((queue.first(), queue.last()), (Some(SequenceId(3)), Some(SequenceId(1))));
        assert!(queue.remove(rank(1, 1, 0)) && !queue.remove(rank(1, 1, 0)));
        assert_eq!((queue.last(), queue.len()), (Some(SequenceId(4)), 4));
    }
}
