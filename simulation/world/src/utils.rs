//! What `monoio::utils` has.

use crate::world::with;

/// Whether this world is one of epoll: an operation that can complete does so when it is polled, and one that is
/// given up has done nothing.
pub fn is_legacy() -> bool {
    with(|world| world.settings.legacy)
}
