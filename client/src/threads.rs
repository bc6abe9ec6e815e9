//! The threads that share a step's work, and stay awake between its parts.
//!
//! A step has several parts that are shared, with a little between them that one thread does alone, and nobody is done at quite
//! the same time. Who sleeps meanwhile wakes late: on a virtual machine an idle processor is given away, and comes back when
//! others are done with it. So who waits first yields its time to whoever wants it, for [`AWAKE`], and sleeps only then.

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long one who waits stays awake.
const AWAKE: Duration = Duration::from_millis(2);

/// The caller's thread and some others.
#[derive(Debug)]
pub(crate) struct Threads {
    others: Option<ThreadPool>,
    /// How often work was shared so far: whoever is awake looks whether there is more.
    calls: Arc<AtomicUsize>,
}

impl Threads {
    /// So many, the caller's among them. Where the system refuses threads, the caller's does it all.
    pub(crate) fn new(threads: usize) -> Self {
        let others = threads.saturating_sub(1);
        let pool = ThreadPoolBuilder::new().num_threads(others);
        Self { others: (others > 0).then(|| pool.build().ok()).flatten(), calls: Arc::default() }
    }

    /// How many they are, at least one.
    pub(crate) fn count(&self) -> usize {
        1 + self.others.as_ref().map_or(0, ThreadPool::current_num_threads)
    }

    /// Calls `work` with each of `states` on all threads, with the first on the caller's. Returns when all are done.
    pub(crate) fn share<S: Send>(&self, states: &mut [S], work: impl Fn(&mut S) + Sync) {
        let (Some(pool), true) = (&self.others, states.len() > 1) else {
            return states.iter_mut().for_each(work);
        };
        let (own, others) = states.split_first_mut().expect("at least two");
        let call = 1 + self.calls.fetch_add(1, Ordering::Relaxed);
        let (work, at_work) = (&work, &AtomicUsize::new(others.len()));
        pool.in_place_scope(|scope| {
            for state in others {
                scope.spawn(move |_| {
                    work(state);
                    at_work.fetch_sub(1, Ordering::Relaxed);
                });
            }
            work(own);
            // The scope's end, which may sleep, is what makes sure that they are done.
            stay_awake_while(|| at_work.load(Ordering::Relaxed) > 0);
        });
        let calls = self.calls.clone();
        pool.spawn_broadcast(move |_| stay_awake_while(|| calls.load(Ordering::Relaxed) == call));
    }
}

/// Waits for as long as `waiting`, but no longer than [`AWAKE`].
fn stay_awake_while(waiting: impl Fn() -> bool) {
    let begun = Instant::now();
    while waiting() && begun.elapsed() < AWAKE {
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;

    /// Each waits until all have begun, which none would that shared a thread.
    #[test]
    fn as_many_states_as_threads_are_worked_on_at_once_and_the_first_by_the_caller() {
        let threads = Threads::new(3);
        assert_eq!(threads.count(), 3);
        for _ in 0..50 {
            let (begun, seen) = (AtomicUsize::new(0), Mutex::new(HashSet::new()));
            let mut states = [(0, None), (10, None), (20, None)];
            threads.share(&mut states, |(number, by)| {
                begun.fetch_add(1, Ordering::Relaxed);
                while begun.load(Ordering::Relaxed) < 3 {
                    thread::yield_now();
                }
                *number += 1;
                *by = Some(thread::current().id());
                seen.lock().unwrap().insert(thread::current().id());
            });
            assert_eq!(states.map(|(number, _)| number), [1, 11, 21]);
            assert_eq!(states[0].1, Some(thread::current().id()));
            assert_eq!(seen.into_inner().unwrap().len(), 3);
        }
    }

    #[test]
    fn one_thread_and_more_states_than_threads_do_all_the_work() {
        for threads in [0, 1, 2] {
            let mut states = [0; 7];
            Threads::new(threads).share(&mut states, |state| *state += 1);
            assert_eq!(states, [1; 7], "{threads}");
        }
        Threads::new(2).share(&mut [] as &mut [u8], |_| panic!("of nothing"));
    }

    #[test]
    fn a_panic_on_another_thread_is_the_callers() {
        let threads = Threads::new(2);
        let shared =
            std::panic::AssertUnwindSafe(|| threads.share(&mut [1, 2], |state| assert_eq!(*state, 1)));
        assert!(std::panic::catch_unwind(shared).is_err());
        let mut states = [1, 1];
        threads.share(&mut states, |state| *state = 5);
        assert_eq!(states, [5, 5]);
    }
}
