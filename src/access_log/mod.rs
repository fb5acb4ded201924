//! The access log, as far as a worker has to do with it: each request has a record, which puts an entry into the
//! worker's ring when the request was answered or given up.
//!
//! ```text
//!   Request --begin--> Record --answer, or dropped--> ring ~~~> Entries --format--> lines
//!                                    (the worker)       (a thread of its own: server/access_log)
//! ```
//!
//! A worker never waits for the log and makes no system call for it: an entry for which the ring has no room is
//! dropped and counted. A record belongs to its request from the head to the answer and has a buffer of its own, so no
//! entry holds anything of another request. Knows nothing of files.

mod entry;
mod format;
mod forwarded;
mod record;

pub use self::{
    entry::{Entries, Entry, Outcome, ring},
    format::Format,
    forwarded::is_trusted,
    record::{Origin, Record, Recorder, Rules},
};
