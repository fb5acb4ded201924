//! In place of the mailbox, whose bell is a socket pair: a queue.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Poll, Waker},
    time::Duration,
};

use fastrand::Rng;

/// Where values are put.
#[derive(Debug)]
pub struct Sender<T>(Weak<Mutex<Queue<T>>>);

/// Where one worker takes them.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: Arc<Mutex<Queue<T>>>,
    late: Option<Rng>,
}

/// How late a thread may be that takes a value.
pub const LATE: Duration = Duration::from_millis(20);

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
    Ok((Sender(Arc::downgrade(&queue)), Receiver { queue, late: None }))
}

fn lock<T>(queue: &Mutex<Queue<T>>) -> MutexGuard<'_, Queue<T>> {
    // A panic between the two lines that change it leaves a queue all the same.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Sender<T> {
    /// Puts a value in; false when the receiver is gone.
    pub fn send(&self, value: T) -> bool {
        self.offer(value).is_ok()
    }

    /// The same.
    ///
    /// # Errors
    /// The value, when the receiver is gone.
    pub fn offer(&self, value: T) -> Result<(), T> {
        let Some(queue) = self.0.upgrade() else { return Err(value) };
        let waker = {
            let mut queue = lock(&queue);
            queue.values.push_back(value);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// It takes some values late: between two of them others do something, as threads do.
    pub fn late(self, seed: u64) -> Self {
        Self { late: Some(Rng::with_seed(seed)), ..self }
    }

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
            let mut queue = lock(&self.queue);
            match queue.values.pop_front() {
                Some(value) => Poll::Ready(value),
                None => {
                    queue.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        });
        let value = value.await;
        if let Some(rng) = &mut self.late
            && rng.bool()
        {
            monoio::time::sleep(LATE.mul_f64(rng.f64())).await;
        }
        Ok(Some(value))
    }
}
