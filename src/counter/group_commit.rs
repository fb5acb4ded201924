//! Group commit, as a value: operations gather while one batch is committed, and each gets its outcome.
//!
//! ```text
//!   begin ---> gathered ---take_batch---> committing ---committed---> its outcome
//!                  |                          |
//!                  +-------- expired ---------+---> TimedOut
//! ```
//!
//! An operation that was begun is committed, whether its client still waits or not. Knows neither HTTP nor the thread
//! that commits.

use std::{mem, time::Duration};

use futures_channel::oneshot;

use super::{
    Batch,
    store::{Operation, Outcome},
};
use crate::runtime::{
    clock::Moment,
    deadlines::{Deadlines, Key},
};

/// The most operations that gather for a commit; more are refused. With the longest names they take 20 MB, and those of
/// the commit under way take as much.
const GATHERED_MAX: usize = 100_000;

/// How long an operation waits for its outcome. Without this limit a disk that hangs would hold its client, and the
/// client's slot, for ever.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Receives the outcome of one operation.
pub type Waiting = oneshot::Receiver<Outcome>;

/// Operations on their way to the store and back.
pub struct GroupCommit {
    /// Those whose outcome is not known.
    senders: Deadlines<oneshot::Sender<Outcome>, ()>,
    /// Operations for the next commit, and their keys.
    gathered: Batch,
    gathered_keys: Vec<Key>,
    /// The keys of the commit under way.
    committing: Option<Vec<Key>>,
}

impl GroupCommit {
    /// No operations.
    pub fn new() -> Self {
        Self {
            senders: Deadlines::new(|()| COMMIT_TIMEOUT),
            gathered: Batch::new(),
            gathered_keys: Vec::new(),
            committing: None,
        }
    }

    /// Begins an operation; `None` when too many have gathered.
    pub fn begin(&mut self, operation: Operation, now: Moment) -> Option<Waiting> {
        if self.gathered.len() == GATHERED_MAX {
            return None;
        }
        let (sender, waiting) = oneshot::channel();
        let key = self.senders.insert(sender);
        self.senders.arm(key, (), now);
        self.gathered.push(operation);
        self.gathered_keys.push(key);
        Some(waiting)
    }

    /// The operations that have gathered, to be committed, unless a commit is under way.
    pub fn take_batch(&mut self) -> Option<Batch> {
        if self.committing.is_some() || self.gathered.is_empty() {
            return None;
        }
        self.committing = Some(mem::take(&mut self.gathered_keys));
        Some(mem::take(&mut self.gathered))
    }

    /// The commit under way has ended, with an outcome for each operation of its batch, in order.
    pub fn committed(&mut self, outcomes: Vec<Outcome>) {
        let keys = self.committing.take().unwrap_or_default();
        assert_eq!(keys.len(), outcomes.len(), "each operation has one outcome");
        for (key, outcome) in keys.into_iter().zip(outcomes) {
            self.tell(key, outcome);
        }
    }

    /// Ends the waits whose deadline has passed at `now`. Their operations stay with the store.
    pub fn expire(&mut self, now: Moment) {
        while let Some((_, key)) = self.senders.pop_expired(now) {
            self.tell(key, Outcome::TimedOut);
        }
    }

    /// The first outcome counts: one that comes after the time-out is dropped. This wakes the task that waits while
    /// `self` is borrowed, which is sound: a waker of this runtime only puts its task into the run queue.
    fn tell(&mut self, key: Key, outcome: Outcome) {
        if let Some(sender) = self.senders.remove(key) {
            // Fails when the client has gone.
            let _ = sender.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::{Context, Poll, Wake, Waker},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::runtime::clock;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// A client begins an operation.
        Begin,
        /// The client with this number, modulo how many there are, leaves.
        Leave(usize),
        /// It polls for its outcome.
        Poll(usize),
        /// The commit under way succeeds or fails.
        Commit(bool),
        /// All deadlines have passed.
        Expire,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Begin),
            1 => any::<usize>().prop_map(Step::Leave),
            3 => any::<usize>().prop_map(Step::Poll),
            2 => any::<bool>().prop_map(Step::Commit),
            1 => Just(Step::Expire),
        ]
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// A client and the outcome that it must get: a total with the number of its operation after a commit that
    /// succeeded, a failure, or the time-out, whichever is first.
    struct Asker {
        number: u64,
        waiting: Waiting,
        expected: Option<Outcome>,
        woken: Arc<Woken>,
        polled: bool,
        committed: bool,
    }

    impl Asker {
        /// It has an outcome now, unless it had one before.
        fn expect(&mut self, outcome: Outcome) {
            if self.expected.is_none() {
                self.expected = Some(outcome);
                assert_eq!(self.woken.0.load(Ordering::Relaxed), self.polled);
            }
        }

        /// Whether it has its outcome.
        fn poll(&mut self) -> bool {
            let waker = Waker::from(Arc::clone(&self.woken));
            let waiting = Pin::new(&mut self.waiting);
            let outcome = waiting.poll(&mut Context::from_waker(&waker));
            self.polled = true;
            match &self.expected {
                Some(expected) => assert_eq!(outcome, Poll::Ready(Ok(expected.clone()))),
                None => assert!(outcome.is_pending()),
            }
            outcome.is_ready()
        }
    }

    /// Ends the commit under way, if there is one, and begins the next.
    fn end_commit(
        commits: &mut GroupCommit,
        submitted: &mut Option<Batch>,
        succeeds: bool,
        askers: &mut [Asker],
    ) {
        let Some(batch) = submitted.take() else { return };
        assert_eq!(commits.take_batch(), None, "two commits under way");
        let outcome = |operation: &Operation| match operation {
            Operation::Add { by, .. } if succeeds => (*by, Outcome::Total(*by)),
            Operation::Add { by, .. } => (*by, Outcome::Unknown),
            other => panic!("{other:?}"),
        };
        let (numbers, outcomes): (Vec<_>, Vec<_>) = batch.iter().map(outcome).unzip();
        assert!(numbers.is_sorted(), "{numbers:?}");
        commits.committed(outcomes.clone());
        *submitted = commits.take_batch();
        for asker in askers {
            let place = numbers.iter().position(|number| *number == asker.number);
            if let Some(place) = place {
                assert!(!mem::replace(&mut asker.committed, true), "committed twice");
                asker.expect(outcomes[place].clone());
            }
        }
    }

    proptest! {
        #[test]
        fn each_operation_has_its_own_outcome(steps in prop::collection::vec(step(), 0..200)) {
            let mut commits = GroupCommit::new();
            let mut submitted = None;
            let mut askers: Vec<Asker> = Vec::new();
            let mut number = 0;
            for step in steps {
                match step {
                    Step::Begin => {
                        number += 1;
                        let operation = Operation::Add { name: String::new(), by: number };
                        let waiting = commits.begin(operation, clock::now()).unwrap();
                        submitted = submitted.or_else(|| commits.take_batch());
                        let (expected, woken) = (None, Arc::default());
                        let (polled, committed) = (false, false);
                        askers.push(Asker { number, waiting, expected, woken, polled, committed });
                    }
                    Step::Commit(succeeds) => {
                        end_commit(&mut commits, &mut submitted, succeeds, &mut askers);
                    }
                    Step::Expire => {
                        commits.expire(clock::now().after(COMMIT_TIMEOUT));
                        askers.iter_mut().for_each(|asker| asker.expect(Outcome::TimedOut));
                    }
                    Step::Leave(_) | Step::Poll(_) if askers.is_empty() => {}
                    Step::Leave(place) => drop(askers.swap_remove(place % askers.len())),
                    Step::Poll(place) => {
                        let place = place % askers.len();
                        if askers[place].poll() {
                            askers.swap_remove(place);
                        }
                    }
                }
            }
            // All operations are committed, also those whose clients have left, and nothing remains.
            while submitted.is_some() {
                end_commit(&mut commits, &mut submitted, true, &mut askers);
            }
            assert!(askers.iter_mut().all(Asker::poll));
            assert!(commits.senders.len() == 0 && commits.gathered.is_empty());
            assert!(commits.gathered_keys.is_empty() && commits.committing.is_none());
        }
    }

    #[test]
    fn gathered_operations_are_bounded() {
        let mut commits = GroupCommit::new();
        let add = || Operation::Add { name: String::new(), by: 1 };
        let kept: Vec<_> = (0..GATHERED_MAX).map(|_| commits.begin(add(), clock::now())).collect();
        assert!(kept.iter().all(Option::is_some));
        assert!(commits.begin(add(), clock::now()).is_none());
        assert_eq!(commits.take_batch().map(|batch| batch.len()), Some(GATHERED_MAX));
        assert!(commits.begin(add(), clock::now()).is_some());
    }
}
