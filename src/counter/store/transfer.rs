//! Reads the totals of a file while no counter uses it, and writes totals into a new file for a backup.
//!
//! A file that is read is never changed: its bytes are opened in memory, where redb repairs what a killed process has
//! left.

use std::{fs::File, io, path::Path, sync::Arc};

use redb::{Database, StorageBackend, backends::InMemoryBackend};

use super::{
    Mark, OpenError, TotalsByName,
    disk::Disk,
    file::{CACHE_BYTES_MAX, MAGIC, READ_BYTES, check_magic, open_error},
    finished::{Replaces, open_to_read, write_whole},
    redb_store::{fill, mark, read_mark, read_totals},
};

/// The largest file that is read into memory. One with the most names is far smaller.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What a counter's file holds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) totals: TotalsByName,
    /// Why no counter may use it.
    pub(super) mark: Option<Mark>,
}

/// All totals of the file at `path`, which no counter may use. The file is unchanged, and a counter may start to use it
/// at any time.
///
/// # Errors
/// When a counter uses it, or it cannot be read.
pub fn read(path: &Path) -> Result<TotalsByName, OpenError> {
    read_marked(path).map(|(totals, _)| totals)
}

/// The same, and why no counter may start to use it, if so.
///
/// # Errors
/// As those of [`read()`].
pub fn read_marked(path: &Path) -> Result<(TotalsByName, Option<Mark>), OpenError> {
    let disk = Disk::default();
    let Contents { totals, mark } = read_unused(&disk, path, &open_to_read(&disk, path)?)?;
    Ok((totals, mark))
}

pub(super) fn read_unused(disk: &Disk, path: &Path, file: &File) -> Result<Contents, OpenError> {
    let check_unused = || match disk.is_locked(file) {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::InUse(path.to_owned())),
        Err(error) => Err(OpenError::Io(path.to_owned(), error)),
    };
    check_unused()?;
    let contents = read_file(disk, path, file);
    // If a counter started meanwhile, one half may be from before a commit and the other from after it.
    check_unused()?;
    contents
}

/// What an open file holds that no process writes to.
pub(super) fn read_file(disk: &Disk, path: &Path, file: &File) -> Result<Contents, OpenError> {
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
    Ok(Contents { totals: read_totals(path, &database)?, mark: read_mark(path, &database)? })
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
    let contents = Contents { totals: totals.clone(), mark: None };
    let bytes = image(path, &contents)?;
    let holds = |path: &Path, file: &File| Ok(read_file(disk, path, file)? == contents);
    let replaces = if replace { Replaces::Any } else { Replaces::None };
    write_whole(disk, path, (&bytes, &MAGIC), replaces, holds)
}

/// Writes a text to a file at `path`. Such texts begin with `begin`; with `replace` it may replace another one of them.
///
/// # Errors
/// As those of [`write()`].
pub fn write_text(path: &Path, text: &str, begin: &str, replace: bool) -> Result<(), OpenError> {
    let disk = Disk::default();
    let (bytes, begin) = (text.as_bytes(), begin.as_bytes());
    let holds = |path: &Path, file: &File| {
        let mut written = vec![0; bytes.len()];
        let read = disk.read(file, 0, &mut written);
        read.map_err(|error| OpenError::Io(path.to_owned(), error))?;
        Ok(written == bytes)
    };
    let replaces = if replace { Replaces::Ours } else { Replaces::None };
    write_whole(&disk, path, (bytes, begin), replaces, holds)
}

/// The bytes of a file at `path` that holds this.
pub(super) fn image(path: &Path, contents: &Contents) -> Result<Vec<u8>, OpenError> {
    make_image(contents).map_err(|error| OpenError::Write(path.to_owned(), io::Error::other(error)))
}

fn make_image(contents: &Contents) -> Result<Vec<u8>, redb::Error> {
    let memory = Memory::default();
    let database =
        Database::builder().set_cache_size(CACHE_BYTES_MAX).create_with_backend(memory.clone())?;
    mark(&database)?;
    fill(&database, &contents.totals, contents.mark.as_ref())?;
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

#[cfg(test)]
mod tests {
    use std::{fs, panic, path::PathBuf};

    use proptest::prelude::*;
    use rustix::io::Errno;

    use super::{
        super::{faults::Faults, held::Restore},
        *,
    };

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
        assert_eq!(read_unused(&disk, &path, &reading).unwrap().totals[""], 9);
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

    fn image_of(totals: &TotalsByName) -> Vec<u8> {
        image(Path::new(""), &Contents { totals: totals.clone(), mark: None }).unwrap()
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
        let whole = image_of(&expected);
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
            let mut content = image_of(&expected);
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
