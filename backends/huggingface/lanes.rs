//! `Lanes`: which sequences the worker keeps in memory, running ones and a few that ended, so that a new one begins with what it shares with
//! one of them.

/// One sequence of the worker.
#[derive(Debug, Default)]
struct Lane {
    /// What is computed of it.
    tokens: Vec<u32>,
    /// The sampler slot that it belongs to; None: its sequence ended.
    slot: Option<usize>,
    /// Number of its last use: smaller was longer ago.
    last_used: u64,
}

/// The worker's sequences.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    num_uses: u64,
}

/// How a sequence begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    /// Its lane.
    pub lane: usize,
    /// The lane that its first tokens are taken from.
    pub from: usize,
    /// How many.
    pub len: usize,
}

impl Lanes {
    /// None of them holds anything.
    pub fn new(num_lanes: usize) -> Lanes {
        Lanes { lanes: (0..num_lanes).map(|_| Lane::default()).collect(), num_uses: 0 }
    }

    /// The lane of a running sequence.
    pub fn of(&self, slot: usize) -> usize {
        self.lanes.iter().position(|lane| lane.slot == Some(slot)).expect("a running sequence has a lane")
    }

    /// Begins a sequence whose first tokens are `prefix`: in the lane that holds most of them, if that one ended and is for the most part
    /// the same; else in the one that was not used for longest, as a copy.
    pub fn begin(&mut self, slot: usize, prefix: &[u32]) -> Beginning {
        self.lanes.iter_mut().filter(|lane| lane.slot == Some(slot)).for_each(|lane| lane.slot = None);
        let shared = |lane: &Lane| lane.tokens.iter().zip(prefix).take_while(|(a, b)| a == b).count();
        let most =
            (0..self.lanes.len()).map(|idx| (shared(&self.lanes[idx]), idx)).max_by_key(|(len, idx)| (*len, std::cmp::Reverse(*idx)));
        let (len, from) = most.expect("there are lanes");
        let is_same = len > 0 && self.lanes[from].slot.is_none() && 2 * len >= self.lanes[from].tokens.len();
        let lane = if is_same { from } else { self.oldest(if len > 0 { Some(from) } else { None }).unwrap_or(from) };
        let tokens = prefix[..len].to_vec();
        self.take(lane, slot, tokens);
        Beginning { lane, from, len }
    }

    /// A lane for a sequence that goes on from another one.
    pub fn fork(&mut self, from: usize, slot: usize) -> usize {
        self.lanes.iter_mut().filter(|lane| lane.slot == Some(slot)).for_each(|lane| lane.slot = None);
        let lane = self.oldest(Some(from)).expect("there are more lanes than slots");
        let tokens = self.lanes[from].tokens.clone();
        self.take(lane, slot, tokens);
        lane
    }

    /// Tokens were computed.
    pub fn push(&mut self, lane: usize, tokens: &[u32]) {
        self.lanes[lane].tokens.extend_from_slice(tokens);
    }

    /// The worker lost everything.
    pub fn forget(&mut self) {
        self.lanes.iter_mut().for_each(|lane| *lane = Lane::default());
    }

    fn take(&mut self, lane: usize, slot: usize, tokens: Vec<u32>) {
        self.num_uses += 1;
        self.lanes[lane] = Lane { tokens, slot: Some(slot), last_used: self.num_uses };
    }

    /// The ended one that was not used for longest.
    fn oldest(&self, but: Option<usize>) -> Option<usize> {
        let ended = (0..self.lanes.len()).filter(|idx| self.lanes[*idx].slot.is_none() && Some(*idx) != but);
        ended.min_by_key(|idx| self.lanes[*idx].last_used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_goes_on_where_it_was() {
        let mut lanes = Lanes::new(3);
        let first = lanes.begin(0, &[]);
        assert_eq!((first.len, lanes.of(0)), (0, first.lane));
        lanes.push(first.lane, &[1, 2, 3, 4]);
        // Another one, in another lane.
        let other = lanes.begin(0, &[9]);
        assert_eq!(other.len, 0);
        assert_ne!(other.lane, first.lane);
        lanes.push(other.lane, &[9, 9]);
        // The first again, longer.
        assert_eq!(lanes.begin(0, &[1, 2, 3, 4, 5]), Beginning { lane: first.lane, from: first.lane, len: 4 });
        // One that shares too little with it is a copy, and leaves it alone.
        let branch = lanes.begin(1, &[1, 7]);
        assert_eq!((branch.from, branch.len), (first.lane, 1));
        assert_ne!(branch.lane, first.lane);
        assert_eq!(lanes.of(0), first.lane);
    }

    #[test]
    fn outputs_of_one_prompt_have_lanes_of_their_own() {
        let mut lanes = Lanes::new(4);
        let parent = lanes.begin(0, &[]).lane;
        lanes.push(parent, &[1, 2]);
        let children = [lanes.fork(parent, 1), lanes.fork(parent, 2)];
        assert!(children[0] != children[1] && !children.contains(&parent));
        lanes.push(children[0], &[3]);
        assert_eq!(lanes.begin(3, &[1, 2, 3, 4]).from, children[0]);
        lanes.forget();
        assert_eq!(lanes.begin(0, &[1, 2]).len, 0);
    }
}
