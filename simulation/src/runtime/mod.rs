//! The product's `runtime`, with three of its parts replaced.

#[path = "../../../src/runtime/budget.rs"]
pub mod budget;
#[path = "../../../src/runtime/clock.rs"]
pub mod clock;
#[path = "../../../src/runtime/deadlines.rs"]
pub mod deadlines;
#[path = "../edge/driver.rs"]
pub mod driver;
#[path = "../edge/fatal.rs"]
pub mod fatal;
#[path = "../../../src/runtime/liveness.rs"]
pub mod liveness;
#[path = "../edge/mailbox.rs"]
pub mod mailbox;
#[path = "../../../src/runtime/read_buffer.rs"]
pub mod read_buffer;
#[path = "../../../src/runtime/task.rs"]
pub mod task;
