//! The counter's file for the system: how it is created and opened, whether its name still leads to it, and the bytes
//! that redb reads and writes. Knows nothing of totals.

use std::{
    fs::File,
    io,
    ops::Bound,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
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
    disk::{Call, Disk, device_and_inode, directory_of, link_target, unfinished_path},
};

/// The first bytes of each redb file.
pub(super) const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
/// Pages that redb keeps in memory. A file with the most names is smaller.
pub(super) const CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How often a start tries again when the file appears or vanishes meanwhile.
const ATTEMPTS_MAX: usize = 3;
/// Bytes that are read at a time.
pub(super) const READ_BYTES: usize = 256 * PAGE_BYTES;
/// Bytes that are written back at a time.
const PAGE_BYTES: usize = 4096;

/// A file that is open and locked, and the database in it.
#[derive(Debug)]
pub(super) struct CounterFile {
    pub(super) database: Database,
    device_and_inode: (u64, u64),
    shared: Arc<Shared>,
}

/// What is known of a file by redb's backend and by us.
#[derive(Debug, Default)]
struct Shared {
    /// The length that this process has given it.
    length: AtomicU64,
    /// Whether reads and writes fail from now on.
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
    /// The file that is open, but another process has made it shorter.
    Truncated,
}

impl CounterFile {
    /// Opens the file at `path`, or creates it. With `create`, an empty file is replaced by a new one.
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

    /// Opens the file at `path`. Never creates one.
    ///
    /// After this its content is checked and on disk. Reading alone does not prove that it is on disk: after a failed
    /// write the kernel's cache may return data that never reached the disk, as clean pages that are never written
    /// again, in this process and in the next. So the whole file is written and synced once more before redb reads
    /// it: redb's own repair could overwrite the last commit that is intact.
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
        // Once more, since it may have changed before it was locked.
        let length = disk.metadata(&file).map_err(io_error)?.len();
        check_magic(disk, path, &file, length)?;
        write_again(disk, &file, length).map_err(io_error)?;
        // The process that created it may have been killed before this.
        match disk.sync_directory(directory_of(&link_target(path))) {
            // A process that may not read the directory cannot have created the file: see `create`.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => result.map_err(io_error)?,
        }
        Self::with_database(disk, file, length).map_err(|error| open_error(path, error))
    }

    /// Creates the file at `path`; `None` when another process was faster.
    ///
    /// It is created under another name and renamed when it is complete and on disk: a process that is killed in
    /// between leaves nothing that a later start would take for a counter's file.
    fn create(disk: &Disk, path: &Path) -> Result<Option<Self>, OpenError> {
        let io_error = |error| OpenError::Io(path.to_owned(), error);
        let (unfinished, file) = begin_unfinished(disk, path, OpenError::Io)?;
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
            match renamed.and_then(|()| disk.sync_directory(directory_of(path))) {
                Ok(()) => Ok(Some(made)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
                Err(error) => Err(io_error(error)),
            }
        });
        if !matches!(named, Ok(Some(_))) {
            // If this fails, the next start uses the file.
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
        Ok(Self { database, device_and_inode: device_and_inode(&metadata), shared })
    }

    /// What `path` leads to now.
    pub(super) fn named(&self, disk: &Disk, path: &Path) -> io::Result<Named> {
        let metadata = match disk.metadata_of(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Named::Nothing),
            result => result?,
        };
        Ok(match device_and_inode(&metadata) == self.device_and_inode {
            false => Named::Another,
            true if metadata.len() < self.shared.length.load(Ordering::Relaxed) => Named::Truncated,
            true => Named::Same,
        })
    }

    /// Closes it without another write: its content is gone, and redb would write its closing mark into an otherwise
    /// empty file.
    pub(super) fn give_up(self) {
        self.shared.given_up.store(true, Ordering::Relaxed);
    }
}

/// Checks that a file of this length begins like one of redb.
pub(super) fn check_magic(
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

/// Begins the file that is to have this path: it has another one until it is complete, and is locked. `failed` makes the
/// error where it cannot be created.
pub(super) fn begin_unfinished(
    disk: &Disk,
    path: &Path,
    failed: fn(PathBuf, io::Error) -> OpenError,
) -> Result<(PathBuf, File), OpenError> {
    let directory = directory_of(path);
    // A file whose name could not be synced is not created at all.
    disk.sync_directory(directory)
        .map_err(|error| OpenError::Unsynced(directory.to_owned(), error))?;
    let unfinished = unfinished_path(path);
    match create_unfinished(disk, &unfinished) {
        Ok(Some(file)) => Ok((unfinished, file)),
        Ok(None) => Err(OpenError::InUse(path.to_owned())),
        Err(error) => Err(failed(unfinished, error)),
    }
}

/// Opens and locks the file that is to become the counter's; `None` when another process has the lock. What a process
/// that was killed has left there is used again.
fn create_unfinished(disk: &Disk, path: &Path) -> io::Result<Option<File>> {
    for _ in 0..ATTEMPTS_MAX {
        let file = disk.create(path)?;
        if !disk.lock(&file)? {
            return Ok(None);
        }
        // Before the lock, another process may have finished it: then this is the counter's file under its final name.
        let (opened, named) = (disk.metadata(&file)?, disk.metadata_of(path));
        let is_named =
            named.is_ok_and(|named| device_and_inode(&named) == device_and_inode(&opened));
        if !is_named {
            continue;
        }
        if opened.nlink() > 1 {
            // It has its final name too; see `rename_to_new`.
            disk.remove(path)?;
            continue;
        }
        disk.set_length(&file, 0)?;
        return Ok(Some(file));
    }
    Ok(None)
}

/// Removes an empty file, unless it is in use or no longer empty.
fn remove_empty(disk: &Disk, path: &Path) -> Result<(), OpenError> {
    let io_error = |error| OpenError::Io(path.to_owned(), error);
    let file = disk.open(path).map_err(io_error)?;
    // No other start removes or replaces it while it is locked.
    if !disk.lock(&file).map_err(io_error)? {
        return Err(OpenError::InUse(path.to_owned()));
    }
    let (opened, named) = (disk.metadata(&file), disk.metadata_of(path));
    let (opened, named) = (opened.map_err(io_error)?, named.map_err(io_error)?);
    if opened.len() == 0 && device_and_inode(&opened) == device_and_inode(&named) {
        disk.remove(path).map_err(io_error)?;
    }
    Ok(())
}

/// Writes a file once more as it is, its length too, and syncs it. A page of zeros is left out: redb has nothing there,
/// and it may be a hole.
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
        // redb's error for a file that does not begin like one of its own.
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

/// The file for redb.
#[derive(Debug)]
struct Backend {
    disk: Disk,
    file: FileBackend,
    /// Whether it may be empty: redb creates a database then.
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
