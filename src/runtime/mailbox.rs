//! Messages from other threads to a worker: a queue of values and a socket pair that wakes the ring.
//!
//! monoio's own cross-thread wakes cost every worker about 1 % of its CPU whether used or not; this costs nothing
//! until a message is sent. It is for rare events, never on the path of a visit.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use monoio::io::AsyncReadRent;

/// Sends values, from any thread.
#[derive(Debug)]
pub struct Sender<T> {
    values: mpsc::Sender<T>,
    notifier: Arc<Notifier>,
}

#[derive(Debug)]
struct Notifier {
    socket: UnixStream,
    pending: Pending,
}

/// Whether a byte was sent that the receiver has not read.
type Pending = Arc<AtomicBool>;

/// Receives them, on one worker. It can be made on any thread and is then moved to its worker.
#[derive(Debug)]
pub struct Receiver<T> {
    values: mpsc::Receiver<T>,
    socket: UnixStream,
    pending: Pending,
}

/// A receiver that was opened on its worker's runtime.
pub struct Open<T> {
    values: mpsc::Receiver<T>,
    socket: monoio::net::UnixStream,
    pending: Pending,
    buffer: Vec<u8>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), notifier: Arc::clone(&self.notifier) }
    }
}

/// A new mailbox.
///
/// # Errors
/// When no socket pair can be made.
pub fn channel<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    let pending = Pending::default();
    let (sender, values) = mpsc::channel();
    let receiver = Receiver { values, socket: far, pending: Arc::clone(&pending) };
    let notifier = Arc::new(Notifier { socket: near, pending });
    Ok((Sender { values: sender, notifier }, receiver))
}

impl<T> Sender<T> {
    /// Sends a value; false when the receiver is gone. Never blocks.
    pub fn send(&self, value: T) -> bool {
        self.offer(value).is_ok()
    }

    /// The same.
    ///
    /// # Errors
    /// The value, when the receiver is gone.
    pub fn offer(&self, value: T) -> Result<(), T> {
        self.values.send(value).map_err(|mpsc::SendError(value)| value)?;
        if !self.notifier.pending.swap(true, Ordering::AcqRel) {
            // One byte on an empty socket: it can fail only when the receiver is gone, with all values in it.
            let _ = (&self.notifier.socket).write_all(&[1]);
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Opens the mailbox on the runtime of this thread.
    ///
    /// # Errors
    /// When the runtime cannot take the socket.
    pub fn open(self) -> io::Result<Open<T>> {
        // The epoll driver needs a nonblocking socket; a ring waits on a blocking one.
        self.socket.set_nonblocking(monoio::utils::is_legacy())?;
        let socket = monoio::net::UnixStream::from_std(self.socket)?;
        Ok(Open { values: self.values, socket, pending: self.pending, buffer: vec![0; 1] })
    }
}

impl<T> Open<T> {
    /// The next value; `None` when all senders are gone.
    ///
    /// # Errors
    /// When the socket that wakes it fails: no value would be noticed any more.
    pub async fn receive(&mut self) -> io::Result<Option<T>> {
        loop {
            match self.values.try_recv() {
                Ok(value) => return Ok(Some(value)),
                Err(mpsc::TryRecvError::Disconnected) => return Ok(None),
                Err(mpsc::TryRecvError::Empty) => {}
            }
            let (result, buffer) = self.socket.read(std::mem::take(&mut self.buffer)).await;
            self.buffer = buffer;
            // Reset before the queue is checked, so that a value sent after this sends a byte again. A swap, since a
            // plain store could be reordered behind the check.
            self.pending.swap(false, Ordering::AcqRel);
            match result {
                Ok(1..) => {}
                // The last sender is gone, after a value that it may have sent.
                Ok(0) => return Ok(self.values.try_recv().ok()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::driver;

    #[test]
    fn all_values_arrive_in_order_from_any_thread() {
        const VALUES: u32 = 10_000;
        let (mut runtime, _) = driver::build(driver::Choice::Auto).unwrap();
        let (sender, receiver) = channel().unwrap();
        let other = sender.clone();
        let senders = [(sender, 0), (other, VALUES)].map(|(sender, from)| {
            std::thread::spawn(move || {
                (from..from + VALUES).for_each(|value| assert!(sender.send(value)));
            })
        });
        let received = runtime.block_on(async {
            let mut receiver = receiver.open().unwrap();
            let mut received = Vec::new();
            while let Some(value) = receiver.receive().await.unwrap() {
                received.push(value);
            }
            received
        });
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        let (low, high): (Vec<u32>, Vec<u32>) =
            received.into_iter().partition(|value| *value < VALUES);
        assert!(low.into_iter().eq(0..VALUES));
        assert!(high.into_iter().eq(VALUES..2 * VALUES));
    }

    #[test]
    fn a_socket_that_fails_is_an_error_and_no_end() {
        let (mut runtime, _) = driver::build(driver::Choice::Auto).unwrap();
        let (_sender, mut receiver) = channel::<()>().unwrap();
        // One that was never connected cannot be read from.
        receiver.socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)
            .unwrap()
            .into();
        let received = runtime.block_on(async { receiver.open().unwrap().receive().await });
        assert!(received.is_err(), "{received:?}");
    }

    #[test]
    fn a_sender_is_told_that_nobody_receives() {
        let (sender, receiver) = channel().unwrap();
        assert!(sender.send(1));
        drop(receiver);
        assert!(!sender.send(2));
        assert_eq!(sender.offer(3), Err(3));
    }
}
