//! Plants known defects into a copy of the code, one at a time, and shows how soon the simulation finds each.
//!
//! The copy stays in `planted` in the target directory, so that the next defect builds only what it changes, and has a
//! target directory of its own there: cargo takes what it has built from a copy of a workspace for what it has built
//! from the workspace itself, and would go on with code that has a defect.

use std::{
    env, fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What the workspace's manifest needs to load, and the simulation to be built.
const SOURCES: [&str; 8] = [
    ".cargo",
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    "src",
    "simulation",
    "bench/Cargo.toml",
    "bench/src",
];
/// How long a search may go on after its time is up, for the history under way.
const SPARE: Duration = Duration::from_secs(30);
const SECONDS_A_DAY: u64 = 24 * 60 * 60;

/// What is planted, and how long it is looked for.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The defects, by the names of their patches; all of them, if none is named
    names: Vec<String>,
    /// As many of them as this, others each day
    #[arg(long, value_name = "N", conflicts_with = "names")]
    of_the_day: Option<usize>,
    /// Search so long for each
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many threads search; as many as there are cores, if it is not said
    #[arg(long)]
    threads: Option<usize>,
}

/// A patch to the product, and what it breaks.
struct Defect {
    name: String,
    breaks: String,
    patch: PathBuf,
}

/// What a search has found.
struct Found {
    histories: String,
    seconds: String,
    violation: String,
}

/// Plants defects and tells of each whether it was found. Fails when one was not.
pub fn run(arguments: &Arguments) -> ExitCode {
    match try_run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(arguments: &Arguments) -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no path")?;
    let defects = choose(read_defects(&root.join("simulation/planted"))?, arguments)?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let copy = SourceCopy::open(root, &target)?;
    println!("| defect | what it breaks | histories | seconds | what was found first |");
    println!("| --- | --- | --- | --- | --- |");
    let mut found = 0;
    for Defect { name, breaks, patch } in &defects {
        let (histories, seconds, end) =
            match copy.plant(patch).and_then(|()| copy.search(arguments)) {
                Ok(Found { histories, seconds, violation }) => {
                    found += 1;
                    (histories, seconds, violation)
                }
                Err(why) => (String::new(), String::new(), format!("NOT FOUND: {why}")),
            };
        println!("| {name} | {breaks} | {histories} | {seconds} | {end} |");
    }
    println!("\n{found} of {} defects were found", defects.len());
    Ok(found == defects.len())
}

/// The patches in a directory, in the order of their names.
fn read_defects(directory: &Path) -> Result<Vec<Defect>, String> {
    let failed = |error: io::Error| format!("{}: {error}", directory.display());
    let mut patches = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())
        .map_err(failed)?;
    patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    patches.sort();
    let read = |patch: PathBuf| {
        let text = fs::read_to_string(&patch).map_err(failed)?;
        let head = text.lines().take_while(|line| !line.starts_with("diff --git"));
        let breaks = head.collect::<Vec<_>>().join(" ").trim().to_owned();
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Defect { name, breaks, patch })
    };
    patches.into_iter().map(read).collect()
}

fn choose(mut defects: Vec<Defect>, arguments: &Arguments) -> Result<Vec<Defect>, String> {
    if let Some(count) = arguments.of_the_day {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let day = usize::try_from(now.as_secs() / SECONDS_A_DAY).unwrap_or_default();
        // Each day begins where the day before has ended.
        let begin = (day * count).checked_rem(defects.len()).unwrap_or_default();
        defects.rotate_left(begin);
        defects.truncate(count);
        return Ok(defects);
    }
    let known = |name: &&String| !defects.iter().any(|defect| defect.name == **name);
    if let Some(unknown) = arguments.names.iter().find(known) {
        return Err(format!("there is no simulation/planted/{unknown}.patch"));
    }
    if !arguments.names.is_empty() {
        defects.retain(|defect| arguments.names.contains(&defect.name));
    }
    Ok(defects)
}

/// A copy of the sources, in which defects are planted.
struct SourceCopy<'a> {
    root: &'a Path,
    sources: PathBuf,
    /// Where it is built.
    target: PathBuf,
    /// Locked for as long as the copy is used: two at a time would build each other's defects.
    _lock: fs::File,
}

impl<'a> SourceCopy<'a> {
    fn open(root: &'a Path, target: &Path) -> Result<Self, String> {
        let place = std::path::absolute(target).map_err(|error| error.to_string())?.join("planted");
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", place.display());
        let (sources, target) = (place.join("sources"), place.join("target"));
        fs::create_dir_all(&sources).map_err(|error| failed(&error))?;
        let lock = fs::File::create(place.join("lock")).map_err(|error| failed(&error))?;
        lock.try_lock().map_err(|error| failed(&error))?;
        Ok(Self { root, sources, target, _lock: lock })
    }

    /// Makes the copy what the sources are, but for this defect, and builds it.
    fn plant(&self, patch: &Path) -> Result<(), String> {
        for source in SOURCES {
            copy(&self.root.join(source), &self.sources.join(source))
                .map_err(|error| format!("{source} cannot be copied: {error}"))?;
        }
        run_quietly(
            Command::new("git")
                .args(["apply", "--whitespace=nowarn"])
                .arg(patch)
                // It would take the paths for those of the repository around the target directory.
                .env("GIT_CEILING_DIRECTORIES", self.sources.parent().unwrap_or(&self.sources))
                .current_dir(&self.sources),
        )
        .map_err(|error| format!("it does not apply: {error}"))?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        run_quietly(
            Command::new(cargo)
                .args(["build", "--quiet", "--locked", "-p", "tallyring-simulation"])
                .env("CARGO_TARGET_DIR", &self.target)
                .current_dir(&self.sources),
        )
        .map_err(|error| format!("it cannot be built: {error}"))
    }

    /// Searches with the program that was built for what it does wrong.
    fn search(&self, arguments: &Arguments) -> Result<Found, String> {
        let mut command = Command::new(self.target.join("debug/tallyring-simulation"));
        // Always the same histories, so that a defect is found or not on any day.
        command.args(["--no-shrink", "--from", "1", "--seconds", &arguments.seconds.to_string()]);
        if let Some(threads) = arguments.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        let limit = Duration::from_secs(arguments.seconds) + SPARE;
        let said = output_within(&mut command, limit).map_err(|error| error.to_string())?;
        let said = said.ok_or("a history never ends")?;
        let violation = said.lines().find_map(|line| line.strip_prefix("wrong: "));
        // One that ends the process has no summary.
        let words: Vec<_> = said.lines().next().unwrap_or_default().split(' ').collect();
        let (histories, seconds) = match words[..] {
            [histories, "histories", "from", "seed", _, "in", seconds, ..] => (histories, seconds),
            _ => ("?", "?"),
        };
        let violation = violation
            .ok_or_else(|| format!("{histories} histories in {seconds} s say {said:?}"))?
            .to_owned();
        Ok(Found { histories: histories.to_owned(), seconds: seconds.to_owned(), violation })
    }
}

/// Makes `to` what `from` is. What is the same already stays untouched: cargo sees by the time what to build.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(to)? {
            let entry = entry?;
            let gone = !from.join(entry.file_name()).exists();
            match entry.file_type()?.is_dir() {
                true if gone => fs::remove_dir_all(entry.path())?,
                false if gone => fs::remove_file(entry.path())?,
                _ => {}
            }
        }
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
        return Ok(());
    }
    let bytes = match fs::read(from) {
        // Not all of them must be there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    if fs::read(to).is_ok_and(|copied| copied == bytes) {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(to, bytes)
}

/// Runs a command to its end.
///
/// # Errors
/// What it says, if it fails.
fn run_quietly(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// What a command says until it ends; `None` when it has not ended within `limit`, and was killed.
fn output_within(command: &mut Command, limit: Duration) -> io::Result<Option<String>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let (sender, receiver) = mpsc::channel();
    if let Some(mut stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut said = String::new();
            let read = stdout.read_to_string(&mut said);
            // Fails when nobody waits any more.
            let _ = sender.send(read.map(|_| said));
        });
    }
    let said = match receiver.recv_timeout(limit) {
        Ok(said) => Some(said?),
        Err(_) => {
            child.kill()?;
            None
        }
    };
    child.wait()?;
    Ok(said)
}
