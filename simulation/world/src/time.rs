//! What `monoio::time` and `rustix::time` have: virtual time.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

pub use rustix::time::{ClockId, Timespec};

use crate::world::{TimerKey, with, with_any};

/// When the virtual epoch began, in seconds of Unix: any time will do that is always the same.
const UNIX_SECONDS: i64 = 1_800_000_000;
/// The tick of the coarse clocks, in microseconds.
const COARSE: u64 = 4_000;

/// The virtual time, in the steps of a coarse clock.
pub fn clock_gettime(clock: ClockId) -> Timespec {
    let now = with(|world| world.now());
    let now = i64::try_from(now / COARSE * COARSE).unwrap_or(i64::MAX);
    let from = if matches!(clock, ClockId::RealtimeCoarse) { UNIX_SECONDS } else { 1 };
    Timespec { tv_sec: from + now / 1_000_000, tv_nsec: now % 1_000_000 * 1_000 }
}

/// Waits for a while, and a little longer, as a busy runtime does.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep { timer: with(|world| world.add_timer(duration)) }
}

/// A wait for the time.
#[derive(Debug)]
pub struct Sleep {
    timer: TimerKey,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        with(|world| world.poll_timer(self.timer, context.waker()))
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        with_any(|world| world.remove_timer(self.timer));
    }
}

/// The time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// Awaits `future`, for no longer than `duration`.
///
/// # Errors
/// When the time was up before.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let (mut future, mut sleep) = (pin!(future), pin!(sleep(duration)));
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        sleep.as_mut().poll(context).map(|()| Err(Elapsed))
    })
    .await
}
