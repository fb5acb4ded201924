//! What errors of etcd mean: whether anything was written, whether another try may help, and what a person can do.

use super::{super::sharded::Trouble, wire::ErrorAnswer};

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallError {
    /// It was not sent, or not looked at: the connection must be made anew.
    NotSent(String),
    /// It was not done, and will not be before somebody changes something.
    Refused(String),
    /// It was not done, and may be at once.
    Busy(String),
    /// The revision that was to be read is gone.
    Compacted,
    /// There is no space. It may have been done all the same: etcd looks once more after it has written.
    NoSpace(String),
    /// It is not known whether it was done: the answer was lost, or says nothing of it.
    Lost(String),
}

impl CallError {
    /// Whether the connection can be used again.
    pub(super) fn keeps_connection(&self) -> bool {
        !matches!(self, Self::NotSent(_) | Self::Lost(_))
    }

    /// What it is to a call that writes nothing.
    pub(super) fn of_read(self) -> Trouble {
        match self {
            Self::NotSent(why) | Self::Lost(why) => Trouble::Disconnected(why),
            Self::Refused(why) | Self::NoSpace(why) => Trouble::Refused(why),
            Self::Busy(why) => Trouble::Conflict(why),
            Self::Compacted => Trouble::Conflict(String::from("what it read was compacted")),
        }
    }

    /// What it is to a call that may have written.
    pub(super) fn of_write(self) -> Trouble {
        match self {
            Self::Lost(why) | Self::NoSpace(why) => Trouble::Unknown(why),
            other => other.of_read(),
        }
    }
}

pub(super) const NO_SPACE: &str = "its space is used up (alarm NOSPACE): let it compact by --auto-compaction-retention, \
     or raise --quota-backend-bytes, then run etcdctl compact --physical, defrag and alarm disarm";

const CORRUPT: &str = "its members differ (alarm CORRUPT): replace those that are wrong, then run etcdctl alarm disarm";

/// The codes of gRPC.
mod code {
    pub(super) const INVALID: u32 = 3;
    pub(super) const DENIED: u32 = 7;
    pub(super) const EXHAUSTED: u32 = 8;
    pub(super) const PRECONDITION: u32 = 9;
    pub(super) const OUT_OF_RANGE: u32 = 11;
    pub(super) const UNIMPLEMENTED: u32 = 12;
    pub(super) const DATA_LOSS: u32 = 15;
    pub(super) const UNAUTHENTICATED: u32 = 16;
}

/// What an answer means that is not 200.
pub(super) fn explain(status: u16, content: &[u8]) -> CallError {
    let Ok(answer) = serde_json::from_slice::<ErrorAnswer>(content) else {
        return explain_foreign(status, content);
    };
    let said = plain(&answer.message);
    let with = |remedy: &str| CallError::Refused(format!("{said}; {remedy}"));
    match answer.code {
        code::INVALID if said.contains("auth store is old") => CallError::NotSent(said),
        code::INVALID if said.contains("too many operations") => with("raise --max-txn-ops to 128"),
        code::INVALID if said.contains("too large") => with("raise --max-request-bytes to 1572864"),
        code::INVALID if said.contains("user name is empty") => {
            CallError::Refused(String::from("it asks who this is; give etcd://USER:PASSWORD@…"))
        }
        code::INVALID if said.contains("authentication failed") => {
            with("correct the user and the password in the URL")
        }
        code::PRECONDITION if said.contains("not enabled") => with("leave the user out of the URL"),
        code::DENIED => with(
            "let its user read and write all keys below the prefix: etcdctl role grant-permission \
             ROLE readwrite PREFIX/ --prefix",
        ),
        code::INVALID | code::PRECONDITION => CallError::Refused(said),
        code::EXHAUSTED if said.contains("space exceeded") => {
            CallError::NoSpace(NO_SPACE.to_owned())
        }
        code::EXHAUSTED if said.contains("too many requests") => CallError::Busy(said),
        code::OUT_OF_RANGE => CallError::Compacted,
        code::UNIMPLEMENTED => with("etcd 3.4 or newer is needed"),
        code::DATA_LOSS => CallError::Refused(CORRUPT.to_owned()),
        // The token has ended, or the member has restarted.
        code::UNAUTHENTICATED => CallError::NotSent(said),
        // No leader, time-outs, members that stop.
        _ => CallError::Lost(said),
    }
}

/// What a server says that is no gateway of etcd.
fn explain_foreign(status: u16, content: &[u8]) -> CallError {
    let text = String::from_utf8_lossy(&content[..content.len().min(200)]);
    if text.contains("HTTP request to an HTTPS server") {
        return CallError::Refused(String::from(
            "it speaks TLS; write etcds:// in place of etcd://",
        ));
    }
    match status {
        404 | 405 | 501 => CallError::Refused(format!(
            "it answers {status}, so it is not etcd 3.4 or newer at the address for its clients; correct the \
             host and the port (2379 by default)"
        )),
        // A proxy, perhaps: it may have passed the request on.
        _ => CallError::Lost(format!("it answers {status}, which is not of etcd")),
    }
}

/// Without what etcd puts before all that it says.
fn plain(message: &str) -> String {
    message.trim_start_matches("etcdserver: ").to_owned()
}

/// Why a member with this alarm is not to be used.
pub(super) fn explain_alarm(error: &str) -> Option<&'static str> {
    match error {
        error if error.contains("NOSPACE") => Some(NO_SPACE),
        error if error.contains("CORRUPT") => Some(CORRUPT),
        _ => None,
    }
}

/// The oldest etcd that is used: the first with the paths that are asked here.
const VERSION_MIN: (u32, u32) = (3, 4);

/// Why this version of etcd is not used.
pub(super) fn explain_version(version: &str) -> Result<(), String> {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= VERSION_MIN => Ok(()),
        _ => Err(format!("it is etcd {version:?}, and 3.4 or newer is needed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u32, message: &str) -> CallError {
        let content = serde_json::json!({ "error": message, "code": code, "message": message });
        explain(400, content.to_string().as_bytes())
    }

    #[track_caller]
    fn check(
        error: CallError,
        read: fn(String) -> Trouble,
        write: fn(String) -> Trouble,
        words: &str,
    ) {
        let of = |trouble: Trouble, kind: fn(String) -> Trouble| {
            assert!(trouble.to_string().contains(words), "{trouble}");
            assert_eq!(trouble, kind(trouble.to_string()));
        };
        of(error.clone().of_read(), read);
        of(error.of_write(), write);
    }

    #[test]
    fn what_was_certainly_not_written_and_what_may_have_been() {
        use Trouble::{Conflict, Disconnected, Refused, Unknown};
        let check_same = |error, kind, words| check(error, kind, kind, words);
        // Said after a commit was written too.
        let full = answer(8, "etcdserver: mvcc: database space exceeded");
        assert!(full.keeps_connection());
        check(full, Refused, Unknown, "alarm disarm");
        let leaderless = answer(14, "etcdserver: request timed out");
        assert!(!leaderless.keeps_connection());
        check(leaderless, Disconnected, Unknown, "request timed out");
        check(answer(14, "etcdserver: no leader"), Disconnected, Unknown, "no leader");
        check(answer(2, "anything"), Disconnected, Unknown, "anything");
        check(answer(8, "grpc: received message larger than max"), Disconnected, Unknown, "larger");
        check_same(answer(8, "etcdserver: too many requests"), Conflict, "too many requests");
        check_same(
            answer(11, "etcdserver: mvcc: required revision has been compacted"),
            Conflict,
            "compacted",
        );
        check_same(answer(7, "etcdserver: permission denied"), Refused, "grant-permission");
        check_same(answer(3, "etcdserver: user name is empty"), Refused, "USER:PASSWORD@");
        check_same(answer(3, "etcdserver: request is too large"), Refused, "--max-request-bytes");
        check_same(
            answer(3, "etcdserver: too many operations in txn request"),
            Refused,
            "--max-txn-ops",
        );
        check_same(
            answer(3, "etcdserver: authentication failed, invalid user ID or password"),
            Refused,
            "correct",
        );
        check_same(
            answer(9, "etcdserver: authentication is not enabled"),
            Refused,
            "leave the user out",
        );
        check_same(
            answer(16, "etcdserver: invalid auth token"),
            Disconnected,
            "invalid auth token",
        );
        check_same(answer(3, "etcdserver: revision of auth store is old"), Disconnected, "is old");
        check_same(answer(15, "etcdserver: corrupt cluster"), Refused, "CORRUPT");
    }

    #[test]
    fn what_is_not_etcd() {
        use Trouble::{Disconnected, Refused, Unknown};
        check(explain(404, b"404 page not found\n"), Refused, Refused, "2379");
        check(explain(502, b"<html>"), Disconnected, Unknown, "502");
        let tls = b"Client sent an HTTP request to an HTTPS server.\n";
        check(explain(400, tls), Refused, Refused, "etcds://");
    }

    #[test]
    fn old_versions_are_refused() {
        for (version, expected) in [
            ("3.4.0", true),
            ("3.5.17", true),
            ("3.10.1", true),
            ("4.0.0", true),
            ("3.3.27", false),
            ("2.9.0", false),
            ("", false),
        ] {
            assert_eq!(explain_version(version).is_ok(), expected, "{version}");
        }
    }

    #[test]
    fn alarms_have_a_remedy() {
        let alarm = explain_alarm("memberID:8211f1d0f64f3269 alarm:NOSPACE ");
        assert!(alarm.is_some_and(|why| why.contains("disarm")));
        assert!(
            explain_alarm("memberID:1 alarm:CORRUPT").is_some_and(|why| why.contains("differ"))
        );
        assert_eq!(explain_alarm("etcdserver: no leader"), None);
    }
}
