//! Reads the totals of a file while no counter uses it, writes totals into a new file for a backup, and restores them.
//!
//! A file that is read is never changed: its bytes are opened in memory, where redb repairs what a killed process has
//! left. A file that is written has another name until it is complete and on disk: if the process is killed, either the
//! old file or the new one is there.

use std::{
    ffi::OsString,
    fs::{File, Metadata},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Database, StorageBackend, backends::InMemoryBackend};

use super::{
    OpenError, TotalsByName,
    disk::{Disk, device_and_inode, directory_of, link_target, unfinished_path},
    file::{CACHE_BYTES_MAX, MAGIC, READ_BYTES, check_magic, create_unfinished, open_error},
    redb_store::{fill, mark, read_totals},
};

/// The largest file that is read into memory. One with the most names is far smaller.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The most old files that restores keep.
const KEPT_MAX: u32 = 1000;

/// All totals of the file at `path`, which no counter may use. The file is unchanged, and a counter may start to use it
/// at any time.
///
/// # Errors
/// When a counter uses it, or it cannot be read.
pub fn read(path: &Path) -> Result<TotalsByName, OpenError> {
    let disk = Disk::default();
    read_unused(&disk, path, &open_to_read(&disk, path)?)
}

fn open_to_read(disk: &Disk, path: &Path) -> Result<File, OpenError> {
    disk.open_to_read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => OpenError::Missing(path.to_owned()),
        _ => OpenError::Io(path.to_owned(), error),
    })
}

fn read_unused(disk: &Disk, path: &Path, file: &File) -> Result<TotalsByName, OpenError> {
    let check_unused = || match disk.is_locked(file) {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::InUse(path.to_owned())),
        Err(error) => Err(OpenError::Io(path.to_owned(), error)),
    };
    check_unused()?;
    let totals = read_file(disk, path, file);
    // If a counter started meanwhile, one half may be from before a commit and the other from after it.
    check_unused()?;
    totals
}

/// All totals of an open file that no process writes to.
fn read_file(disk: &Disk, path: &Path, file: &File) -> Result<TotalsByName, OpenError> {
    let io_error = |error| OpenError::Io(path.to_owned(), error);
    let metadata = disk.metadata(file).map_err(io_error)?;
    if !metadata.is_file() {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    let length = metadata.len();
    check_magic(disk, path, file, length)?;
    if length > FILE_BYTES_MAX {
        return Err(OpenError::TooLarge(path.to_owned(), length));
    }
    let memory = InMemoryBackend::new();
    memory.set_len(length).map_err(io_error)?;
    let mut bytes = vec![0; READ_BYTES];
    let mut offset = 0;
    while offset < length {
        let left = usize::try_from(length - offset).unwrap_or(usize::MAX);
        let bytes = &mut bytes[..left.min(READ_BYTES)];
        disk.read(file, offset, bytes).map_err(io_error)?;
        memory.write(offset, bytes).map_err(io_error)?;
        offset += bytes.len() as u64;
    }
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES_MAX)
        .set_check_integrity_on_open(true)
        .create_with_backend(memory)
        .map_err(|error| open_error(path, error))?;
    read_totals(path, &database)
}

/// Writes `totals` to a file at `path`. With `replace` it may replace a file.
///
/// # Errors
/// When it cannot be written. What was at `path` is still there then, unless the last sync of its directory failed.
pub fn write(path: &Path, totals: &TotalsByName, replace: bool) -> Result<(), OpenError> {
    write_on(&Disk::default(), path, totals, replace)
}

fn write_on(
    disk: &Disk,
    path: &Path,
    totals: &TotalsByName,
    replace: bool,
) -> Result<(), OpenError> {
    let path = &link_target(path);
    let is_there = match open_to_read(disk, path) {
        Err(OpenError::Missing(_)) => false,
        Ok(file) if replace => {
            match check_regular(disk, path, &file).map(|()| disk.is_locked(&file))? {
                Ok(false) => true,
                Ok(true) => return Err(OpenError::InUse(path.clone())),
                Err(error) => return Err(OpenError::Io(path.clone(), error)),
            }
        }
        Ok(_) => return Err(OpenError::Exists(path.clone())),
        Err(error) => return Err(error),
    };
    check_unfinished(disk, &unfinished_path(path))?;
    let finished = Finished::make(disk, path, totals, None)?;
    if is_there { finished.replace() } else { finished.name() }
}

/// Checks that a file with the name of an unfinished backup may be overwritten: only one that a killed backup has left,
/// which is redb's or has no content. The directory is the user's and may contain other files.
fn check_unfinished(disk: &Disk, path: &Path) -> Result<(), OpenError> {
    let file = match open_to_read(disk, path) {
        Err(OpenError::Missing(_)) => return Ok(()),
        file => file?,
    };
    let metadata = disk.metadata(&file).map_err(|error| OpenError::Io(path.to_owned(), error))?;
    let is_ours = metadata.is_file() && {
        let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX).min(MAGIC.len());
        let mut magic = vec![0; length];
        disk.read(&file, 0, &mut magic).map_err(|error| OpenError::Io(path.to_owned(), error))?;
        magic == MAGIC[..length] || magic.iter().all(|byte| *byte == 0)
    };
    if is_ours { Ok(()) } else { Err(OpenError::InTheWay(path.to_owned())) }
}

/// Refuses to replace a device or a pipe: root could turn /dev/null into a file.
fn check_regular(disk: &Disk, path: &Path, file: &File) -> Result<(), OpenError> {
    match disk.metadata(file) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(OpenError::Special(path.to_owned())),
        Err(error) => Err(OpenError::Io(path.to_owned(), error)),
    }
}

/// A file that is complete, on disk and locked, but does not have its final name yet.
struct Finished<'a> {
    disk: &'a Disk,
    path: &'a Path,
    unfinished: PathBuf,
    file: File,
    is_named: bool,
}

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        if !self.is_named {
            // If this fails, the next backup or restore uses the file.
            let _ = self.disk.remove(&self.unfinished);
        }
    }
}

impl<'a> Finished<'a> {
    /// Writes it next to `path`, with the owner and the permissions of the file `like`.
    fn make(
        disk: &'a Disk,
        path: &'a Path,
        totals: &TotalsByName,
        like: Option<&Metadata>,
    ) -> Result<Self, OpenError> {
        let directory = directory_of(path);
        // A file whose name could not be synced is not created at all.
        disk.sync_directory(directory)
            .map_err(|error| OpenError::Unsynced(directory.to_owned(), error))?;
        let unfinished = unfinished_path(path);
        let failed = |error| OpenError::Write(unfinished.clone(), error);
        let bytes = image(totals).map_err(|error| failed(io::Error::other(error)))?;
        let Some(file) = create_unfinished(disk, &unfinished).map_err(failed)? else {
            return Err(OpenError::InUse(path.to_owned()));
        };
        let finished = Self { disk, path, unfinished, file, is_named: false };
        finished.complete(&bytes, like).map_err(|error| finished.failed(error))?;
        // Read back what was written.
        if read_file(disk, &finished.unfinished, &finished.file)? != *totals {
            return Err(
                finished.failed(io::Error::other("it holds other totals than were written"))
            );
        }
        Ok(finished)
    }

    fn complete(&self, bytes: &[u8], like: Option<&Metadata>) -> io::Result<()> {
        if let Some(like) = like {
            self.disk.own_like(&self.file, like)?;
        }
        self.disk.write(&self.file, 0, bytes)?;
        self.disk.sync(&self.file)
    }

    fn failed(&self, error: io::Error) -> OpenError {
        OpenError::Write(self.unfinished.clone(), error)
    }

    /// Gives it its final name, which must be free.
    fn name(mut self) -> Result<(), OpenError> {
        match self.disk.rename_to_new(&self.unfinished, self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(OpenError::Exists(self.path.to_owned()));
            }
            result => result.map_err(|error| self.failed(error))?,
        }
        self.is_named = true;
        self.sync_name()
    }

    /// Replaces the file that has its final name.
    fn replace(mut self) -> Result<(), OpenError> {
        let renamed = self.disk.rename_over(&self.unfinished, self.path);
        renamed.map_err(|error| self.failed(error))?;
        self.is_named = true;
        self.sync_name()
    }

    fn sync_name(&self) -> Result<(), OpenError> {
        let synced = self.disk.sync_directory(directory_of(self.path));
        synced.map_err(|error| OpenError::Write(self.path.to_owned(), error))
    }
}

/// The bytes of a file with these totals.
fn image(totals: &TotalsByName) -> Result<Vec<u8>, redb::Error> {
    let memory = Memory::default();
    let database =
        Database::builder().set_cache_size(CACHE_BYTES_MAX).create_with_backend(memory.clone())?;
    mark(&database)?;
    fill(&database, totals)?;
    database.close()?;
    let mut bytes = vec![0; usize::try_from(memory.len()?).unwrap_or(usize::MAX)];
    memory.read(0, &mut bytes)?;
    Ok(bytes)
}

/// Memory that remains when the database in it is closed.
#[derive(Debug, Default, Clone)]
struct Memory(Arc<InMemoryBackend>);

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        StorageBackend::read(&*self.0, offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        StorageBackend::write(&*self.0, offset, data)
    }
}

/// A restore that is possible. The counter's file is locked until it is replaced.
#[derive(Debug)]
pub struct Restore {
    disk: Disk,
    path: PathBuf,
    /// The totals of the backup.
    pub backup: TotalsByName,
    /// The totals of the counter's file, or why they cannot be read; `None` without a file.
    pub now: Option<Result<TotalsByName, OpenError>>,
    old: Option<Metadata>,
    _lock: Option<File>,
}

impl Restore {
    /// Reads the file at `backup`, and the counter's file at `path`, which no counter may use.
    ///
    /// # Errors
    /// When one of them is in use, or the backup cannot be read. Nothing has changed then.
    pub fn prepare(backup: &Path, path: &Path) -> Result<Self, OpenError> {
        Self::prepare_on(Disk::default(), backup, path)
    }

    fn prepare_on(disk: Disk, backup: &Path, path: &Path) -> Result<Self, OpenError> {
        let path = link_target(path);
        let source = open_to_read(&disk, backup)?;
        let io_error = |error| OpenError::Io(path.clone(), error);
        let file = match disk.open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error(error)),
        };
        let Some(file) = file else {
            let backup = read_unused(&disk, backup, &source)?;
            return Ok(Self { disk, path, backup, now: None, old: None, _lock: None });
        };
        check_regular(&disk, &path, &file)?;
        let old = disk.metadata(&file).map_err(io_error)?;
        let of_source = disk.metadata(&source).map_err(io_error)?;
        if device_and_inode(&old) == device_and_inode(&of_source) {
            return Err(OpenError::Same(path));
        }
        if !disk.lock(&file).map_err(io_error)? {
            return Err(OpenError::InUse(path));
        }
        // Before the lock, another restore may have replaced it.
        let named = disk.metadata_of(&path).map_err(io_error)?;
        if device_and_inode(&old) != device_and_inode(&named) {
            return Err(OpenError::InUse(path));
        }
        let now = match read_file(&disk, &path, &file) {
            Err(OpenError::Io(path, error)) => return Err(OpenError::Io(path, error)),
            now => Some(now),
        };
        let backup = read_unused(&disk, backup, &source)?;
        Ok(Self { disk, path, backup, now, old: Some(old), _lock: Some(file) })
    }

    /// Replaces the counter's file by one with the totals of the backup; the path under which the old file is kept.
    ///
    /// # Errors
    /// When that fails. The counter's file is unchanged then, unless the last sync of its directory failed.
    pub fn replace(self) -> Result<Option<PathBuf>, OpenError> {
        let directory = directory_of(&self.path);
        self.disk
            .make_directories(directory)
            .map_err(|error| OpenError::Directory(directory.to_owned(), error))?;
        // The counter probably runs as the owner of the file or of the directory.
        let of_directory = || match rustix::process::geteuid().is_root() {
            true => self.disk.metadata_of(directory).map(Some),
            false => Ok(None),
        };
        let like = match &self.old {
            Some(old) => Some(old.clone()),
            None => of_directory().map_err(|error| OpenError::Io(directory.to_owned(), error))?,
        };
        let finished = Finished::make(&self.disk, &self.path, &self.backup, like.as_ref())?;
        if self.old.is_none() {
            finished.name()?;
            return Ok(None);
        }
        let kept = keep(&self.disk, &self.path)?;
        finished.replace()?;
        Ok(Some(kept))
    }
}

/// Gives the file at `path` a second name, which was free, and syncs the directory.
fn keep(disk: &Disk, path: &Path) -> Result<PathBuf, OpenError> {
    let mut number = 1;
    loop {
        let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
        name.push(".before-restore");
        if number > 1 {
            name.push(format!("-{number}"));
        }
        let kept = path.with_file_name(name);
        let linked = disk.link(path, &kept).and_then(|()| disk.sync_directory(directory_of(path)));
        match linked {
            Ok(()) => return Ok(kept),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < KEPT_MAX => {
                number += 1;
            }
            Err(error) => return Err(OpenError::NotKept(path.to_owned(), kept, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, panic};

    use proptest::prelude::*;
    use rustix::io::Errno;

    use super::{super::faults::Faults, *};

    fn totals(of: &[(&str, u64)]) -> TotalsByName {
        of.iter().map(|(name, total)| ((*name).to_owned(), *total)).collect()
    }

    /// A counter's file that holds 9, and a backup of it that holds 7.
    fn files(directory: &Path) -> [PathBuf; 2] {
        let files = ["counter.redb", "backup"].map(|name| directory.join(name));
        for (path, total) in files.iter().zip([9, 7]) {
            write(path, &totals(&[("", total), ("a", 1)]), false).unwrap();
        }
        files
    }

    fn names_in(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Makes call `number` of a restore fail; with `killed`, all calls after it too. False when there is no such call.
    #[track_caller]
    fn check_fault(number: usize, killed: bool) -> bool {
        let directory = tempfile::tempdir().unwrap();
        let [path, backup] = files(directory.path());
        let faults = Arc::<Faults>::default();
        faults.fail(number, if killed { usize::MAX - number } else { 1 }, Errno::IO);
        let disk = Disk { faults: Some(Arc::clone(&faults)) };
        let restored =
            Restore::prepare_on(disk, &backup, &path).and_then(|restore| restore.replace());
        let failed = faults.end() > 0;
        // Either file is there and complete; with the new one, the old one is kept.
        let found = read(&path).unwrap_or_else(|error| panic!("call {number}: {error}"));
        let is_new = found[""] == 7;
        assert!(is_new || found[""] == 9, "call {number}: {found:?}");
        assert!(is_new || restored.is_err(), "call {number}");
        let kept = directory.path().join("counter.redb.before-restore");
        if is_new {
            assert_eq!(read(&kept).unwrap()[""], 9, "call {number}");
        }
        // Another restore works.
        let restored = Restore::prepare(&backup, &path).unwrap().replace().unwrap();
        assert!(restored.is_some() && read(&path).unwrap()[""] == 7);
        assert!(!names_in(directory.path()).contains(&"counter.redb.unfinished".into()));
        failed
    }

    #[test]
    fn a_restore_that_fails_anywhere_leaves_the_old_file_or_the_new_one() {
        for killed in [false, true] {
            let calls = (0..).take_while(|&number| check_fault(number, killed)).count();
            assert!(calls > 20, "{calls} calls");
        }
    }

    /// The same for a backup, with or without an old one that it replaces.
    #[track_caller]
    fn check_fault_of_backup(number: usize, replace: bool) -> bool {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backup");
        let (old, new) = (totals(&[("", 1)]), totals(&[("", 2)]));
        if replace {
            write(&path, &old, false).unwrap();
        }
        let faults = Arc::<Faults>::default();
        faults.fail(number, 1, Errno::NOSPC);
        let disk = Disk { faults: Some(Arc::clone(&faults)) };
        let written = write_on(&disk, &path, &new, replace);
        let failed = faults.end() > 0;
        match read(&path) {
            Ok(found) => assert!(found == new || (written.is_err() && replace && found == old)),
            Err(OpenError::Missing(_)) => assert!(written.is_err() && !replace),
            Err(error) => panic!("call {number}: {error}"),
        }
        write(&path, &new, true).unwrap();
        assert_eq!(names_in(directory.path()), ["backup"]);
        failed
    }

    #[test]
    fn a_backup_that_fails_leaves_what_was_there() {
        for replace in [false, true] {
            let calls = (0..).take_while(|&number| check_fault_of_backup(number, replace)).count();
            assert!(calls > 10, "{calls} calls");
        }
    }

    #[test]
    fn other_files_are_left_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let [path, backup] = files(directory.path());
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let is_special = |error| matches!(error, OpenError::Special(_));
        for special in [&pipe, directory.path(), Path::new("/dev/null")] {
            assert!(is_special(write(special, &totals(&[("", 1)]), true).unwrap_err()));
        }
        for special in [&pipe, Path::new("/dev/null")] {
            assert!(is_special(Restore::prepare(&backup, special).unwrap_err()));
        }
        // A file with the name of an unfinished backup.
        let other = directory.path().join("thesis");
        let text = directory.path().join("thesis.unfinished");
        fs::write(&text, "not finished yet").unwrap();
        let in_the_way = write(&other, &totals(&[("", 1)]), false).unwrap_err();
        assert!(matches!(in_the_way, OpenError::InTheWay(_)), "{in_the_way}");
        assert_eq!(fs::read(&text).unwrap(), b"not finished yet");
        // What a killed backup has left may be overwritten.
        for left in [fs::read(&path).unwrap(), vec![0; 5000], vec![], MAGIC[..4].to_vec()] {
            fs::write(&text, left).unwrap();
            write(&other, &totals(&[("", 1)]), true).unwrap();
            assert!(!text.exists());
        }
    }

    #[test]
    fn a_file_in_use_is_neither_read_nor_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let [path, backup] = files(directory.path());
        let store = super::super::open(&super::super::Kind::Redb(path.clone()), false).unwrap();
        let is_in_use = |error| matches!(error, OpenError::InUse(_));
        assert!(is_in_use(read(&path).unwrap_err()));
        assert!(is_in_use(write(&path, &TotalsByName::new(), true).unwrap_err()));
        assert!(is_in_use(Restore::prepare(&backup, &path).unwrap_err()));
        drop(store);
        // A restore that is prepared keeps a counter from starting.
        let restore = Restore::prepare(&backup, &path).unwrap();
        let begun = super::super::open(&super::super::Kind::Redb(path.clone()), false);
        assert!(is_in_use(begun.err().unwrap()));
        drop(restore);
        assert_eq!(read(&path).unwrap()[""], 9);
    }

    #[test]
    fn a_counter_may_start_while_its_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let [path, _] = files(directory.path());
        // A reader holds no lock.
        let disk = Disk::default();
        let reading = open_to_read(&disk, &path).unwrap();
        assert_eq!(read_unused(&disk, &path, &reading).unwrap()[""], 9);
        drop(super::super::open(&super::super::Kind::Redb(path), false).unwrap());
    }

    #[test]
    fn a_restored_file_has_the_permissions_of_the_one_before() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let [path, backup] = files(directory.path());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        Restore::prepare(&backup, &path).unwrap().replace().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    /// The totals of a file with these bytes, if it can be read.
    fn read_bytes(content: &[u8]) -> Option<TotalsByName> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("damaged");
        fs::write(&path, content).unwrap();
        panic::catch_unwind(|| read(&path)).expect("it panicked").ok()
    }

    #[test]
    fn each_byte_of_the_head_may_be_damaged() {
        let expected = totals(&[("", 9), ("a", 1)]);
        let whole = image(&expected).unwrap();
        // The magic number and redb's header, then its two commit slots.
        for place in 0..320 {
            let mut content = whole.clone();
            content[place] ^= 0xff;
            if let Some(found) = read_bytes(&content) {
                assert_eq!(found, expected, "byte {place}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A damaged file has its totals, or is refused.
        #[test]
        fn a_damaged_file_is_refused_or_right(
            place in any::<prop::sample::Index>(),
            bytes in prop::collection::vec(any::<u8>(), 1..64),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let expected = totals(&[("", 9), ("a", 1)]);
            let mut content = image(&expected).unwrap();
            // The first pages, which are in use.
            let place = place.index(content.len().min(64 * 1024));
            content[place..place + bytes.len()].copy_from_slice(&bytes);
            if let Some(cut) = cut {
                content.truncate(cut.index(content.len()));
            }
            if let Some(found) = read_bytes(&content) {
                prop_assert_eq!(found, expected);
            }
        }
    }
}
