//! The thread that alone touches the store: batch in, outcomes out, one commit for each.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    process,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use super::store::{Operation, Outcome, Store};
use crate::observe::log;

/// Operations of one commit, in the order in which they take effect.
pub type Batch = Vec<Operation>;

/// What the thread is asked to do.
#[derive(Debug)]
pub enum Job {
    /// Commit a batch and report its outcomes.
    Commit(Batch),
    /// Close the store and end.
    Close,
}

/// The thread.
#[derive(Debug)]
pub struct Committer {
    jobs: mpsc::Sender<Job>,
    /// Nothing ever comes of it; it ends with the thread.
    ended: mpsc::Receiver<()>,
}

impl Committer {
    /// Starts a thread on an open store. Each batch's outcomes, as many as it has operations, go to
    /// `report`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start<R>(mut store: Box<dyn Store>, report: R) -> io::Result<Self>
    where
        R: Fn(Vec<Outcome>) + Send + 'static,
    {
        let (jobs, incoming) = mpsc::channel();
        let (running, ended) = mpsc::channel();
        let run = move || {
            while let Ok(Job::Commit(batch)) = incoming.recv() {
                report(store.commit(&batch));
            }
        };
        let run = move || {
            // Without this thread the counter would take calls and answer none.
            if panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
                log::complain("the counter's store panicked; aborting");
                process::abort();
            }
            // The store is closed.
            drop(running);
        };
        thread::Builder::new().name(String::from("committer")).spawn(run)?;
        Ok(Self { jobs, ended })
    }

    /// Where jobs are put.
    pub fn jobs(&self) -> mpsc::Sender<Job> {
        self.jobs.clone()
    }

    /// Lets the jobs that were put in end and closes the store; false when that takes longer than
    /// `timeout`. Then the thread is left alone: nothing wakes one that hangs in the disk, but it ends
    /// with the process, and a commit that is cut so is as good as one that the power has cut.
    #[must_use]
    pub fn close(self, timeout: Duration) -> bool {
        // Fails only when the thread has ended already.
        let _ = self.jobs.send(Job::Close);
        self.ended.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that says when it is asked, and answers when it is told to.
    struct Gated {
        asked: mpsc::Sender<()>,
        go_on: mpsc::Receiver<()>,
    }

    impl Store for Gated {
        fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome> {
            self.asked.send(()).unwrap();
            let _ = self.go_on.recv();
            vec![Outcome::Total(1); batch.len()]
        }
    }

    #[test]
    fn a_store_that_hangs_does_not_keep_the_process() {
        let (asked, arrived) = mpsc::channel();
        let (release, go_on) = mpsc::channel();
        let (report, reported) = mpsc::channel();
        let store = Box::new(Gated { asked, go_on });
        let committer =
            Committer::start(store, move |outcomes| drop(report.send(outcomes))).unwrap();
        committer.jobs().send(Job::Commit(vec![Operation::All])).unwrap();
        arrived.recv().unwrap();
        assert!(!committer.close(Duration::ZERO));
        assert!(reported.try_recv().is_err());
        drop(release);
        assert_eq!(reported.recv(), Ok(vec![Outcome::Total(1)]));
    }

    #[test]
    fn what_was_put_in_before_the_close_is_committed() {
        let (report, reported) = mpsc::channel();
        let store = super::super::store::open(&super::super::store::Kind::Memory, false).unwrap();
        let committer =
            Committer::start(store, move |outcomes| drop(report.send(outcomes))).unwrap();
        let add = || Operation::Add { name: String::new(), by: 1 };
        for _ in 0..2 {
            committer.jobs().send(Job::Commit(vec![add()])).unwrap();
        }
        // Long enough for the slowest machine.
        assert!(committer.close(Duration::from_secs(60)));
        assert_eq!(reported.try_iter().flatten().collect::<Vec<_>>(), [1, 2].map(Outcome::Total));
    }
}
