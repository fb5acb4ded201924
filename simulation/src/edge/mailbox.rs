//! In place of the mailbox, whose bell is a socket pair: a queue.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Poll, Waker},
};

/// Where values are put.
#[derive(Debug)]
pub struct Sender<T>(Weak<Mutex<Queue<T>>>);

/// Where one worker takes them.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Mutex<Queue<T>>>);

/// A receiver that was opened.
pub type Open<T> = Receiver<T>;

#[derive(Debug)]
struct Queue<T> {
    values: VecDeque<T>,
    waker: Option<Waker>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A new mailbox.
///
/// # Errors
/// Never.
#[allow(clippy::unnecessary_wraps)]
pub fn channel<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let queue = Arc::new(Mutex::new(Queue { values: VecDeque::new(), waker: None }));
    Ok((Sender(Arc::downgrade(&queue)), Receiver(queue)))
}

fn lock<T>(queue: &Mutex<Queue<T>>) -> MutexGuard<'_, Queue<T>> {
    // A panic between the two lines that change it leaves a queue all the same.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Sender<T> {
    /// Puts a value in; false when the receiver is gone.
    pub fn send(&self, value: T) -> bool {
        let Some(queue) = self.0.upgrade() else { return false };
        let waker = {
            let mut queue = lock(&queue);
            queue.values.push_back(value);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl<T> Receiver<T> {
    /// Opens it.
    ///
    /// # Errors
    /// Never.
    #[allow(clippy::unnecessary_wraps)]
    pub fn open(self) -> io::Result<Open<T>> {
        Ok(self)
    }

    /// The next value.
    ///
    /// # Errors
    /// Never.
    pub async fn receive(&mut self) -> io::Result<Option<T>> {
        let value = poll_fn(|context| {
            let mut queue = lock(&self.0);
            match queue.values.pop_front() {
                Some(value) => Poll::Ready(value),
                None => {
                    queue.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        });
        Ok(Some(value.await))
    }
}
