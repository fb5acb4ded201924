//! The end of a process that is of no more use.

use std::{fmt::Display, process, sync::mpsc, thread, time::Duration};

use crate::log;

/// How long the end of the process waits for its message to be written.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Ends the process, since an essential part of it has ended. The service manager can start it again.
pub fn end_process(part: &str, why: &dyn Display) -> ! {
    // Not by the log, whose lines another thread writes. The message has a thread of its own, since its reader may be
    // gone, or may not read.
    let line = format!("{part} has failed, and the server cannot run without it: {why}; aborting");
    let (written, told) = mpsc::channel();
    let tell = move || {
        log::complain(&line);
        // Fails only when nobody waits any more.
        let _ = written.send(());
    };
    if thread::Builder::new().spawn(tell).is_ok() {
        let _ = told.recv_timeout(LAST_MESSAGE_TIMEOUT);
    }
    process::abort();
}
