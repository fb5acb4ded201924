//! In place of the end of the process: the end of the history, as one that has failed.

use std::fmt::Display;

/// Ends the history.
pub fn end_process(part: &str, why: &dyn Display) -> ! {
    panic!("the process ends: {part}: {why}");
}
