//! System calls for files, and names next to a file. Each call goes through [`Disk`], where a test can make it fail.
//! Knows nothing of redb except how it locks.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    ops::Bound,
    os::unix::{
        self,
        fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use redb::{BackendError, StorageBackend, backends::FileBackend};
use rustix::{
    fs::{CWD, OFlags, RenameFlags, renameat_with},
    io::Errno,
};

/// A call to the system, about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Call<'a> {
    MakeDirectory,
    SyncDirectory,
    Open,
    Create,
    Stat,
    Lock,
    Rename,
    Link,
    Own,
    Remove,
    Length,
    Read,
    SetLength(u64),
    Write(u64, &'a [u8]),
    Sync,
}

/// Makes the system calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) faults: Option<std::sync::Arc<super::faults::Faults>>,
}

impl Disk {
    pub(super) fn before(&self, call: Call<'_>) -> io::Result<()> {
        #[cfg(test)]
        if let Some(faults) = &self.faults {
            return faults.before(call);
        }
        let _ = call;
        Ok(())
    }

    /// Creates a directory and its parents, each on disk before the next.
    pub(super) fn make_directories(&self, directory: &Path) -> io::Result<()> {
        if directory.is_dir() {
            return Ok(());
        }
        let above = directory_of(directory);
        self.make_directories(above)?;
        self.before(Call::MakeDirectory)?;
        match fs::create_dir(directory) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            result => result?,
        }
        self.sync_directory(above)
    }

    pub(super) fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.before(Call::SyncDirectory)?;
        match File::open(directory)?.sync_all() {
            // fsync(2): the file system cannot sync directories.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
            result => result,
        }
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        self.before(Call::Open)?;
        OpenOptions::new().read(true).write(true).open(path)
    }

    /// Opens a file to read it. Does not block, even if it is a pipe.
    pub(super) fn open_to_read(&self, path: &Path) -> io::Result<File> {
        self.before(Call::Open)?;
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    }

    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        self.before(Call::Create)?;
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)
    }

    pub(super) fn metadata(&self, file: &File) -> io::Result<fs::Metadata> {
        self.before(Call::Stat)?;
        file.metadata()
    }

    pub(super) fn metadata_of(&self, path: &Path) -> io::Result<fs::Metadata> {
        self.before(Call::Stat)?;
        fs::metadata(path)
    }

    /// Locks a file as redb does; false when another process has the lock. redb can then take it once more. Nothing may
    /// be written to a file before this.
    pub(super) fn lock(&self, file: &File) -> io::Result<bool> {
        let locked = self.before(Call::Lock).map_err(TryLockError::Error);
        match locked.and_then(|()| file.try_lock()) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            // A file system without flock(2).
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                lock_range(file)
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether another process has locked a file. Takes no lock, which a start at the same moment would run into.
    pub(super) fn is_locked(&self, file: &File) -> io::Result<bool> {
        self.before(Call::Lock)?;
        let backend = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
        match backend.query_lock_range(Bound::Unbounded, Bound::Unbounded) {
            Ok(locked) => Ok(locked),
            Err(BackendError::Io(error)) => Err(error),
            // A file system without fcntl(2), F_OFD_GETLK, where redb uses flock(2).
            Err(_) => match file.try_lock_shared() {
                Ok(()) => file.unlock().map(|()| false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(error),
            },
        }
    }

    /// Gives a file a new name that must not be in use.
    pub(super) fn rename_to_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Call::Rename)?;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // renameat2(2): the file system cannot do this.
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::hard_link(from, to)?;
                fs::remove_file(from)
            }
            result => Ok(result?),
        }
    }

    /// Gives a file the name of another, which it replaces atomically.
    pub(super) fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Call::Rename)?;
        fs::rename(from, to)
    }

    /// Gives a file one more name.
    pub(super) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Call::Link)?;
        fs::hard_link(from, to)
    }

    /// Gives a file the user, the group and the permissions of another.
    pub(super) fn own_like(&self, file: &File, other: &fs::Metadata) -> io::Result<()> {
        self.before(Call::Own)?;
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (other.uid(), other.gid()) {
            unix::fs::fchown(file, Some(other.uid()), Some(other.gid()))?;
        }
        if other.is_file() {
            file.set_permissions(other.permissions())?;
        }
        Ok(())
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.before(Call::Remove)?;
        fs::remove_file(path)
    }

    pub(super) fn read(&self, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.before(Call::Read)?;
        file.read_exact_at(bytes, offset)
    }

    pub(super) fn write(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.before(Call::Write(offset, bytes))?;
        file.write_all_at(bytes, offset)
    }

    pub(super) fn set_length(&self, file: &File, length: u64) -> io::Result<()> {
        self.before(Call::SetLength(length))?;
        file.set_len(length)
    }

    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        self.before(Call::Sync)?;
        file.sync_all()
    }
}

/// Locks all bytes of a file by fcntl(2), F_OFD_SETLK; false when another process has locked some, as redb does. The
/// lock belongs to the open file and not to the backend here, and ends with the last descriptor.
fn lock_range(file: &File) -> io::Result<bool> {
    let backend = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
    match backend.try_lock_range(Bound::Unbounded, Bound::Unbounded) {
        Ok(locked) => Ok(locked),
        Err(BackendError::Io(error)) => Err(error),
        // redb would continue without a lock, and a second process could overwrite what the first counts.
        Err(error) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("its file system has no locks, so that two could write to it: {error}"),
        )),
    }
}

pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Which file it is, whatever its names.
pub(super) fn device_and_inode(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The path that `path` leads to through symbolic links, whether a file is there or not.
pub(super) fn link_target(path: &Path) -> PathBuf {
    // path_resolution(7)
    const LINKS_MAX: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            Ok(target) => path = directory_of(&path).join(target),
            Err(_) => break,
        }
    }
    path
}

/// The name of the file at `path` until it is complete.
pub(super) fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".unfinished");
    path.with_file_name(name)
}
