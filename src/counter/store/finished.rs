//! A file that is written whole: it has another name until it is complete and on disk. If the process is killed, either
//! what was there before or the new file is there. Knows nothing of what is in it.

use std::{
    fs::{File, Metadata},
    io,
    path::{Path, PathBuf},
};

use super::{
    OpenError,
    disk::{Disk, directory_of, link_target, unfinished_path},
    file::begin_unfinished,
};

/// A file that is complete, on disk and locked, but does not have its final name yet.
#[derive(Debug)]
pub(super) struct Finished {
    disk: Disk,
    path: PathBuf,
    unfinished: PathBuf,
    /// `None` when it has its name.
    file: Option<File>,
}

impl Drop for Finished {
    fn drop(&mut self) {
        if self.file.is_some() {
            // If this fails, the next one that is written here uses the file.
            let _ = self.disk.remove(&self.unfinished);
        }
    }
}

impl Finished {
    /// Writes it next to `path`, with the owner and the permissions of the file `like`. `check` reads back what was
    /// written.
    pub(super) fn make(
        disk: &Disk,
        path: &Path,
        bytes: &[u8],
        like: Option<&Metadata>,
        check: impl FnOnce(&Path, &File) -> Result<bool, OpenError>,
    ) -> Result<Self, OpenError> {
        let (unfinished, file) = begin_unfinished(disk, path, OpenError::Write)?;
        let written = write(disk, &file, bytes, like);
        let (disk, path) = (disk.clone(), path.to_owned());
        let finished = Self { disk, path, unfinished, file: Some(file) };
        written.map_err(|error| finished.failed(error))?;
        let Some(file) = &finished.file else { unreachable!("it has no name yet") };
        match check(&finished.unfinished, file)? {
            true => Ok(finished),
            false => {
                Err(finished.failed(io::Error::other("it holds something else than was written")))
            }
        }
    }

    fn failed(&self, error: io::Error) -> OpenError {
        OpenError::Write(self.unfinished.clone(), error)
    }

    /// Gives it its final name, which must be free; the file, which is locked until it is dropped.
    pub(super) fn name(mut self) -> Result<Option<File>, OpenError> {
        match self.disk.rename_to_new(&self.unfinished, &self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(OpenError::Exists(self.path.clone()));
            }
            result => result.map_err(|error| self.failed(error))?,
        }
        self.sync_name()
    }

    /// Replaces the file that has its final name; the new one, which is locked until it is dropped.
    pub(super) fn replace(mut self) -> Result<Option<File>, OpenError> {
        let renamed = self.disk.rename_over(&self.unfinished, &self.path);
        renamed.map_err(|error| self.failed(error))?;
        self.sync_name()
    }

    fn sync_name(&mut self) -> Result<Option<File>, OpenError> {
        let file = self.file.take();
        let synced = self.disk.sync_directory(directory_of(&self.path));
        synced.map_err(|error| OpenError::Write(self.path.clone(), error))?;
        Ok(file)
    }
}

fn write(disk: &Disk, file: &File, bytes: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    if let Some(like) = like {
        disk.own_like(file, like)?;
    }
    disk.write(file, 0, bytes)?;
    disk.sync(file)
}

/// Which file may be replaced by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaces {
    None,
    /// One that begins as ours do.
    Ours,
    Any,
}

/// Writes `bytes` to a file at `path`. What such files begin with, `begin`, tells one that was left unfinished from one of
/// the user's. `check` reads back what was written.
pub(super) fn write_whole(
    disk: &Disk,
    path: &Path,
    (bytes, begin): (&[u8], &[u8]),
    replaces: Replaces,
    check: impl FnOnce(&Path, &File) -> Result<bool, OpenError>,
) -> Result<(), OpenError> {
    let path = &link_target(path);
    let is_there = match open_to_read(disk, path) {
        Err(OpenError::Missing(_)) => false,
        Ok(file) if replaces != Replaces::None => {
            match check_regular(disk, path, &file).map(|()| disk.is_locked(&file))? {
                Ok(true) => return Err(OpenError::InUse(path.clone())),
                Ok(false) if replaces == Replaces::Ours => match begins(disk, &file, begin) {
                    Ok(true) => true,
                    Ok(false) => return Err(OpenError::NotOurs(path.clone())),
                    Err(error) => return Err(OpenError::Io(path.clone(), error)),
                },
                Ok(false) => true,
                Err(error) => return Err(OpenError::Io(path.clone(), error)),
            }
        }
        Ok(_) => return Err(OpenError::Exists(path.clone())),
        Err(error) => return Err(error),
    };
    check_unfinished(disk, &unfinished_path(path), begin)?;
    let finished = Finished::make(disk, path, bytes, None, check)?;
    if is_there { finished.replace() } else { finished.name() }.map(drop)
}

fn begins(disk: &Disk, file: &File, begin: &[u8]) -> io::Result<bool> {
    if disk.metadata(file)?.len() < begin.len() as u64 {
        return Ok(false);
    }
    let mut found = vec![0; begin.len()];
    disk.read(file, 0, &mut found)?;
    Ok(found == begin)
}

pub(super) fn open_to_read(disk: &Disk, path: &Path) -> Result<File, OpenError> {
    disk.open_to_read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => OpenError::Missing(path.to_owned()),
        _ => OpenError::Io(path.to_owned(), error),
    })
}

/// Checks that a file with the name of an unfinished one may be overwritten: only what a killed process has left, which
/// begins as ours do or has no content. The directory is the user's and may contain other files.
fn check_unfinished(disk: &Disk, path: &Path, begin: &[u8]) -> Result<(), OpenError> {
    let file = match open_to_read(disk, path) {
        Err(OpenError::Missing(_)) => return Ok(()),
        file => file?,
    };
    let metadata = disk.metadata(&file).map_err(|error| OpenError::Io(path.to_owned(), error))?;
    let is_ours = metadata.is_file() && {
        let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX).min(begin.len());
        let mut found = vec![0; length];
        disk.read(&file, 0, &mut found).map_err(|error| OpenError::Io(path.to_owned(), error))?;
        found == begin[..length] || found.iter().all(|byte| *byte == 0)
    };
    if is_ours { Ok(()) } else { Err(OpenError::InTheWay(path.to_owned())) }
}

/// Refuses to replace a device or a pipe: root could turn /dev/null into a file.
pub(super) fn check_regular(disk: &Disk, path: &Path, file: &File) -> Result<(), OpenError> {
    match disk.metadata(file) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(OpenError::Special(path.to_owned())),
        Err(error) => Err(OpenError::Io(path.to_owned(), error)),
    }
}
