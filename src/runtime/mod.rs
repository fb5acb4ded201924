//! What tasks on a worker run on and with: the driver, tasks and their panics, the clock, deadlines, the mailbox
//! that other threads reach a worker by, the cooperative budget, and the buffers that are read into.
//!
//! Knows nothing of HTTP.

pub mod budget;
pub mod clock;
pub mod deadlines;
pub mod driver;
pub mod fatal;
pub mod host;
pub mod liveness;
pub mod mailbox;
pub mod read_buffer;
pub mod task;
