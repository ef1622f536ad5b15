//! The threads of engines that hold a device. They end by themselves when their last handle goes, which is after the command that used them.
//! A process must not exit before: the driver's exit handlers would free what a thread is still freeing.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use parking_lot::Mutex;

/// Of every engine that may still run, what closes when it has let go of its device.
static ENDS: Mutex<Vec<Receiver<Infallible>>> = Mutex::new(Vec::new());

/// Notes an engine whose thread keeps the other end.
pub(crate) fn note(ended: Receiver<Infallible>) {
    let mut ends = ENDS.lock();
    ends.retain(|end| matches!(end.try_recv(), Err(TryRecvError::Empty)));
    ends.push(ended);
}

/// Waits until every engine of this process whose handles are gone has freed its device, `limit` at most. For the end of `main`. Returns
/// whether all ended.
pub fn wait_until_ended(limit: Duration) -> bool {
    let ends = std::mem::take(&mut *ENDS.lock());
    all_end(&ends, Instant::now() + limit)
}

fn all_end(ends: &[Receiver<Infallible>], deadline: Instant) -> bool {
    ends.iter().all(|end| matches!(end.recv_deadline(deadline), Err(RecvTimeoutError::Disconnected)))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn an_end_is_waited_for_and_a_hang_is_not() {
        let (alive, ended) = crossbeam_channel::bounded(0);
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            drop(alive);
        });
        assert!(all_end(&[ended], Instant::now() + Duration::from_secs(60)));
        thread.join().unwrap();

        let (hanging, ended) = crossbeam_channel::bounded(0);
        assert!(!all_end(&[ended], Instant::now() + Duration::from_millis(10)));
        drop(hanging);
    }
}
