//! What a start would find of the counter's file, while a counter may be using it: no lock is taken, nothing lasting is
//! changed, and nothing is created under a name that another start would use.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    process,
};

use rustix::{
    fs::{major, minor},
    io::Errno,
};

use super::{
    OpenError,
    disk::{Disk, directory_of, link_target},
    file::check_magic,
    transfer::read_marked,
};

/// Checks whether the file at `path` can be opened or created, as far as that can be seen. The error that it is in use
/// may be temporary.
pub(super) fn probe(path: &Path, create: bool) -> Result<(), OpenError> {
    let path = &link_target(path);
    let io_error = |error| OpenError::Io(path.to_owned(), error);
    let metadata = match fs::metadata(path) {
        Err(error) if is_nothing_there(&error) => return probe_directory(directory_of(path)),
        result => result.map_err(io_error)?,
    };
    if metadata.is_dir() {
        return Err(io_error(Errno::ISDIR.into()));
    }
    if !metadata.is_file() {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io_error)?;
    match file.metadata().map_err(io_error)?.len() {
        0 if create => return probe_directory(directory_of(path)),
        length => check_magic(&Disk::default(), path, &file, length)?,
    }
    if is_locked(&file) {
        return Err(OpenError::InUse(path.to_owned()));
    }
    match read_marked(path) {
        Ok((_, Some(mark))) => Err(OpenError::Marked(path.to_owned(), mark)),
        // A start may find out more.
        _ => Ok(()),
    }
}

fn is_nothing_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Checks whether a file can be created in `directory`, which may have to be created itself.
pub(super) fn probe_directory(directory: &Path) -> Result<(), OpenError> {
    let mut existing = directory;
    let metadata = loop {
        match fs::metadata(existing) {
            Err(error) if is_nothing_there(&error) && directory_of(existing) != existing => {
                existing = directory_of(existing);
            }
            result => {
                break result.map_err(|error| OpenError::Directory(directory.to_owned(), error))?;
            }
        }
    };
    if !metadata.is_dir() {
        let problem = io::Error::other(format!("{} is no directory", existing.display()));
        return Err(OpenError::Directory(directory.to_owned(), problem));
    }
    // A start syncs the directory of a new file, and has to open it for that.
    File::open(existing).map_err(|error| OpenError::Unsynced(existing.to_owned(), error))?;
    try_entry(existing).map_err(|error| OpenError::NotWritable(existing.to_owned(), error))
}

/// Creates an entry in a directory and removes it: permissions alone do not tell whether that is possible.
fn try_entry(directory: &Path) -> io::Result<()> {
    let entry = directory.join(format!(".tallyring-check-{}", process::id()));
    match fs::create_dir(&entry) {
        // Left by a process that had the same id and was killed.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    match fs::remove_dir(&entry) {
        // Removed by another process with the same id, as in several containers.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether a process has a lock on the file, as far as proc_locks(5) tells. A lock is not tried: a start at the same
/// moment could fail because of it. Some file systems show other device numbers there.
fn is_locked(file: &File) -> bool {
    let Ok(metadata) = file.metadata() else { return false };
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let device = metadata.dev();
    let wanted = format!("{:02x}:{:02x}:{}", major(device), minor(device), metadata.ino());
    locks.lines().any(|line| line.split_ascii_whitespace().any(|word| word == wanted))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::RedbStore, *};

    #[track_caller]
    fn check(path: &Path, create: bool, expected: Option<&str>) {
        let before = listing(path);
        let said = probe(path, create).err().map(|error| error.to_string());
        match (&said, expected) {
            (None, None) => {}
            (Some(said), Some(words)) if said.contains(words) => {}
            _ => panic!("{}: {said:?}, not {expected:?}", path.display()),
        }
        assert_eq!(listing(path), before, "{}", path.display());
    }

    fn listing(path: &Path) -> Vec<(std::ffi::OsString, u64)> {
        let entries = fs::read_dir(directory_of(path)).into_iter().flatten().map(Result::unwrap);
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().len())).collect()
    }

    #[test]
    fn what_a_start_would_refuse_is_seen_and_nothing_is_changed() {
        let parent = tempfile::tempdir().unwrap();
        // Others write into the directory for temporary ones, which is listed for a path right below it.
        let directory = parent.path().join("own");
        fs::create_dir(&directory).unwrap();
        let path = |name: &str| directory.join(name);
        check(&path("none"), false, None);
        check(&path("new/deep/none"), false, None);
        fs::write(path("text"), "some other text").unwrap();
        fs::write(path("short"), "a").unwrap();
        fs::write(path("empty"), "").unwrap();
        check(&path("text"), false, Some("text is not a counter's file of tallyring"));
        check(&path("short"), false, Some("is not a counter's file"));
        check(&path("empty"), false, Some("is empty"));
        check(&path("empty"), true, None);
        check(&directory, false, Some("Is a directory"));
        let words =
            format!("text/sub for the counter's file: {} is no directory", path("text").display());
        check(&path("text/sub/counter.redb"), false, Some(&words));
        symlink(path("text/sub/counter.redb"), path("link")).unwrap();
        check(&path("link"), false, Some("is no directory"));
    }

    #[test]
    fn a_directory_that_takes_no_entry_is_seen() {
        // Not even root can create anything there. It is not listed: processes come and go.
        let said = probe(Path::new("/proc/counter.redb"), false).unwrap_err().to_string();
        assert!(said.contains("cannot write to the directory /proc"), "{said}");
    }

    #[test]
    fn several_may_probe_at_the_same_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("counter.redb");
        let probe = || (0..300).for_each(|_| probe(&path, false).unwrap());
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(probe)));
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_counter_that_runs_is_seen_and_not_disturbed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("counter.redb");
        let store = RedbStore::open(Disk::default(), &path, false).unwrap();
        let probed = probe(&path, false);
        assert!(matches!(probed, Ok(()) | Err(OpenError::InUse(_))), "{probed:?}");
        drop(store);
        assert!(probe(&path, false).is_ok());
        RedbStore::open(Disk::default(), &path, false).unwrap();
    }
}
