//! A directory whose files are served, as a value in memory. It is read at the start and on SIGHUP; a request is a
//! lookup in a map of exact names, so that no path can lead out of the directory.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    fs, io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use http::HeaderValue;
use rustix::fs::{Mode, OFlags};

use super::files::File;

/// The file that is served for a directory.
const INDEX: &[u8] = b"index.html";
/// How deep directories may be nested: deeper than anybody needs, and an end for links to each other.
const DEPTH_MAX: usize = 64;

/// Files by their path within the directory, with `/` between its parts.
#[derive(Debug, Default)]
pub struct Directory {
    files: HashMap<Box<[u8]>, File>,
    bytes: usize,
    /// The `Cache-Control` field of its answers.
    cache: Option<HeaderValue>,
}

/// What a path within a directory leads to.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// This file.
    File(&'a File),
    /// A directory that has an index, in this one: its path ends in `/`, so that relative links on its page work.
    Directory(&'a Directory),
    /// Nothing.
    Nothing,
}

/// What may still be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of files.
    pub bytes: usize,
    /// Files, and the directories that contain them.
    pub entries: usize,
}

/// Why a directory is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A system call failed on this path.
    #[error("cannot read {0}: {1}")]
    Io(PathBuf, io::Error),
    /// Its files have too many bytes.
    #[error("{bytes} bytes in {files} files")]
    TooLarge {
        /// The bytes of all files.
        bytes: u64,
        /// How many files there are.
        files: usize,
    },
    /// It has more files and directories than there is room for.
    #[error("too many files")]
    TooMany,
}

impl Directory {
    /// Reads all regular files of a directory except those in `hidden`, and subtracts what they need from `room`.
    /// Files and directories whose names begin with a dot are skipped, and so are links that lead out, which are
    /// added to `notes`.
    ///
    /// # Errors
    /// When there is not room enough, or one cannot be read.
    pub fn read(
        path: &Path,
        hidden: &BTreeSet<Vec<u8>>,
        cache: Option<&HeaderValue>,
        room: &mut Room,
        notes: &mut Vec<String>,
    ) -> Result<Self, ReadError> {
        let unreadable = |error| ReadError::Io(path.to_owned(), error);
        let root = fs::canonicalize(path).map_err(unreadable)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&root, flags, Mode::empty());
        let handle = handle.map_err(|error| unreadable(error.into()))?;
        let (files, bytes, entries) = (Vec::new(), 0, room.entries);
        let mut listing = Listing { root: &root, hidden, files, bytes, entries, notes };
        listing.add_directory(&root, &[], &mut Vec::new())?;
        let Listing { files, bytes, entries, .. } = listing;
        let too_large = |bytes| ReadError::TooLarge { bytes, files: files.len() };
        // Checked before the first file is read, so that the error tells how much room is needed.
        if bytes > room.bytes as u64 {
            return Err(too_large(bytes));
        }
        let mut directory = Self { cache: cache.cloned(), ..Self::default() };
        for (name, path) in &files {
            let within = path.strip_prefix(&root).unwrap_or(path);
            let room = room.bytes - directory.bytes;
            match File::read_within(handle.as_fd(), within, room, cache.cloned()) {
                Ok(file) => {
                    directory.bytes += file.content().len();
                    directory.files.insert(name.as_slice().into(), file);
                }
                // It was removed after it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    return Err(too_large(bytes));
                }
                Err(error) => return Err(ReadError::Io(path.clone(), error)),
            }
        }
        *room = Room { bytes: room.bytes - directory.bytes, entries };
        Ok(directory)
    }

    /// How many files it has.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// How many bytes they have.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What `path` leads to: the part of a request's path behind the directory's own, as it was sent.
    pub(super) fn find(&self, path: &str) -> Found<'_> {
        let Some(name) = file_name(path) else { return Found::Nothing };
        if let Some(file) = self.files.get(&*name) {
            return Found::File(file);
        }
        match self.files.contains_key(&*[&name, &b"/"[..], INDEX].concat()) {
            true => Found::Directory(self),
            false => Found::Nothing,
        }
    }

    /// The `Cache-Control` field of its answers.
    pub(super) fn cache(&self) -> Option<&HeaderValue> {
        self.cache.as_ref()
    }

    /// Whether it has an index itself.
    pub(super) fn has_index(&self) -> bool {
        self.files.contains_key(INDEX)
    }
}

/// The name of the file that a path means, with its escapes decoded once. An escaped `/` would be taken for a
/// separator, and no name contains NUL: such a path means no file.
pub fn file_name(path: &str) -> Option<Cow<'_, [u8]>> {
    let mut name = Cow::Borrowed(path.as_bytes());
    if memchr::memchr(b'%', path.as_bytes()).is_some() {
        name = Cow::Owned(decoded(path.as_bytes())?);
    }
    if name.is_empty() || name.ends_with(b"/") {
        name.to_mut().extend_from_slice(INDEX);
    }
    Some(name)
}

fn decoded(mut path: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(path.len());
    while let Some(at) = memchr::memchr(b'%', path) {
        let digit = |place: usize| char::from(*path.get(place)?).to_digit(16);
        let byte = u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()?;
        if matches!(byte, b'/' | b'\0') {
            return None;
        }
        name.extend_from_slice(&path[..at]);
        name.push(byte);
        path = &path[at + 3..];
    }
    name.extend_from_slice(path);
    Some(name)
}

/// What is found in a directory and the directories below it.
struct Listing<'a> {
    /// Its canonical path, which nothing leads out of.
    root: &'a Path,
    hidden: &'a BTreeSet<Vec<u8>>,
    /// The name and the canonical path of each file.
    files: Vec<(Vec<u8>, PathBuf)>,
    /// What the files have.
    bytes: u64,
    /// How many more files and directories there may be.
    entries: usize,
    notes: &'a mut Vec<String>,
}

impl Listing<'_> {
    /// Adds what is in the directory at this canonical path; its files have names that begin with `prefix`. `above`
    /// has the directories above it, so that a link to one of them is noticed.
    fn add_directory(
        &mut self,
        path: &Path,
        prefix: &[u8],
        above: &mut Vec<PathBuf>,
    ) -> Result<(), ReadError> {
        self.take_entry()?;
        let error = |error| ReadError::Io(path.to_owned(), error);
        let entries = fs::read_dir(path).map_err(error)?;
        let mut entries = entries.collect::<io::Result<Vec<_>>>().map_err(error)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        above.push(path.to_owned());
        for entry in entries {
            let name = entry.file_name();
            if !name.as_bytes().starts_with(b".") {
                let kind = entry.file_type().map_err(error)?;
                self.add(&path.join(&name), &name, kind, prefix, above)?;
            }
        }
        above.pop();
        Ok(())
    }

    fn add(
        &mut self,
        path: &Path,
        name: &OsStr,
        kind: fs::FileType,
        prefix: &[u8],
        above: &mut Vec<PathBuf>,
    ) -> Result<(), ReadError> {
        let Some((found, metadata)) = self.follow(path, kind.is_symlink())? else { return Ok(()) };
        let name = [prefix, name.as_bytes()].concat();
        if metadata.is_file() && !self.hidden.contains(&name) {
            self.take_entry()?;
            self.bytes += metadata.len();
            self.files.push((name, found));
        } else if metadata.is_dir() {
            if above.contains(&found) || above.len() >= DEPTH_MAX {
                self.skip(path, "the directory lies in itself, or too deep");
                return Ok(());
            }
            self.add_directory(&found, &[&name, &b"/"[..]].concat(), above)?;
        }
        Ok(())
    }

    /// The canonical path and what is there; `None` when there is nothing to serve.
    fn follow(
        &mut self,
        path: &Path,
        is_link: bool,
    ) -> Result<Option<(PathBuf, fs::Metadata)>, ReadError> {
        let found = match is_link {
            // An entry of a canonical directory has a canonical path unless it is a link.
            false => Ok(path.to_owned()),
            true => fs::canonicalize(path),
        };
        let found = found.and_then(|found| {
            let metadata = fs::symlink_metadata(&found)?;
            Ok((found, metadata))
        });
        match found {
            Ok((found, _)) if !found.starts_with(self.root) => {
                self.skip(path, "the link leads out of the directory");
                Ok(None)
            }
            Ok(found) => Ok(Some(found)),
            Err(error) if is_link => {
                self.skip(path, &format!("the link leads nowhere ({error})"));
                Ok(None)
            }
            // It was removed after it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ReadError::Io(path.to_owned(), error)),
        }
    }

    fn take_entry(&mut self) -> Result<(), ReadError> {
        self.entries = self.entries.checked_sub(1).ok_or(ReadError::TooMany)?;
        Ok(())
    }

    fn skip(&mut self, path: &Path, reason: &str) {
        self.notes.push(format!("{} is not served: {reason}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const ROOM: Room = Room { bytes: 1000, entries: 100 };

    /// A directory with some files, each of which holds its own name, and a secret beside it.
    fn site() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name.strip_prefix("public/").unwrap_or(name)).unwrap();
        };
        for name in
            ["a.txt", "index.html", "sub/index.html", "sub/b.txt", "no-index/c.txt", "x y%2F"]
        {
            write(&format!("public/{name}"));
        }
        for name in ["secret", "secrets/d.txt", "public/.git/config", "public/.env"] {
            write(name);
        }
        directory
    }

    fn read(path: &Path) -> (Directory, Vec<String>) {
        let mut notes = Vec::new();
        let read = Directory::read(path, &BTreeSet::new(), None, &mut { ROOM }, &mut notes);
        (read.unwrap(), notes)
    }

    #[track_caller]
    fn check(directory: &Directory, path: &str, expected: Option<&str>) {
        let found = match directory.find(path) {
            Found::File(file) => Some(str::from_utf8(file.content()).unwrap()),
            Found::Directory(_) => Some("/"),
            Found::Nothing => None,
        };
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn a_path_is_a_name_and_nothing_else() {
        let site = site();
        let (directory, notes) = read(&site.path().join("public"));
        assert_eq!((directory.files(), notes.len()), (6, 0));
        for (path, found) in [
            ("a.txt", "a.txt"),
            ("%61%2etxt", "a.txt"),
            ("", "index.html"),
            ("index.html", "index.html"),
            ("sub/b.txt", "sub/b.txt"),
            ("sub/", "sub/index.html"),
            ("sub", "/"),
            ("s%75b", "/"),
            ("x%20y%252F", "x y%2F"),
        ] {
            check(&directory, path, Some(found));
        }
        for path in [
            "b.txt",
            "A.TXT",
            "a.txt/",
            "no-index",
            "no-index/",
            "sub//b.txt",
            "/a.txt",
            "sub%2Fb.txt",
            "sub%2fb.txt",
            "sub/../a.txt",
            "sub/%2e%2e/a.txt",
            "../secret",
            "%2e%2e/secret",
            "..%2fsecret",
            "..%5csecret",
            "%252e%252e/secret",
            "./a.txt",
            "sub/.",
            "sub/..",
            "a.txt%00",
            "a.txt%",
            "a.txt%2",
            "%zz",
            "x%20y%2F",
            ".env",
            ".git/config",
            "%2eenv",
            "/etc/passwd",
            "%2Fetc%2Fpasswd",
        ] {
            check(&directory, path, None);
        }
    }

    #[test]
    fn links_are_followed_within() {
        let site = site();
        let public = site.path().join("public");
        let link = |to: &str, name: &str| symlink(to, public.join(name)).unwrap();
        // As Kubernetes lays out a volume.
        link(".git", "data");
        link("sub/b.txt", "inside");
        link(public.join("a.txt").to_str().unwrap(), "absolute");
        link("../secret", "outside");
        link("../secrets", "outsides");
        link("/etc/passwd", "passwd");
        link("nothing", "nowhere");
        link("loop", "loop");
        link("..", "no-index/up");
        link(".", "sub/self");
        let (directory, notes) = read(&public);
        check(&directory, "inside", Some("sub/b.txt"));
        check(&directory, "absolute", Some("a.txt"));
        check(&directory, "data/config", Some(".git/config"));
        for path in ["outside", "outsides/d.txt", "passwd", "nowhere", "loop", "sub/self/b.txt"] {
            check(&directory, path, None);
        }
        for words in ["outside is not", "outsides is", "passwd is", "nowhere is", "loop is"] {
            assert_eq!(notes.iter().filter(|note| note.contains(words)).count(), 1, "{notes:?}");
        }
        assert_eq!(notes.len(), 7, "{notes:?}");
        // The directory itself may be a link to anywhere.
        symlink(&public, site.path().join("link")).unwrap();
        check(&read(&site.path().join("link")).0, "a.txt", Some("a.txt"));
    }

    #[test]
    fn what_is_no_file_is_skipped() {
        let site = site();
        let public = site.path().join("public");
        nix::unistd::mkfifo(&public.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        check(&read(&public).0, "pipe", None);
        assert!(matches!(
            Directory::read(&public.join("a.txt"), &BTreeSet::new(), None, &mut { ROOM }, &mut vec![]),
            Err(ReadError::Io(path, _)) if path.ends_with("a.txt")
        ));
    }

    #[test]
    fn hidden_names_are_left_out() {
        let site = site();
        let hidden = BTreeSet::from([b"a.txt".to_vec(), b"sub/index.html".to_vec()]);
        let path = site.path().join("public");
        let directory = Directory::read(&path, &hidden, None, &mut { ROOM }, &mut vec![]).unwrap();
        assert_eq!(directory.files(), 4);
        for path in ["a.txt", "%61.txt", "sub/", "sub"] {
            check(&directory, path, None);
        }
        check(&directory, "sub/b.txt", Some("sub/b.txt"));
    }

    #[test]
    fn a_directory_needs_room_for_all_of_it() {
        let site = site();
        let path = site.path().join("public");
        let read =
            |room: &mut Room| Directory::read(&path, &BTreeSet::new(), None, room, &mut vec![]);
        let bytes = self::read(&path).0.bytes();
        // Six files in three directories.
        let mut room = Room { bytes, entries: 9 };
        assert!(read(&mut room).is_ok());
        assert_eq!(room, Room { bytes: 0, entries: 0 });
        let mut room = Room { bytes: bytes - 1, entries: 9 };
        assert!(matches!(
            read(&mut room),
            Err(ReadError::TooLarge { bytes: needed, files: 6 }) if needed == bytes as u64
        ));
        assert!(matches!(read(&mut Room { bytes, entries: 8 }), Err(ReadError::TooMany)));
    }

    proptest::proptest! {
        #[test]
        fn no_path_finds_what_has_another_name(path in "[a-c./%0-9A-Fa-f]{0,12}") {
            let mut directory = Directory::default();
            for name in ["a", "b/c", "..", "../a", "/a"] {
                let file = File::text(name.to_owned(), None);
                directory.files.insert(name.as_bytes().into(), file);
            }
            if let Found::File(file) = directory.find(&path) {
                // The name has as many slashes as the path, so none came from an escape.
                let slashes = |text: &[u8]| text.iter().filter(|&&byte| byte == b'/').count();
                proptest::prop_assert_eq!(slashes(file.content()), slashes(path.as_bytes()));
            }
        }
    }
}
