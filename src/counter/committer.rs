//! The only thread that touches the store: a batch goes in, its outcomes come out, with one commit for each batch.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use super::store::{Health, Operation, Outcome, Store};
use crate::{log, metrics::CounterMetrics, runtime::clock};

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
    /// Of the store.
    hurry: Arc<AtomicBool>,
    health: Health,
}

impl Committer {
    /// Starts a thread on an open store. From now on `metrics` has its totals. `fenced` is called once another counter
    /// writes in place of this one, and `closed` once the store is closed.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start<F, C>(
        mut store: Box<dyn Store>,
        metrics: Arc<CounterMetrics>,
        fenced: F,
        closed: C,
    ) -> io::Result<Self>
    where
        F: FnOnce() + Send + 'static,
        C: FnOnce() + Send + 'static,
    {
        let (jobs, incoming) = mpsc::channel();
        let (hurry, health) = (store.hurry(), store.health());
        note(&*store, &metrics);
        let run = move || {
            let mut fenced = Some(fenced);
            let mut next_beat = after(store.beat());
            loop {
                match next_job(&incoming, next_beat) {
                    Ok(Job::Commit(batch, report)) => {
                        metrics.committing_since.set(clock::now().millis());
                        let outcomes = store.commit(&batch);
                        metrics.committing_since.set(0);
                        // Before the report: a client that reads the metrics after its answer finds it in the total.
                        if note(&*store, &metrics) {
                            metrics.commits.increment();
                        }
                        if outcomes.iter().any(Outcome::is_failure) {
                            metrics.commits_failed.increment();
                        }
                        report(outcomes);
                    }
                    Err(RecvTimeoutError::Timeout) => next_beat = after(store.beat()),
                    Ok(Job::Close) | Err(RecvTimeoutError::Disconnected) => break,
                }
                if store.is_fenced()
                    && let Some(fenced) = fenced.take()
                {
                    fenced();
                }
            }
        };
        let run = move || {
            // Without this thread the counter would accept calls and never answer them.
            if panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
                log::complain("the counter's store panicked; aborting");
                process::abort();
            }
            // `run` owned the store, and has closed it when it was dropped.
            closed();
        };
        thread::Builder::new().name(String::from("committer")).spawn(run)?;
        Ok(Self { jobs, hurry, health })
    }

    /// Where jobs are sent.
    pub fn jobs(&self) -> mpsc::Sender<Job> {
        self.jobs.clone()
    }

    /// Whether the store fails.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Closes the store after the jobs that were sent, and does not wait: a thread that hangs in the disk cannot be
    /// woken, but it ends with the process, which is no worse for a commit than a power loss.
    pub fn close(self) {
        self.hurry.store(true, Ordering::Relaxed);
        // Fails only when the thread has ended.
        let _ = self.jobs.send(Job::Close);
    }
}

/// The next job, unless the store's beat is due before it.
fn next_job(incoming: &Receiver<Job>, beat: Option<Instant>) -> Result<Job, RecvTimeoutError> {
    let Some(beat) = beat else { return incoming.recv().map_err(RecvTimeoutError::from) };
    match beat.saturating_duration_since(Instant::now()) {
        // Also while jobs come faster than they are done.
        Duration::ZERO => Err(RecvTimeoutError::Timeout),
        wait => incoming.recv_timeout(wait),
    }
}

fn after(wait: Option<Duration>) -> Option<Instant> {
    wait.map(|wait| Instant::now() + wait)
}

/// Updates the metrics with what is durable; whether that has changed.
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
    fn jobs_that_were_sent_before_the_close_are_committed() {
        let (report, reported) = mpsc::channel();
        let (closed, end) = mpsc::channel();
        let store = super::super::store::open(&super::super::store::Kind::Memory, false).unwrap();
        let metrics = Arc::<CounterMetrics>::default();
        let seen = Arc::clone(&metrics);
        let report: OutcomeSink = Arc::new(move |outcomes: Vec<Outcome>| {
            report.send((outcomes, seen.total.read(), seen.named.read())).unwrap();
        });
        let closed = move || closed.send(()).unwrap();
        let committer = Committer::start(store, Arc::clone(&metrics), || {}, closed).unwrap();
        let add = |name: &str| Operation::Add { name: name.to_owned(), by: 1 };
        let total = Operation::Total { name: String::new() };
        for batch in [vec![add("")], vec![add(""), add("a")], vec![total]] {
            committer.jobs().send(Job::Commit(batch, Arc::clone(&report))).unwrap();
        }
        committer.close();
        end.recv().unwrap();
        // The metrics are updated before the report.
        let total = Outcome::Total;
        let expected =
            [(vec![total(1)], 1, 0), (vec![total(2), total(1)], 2, 1), (vec![total(2)], 2, 1)];
        assert_eq!(reported.try_iter().collect::<Vec<_>>(), expected);
        // A read commits nothing.
        assert_eq!((metrics.commits.read(), metrics.commits_failed.read()), (2, 0));
    }

    /// A store that does what it is told.
    struct Told(Receiver<Outcome>, Health);

    impl Store for Told {
        fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome> {
            let outcome = self.0.recv().unwrap();
            match outcome.is_failure() {
                true => self.1.fails("it has to"),
                false => self.1.works(),
            };
            vec![outcome; batch.len()]
        }

        fn counted(&self) -> super::super::store::Counted {
            Default::default()
        }

        fn health(&self) -> Health {
            self.1.clone()
        }
    }

    #[test]
    fn a_commit_that_fails_is_counted_once_and_told_before_its_report() {
        let (tell, told) = mpsc::channel();
        let (report, reported) = mpsc::channel();
        let store = Box::new(Told(told, Health::default()));
        let metrics = Arc::<CounterMetrics>::default();
        let committer = Committer::start(store, Arc::clone(&metrics), || {}, || {}).unwrap();
        let report: OutcomeSink = Arc::new(move |_| report.send(()).unwrap());
        let add = Operation::Add { name: String::new(), by: 1 };
        for (outcome, failed, fails) in [
            (Outcome::Total(1), 0, false),
            (Outcome::Failed, 1, true),
            (Outcome::Unknown, 2, true),
            // These are no failures of the store.
            (Outcome::Busy, 2, false),
            (Outcome::TooManyNames, 2, false),
        ] {
            tell.send(outcome).unwrap();
            committer.jobs().send(Job::Commit(vec![add.clone(); 3], Arc::clone(&report))).unwrap();
            reported.recv().unwrap();
            assert_eq!(metrics.commits_failed.read(), failed);
            assert_eq!(committer.health().problem().is_some(), fails);
            assert_eq!(metrics.committing_since.read(), 0);
        }
    }
}
