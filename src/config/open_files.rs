//! Divides the open-file limit between client connections and connections to the counters.

use super::error::{ConfigError, invalid};
use crate::plural::plural;

/// The most client connections by default, whatever the open-file limit.
pub(super) const CONNECTIONS_DEFAULT_MAX: usize = 1 << 20;

/// Open files that every process needs: standard streams, the signal pipe, libraries.
pub(super) const FILES_BASE: usize = 24;
/// For each worker: its ring or epoll descriptor, its listeners, its mailbox, the pair through which it
/// hands connections over, and how long it has waited for its core.
const FILES_PER_WORKER: usize = 8;
/// The fewest clients of a worker with which a start makes sense: one that is served, one that is closed for the next,
/// and two more.
const CLIENTS_MIN: usize = 4;

/// The open files that `counter` can use for clients.
pub(super) fn of_counter(limit: usize) -> Result<usize, ConfigError> {
    let base = FILES_BASE + FILES_PER_WORKER;
    let needed = base + CLIENTS_MIN;
    if limit < needed {
        return Err(ConfigError::OpenFiles { limit, needed, workers: String::from("a counter") });
    }
    Ok((limit - base).min(CONNECTIONS_DEFAULT_MAX))
}

/// Connections of other programs to the bundled counter: commands, scrapers, another server.
const COUNTER_CLIENTS_MAX: usize = 256;

/// What needs open files.
pub(super) struct OpenFiles {
    pub(super) workers: usize,
    pub(super) counters: usize,
    pub(super) bundled: bool,
    /// Whether other programs can connect to it too.
    pub(super) counter_listens: bool,
    pub(super) admin: bool,
}

impl OpenFiles {
    /// Divides the limit: client connections of all workers together, and connections of each worker to each counter.
    pub(super) fn share(
        &self,
        limit: u64,
        connections: Option<usize>,
        counter_connections: usize,
        notes: &mut Vec<String>,
    ) -> Result<(usize, usize), ConfigError> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        // Both ends of a connection to the bundled counter are in this process.
        let ends = self.counters + usize::from(self.bundled);
        let per_connection = self.workers * ends.max(1);
        let base = self.base();
        let needed =
            base + per_connection + CLIENTS_MIN * self.workers + usize::from(self.counter_listens);
        if limit < needed {
            let counter = if self.bundled { " and the bundled counter" } else { "" };
            let workers = format!("{}{counter}", plural(self.workers, "worker"));
            return Err(ConfigError::OpenFiles { limit, needed, workers });
        }
        let free = limit - base - self.counter_clients(limit as u64);
        let room = (free / 2 / per_connection).max(1);
        let upstream = counter_connections.min(room);
        if upstream < counter_connections {
            notes.push(format!(
                "counter-connections-max is {upstream} instead of {counter_connections}: the \
                 open-file limit is {limit}; raise it by ulimit -n or LimitNOFILE="
            ));
        }
        let rest = free - upstream * per_connection;
        let clients = match connections {
            Some(asked) if asked > rest => {
                return Err(invalid(
                    "connections-max",
                    format!(
                        "the open-file limit of {limit} leaves {rest}; raise it by ulimit -n or \
                         LimitNOFILE="
                    ),
                ));
            }
            Some(asked) => asked,
            None => rest.min(CONNECTIONS_DEFAULT_MAX),
        };
        Ok((clients, upstream))
    }

    /// Connections of other programs to the bundled counter: a small part of all.
    pub(super) fn counter_clients(&self, limit: u64) -> usize {
        match self.counter_listens {
            true => (self.free(limit) / 16).clamp(1, COUNTER_CLIENTS_MAX),
            false => 0,
        }
    }

    /// Files that are left when nothing is connected.
    fn free(&self, limit: u64) -> usize {
        usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(self.base())
    }

    /// Files of the process and of its threads.
    fn base(&self) -> usize {
        let others = [self.bundled, self.counter_listens, self.admin];
        let threads = self.workers + others.into_iter().map(usize::from).sum::<usize>();
        FILES_BASE + FILES_PER_WORKER * threads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: OpenFiles =
        OpenFiles { workers: 2, counters: 1, bundled: false, counter_listens: false, admin: true };

    #[track_caller]
    fn check(limit: u64, connections: Option<usize>, expected: Option<(usize, usize)>) {
        let mut notes = Vec::new();
        let shared = FILES.share(limit, connections, 1024, &mut notes).ok();
        assert_eq!(shared, expected, "{limit} files, {connections:?} connections");
        if let Some((_, upstream)) = shared {
            assert_eq!(notes.is_empty(), upstream == 1024);
        }
    }

    #[test]
    fn open_files_are_divided() {
        check(1 << 16, None, Some((65536 - 48 - 2048, 1024)));
        check(1 << 30, None, Some((CONNECTIONS_DEFAULT_MAX, 1024)));
        check(1024, None, Some((488, 244)));
        // 24 + 3 * 8 for the process, and 5 for each worker: 1 to the counter and 4 to clients.
        check(58, None, Some((6, 2)));
        check(57, None, None);
        check(20, None, None);
        check(1 << 16, Some(10_000), Some((10_000, 1024)));
        check(1 << 16, Some(1), Some((1, 1024)));
        check(1 << 16, Some(65_000), None);
    }

    #[test]
    fn too_few_open_files_are_refused_with_the_number_that_is_needed() {
        let said = FILES.share(30, None, 1024, &mut Vec::new()).unwrap_err().to_string();
        let expected = "open files: the limit is 30, and this start needs at least 58, for 2 workers; raise it by \
                        ulimit -n, by LimitNOFILE= in a unit, or by --ulimit nofile= for a container";
        assert_eq!(said, expected);
        assert_eq!(of_counter(36).unwrap(), 4);
        assert!(
            of_counter(35).unwrap_err().to_string().contains("needs at least 36, for a counter;")
        );
    }

    #[test]
    fn the_clients_of_the_bundled_counter_get_a_small_part() {
        let files = OpenFiles { counters: 0, bundled: true, counter_listens: true, ..FILES };
        for (limit, expected) in [(64, 1), (80, 1), (1024, 60), (1 << 16, 256), (1 << 30, 256)] {
            assert_eq!(files.counter_clients(limit), expected, "{limit} files");
        }
        let shared = files.share(1 << 16, None, 1024, &mut Vec::new()).ok();
        assert_eq!(shared, Some((65536 - 64 - 256 - 2048, 1024)));
        assert_eq!(OpenFiles { counter_listens: false, ..files }.counter_clients(1 << 16), 0);
    }
}
