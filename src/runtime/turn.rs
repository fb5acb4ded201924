//! Sends that go past the ring while there is little to send.
//!
//! A turn is what a worker does between two waits. On a ring, all that is sent in a turn leaves by one system call at
//! its end, and each send is a completion, for which a task is polled again. With many sends that costs least. A single
//! one is completed by the system call that was to wait, so the worker needs another call to wait, a turn for nothing:
//! send(2) costs less. So a turn's first send goes directly, as long as the turn before had no more than that.
//!
//! On epoll each send is tried directly anyway.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    marker::PhantomData,
    mem,
    os::fd::RawFd,
    pin::pin,
    task::Waker,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, send},
};

/// Sends of a turn that go directly. With two or more, the peers are woken one by one rather than all at the end.
const DIRECT_MAX: u32 = 1;

thread_local! {
    /// Of this thread's worker.
    static TURN: Turn = const { Turn::new() };
}

struct Turn {
    /// Whether a worker on a ring counts its turns.
    counts: Cell<bool>,
    sends: Cell<Sends>,
    /// Wakes the worker's main future, which runs once all tasks have.
    end: RefCell<Option<Waker>>,
}

impl Turn {
    const fn new() -> Self {
        let sends = Cell::new(Sends { now: 0, before: 0 });
        Self { counts: Cell::new(false), sends, end: RefCell::new(None) }
    }

    /// Notes a send; returns whether it goes directly.
    fn begin_send(&self) -> bool {
        if !self.counts.get() {
            return false;
        }
        let mut sends = self.sends.get();
        let is_direct = sends.add();
        self.sends.set(sends);
        if sends.now == 1
            && let Some(waker) = &*self.end.borrow()
        {
            waker.wake_by_ref();
        }
        is_direct
    }

    /// The turn has ended, whose end `waker` has told.
    fn end(&self, waker: &Waker) {
        let mut sends = self.sends.get();
        sends.end_turn();
        self.sends.set(sends);
        let mut end = self.end.borrow_mut();
        if !end.as_ref().is_some_and(|end| end.will_wake(waker)) {
            *end = Some(waker.clone());
        }
    }
}

/// How many sends there were.
#[derive(Debug, Clone, Copy, Default)]
struct Sends {
    /// In this turn.
    now: u32,
    /// In the last turn that had any.
    before: u32,
}

impl Sends {
    /// Another one; returns whether it goes directly.
    fn add(&mut self) -> bool {
        self.now += 1;
        self.now.max(self.before) <= DIRECT_MAX
    }

    fn end_turn(&mut self) {
        if self.now > 0 {
            self.before = mem::take(&mut self.now);
        }
    }
}

/// A worker whose turns are counted, on its thread, until this is dropped.
#[derive(Debug)]
pub struct Turns(PhantomData<*const ()>);

impl Turns {
    /// From now on. On epoll nothing is counted.
    pub fn count() -> Self {
        TURN.with(|turn| turn.counts.set(!monoio::utils::is_legacy()));
        Self(PhantomData)
    }

    /// Awaits what the worker's main future waits for. The runtime polls that when no task is left to run, if it was
    /// woken: at the end of each turn with a send.
    pub async fn during<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            TURN.with(|turn| turn.end(context.waker()));
            future.as_mut().poll(context)
        })
        .await
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        TURN.with(|turn| {
            turn.counts.set(false);
            turn.sends.take();
            drop(turn.end.take());
        });
    }
}

/// Sends directly what the socket takes of `bytes` at once, if there is little to send: how many bytes, at least one,
/// or why none ever. `None` leaves all of them to the ring; nothing of them was sent.
///
/// `socket` must be open, and no write on it under way, which this one would overtake.
pub fn send_now(socket: RawFd, bytes: &[u8]) -> Option<io::Result<usize>> {
    if bytes.is_empty() || !TURN.with(Turn::begin_send) {
        return None;
    }
    match send(socket, bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Ok(0) | Err(Errno::EAGAIN | Errno::EINTR) => None,
        sent => Some(sent.map_err(io::Error::from)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::{fd::AsRawFd, unix::net::UnixStream},
    };

    use super::*;
    use crate::runtime::driver::{self, Choice};

    /// Of turns with so many sends each, how many go directly.
    #[track_caller]
    fn check<const N: usize>(turns: [u32; N], expected: [usize; N]) {
        let mut sends = Sends::default();
        let direct = turns.map(|count| {
            let direct = (0..count).filter(|_| sends.add()).count();
            sends.end_turn();
            direct
        });
        assert_eq!(direct, expected, "{turns:?}");
    }

    #[test]
    fn a_single_send_goes_directly_unless_there_were_more_in_the_turn_before() {
        check([1, 1, 1], [1, 1, 1]);
        check([2, 1, 1], [1, 0, 1]);
        check([64, 64, 64, 1, 1], [1, 0, 0, 0, 1]);
        // A turn without sends says nothing of the next one.
        check([64, 0, 1, 0, 1], [1, 0, 0, 0, 1]);
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        // It blocks, as the sockets on a ring do.
        near.set_nonblocking(false).unwrap();
        (near, far)
    }

    /// On epoll nothing is counted.
    fn on_a_ring(test: impl Future<Output = ()>) {
        let (mut runtime, _) = driver::build(Choice::IoUring).expect("this test needs io_uring");
        runtime.block_on(test);
    }

    #[test]
    fn what_is_sent_directly_arrives_once_and_what_is_not_is_left_to_the_ring() {
        on_a_ring(async {
            let (near, mut far) = pair();
            let socket = near.as_raw_fd();
            assert!(send_now(socket, b"not counted").is_none());
            let turns = Turns::count();
            // No future has waited yet, so this turn does not end.
            let sent = [b"one", b"two"].map(|bytes| send_now(socket, bytes).is_some());
            assert_eq!(sent, [true, false]);
            turns.during(async {}).await;
            // The turn before had two.
            assert!(send_now(socket, b"three").is_none());
            turns.during(async {}).await;
            assert!(send_now(socket, b"four").is_some());
            drop(turns);
            assert!(send_now(socket, b"not counted any more").is_none());
            drop(near);
            let mut received = String::new();
            far.read_to_string(&mut received).unwrap();
            assert_eq!(received, "onefour");
        });
    }

    #[test]
    fn on_epoll_nothing_is_sent_directly() {
        let (mut runtime, _) = driver::build(Choice::Epoll).unwrap();
        runtime.block_on(async {
            let (near, _far) = pair();
            let turns = Turns::count();
            assert!(send_now(near.as_raw_fd(), b"one").is_none());
            drop(turns);
        });
    }

    #[test]
    fn a_socket_that_takes_a_part_nothing_or_never_again_says_so() {
        on_a_ring(async {
            let (near, mut far) = pair();
            let socket = near.as_raw_fd();
            let turns = Turns::count();
            let bytes = vec![b'x'; 8 << 20];
            let part = send_now(socket, &bytes).unwrap().unwrap();
            assert!((1..bytes.len()).contains(&part), "{part}");
            turns.during(async {}).await;
            // It is full: the ring waits for room.
            assert!(send_now(socket, &bytes).is_none());
            turns.during(async {}).await;
            far.read_exact(&mut vec![0; part]).unwrap();
            assert!(far.write(b"still open").is_ok());
            drop(far);
            // Without a signal, which would end the process.
            let error = send_now(socket, b"x").unwrap().unwrap_err();
            assert!(matches!(error.raw_os_error(), Some(32 | 104)), "{error}");
        });
    }

    #[test]
    fn each_turn_with_a_send_ends_before_the_next_begins() {
        on_a_ring(async {
            let (near, mut far) = pair();
            let socket = near.as_raw_fd();
            let turns = Turns::count();
            let sender = monoio::spawn(async move {
                let mut direct = 0;
                for _ in 0..10 {
                    direct += u32::from(send_now(socket, b"x").is_some());
                    // A turn ends with it.
                    monoio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                direct
            });
            assert_eq!(turns.during(sender).await, 10);
            drop(near);
            let mut received = Vec::new();
            far.read_to_end(&mut received).unwrap();
            assert_eq!(received, b"xxxxxxxxxx");
        });
    }
}
