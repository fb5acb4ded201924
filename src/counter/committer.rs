//! The thread that alone touches the store: batch in, outcomes out, one commit for each.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    process,
    sync::{Arc, mpsc},
    thread,
};

use super::store::{Operation, Outcome, Store};
use crate::{log, metrics::CounterMetrics};

/// Operations of one commit, in the order in which they take effect.
pub type Batch = Vec<Operation>;

/// Where the outcomes of a batch go, as many as it has operations.
pub type OutcomeSink = Arc<dyn Fn(Vec<Outcome>) + Send + Sync>;

/// What the thread is asked to do.
pub enum Job {
    /// Commit a batch and report its outcomes.
    Commit(Batch, OutcomeSink),
    /// Close the store and end.
    Close,
}

/// The thread.
#[derive(Debug)]
pub struct Committer {
    jobs: mpsc::Sender<Job>,
}

impl Committer {
    /// Starts a thread on an open store. `metrics` have its totals from now on; once the store is closed,
    /// `closed` is called.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start<C>(
        mut store: Box<dyn Store>,
        metrics: Arc<CounterMetrics>,
        closed: C,
    ) -> io::Result<Self>
    where
        C: FnOnce() + Send + 'static,
    {
        let (jobs, incoming) = mpsc::channel();
        note(&*store, &metrics);
        let run = move || {
            while let Ok(Job::Commit(batch, report)) = incoming.recv() {
                let outcomes = store.commit(&batch);
                // First: whoever hears of an outcome finds it in the total.
                if note(&*store, &metrics) {
                    metrics.commits.increment();
                }
                report(outcomes);
            }
        };
        let run = move || {
            // Without this thread the counter would take calls and answer none.
            if panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
                log::complain("the counter's store panicked; aborting");
                process::abort();
            }
            // The store was dropped, and so closed, with what ran.
            closed();
        };
        thread::Builder::new().name(String::from("committer")).spawn(run)?;
        Ok(Self { jobs })
    }

    /// Where jobs are put.
    pub fn jobs(&self) -> mpsc::Sender<Job> {
        self.jobs.clone()
    }

    /// Lets the jobs that were put in end and closes the store, without waiting for it: nothing wakes a
    /// thread that hangs in the disk, but it ends with the process, and a commit that is cut so is as
    /// good as one that the power has cut.
    pub fn close(self) {
        // Fails only when the thread has ended already.
        let _ = self.jobs.send(Job::Close);
    }
}

/// Notes what is durable; whether it is more, or less, than was noted before.
fn note(store: &dyn Store, metrics: &CounterMetrics) -> bool {
    let counted = store.counted();
    let changed = (metrics.total.read(), metrics.named.read()) != (counted.total, counted.named);
    metrics.total.set(counted.total);
    metrics.named.set(counted.named);
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_before_the_close_is_committed() {
        let (report, reported) = mpsc::channel();
        let (closed, end) = mpsc::channel();
        let store = super::super::store::open(&super::super::store::Kind::Memory, false).unwrap();
        let metrics = Arc::<CounterMetrics>::default();
        let seen = Arc::clone(&metrics);
        let report: OutcomeSink = Arc::new(move |outcomes: Vec<Outcome>| {
            report.send((outcomes, seen.total.read(), seen.named.read())).unwrap();
        });
        let closed = move || closed.send(()).unwrap();
        let committer = Committer::start(store, Arc::clone(&metrics), closed).unwrap();
        let add = |name: &str| Operation::Add { name: name.to_owned(), by: 1 };
        let total = Operation::Total { name: String::new() };
        for batch in [vec![add("")], vec![add(""), add("a")], vec![total]] {
            committer.jobs().send(Job::Commit(batch, Arc::clone(&report))).unwrap();
        }
        committer.close();
        end.recv().unwrap();
        // An outcome is in the metrics before it is told.
        let total = Outcome::Total;
        let expected =
            [(vec![total(1)], 1, 0), (vec![total(2), total(1)], 2, 1), (vec![total(2)], 2, 1)];
        assert_eq!(reported.try_iter().collect::<Vec<_>>(), expected);
        // To ask commits nothing.
        assert_eq!(metrics.commits.read(), 2);
    }
}
