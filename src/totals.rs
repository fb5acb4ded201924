//! `tallyring total`, `backup` and `restore`: a counter that runs is asked over HTTP; otherwise its file is read. And what
//! moves totals from one store to another.

mod json;
pub mod moving;

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

/// The most bytes of a listing: 20,000 names, which an import takes, have at most 3.1 MB.
const LISTING_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The most bytes of another answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// The pause before the next try after a 503: that of its `Retry-After`.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Why a command about totals failed.
#[derive(Debug, thiserror::Error)]
pub enum TotalsError {
    /// The counter at this URL does not answer.
    #[error("{0}: {1}")]
    Unanswered(String, AskError),
    /// It does not, and there is no file in its place.
    #[error("{target}: {error}; --{flag} says where to ask{}", or_export(.database))]
    NotReached {
        /// Its URL.
        target: String,
        /// Why there is no answer.
        error: AskError,
        /// The setting that gives the URL.
        flag: &'static str,
        /// The database that has its totals.
        database: Option<String>,
    },
    /// It answers with another status.
    #[error("{0}: it answers {1}, {2:?}")]
    Status(String, u16, String),
    /// It answers what no counter answers.
    #[error(
        "{0} is not a counter of tallyring: its answer is not {1}; --counter-listen says where to ask"
    )]
    NotACounter(String, &'static str),
    /// No counter runs, and there is no file.
    #[error(
        "nothing is counted yet: {}there is no file {}; --counter-listen and --data-dir say where \
         to look",
        nobody(.0), .1.display()
    )]
    Nothing(Option<String>, PathBuf),
    /// No counter answers, but a process uses the file.
    #[error(
        "{}a process uses the counter's file {}; if its --counter-listen is an address, give the same; \
         if it is off, stop it first",
        nobody(.0), .1.display()
    )]
    Hidden(Option<String>, PathBuf),
    /// The backup is not there.
    #[error("there is no file {}", .0.display())]
    NoBackup(PathBuf),
    /// The backup would replace the counter's file.
    #[error("{} is the counter's file itself; choose another name for its backup", .0.display())]
    Itself(PathBuf),
    /// A counter uses the file that is to be replaced.
    #[error("a process uses {}; stop the counter first, and start it after the restore", .0.display())]
    Running(PathBuf),
    /// A total would become less.
    #[error(transparent)]
    Lower(Box<Lower>),
    /// The file that is to be replaced may not be a counter's.
    #[error("{0}; give --force to replace it")]
    NotOurs(OpenError),
    /// It is not known whether the totals of several counters are parts of a sum.
    #[error(
        "--counter gives {0} counters, which may share their totals or not; give the one that is meant"
    )]
    Several(usize),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] OpenError),
}

/// A total that is less than the one that it would replace.
#[derive(Debug, thiserror::Error)]
#[error(
    "{origin} holds {new}, and {} holds {old}: the total {}would go back from {} to {}; {remedy}",
    .place, of_name(.name), grouped(*.from), grouped(*.to)
)]
pub struct Lower {
    /// Where the new totals come from.
    origin: String,
    new: String,
    /// What would be replaced.
    place: String,
    old: String,
    /// The first name whose total is less.
    name: String,
    from: u64,
    to: u64,
    remedy: &'static str,
}

fn or_export(database: &Option<String>) -> String {
    database.as_ref().map_or_else(String::new, |store| {
        format!(", and tallyring counter export reads {store} without a counter")
    })
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
/// When no counter answers and no file has it.
pub fn total(
    config: &AskConfig,
    name: Option<&str>,
    warn: impl Fn(&str),
) -> Result<u64, TotalsError> {
    let ask = |target: &Endpoint, end| {
        let target = match name {
            Some(name) => target.with_path(&format!("/counter/{name}")),
            None => target.with_path(target.path()),
        };
        let answer = ask_with_retries(&target, end, ANSWER_BYTES_MAX)?;
        let total = str::from_utf8(&answer).ok().and_then(|text| text.trim_end().parse().ok());
        total.ok_or(TotalsError::NotACounter(target.to_string(), "a total"))
    };
    let pick = |totals: TotalsByName| totals.get(name.unwrap_or_default()).copied().unwrap_or(0);
    ask_or_read(config, ask, pick, warn)
}

/// The total of each of several counters, with its URL.
pub fn of_each(
    config: &AskConfig,
    name: Option<&str>,
    warn: impl Fn(&str),
) -> Vec<Result<String, TotalsError>> {
    let of_one = |counter: &Endpoint| {
        let config = AskConfig { counter: Some(counter.clone()), more: vec![], ..config.clone() };
        total(&config, name, &warn).map(|total| format!("{total} {counter}"))
    };
    config.counter.iter().chain(&config.more).map(of_one).collect()
}

/// All totals.
///
/// # Errors
/// When no counter answers and no file has them.
pub fn all(config: &AskConfig, warn: impl Fn(&str)) -> Result<TotalsByName, TotalsError> {
    let ask = |target: &Endpoint, end| {
        let target = target.with_path("/counters");
        let answer = ask_with_retries(&target, end, LISTING_BYTES_MAX)?;
        let is_ours = |totals: &TotalsByName| {
            totals.keys().all(|name| name.is_empty() || counter::is_name(name))
        };
        let totals = serde_json::from_slice(&answer).ok().filter(is_ours);
        totals.ok_or(TotalsError::NotACounter(target.to_string(), "a list of totals"))
    };
    ask_or_read(config, ask, |totals| totals, warn)
}

/// Copies all totals into a file at `to`; what it holds, for a person.
///
/// # Errors
/// When there are no totals, the file is there and may not be replaced or holds more, or it cannot be written.
pub fn back_up(
    config: &AskConfig,
    to: &Path,
    replace: bool,
    warn: impl Fn(&str),
) -> Result<String, TotalsError> {
    if let Some(file) = &config.file
        && is_same(to, file)
    {
        return Err(TotalsError::Itself(to.to_owned()));
    }
    let totals = all(config, warn)?;
    // A counter that began from zero must not replace the backup of its lost totals.
    if replace && let Ok(old) = store::read(to) {
        let remedy = "choose another name, or remove the old backup first";
        let backup = to.display().to_string();
        check_not_lower(("the counter", &totals), (&backup, &old), remedy)
            .map_err(TotalsError::Lower)?;
    }
    store::write(to, &totals, replace)?;
    Ok(format!("{}: {}", to.display(), describe(&totals)))
}

/// Replaces the counter's file by one with the totals of a backup; what was done, for a person.
///
/// # Errors
/// When a counter uses the file, when the backup cannot be read, or when it holds less, without `force`.
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
                let source = backup.display().to_string();
                let remedy = "give --force to restore it all the same";
                let place = file.display().to_string();
                check_not_lower((&source, &restore.backup), (&place, now), remedy)
                    .map_err(TotalsError::Lower)?;
            }
            format!("it held {}", describe(now))
        }
        // Nothing is lost with these.
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

/// Checks that no total of a place would become less when they are replaced by the new ones.
fn check_not_lower(
    (source, new): (&str, &TotalsByName),
    (place, old): (&str, &TotalsByName),
    remedy: &'static str,
) -> Result<(), Box<Lower>> {
    let to = |name: &String| new.get(name).copied().unwrap_or(0);
    let Some((name, from)) = old.iter().find(|(name, total)| to(name) < **total) else {
        return Ok(());
    };
    Err(Box::new(Lower {
        origin: source.to_owned(),
        new: describe(new),
        place: place.to_owned(),
        old: describe(old),
        name: name.clone(),
        from: *from,
        to: to(name),
        remedy,
    }))
}

/// Asks the counter if it runs, else reads its file, and warns where no counter counts in it any more.
fn ask_or_read<T>(
    config: &AskConfig,
    ask: impl Fn(&Endpoint, Instant) -> Result<T, TotalsError>,
    read: impl Fn(TotalsByName) -> T,
    warn: impl Fn(&str),
) -> Result<T, TotalsError> {
    if !config.more.is_empty() {
        return Err(TotalsError::Several(1 + config.more.len()));
    }
    if let Some(target) = &config.counter {
        match ask(target, Instant::now() + config.timeout) {
            Err(TotalsError::Unanswered(_, error))
                if error.is_refused() && config.file.is_some() => {}
            Err(TotalsError::Unanswered(target, error)) => {
                let (flag, database) = (config.flag, config.database.clone());
                return Err(TotalsError::NotReached { target, error, flag, database });
            }
            answer => return answer,
        }
    }
    let Some(path) = &config.file else { unreachable!("the settings give a counter or a file") };
    let asked = config.counter.as_ref().map(Endpoint::to_string);
    match store::read_marked(path) {
        Ok((totals, mark)) => {
            if let Some(mark) = mark {
                warn(&mark.warning(&path.display().to_string()));
            }
            Ok(read(totals))
        }
        Err(OpenError::Missing(path)) => Err(TotalsError::Nothing(asked, path)),
        Err(OpenError::InUse(path)) => Err(TotalsError::Hidden(asked, path)),
        Err(error) => Err(error.into()),
    }
}

/// Asks until the counter is no longer busy, at most until `end`; the content of its answer.
// No worker runs in this process, so it may sleep.
#[allow(clippy::disallowed_methods)]
fn ask_with_retries(
    target: &Endpoint,
    end: Instant,
    body_max: u64,
) -> Result<Vec<u8>, TotalsError> {
    loop {
        let answer = ask::get(target, end, body_max);
        let answer = answer.map_err(|error| TotalsError::Unanswered(target.to_string(), error))?;
        match answer.status {
            200 => return Ok(answer.body),
            503 if Instant::now() + RETRY_PAUSE < end => thread::sleep(RETRY_PAUSE),
            status => {
                let said = ask::first_line(&answer.body);
                return Err(TotalsError::Status(target.to_string(), status, said));
            }
        }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(of: &[(&str, u64)]) -> TotalsByName {
        of.iter().map(|(name, total)| ((*name).to_owned(), *total)).collect()
    }

    fn of_file(file: PathBuf) -> AskConfig {
        let (counter, more, database) = (None, Vec::new(), None);
        let flag = "counter-listen";
        AskConfig { counter, more, flag, file: Some(file), database, timeout: RETRY_PAUSE }
    }

    /// Backs up a counter's file with `new` totals over a backup with `old` ones, with `--force`; the error, and what
    /// the backup holds afterwards.
    #[track_caller]
    fn check(old: &[(&str, u64)], new: &[(&str, u64)], expected: Option<&str>) {
        let directory = tempfile::tempdir().unwrap();
        let [file, backup] = ["counter.redb", "backup"].map(|name| directory.path().join(name));
        store::write(&file, &totals(new), false).unwrap();
        store::write(&backup, &totals(old), false).unwrap();
        let config = of_file(file);
        let error = back_up(&config, &backup, true, |_| {}).err().map(|error| error.to_string());
        match expected {
            None => assert_eq!(error, None),
            Some(words) => assert!(error.as_ref().unwrap().contains(words), "{error:?}"),
        }
        let kept = if expected.is_some() { old } else { new };
        assert_eq!(store::read(&backup).unwrap(), totals(kept));
    }

    #[test]
    fn a_backup_does_not_replace_one_with_more() {
        check(&[("", 2), ("a", 5)], &[("", 2), ("a", 5)], None);
        check(&[("", 2), ("a", 5)], &[("", 3), ("a", 5), ("b", 1)], None);
        let words = "the counter holds 1 counted, and ";
        check(&[("", 2)], &[("", 1)], Some(words));
        let words = ": the total would go back from 2 to 0; choose another name, or remove the old backup first";
        check(&[("", 2)], &[], Some(words));
        check(
            &[("", 2), ("a", 5)],
            &[("", 9), ("a", 4)],
            Some("the total of a would go back from 5 to 4"),
        );
        check(&[("", 2), ("a", 5)], &[("", 9)], Some("the total of a would go back from 5 to 0"));
    }

    #[test]
    fn a_backup_replaces_a_file_without_totals() {
        let directory = tempfile::tempdir().unwrap();
        let [file, text] = ["counter.redb", "text"].map(|name| directory.path().join(name));
        store::write(&file, &totals(&[("", 1)]), false).unwrap();
        let config = of_file(file);
        for content in ["", "some other text"] {
            std::fs::write(&text, content).unwrap();
            back_up(&config, &text, true, |_| {}).unwrap();
            assert_eq!(store::read(&text).unwrap(), totals(&[("", 1)]));
        }
    }
}
