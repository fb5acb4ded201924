//! What tasks on a worker use: the driver, panics of tasks, the clock, deadlines, the mailbox for messages from other
//! threads, the cooperative budget, and read buffers.
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
pub mod turn;
