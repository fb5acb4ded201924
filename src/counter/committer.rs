//! The thread that alone touches the store: batch in, outcomes out, one commit for each.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    process,
    sync::mpsc,
    thread,
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
}

impl Committer {
    /// Starts a thread on an open store. Each batch's outcomes, as many as it has operations, go to
    /// `report`; once the store is closed, `closed` is called.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start<R, C>(mut store: Box<dyn Store>, report: R, closed: C) -> io::Result<Self>
    where
        R: Fn(Vec<Outcome>) + Send + 'static,
        C: FnOnce() + Send + 'static,
    {
        let (jobs, incoming) = mpsc::channel();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_before_the_close_is_committed() {
        let (report, reported) = mpsc::channel();
        let (closed, end) = mpsc::channel();
        let store = super::super::store::open(&super::super::store::Kind::Memory, false).unwrap();
        let report = move |outcomes| drop(report.send(outcomes));
        let committer = Committer::start(store, report, move || closed.send(()).unwrap()).unwrap();
        let add = || Operation::Add { name: String::new(), by: 1 };
        for _ in 0..2 {
            committer.jobs().send(Job::Commit(vec![add()])).unwrap();
        }
        committer.close();
        end.recv().unwrap();
        assert_eq!(reported.try_iter().flatten().collect::<Vec<_>>(), [1, 2].map(Outcome::Total));
    }
}
