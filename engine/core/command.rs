//! What may be said to the engine thread. One bounded channel carries it.

use async_channel::Sender;

use crate::error::Result;
use crate::request::{Event, Request};

/// Identifies a request inside the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A command to the engine thread.
///
/// There is no abort of a whole request: dropping its stream closes `events` and tells its id through a channel of its own, which is never
/// full; the engine thread looks there before its next step.
pub enum Command {
    /// A validated request.
    Add {
        /// Its id.
        id: RequestId,
        /// What to do.
        request: Box<Request>,
        /// Seed of its sampling.
        seed: u64,
        /// Where its events go. Never full: unbounded, and a request has at most `n * (max_tokens + 1) + 3` events.
        events: Sender<Event>,
    },
    /// End one of a request's outputs early (a stop string matched).
    EndChoice {
        /// The request.
        id: RequestId,
        /// Which output.
        choice: u32,
    },
    /// Finish what runs, refuse what comes, give the memory to other models, then answer.
    Sleep(crossbeam_channel::Sender<Result<()>>),
    /// Take the memory back, accept requests again, then answer.
    Wake(crossbeam_channel::Sender<Result<()>>),
    /// Forget all cached prefixes.
    ClearPrefixCache,
    /// Finish what runs, refuse what comes, then end.
    Shutdown,
}
