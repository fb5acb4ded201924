//! Lets other tasks run beside one whose operations are all ready at once.
//!
//! On epoll an operation that can complete does so where it is polled first, so a client that sends without end would
//! keep its task running forever: no other task, event or timer of its worker would run. A task that wakes itself
//! does not help: it runs before all others. On a ring every operation waits for its completion, and nothing here
//! ever pauses.

#![allow(clippy::manual_async_fn)]

use std::{future::poll_fn, pin::Pin, time::Duration};

/// Operations in a row that may be ready at once.
const READY_MAX: u8 = 64;
/// The shortest time that monoio's timers know. They fire when the worker has nothing else to do, so all other tasks
/// have run by then.
const PAUSE: Duration = Duration::from_millis(1);

/// Lets all other tasks run.
// Boxed: a timer makes the task that holds it larger and 128-byte aligned.
pub fn pause() -> Pin<Box<impl Future<Output = ()>>> {
    Box::pin(monoio::time::sleep(PAUSE))
}

/// How many operations of a task in a row were ready at once.
#[derive(Debug, Default)]
pub struct Budget {
    ready: u8,
}

impl Budget {
    /// Awaits `operation`, and pauses after too many that did not wait.
    pub fn run<F: Future>(
        &mut self,
        mut operation: Pin<&mut F>,
    ) -> impl Future<Output = F::Output> {
        async move {
            let mut ready = true;
            let output = poll_fn(|context| {
                let output = operation.as_mut().poll(context);
                ready &= output.is_ready();
                output
            })
            .await;
            self.ready = if ready { self.ready + 1 } else { 0 };
            if self.ready == READY_MAX {
                self.ready = 0;
                pause().await;
            }
            output
        }
    }
}
