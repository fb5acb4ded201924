//! The counter's file while no counter uses it: it is locked, and may be replaced by another one. A restore does so, and
//! whoever moves totals.

use std::{
    ffi::OsString,
    fs::{File, Metadata},
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{
    Found, Hold, Mark, OpenError, TotalsByName, Whole,
    disk::{Disk, device_and_inode, directory_of, link_target},
    finished::{Finished, check_regular, open_to_read},
    probe::probe_directory,
    transfer::{Contents, image, read_file, read_unused},
};

/// The most old files that restores keep.
const KEPT_MAX: u32 = 1000;

/// A counter's file that no counter can use.
#[derive(Debug)]
struct Held {
    disk: Disk,
    path: PathBuf,
    /// What it holds, or why that cannot be read; `None` without a file.
    now: Option<Result<Contents, OpenError>>,
    /// Of the file, if there is one.
    metadata: Option<Metadata>,
    /// It is locked until this is dropped.
    _lock: Option<File>,
}

impl Held {
    fn take(disk: Disk, path: &Path) -> Result<Self, OpenError> {
        let path = link_target(path);
        let io_error = |error| OpenError::Io(path.clone(), error);
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { disk, path, now: None, metadata: None, _lock: None });
            }
            Err(error) => return Err(io_error(error)),
        };
        check_regular(&disk, &path, &file)?;
        let metadata = disk.metadata(&file).map_err(io_error)?;
        if !disk.lock(&file).map_err(io_error)? {
            return Err(OpenError::InUse(path));
        }
        // Before the lock, another one may have replaced it.
        let named = disk.metadata_of(&path).map_err(io_error)?;
        if device_and_inode(&metadata) != device_and_inode(&named) {
            return Err(OpenError::InUse(path));
        }
        let now = match read_file(&disk, &path, &file) {
            Err(OpenError::Io(path, error)) => return Err(OpenError::Io(path, error)),
            now => Some(now),
        };
        Ok(Self { disk, path, now, metadata: Some(metadata), _lock: Some(file) })
    }

    /// Replaces the file by one that holds this, which is held then. With `keeps`, the old one gets another name, which
    /// is returned.
    fn replace(&mut self, contents: Contents, keeps: bool) -> Result<Option<PathBuf>, OpenError> {
        let prepared = self.prepare(contents)?;
        self.place(prepared, keeps)
    }

    /// Writes one that holds this beside the file.
    fn prepare(&self, contents: Contents) -> Result<Prepared, OpenError> {
        let directory = directory_of(&self.path);
        self.disk
            .make_directories(directory)
            .map_err(|error| OpenError::Directory(directory.to_owned(), error))?;
        // The counter probably runs as the owner of the file or of the directory.
        let of_directory = || match rustix::process::geteuid().is_root() {
            true => self.disk.metadata_of(directory).map(Some),
            false => Ok(None),
        };
        let like = match &self.metadata {
            Some(metadata) => Some(metadata.clone()),
            None => of_directory().map_err(|error| OpenError::Io(directory.to_owned(), error))?,
        };
        let holds = |path: &Path, file: &File| Ok(read_file(&self.disk, path, file)? == contents);
        let bytes = image(&self.path, &contents)?;
        let finished = Finished::make(&self.disk, &self.path, &bytes, like.as_ref(), holds)?;
        Ok(Prepared { contents, finished })
    }

    /// Gives one that is complete the name of the file, which needs no space to speak of.
    fn place(&mut self, prepared: Prepared, keeps: bool) -> Result<Option<PathBuf>, OpenError> {
        let Prepared { contents, finished } = prepared;
        let mut kept = None;
        let file = match self.metadata {
            None => finished.name()?,
            Some(_) => {
                kept = keeps.then(|| keep(&self.disk, &self.path)).transpose()?;
                finished.replace()?
            }
        };
        let metadata = file.as_ref().map(|file| self.disk.metadata(file)).transpose();
        self.metadata = metadata.map_err(|error| OpenError::Io(self.path.clone(), error))?;
        (self.now, self._lock) = (Some(Ok(contents)), file);
        Ok(kept)
    }
}

/// A file that is complete and on disk, and is to take the place of the counter's.
#[derive(Debug)]
struct Prepared {
    contents: Contents,
    finished: Finished,
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

/// A restore that is possible. The counter's file is locked until it is replaced.
#[derive(Debug)]
pub struct Restore {
    /// The totals of the backup.
    pub backup: TotalsByName,
    /// The totals of the counter's file, or why they cannot be read; `None` without a file.
    pub now: Option<Result<TotalsByName, OpenError>>,
    held: Held,
}

impl Restore {
    /// Reads the file at `backup`, and the counter's file at `path`, which no counter may use.
    ///
    /// # Errors
    /// When one of them is in use, the backup cannot be read, or the totals of the file were moved. Nothing has changed
    /// then.
    pub fn prepare(backup: &Path, path: &Path) -> Result<Self, OpenError> {
        Self::prepare_on(Disk::default(), backup, path)
    }

    pub(super) fn prepare_on(disk: Disk, backup: &Path, path: &Path) -> Result<Self, OpenError> {
        let source = open_to_read(&disk, backup)?;
        let mut held = Held::take(disk, path)?;
        if let Some(metadata) = &held.metadata {
            let of_source = held.disk.metadata(&source);
            let of_source = of_source.map_err(|error| OpenError::Io(held.path.clone(), error))?;
            if device_and_inode(metadata) == device_and_inode(&of_source) {
                return Err(OpenError::Same(held.path));
            }
        }
        // A restored one would count beside the one that its totals were moved to.
        if let Some(Ok(Contents { mark: Some(mark), .. })) = &held.now {
            return Err(OpenError::Marked(held.path, mark.clone()));
        }
        let backup = read_unused(&held.disk, backup, &source)?.totals;
        let now = held.now.take().map(|now| now.map(|contents| contents.totals));
        Ok(Self { backup, now, held })
    }

    /// Replaces the counter's file by one with the totals of the backup; the path under which the old file is kept.
    ///
    /// # Errors
    /// When that fails. The counter's file is unchanged then, unless the last sync of its directory failed.
    pub fn replace(mut self) -> Result<Option<PathBuf>, OpenError> {
        self.held.replace(Contents { totals: self.backup, mark: None }, true)
    }
}

/// A counter's file as a whole. It is locked from the first call on, so that only a mark that is to stay is written. What
/// it is filled with is a file beside it until it is opened.
pub(super) struct FileStore {
    path: PathBuf,
    /// Whether it is to be made where there is none.
    makes: bool,
    held: Option<Held>,
    filled: Option<Prepared>,
    /// What it is when it is closed.
    marked: Option<Prepared>,
}

impl FileStore {
    /// Opens nothing yet.
    pub(super) fn new(path: &Path, makes: bool) -> Self {
        Self { path: path.to_owned(), makes, held: None, filled: None, marked: None }
    }

    fn held(&mut self) -> Result<&mut Held, OpenError> {
        match &mut self.held {
            Some(held) => Ok(held),
            none => Ok(none.insert(Held::take(Disk::default(), &self.path)?)),
        }
    }

    /// What it holds with this mark, unless it has it already.
    fn marked(&mut self, mark: &Mark) -> Result<Option<Contents>, OpenError> {
        let Contents { totals, mark: now } = self.contents()?.unwrap_or_default();
        Ok((now.as_ref() != Some(mark)).then(|| Contents { totals, mark: Some(mark.clone()) }))
    }

    /// The contents of the file that is held; `None` where there are none.
    fn contents(&mut self) -> Result<Option<Contents>, OpenError> {
        match &self.held()?.now {
            None | Some(Err(OpenError::Empty(_))) => Ok(None),
            Some(Ok(contents)) => Ok(Some(contents.clone())),
            Some(Err(_)) => {
                // It is taken once more by the next call.
                match self.held.take().and_then(|held| held.now) {
                    Some(Err(error)) => Err(error),
                    _ => Ok(None),
                }
            }
        }
    }
}

impl Whole for FileStore {
    fn look(&mut self, _: Instant) -> Result<Found, OpenError> {
        if let Some(Prepared { contents, .. }) = &self.filled {
            // It was read back when it was written.
            return Ok(Found { totals: contents.totals.clone(), ..Found::default() });
        }
        let contents = self.contents()?;
        let is_new = contents.is_none();
        if is_new && self.makes {
            probe_directory(directory_of(&link_target(&self.path)))?;
        }
        let Contents { totals, mark } = contents.unwrap_or_default();
        Ok(Found { totals, mark, is_new, ..Found::default() })
    }

    fn prepare_close(&mut self, mark: &Mark, _: Instant) -> Result<(), OpenError> {
        self.marked = None;
        if let Some(contents) = self.marked(mark)? {
            self.marked = Some(self.held()?.prepare(contents)?);
        }
        Ok(())
    }

    fn close(
        &mut self,
        mark: &Mark,
        _: &Found,
        _: bool,
        until: Instant,
    ) -> Result<Found, OpenError> {
        // It is locked since it was looked at.
        // One that is filled is replaced as a whole.
        if matches!(mark, Mark::MovedTo { .. })
            && let Some(contents) = self.marked(mark)?
        {
            let prepared = match self.marked.take() {
                Some(prepared) if prepared.contents == contents => prepared,
                other => {
                    // It has the name of the next one.
                    drop(other);
                    self.held()?.prepare(contents)?
                }
            };
            self.held()?.place(prepared, false)?;
        }
        self.look(until)
    }

    fn fill(&mut self, _: Hold, totals: &TotalsByName, _: Instant) -> Result<(), OpenError> {
        // What was there is removed first: the next one has the same name.
        self.filled = None;
        let contents = Contents { totals: totals.clone(), mark: None };
        self.filled = Some(self.held()?.prepare(contents)?);
        Ok(())
    }

    fn open(&mut self, _: Hold, until: Instant) -> Result<Option<PathBuf>, OpenError> {
        if let Some(filled) = self.filled.take() {
            return self.held()?.place(filled, true);
        }
        let found = self.look(until)?;
        if found.mark.is_some() {
            self.held()?.replace(Contents { totals: found.totals, mark: None }, false)?;
        }
        Ok(None)
    }
}
