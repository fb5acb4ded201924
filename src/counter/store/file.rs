//! The counter's file as the system has it: how it is made and opened, whether its name still leads to
//! it, and the bytes that redb reads and writes. Knows nothing of totals.

use std::{
    fs::File,
    io,
    ops::Bound,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use redb::{
    BackendError, Database, DatabaseError, StorageBackend, StorageError, backends::FileBackend,
};

use super::{
    OpenError,
    disk::{Call, Disk, directory_of, link_target, unfinished_path},
};

/// What each redb file begins with.
pub(super) const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
/// Pages that redb keeps in memory. A file with as many names as there may be is smaller.
pub(super) const CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How often a start looks again when the file appears or vanishes under its hands.
const ATTEMPTS_MAX: usize = 3;
/// What is read at a time.
pub(super) const READ_BYTES: usize = 256 * PAGE_BYTES;
/// What is written back at a time.
const PAGE_BYTES: usize = 4096;

/// A file that is open and locked, and the database in it.
#[derive(Debug)]
pub(super) struct CounterFile {
    pub(super) database: Database,
    device_and_inode: (u64, u64),
    shared: Arc<Shared>,
}

/// What redb's side of a file and ours both know.
#[derive(Debug, Default)]
struct Shared {
    /// How long the file is, by what was done to it here.
    length: AtomicU64,
    /// Nothing is read from it or written to it any more.
    given_up: AtomicBool,
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// The file that is open.
    Same,
    /// Nothing.
    Nothing,
    /// Another file.
    Another,
    /// The file that is open, but somebody has cut it.
    Cut,
}

impl CounterFile {
    /// Opens the file at `path`, or makes it where there is none. An empty one is another's only if
    /// `create` says so.
    pub(super) fn open_or_create(
        disk: &Disk,
        path: &Path,
        create: bool,
    ) -> Result<Self, OpenError> {
        let path = &link_target(path);
        disk.make_directories(directory_of(path))
            .map_err(|error| OpenError::Directory(directory_of(path).to_owned(), error))?;
        for _ in 0..ATTEMPTS_MAX {
            match Self::open(disk, path) {
                Err(OpenError::Missing(_)) => {}
                Err(OpenError::Empty(_)) if create => remove_empty(disk, path)?,
                result => return result,
            }
            if let Some(made) = Self::create(disk, path)? {
                tracing::info!("made the counter's file {}; it begins from zero", path.display());
                return Ok(made);
            }
        }
        let problem = "its name leads to nothing and cannot be given to a new file";
        Err(OpenError::Io(path.to_owned(), io::Error::other(problem)))
    }

    /// Opens the file at `path`. Never makes one.
    ///
    /// What it holds was checked and is on disk. The system's cache alone proves neither: after a
    /// failed write it may give back what never reached the disk, call it clean and never write it
    /// again, in this process and in the next. So all of it is written once more, and the sync after
    /// that must succeed, before redb takes any of it for true: redb's own repair would overwrite the
    /// commit to go back to.
    pub(super) fn open(disk: &Disk, path: &Path) -> Result<Self, OpenError> {
        let io_error = |error| OpenError::Io(path.to_owned(), error);
        let file = match disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::Missing(path.to_owned()));
            }
            result => result.map_err(io_error)?,
        };
        let metadata = disk.metadata(&file).map_err(io_error)?;
        if !metadata.is_file() {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        if !disk.lock(&file).map_err(io_error)? {
            return Err(OpenError::InUse(path.to_owned()));
        }
        // Once more, behind the lock.
        let length = disk.metadata(&file).map_err(io_error)?.len();
        check_begin(disk, path, &file, length)?;
        write_again(disk, &file, length).map_err(io_error)?;
        // Its maker may have been killed before this.
        match disk.sync_directory(directory_of(&link_target(path))) {
            // Who may not read a directory cannot sync it, and makes no file there: see `create`.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => result.map_err(io_error)?,
        }
        Self::with_database(disk, file, length).map_err(|error| open_error(path, error))
    }

    /// Makes the file at `path`; `None` when another process was faster.
    ///
    /// It is made under another name and gets its own when it is complete and on disk: who is killed
    /// in between leaves nothing that a later start would take for a counter.
    fn create(disk: &Disk, path: &Path) -> Result<Option<Self>, OpenError> {
        let io_error = |error| OpenError::Io(path.to_owned(), error);
        let directory = directory_of(path);
        // A file whose name cannot be brought to disk is not made at all.
        disk.sync_directory(directory)
            .map_err(|error| OpenError::Unsynced(directory.to_owned(), error))?;
        let unfinished = unfinished_path(path);
        let of_unfinished = |error| OpenError::Io(unfinished.clone(), error);
        let Some(file) = create_unfinished(disk, &unfinished).map_err(of_unfinished)? else {
            return Err(OpenError::InUse(path.to_owned()));
        };
        let complete = || {
            let made = Self::with_database(disk, file, 0).map_err(|e| open_error(path, e))?;
            super::redb_store::mark(&made.database).map_err(|error| match error {
                redb::Error::Io(error) => io_error(error),
                error => io_error(io::Error::other(error)),
            })?;
            Ok(made)
        };
        let named = complete().and_then(|made| {
            let renamed = disk.rename_to_new(&unfinished, path);
            match renamed.and_then(|()| disk.sync_directory(directory)) {
                Ok(()) => Ok(Some(made)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
                Err(error) => Err(io_error(error)),
            }
        });
        if !matches!(named, Ok(Some(_))) {
            // Whoever comes next could use it too.
            let _ = disk.remove(&unfinished);
        }
        named
    }

    fn with_database(disk: &Disk, file: File, length: u64) -> Result<Self, DatabaseError> {
        let metadata = disk.metadata(&file).map_err(StorageError::Io)?;
        let shared = Arc::new(Shared { length: length.into(), given_up: false.into() });
        let backend = Backend {
            disk: disk.clone(),
            file: FileBackend::new(file)?,
            is_new: length == 0,
            shared: Arc::clone(&shared),
        };
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES_MAX)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)?;
        let device_and_inode = (metadata.dev(), metadata.ino());
        Ok(Self { database, device_and_inode, shared })
    }

    /// What `path` leads to now.
    pub(super) fn named(&self, disk: &Disk, path: &Path) -> io::Result<Named> {
        let metadata = match disk.metadata_of(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Named::Nothing),
            result => result?,
        };
        Ok(match (metadata.dev(), metadata.ino()) == self.device_and_inode {
            false => Named::Another,
            true if metadata.len() < self.shared.length.load(Ordering::Relaxed) => Named::Cut,
            true => Named::Same,
        })
    }

    /// Closes it without a further write: what it held is not there any more, and what redb notes
    /// at its close would stand alone.
    pub(super) fn give_up(self) {
        self.shared.given_up.store(true, Ordering::Relaxed);
    }
}

/// Whether a file of this length begins like one of redb's.
pub(super) fn check_begin(
    disk: &Disk,
    path: &Path,
    file: &File,
    length: u64,
) -> Result<(), OpenError> {
    let mut magic = [0; MAGIC.len()];
    if length == 0 {
        return Err(OpenError::Empty(path.to_owned()));
    }
    if length < MAGIC.len() as u64 {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    disk.read(file, 0, &mut magic).map_err(|error| OpenError::Io(path.to_owned(), error))?;
    if magic != MAGIC {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    Ok(())
}

/// Opens the file that is to become the counter's, alone; `None` when another process makes it now.
/// What somebody has left there who was killed is used again.
pub(super) fn create_unfinished(disk: &Disk, path: &Path) -> io::Result<Option<File>> {
    for _ in 0..ATTEMPTS_MAX {
        let file = disk.create(path)?;
        if !disk.lock(&file)? {
            return Ok(None);
        }
        // Between the two, whoever had the lock may have finished: then this is the counter's file,
        // under its own name.
        let (opened, named) = (disk.metadata(&file)?, disk.metadata_of(path));
        let is_named =
            named.is_ok_and(|named| named.dev() == opened.dev() && named.ino() == opened.ino());
        if !is_named {
            continue;
        }
        if opened.nlink() > 1 {
            // It has its own name too; see `rename_to_new`.
            disk.remove(path)?;
            continue;
        }
        disk.set_length(&file, 0)?;
        return Ok(Some(file));
    }
    Ok(None)
}

/// Removes an empty file, unless it is in use or not empty any more.
fn remove_empty(disk: &Disk, path: &Path) -> Result<(), OpenError> {
    let io_error = |error| OpenError::Io(path.to_owned(), error);
    let file = disk.open(path).map_err(io_error)?;
    // Nobody else removes it or puts another in its place while it is locked.
    if !disk.lock(&file).map_err(io_error)? {
        return Err(OpenError::InUse(path.to_owned()));
    }
    let (opened, named) = (disk.metadata(&file), disk.metadata_of(path));
    let (opened, named) = (opened.map_err(io_error)?, named.map_err(io_error)?);
    if opened.len() == 0 && opened.ino() == named.ino() && opened.dev() == named.dev() {
        disk.remove(path).map_err(io_error)?;
    }
    Ok(())
}

/// Writes all of a file once more as it is, its length too, and syncs it. A page of zeros holds nothing
/// of redb's and may be a hole, which is not filled.
fn write_again(disk: &Disk, file: &File, length: u64) -> io::Result<()> {
    let mut bytes = vec![0; READ_BYTES];
    let mut offset = 0;
    disk.set_length(file, length)?;
    while offset < length {
        let left = usize::try_from(length - offset).unwrap_or(usize::MAX);
        let bytes = &mut bytes[..left.min(READ_BYTES)];
        disk.read(file, offset, bytes)?;
        for page in bytes.chunks(PAGE_BYTES) {
            if page.iter().any(|byte| *byte != 0) {
                disk.write(file, offset, page)?;
            }
            offset += page.len() as u64;
        }
    }
    disk.sync(file)
}

pub(super) fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path),
        // What redb says of a file that does not begin like one of its own.
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == io::ErrorKind::InvalidData =>
        {
            OpenError::Foreign(path)
        }
        DatabaseError::Storage(StorageError::Io(error)) => OpenError::Io(path, error),
        DatabaseError::Storage(StorageError::Corrupted(reason)) => OpenError::Damaged(path, reason),
        error => OpenError::Damaged(path, error.to_string()),
    }
}

/// The file as redb has it.
#[derive(Debug)]
struct Backend {
    disk: Disk,
    file: FileBackend,
    /// Whether it may be empty, in which case redb begins a database.
    is_new: bool,
    shared: Arc<Shared>,
}

impl Backend {
    fn before(&self, call: Call<'_>) -> io::Result<()> {
        if self.shared.given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("the file was given up"));
        }
        self.disk.before(call)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.before(Call::Length)?;
        match self.file.len()? {
            0 if !self.is_new => Err(io::Error::other("somebody has emptied the file")),
            length => Ok(length),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.before(Call::Read)?;
        self.file.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.before(Call::SetLength(length))?;
        self.file.set_len(length)?;
        self.shared.length.store(length, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.before(Call::Sync)?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.before(Call::Write(offset, data))?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
