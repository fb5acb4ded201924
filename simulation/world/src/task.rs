//! What `monoio::task` has: tasks of the running process.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use crate::world::{self, with};

/// Starts a task in the process of the one that runs.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let end = Rc::new(End { output: Cell::new(None), waker: RefCell::new(None) });
    let told = Rc::clone(&end);
    world::start_task(async move {
        let output = future.await;
        told.output.set(Some(output));
        if let Some(waker) = told.waker.take() {
            waker.wake();
        }
    });
    with(|world| world.count_task());
    JoinHandle(end)
}

/// Waits for the end of a task.
pub struct JoinHandle<T>(Rc<End<T>>);

struct End<T> {
    output: Cell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match self.0.output.take() {
            Some(output) => Poll::Ready(output),
            None => {
                self.0.waker.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}
