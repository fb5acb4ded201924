//! The product's `runtime`, with three of its parts replaced.

#[path = "../../../src/runtime/budget.rs"]
#[allow(dead_code, unused_imports)]
pub mod budget;
#[path = "../../../src/runtime/clock.rs"]
#[allow(dead_code, unused_imports)]
pub mod clock;
#[path = "../../../src/runtime/deadlines.rs"]
#[allow(dead_code, unused_imports)]
pub mod deadlines;
#[path = "../edge/driver.rs"]
pub mod driver;
#[path = "../edge/fatal.rs"]
pub mod fatal;
#[path = "../../../src/runtime/liveness.rs"]
#[allow(dead_code, unused_imports)]
pub mod liveness;
#[path = "../edge/mailbox.rs"]
pub mod mailbox;
#[path = "../../../src/runtime/read_buffer.rs"]
#[allow(dead_code, unused_imports)]
pub mod read_buffer;
#[path = "../../../src/runtime/task.rs"]
#[allow(dead_code, unused_imports)]
pub mod task;
#[path = "../edge/turn.rs"]
pub mod turn;
