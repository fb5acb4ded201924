//! The thread that alone touches the store: batch in, outcomes out, one commit for each.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    process,
    sync::mpsc,
    thread,
};

use super::store::{Operation, Outcome, Store};

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
    thread: thread::JoinHandle<()>,
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
        let run = move || {
            while let Ok(Job::Commit(batch)) = incoming.recv() {
                report(store.commit(&batch));
            }
        };
        let run = move || {
            // Without this thread the counter would take calls and answer none.
            if panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
                eprintln!("tallyring: the counter's store panicked; aborting");
                process::abort();
            }
        };
        let thread = thread::Builder::new().name(String::from("committer")).spawn(run)?;
        Ok(Self { jobs, thread })
    }

    /// Where jobs are put.
    pub fn jobs(&self) -> mpsc::Sender<Job> {
        self.jobs.clone()
    }

    /// Waits for the jobs that were put in, then closes the store.
    pub fn close(self) {
        // Either fails only when the thread has ended already.
        let _ = self.jobs.send(Job::Close);
        let _ = self.thread.join();
    }
}
