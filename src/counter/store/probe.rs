//! What a start would find of the counter's file, looked at beside a counter that may run on it: nothing is changed
//! that lasts, no lock is taken, and nothing is made under a name that another start would use.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process,
};

use rustix::{
    fs::{major, minor},
    io::Errno,
};

use super::{
    OpenError,
    disk::{directory_of, link_target},
    file::MAGIC,
};

/// Whether the file at `path` can be opened, or made where there is none, as far as can be seen; an error that it
/// is in use is one that may pass.
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
    let mut magic = [0; MAGIC.len()];
    match file.metadata().map_err(io_error)?.len() {
        0 if create => return probe_directory(directory_of(path)),
        0 => return Err(OpenError::Empty(path.to_owned())),
        length if length < MAGIC.len() as u64 => return Err(OpenError::Foreign(path.to_owned())),
        _ => file.read_exact_at(&mut magic, 0).map_err(io_error)?,
    }
    if magic != MAGIC {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    if is_locked(&file) { Err(OpenError::InUse(path.to_owned())) } else { Ok(()) }
}

fn is_nothing_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether a file can be made in `directory`, which itself may have to be made.
fn probe_directory(directory: &Path) -> Result<(), OpenError> {
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
    // A new file is synced by its directory, which has to be opened for that.
    File::open(existing).map_err(|error| OpenError::Unsynced(existing.to_owned(), error))?;
    try_entry(existing).map_err(|error| OpenError::NotWritable(existing.to_owned(), error))
}

/// Makes an entry in a directory and removes it again: permissions alone do not tell whether one can be made.
fn try_entry(directory: &Path) -> io::Result<()> {
    let entry = directory.join(format!(".tallyring-check-{}", process::id()));
    match fs::create_dir(&entry) {
        // Of a process that was killed and had this number.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    match fs::remove_dir(&entry) {
        // By another one that looks at the same time; in containers, all processes have the same number.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether a process has a lock on the file, as far as proc_locks(5) tells: to ask by taking it could keep a start
/// from it. Some file systems show their files under another device there.
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
    use crate::counter::store::disk::Disk;

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
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        check(&path("none"), false, None);
        check(&path("new/deep/none"), false, None);
        fs::write(path("text"), "a text of somebody's").unwrap();
        fs::write(path("short"), "a").unwrap();
        fs::write(path("empty"), "").unwrap();
        check(&path("text"), false, Some("text is not a counter's file of tallyring"));
        check(&path("short"), false, Some("is not a counter's file"));
        check(&path("empty"), false, Some("is empty"));
        check(&path("empty"), true, None);
        check(directory.path(), false, Some("Is a directory"));
        let words =
            format!("text/sub for the counter's file: {} is no directory", path("text").display());
        check(&path("text/sub/counter.redb"), false, Some(&words));
        symlink(path("text/sub/counter.redb"), path("link")).unwrap();
        check(&path("link"), false, Some("is no directory"));
        // Not even root makes anything there.
        check(Path::new("/proc/counter.redb"), false, Some("cannot write to the directory /proc"));
    }

    #[test]
    fn several_may_look_at_the_same_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("counter.redb");
        let look = || (0..300).for_each(|_| probe(&path, false).unwrap());
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(look)));
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
