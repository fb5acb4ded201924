//! The end of a process that is of no more use.

use std::{fmt::Display, process, sync::mpsc, thread, time::Duration};

use crate::log;

/// For the message of a process that ends to be written.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Ends the process, since a part of it has ended that it cannot live without. Whoever watches over it
/// starts it again.
pub fn end_process(part: &str, why: &dyn Display) -> ! {
    // Not by the log, whose lines another thread writes. Nor does the end wait for whoever reads the message,
    // who may be gone, or not read.
    let line =
        format!("{part} has failed, and the server is of no use without it: {why}; aborting");
    let (written, told) = mpsc::channel();
    let tell = move || {
        log::complain(&line);
        // Fails only when nobody waits any more.
        let _ = written.send(());
    };
    if thread::Builder::new().spawn(tell).is_ok() {
        let _ = told.recv_timeout(LAST_WORD);
    }
    process::abort();
}
