//! `tallyring total`, `backup` and `restore`: what a counter has counted. A running one is asked over HTTP; where none
//! runs, its file is read.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    ask::{self, AskError},
    config::AskConfig,
    counter::{
        self,
        store::{self, Counted, OpenError, Restore, TotalsByName},
    },
    plural::grouped,
    upstream::Endpoint,
};

/// The most bytes of a listing: it has at most 1.6 MB.
const LISTING_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// The most bytes of another answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// The pause before a counter is asked once more that has said 503, as its `Retry-After` does.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Why there are no totals, or not where they are to be.
#[derive(Debug, thiserror::Error)]
pub enum TotalsError {
    /// The counter, whose URL this is, does not answer.
    #[error("{0}: {1}")]
    Unanswered(String, AskError),
    /// It answers something else.
    #[error("{0}: it answers {1}, {2:?}")]
    Status(String, u16, String),
    /// It answers something that no counter says.
    #[error(
        "{0} is not a counter of tallyring: its answer is not {1}; --counter-listen says where to ask"
    )]
    NotACounter(String, &'static str),
    /// Nobody listens, and there is no file.
    #[error(
        "nothing is counted yet: {}there is no file {}; --counter-listen and --data-dir say where \
         to look",
        nobody(.0), .1.display()
    )]
    Nothing(Option<String>, PathBuf),
    /// Nobody listens, but a process has the file.
    #[error(
        "{}a process uses the counter's file {}; if its --counter-listen is an address, give the same; \
         if it is off, stop it first",
        nobody(.0), .1.display()
    )]
    Hidden(Option<String>, PathBuf),
    /// The backup is not there.
    #[error("there is no file {}", .0.display())]
    NoBackup(PathBuf),
    /// The backup would take the place of the counter's file.
    #[error("{} is the counter's file itself; choose another name for its backup", .0.display())]
    Itself(PathBuf),
    /// A counter runs on the file that is to be replaced.
    #[error("a process uses {}; stop the counter first, and start it after the restore", .0.display())]
    Running(PathBuf),
    /// A total would become less.
    #[error(transparent)]
    Lower(Box<Lower>),
    /// What is to be replaced may be of use to somebody.
    #[error("{0}; give --force to replace it")]
    NotOurs(OpenError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] OpenError),
}

/// A total that a restore would lower.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} holds {of_backup}, and {} holds {of_file}: the total {}would go back from {} to {}; give \
     --force to restore it all the same",
    .backup.display(), .file.display(), of_name(.name), grouped(*.from), grouped(*.to)
)]
pub struct Lower {
    backup: PathBuf,
    of_backup: String,
    file: PathBuf,
    of_file: String,
    /// The first name whose total is less.
    name: String,
    from: u64,
    to: u64,
}

fn nobody(asked: &Option<String>) -> String {
    asked.as_ref().map_or_else(String::new, |url| format!("nobody listens at {url}, and "))
}

fn of_name(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("of {name} ") }
}

/// The total of one counter.
///
/// # Errors
/// When nobody tells it and no file holds it.
pub fn total(config: &AskConfig, name: Option<&str>) -> Result<u64, TotalsError> {
    let ask = |target: &Endpoint, end| {
        let target = match name {
            Some(name) => target.with_path(&format!("/counter/{name}")),
            None => target.with_path(target.path()),
        };
        let answer = ask_patiently(&target, end, ANSWER_BYTES_MAX)?;
        let total = str::from_utf8(&answer).ok().and_then(|text| text.trim_end().parse().ok());
        total.ok_or(TotalsError::NotACounter(target.to_string(), "a total"))
    };
    let pick = |totals: TotalsByName| totals.get(name.unwrap_or_default()).copied().unwrap_or(0);
    ask_or_read(config, ask, pick)
}

/// All totals.
///
/// # Errors
/// When nobody tells them and no file holds them.
pub fn all(config: &AskConfig) -> Result<TotalsByName, TotalsError> {
    let ask = |target: &Endpoint, end| {
        let target = target.with_path("/counters");
        let answer = ask_patiently(&target, end, LISTING_BYTES_MAX)?;
        let is_ours = |totals: &TotalsByName| {
            totals.keys().all(|name| name.is_empty() || counter::is_name(name))
        };
        let totals = serde_json::from_slice(&answer).ok().filter(is_ours);
        totals.ok_or(TotalsError::NotACounter(target.to_string(), "a list of totals"))
    };
    ask_or_read(config, ask, |totals| totals)
}

/// Copies all totals into a file at `to`; what it holds, for a person.
///
/// # Errors
/// When they are not to be had, or the file is there and not to be replaced, or it cannot be made.
pub fn back_up(config: &AskConfig, to: &Path, replace: bool) -> Result<String, TotalsError> {
    if let Some(file) = &config.file
        && is_same(to, file)
    {
        return Err(TotalsError::Itself(to.to_owned()));
    }
    let totals = all(config)?;
    store::write(to, &totals, replace)?;
    Ok(format!("{}: {}", to.display(), describe(&totals)))
}

/// Puts the totals of a backup in place of the counter's file; what was done, for a person.
///
/// # Errors
/// When a counter runs on the file, the backup cannot be read, or holds less and `force` does not allow it.
pub fn restore(backup: &Path, file: &Path, force: bool) -> Result<String, TotalsError> {
    let restore = Restore::prepare(backup, file).map_err(|error| match error {
        OpenError::Missing(path) => TotalsError::NoBackup(path),
        OpenError::InUse(path) => TotalsError::Running(path),
        error => error.into(),
    })?;
    let before = match &restore.now {
        None => String::from("there was no file"),
        Some(Ok(now)) => {
            if !force {
                check_not_lower(backup, &restore.backup, file, now)?;
            }
            format!("it held {}", describe(now))
        }
        // What is to be mended.
        Some(Err(OpenError::Empty(_))) => String::from("it was empty"),
        Some(Err(OpenError::Damaged(..))) => String::from("it was damaged"),
        Some(Err(_)) if force => String::from("it was not a counter's file of this version"),
        Some(Err(_)) => return Err(not_ours(restore)),
    };
    let holds = describe(&restore.backup);
    let kept = restore.replace()?;
    let kept = kept.map_or_else(String::new, |kept| format!(", and is kept as {}", kept.display()));
    Ok(format!("{}: {holds}; before, {before}{kept}", file.display()))
}

fn not_ours(restore: Restore) -> TotalsError {
    match restore.now {
        Some(Err(error)) => TotalsError::NotOurs(error),
        _ => unreachable!("asked for a file that cannot be read"),
    }
}

/// `1,234`, or `1,234 and 56 under 2 names`.
fn describe(totals: &TotalsByName) -> String {
    let Counted { total, named } = Counted::of(totals);
    match totals.keys().filter(|name| !name.is_empty()).count() {
        0 => format!("{} counted", grouped(total)),
        names => {
            let noun = if names == 1 { "name" } else { "names" };
            let [total, named, names] = [total, named, names as u64].map(grouped);
            format!("{total} counted, and {named} under {names} {noun}")
        }
    }
}

fn check_not_lower(
    backup: &Path,
    totals: &TotalsByName,
    file: &Path,
    now: &TotalsByName,
) -> Result<(), TotalsError> {
    let in_backup = |name: &String| totals.get(name).copied().unwrap_or(0);
    let Some((name, from)) = now.iter().find(|(name, total)| in_backup(name) < **total) else {
        return Ok(());
    };
    Err(TotalsError::Lower(Box::new(Lower {
        backup: backup.to_owned(),
        of_backup: describe(totals),
        file: file.to_owned(),
        of_file: describe(now),
        name: name.clone(),
        from: *from,
        to: in_backup(name),
    })))
}

/// Asks the counter that runs, or reads the file of the one that does not.
fn ask_or_read<T>(
    config: &AskConfig,
    ask: impl Fn(&Endpoint, Instant) -> Result<T, TotalsError>,
    read: impl Fn(TotalsByName) -> T,
) -> Result<T, TotalsError> {
    if let Some(target) = &config.counter {
        match ask(target, Instant::now() + config.timeout) {
            Err(TotalsError::Unanswered(_, error))
                if error.is_nobody() && config.file.is_some() => {}
            answer => return answer,
        }
    }
    let Some(path) = &config.file else { unreachable!("the settings give a counter or a file") };
    let asked = config.counter.as_ref().map(Endpoint::to_string);
    match store::read(path) {
        Ok(totals) => Ok(read(totals)),
        Err(OpenError::Missing(path)) => Err(TotalsError::Nothing(asked, path)),
        Err(OpenError::InUse(path)) => Err(TotalsError::Hidden(asked, path)),
        Err(error) => Err(error.into()),
    }
}

/// Asks, and once more while the counter says that it is busy; the content of its answer.
// Nobody is served here.
#[allow(clippy::disallowed_methods)]
fn ask_patiently(target: &Endpoint, end: Instant, body_max: u64) -> Result<Vec<u8>, TotalsError> {
    loop {
        let answer = ask::get(target, end, body_max);
        let answer = answer.map_err(|error| TotalsError::Unanswered(target.to_string(), error))?;
        match answer.status {
            200 => return Ok(answer.body),
            503 if Instant::now() + RETRY_PAUSE < end => thread::sleep(RETRY_PAUSE),
            status => {
                let said = String::from_utf8_lossy(&answer.body);
                let said = said.lines().next().unwrap_or_default().chars().take(200).collect();
                return Err(TotalsError::Status(target.to_string(), status, said));
            }
        }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
