//! What errors of PostgreSQL mean: whether another try may help, and what a person can do.

use tokio_postgres::{
    Error,
    error::{DbError, Severity, SqlState},
};

use super::super::sharded::Trouble;

/// Why a connection cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// For a person.
    pub(super) why: String,
    /// Whether another try may help.
    pub(super) passes: bool,
}

impl Failure {
    pub(super) fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), passes: true }
    }

    pub(super) fn lasting(why: impl Into<String>) -> Self {
        Self { why: why.into(), passes: false }
    }

    /// The same, with the host that it is about.
    pub(super) fn at(self, host: &str) -> Self {
        Self { why: format!("{host}: {}", self.why), ..self }
    }

    /// That of several hosts: it passes if one does.
    pub(super) fn of_all(failures: Vec<Self>) -> Self {
        let passes = failures.iter().any(|failure| failure.passes);
        let whys: Vec<_> = failures.into_iter().map(|failure| failure.why).collect();
        Self { why: whys.join("; "), passes }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure.passes {
            true => Self::Disconnected(failure.why),
            false => Self::Refused(failure.why),
        }
    }
}

/// Of a transaction that can be done once more, whatever became of it.
impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        explain(&error).into()
    }
}

/// Why a connection, or a statement before any commit, failed.
pub(super) fn explain(error: &Error) -> Failure {
    match error.as_db_error() {
        Some(error) => explain_answer(error),
        None => explain_local(error),
    }
}

/// What the server says.
fn explain_answer(error: &DbError) -> Failure {
    let code = error.code().code();
    let said = format!("{} ({code})", error.message());
    let remedy = match code {
        "28P01" | "28000" => "correct the user and the password in the URL, or pg_hba.conf",
        "3D000" => "correct the URL, or make the database by createdb",
        "42501" => grant(error.message()),
        "42P01" => "somebody has removed the tables; restart the counter, which makes them anew",
        "25006" => "name the primary in the URL too, or promote the standby",
        "53300" => "raise max_connections, or stop what uses them",
        _ => "",
    };
    let why = if remedy.is_empty() { said } else { format!("{said}; {remedy}") };
    let passes = match code {
        "28P01" | "28000" | "3D000" | "42501" | "42P01" => false,
        "25006" | "53300" | "23505" | "42P07" => true,
        // Connections, conflicts, cancelled, shutting down or starting.
        _ => ends_session(error) || matches!(code.get(..2), Some("08" | "40" | "55" | "57")),
    };
    Failure { why, passes }
}

/// What gives a user the right that it lacks, by what PostgreSQL says.
fn grant(message: &str) -> &'static str {
    let is = |what: &str| message.starts_with(&format!("permission denied for {what}"));
    if is("database") {
        "GRANT CONNECT ON DATABASE … TO its user"
    } else if is("schema") {
        "the tables are not there, and its user cannot make them: GRANT USAGE, CREATE ON SCHEMA … TO its user"
    } else {
        "the tables are those of another user, who can give them: GRANT ALL ON tallyring_meta, tallyring_shards, \
         tallyring_totals TO its user"
    }
}

fn ends_session(error: &DbError) -> bool {
    match error.parsed_severity() {
        Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
        // CockroachDB says it as a word only.
        None => error.severity() != "ERROR",
    }
}

/// What this side finds.
fn explain_local(error: &Error) -> Failure {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        why = format!("{why}: {inner}");
        source = inner.source();
    }
    if why.contains("does not support TLS") {
        return Failure::lasting(
            "it has no TLS; give sslmode=disable, or set ssl = on in the server's postgresql.conf",
        );
    }
    if why.contains("invalid peer certificate") {
        return Failure::lasting(format!(
            "{why}; name it as its certificate does, and give the authority by sslrootcert=FILE"
        ));
    }
    if why.contains("password missing") {
        return Failure::lasting("it asks for a password; give one in the URL or in PGPASSWORD");
    }
    if why.starts_with("authentication error") || why.starts_with("invalid configuration") {
        return Failure::lasting(why);
    }
    Failure::passing(why)
}

/// What became of a commit that was sent, and whether its connection can be used again.
pub(super) fn judge_commit(error: &Error) -> (Trouble, bool) {
    let Some(answer) = error.as_db_error() else {
        return (Trouble::Unknown(explain_local(error).why), false);
    };
    let why = explain_answer(answer).why;
    // The server ends the session: it may have committed before.
    if ends_session(answer) {
        return (Trouble::Unknown(why), false);
    }
    match answer.code() {
        // CockroachDB: the result is ambiguous.
        &SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN => (Trouble::Unknown(why), false),
        &SqlState::T_R_SERIALIZATION_FAILURE
        | &SqlState::T_R_DEADLOCK_DETECTED
        | &SqlState::LOCK_NOT_AVAILABLE
        | &SqlState::QUERY_CANCELED => (Trouble::Conflict(why), true),
        // It has become a standby.
        &SqlState::READ_ONLY_SQL_TRANSACTION => (Trouble::Disconnected(why), false),
        _ => (Trouble::Refused(why), false),
    }
}
