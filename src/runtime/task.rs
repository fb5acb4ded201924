//! Tasks on a worker. A panic is logged and counted, and ends its task only; the panic of an essential task ends the
//! process.

use std::{
    any::Any,
    io,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
};

use futures_util::FutureExt;

use super::fatal::end_process;
use crate::metrics::WorkerMetrics;

/// From now on panic messages go to the log, which never blocks. The standard library would write them to standard
/// error, where a reader that does not read would stop the worker.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!("panic at {place}: {}", message(panic.payload()));
    }));
}

/// Runs `task` on this thread's runtime. A panic in it ends it and nothing else: monoio would let it
/// unwind through the whole worker.
pub fn spawn<F>(
    name: &'static str,
    metrics: &Arc<WorkerMetrics>,
    task: F,
) -> monoio::task::JoinHandle<()>
where
    F: Future<Output = ()> + 'static,
{
    let metrics = Arc::clone(metrics);
    // Combinators, not an async block: a block would hold the task twice.
    let guarded = AssertUnwindSafe(task).catch_unwind().map(move |result| {
        if let Err(panic) = result {
            metrics.panics.increment();
            tracing::error!("a {name} task panicked and was ended: {}", message(&*panic));
        }
    });
    monoio::spawn(guarded)
}

/// Runs an essential task of a worker. A panic in it, or an error, ends the process: the worker would keep its
/// listeners and answer nobody.
pub fn spawn_essential<F>(name: &'static str, task: F) -> monoio::task::JoinHandle<()>
where
    F: Future<Output = io::Result<()>> + 'static,
{
    monoio::spawn(AssertUnwindSafe(task).catch_unwind().map(move |result| match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => end_process(name, &error),
        Err(panic) => end_process(name, &message(&*panic)),
    }))
}

/// Starts an essential thread: a panic in it ends the process.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn_essential_thread<F>(name: String, run: F) -> io::Result<thread::JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    thread::Builder::new().name(name.clone()).spawn(move || {
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(run)) {
            end_process(&name, &message(&*panic));
        }
    })
}

/// What a panic said.
pub fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::driver;

    #[test]
    fn a_panic_ends_its_task_and_is_counted() {
        let (mut runtime, _) = driver::build(driver::Choice::Epoll).unwrap();
        let metrics = Arc::<WorkerMetrics>::default();
        runtime.block_on(async {
            let other = spawn("other", &metrics, monoio::time::sleep(Duration::ZERO));
            spawn("bad", &metrics, async { panic!("on purpose") }).await;
            other.await;
            spawn("later", &metrics, async {}).await;
        });
        assert_eq!(metrics.panics.read(), 1);
    }

    #[test]
    fn a_panic_is_told_by_its_words() {
        let said = |panic: Box<dyn Any + Send>| message(&*panic).to_owned();
        assert_eq!(said(Box::new("words")), "words");
        assert_eq!(said(Box::new(String::from("words"))), "words");
        assert_eq!(said(Box::new(7)), "(no message)");
    }
}
