//! Content that is not counted, as a value in memory: read once, then served without touching the disk. All workers
//! share it.

use std::{
    fs, io,
    io::Read,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use rustix::fs::{Mode, OFlags};
use siphasher::sip128::SipHasher13;

use super::conditional::{Conditions, Selected, Verdict};
use crate::{
    connection::Response,
    http::{
        render::{self, TEXT_PLAIN},
        request::Request,
    },
};

/// A content, its type and its validators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    content: Bytes,
    content_type: HeaderValue,
    etag: HeaderValue,
    /// In seconds since the Unix epoch; a text of the settings has no such time.
    modified: Option<u64>,
    /// The `Cache-Control` field.
    cache: Option<HeaderValue>,
}

/// How a file is opened. Not blocking: a file may have become a pipe since it was listed.
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// The `Cache-Control` field that lets caches use a content for so long without asking again.
pub fn cache_for(max_age: Duration) -> HeaderValue {
    let text = format!("max-age={}", max_age.as_secs());
    // Visible ASCII, which every field value may be.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("no-cache"))
}

impl File {
    /// A text from the settings.
    pub fn text(text: String, cache: Option<HeaderValue>) -> Self {
        Self::new(text.into(), TEXT_PLAIN, None, cache)
    }

    /// Reads a file that is opened by its canonical path.
    ///
    /// # Errors
    /// When it cannot be read, is no regular file, or has more than `bytes_max` bytes
    /// ([`io::ErrorKind::FileTooLarge`]).
    pub fn read(path: &Path, bytes_max: usize, cache: Option<HeaderValue>) -> io::Result<Self> {
        Self::read_open(rustix::fs::open(path, FILE, Mode::empty())?, path, bytes_max, cache)
    }

    /// Reads a file below an open directory. No link is followed, not even one that has replaced a directory on the
    /// path since the path was listed.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and when there is a link on the path.
    pub(super) fn read_within(
        directory: BorrowedFd<'_>,
        path: &Path,
        bytes_max: usize,
        cache: Option<HeaderValue>,
    ) -> io::Result<Self> {
        const DIRECTORY: OFlags =
            OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
        let mut at = directory.try_clone_to_owned()?;
        for name in path.parent().into_iter().flat_map(Path::iter) {
            at = rustix::fs::openat(&at, name, DIRECTORY, Mode::empty())?;
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let file = rustix::fs::openat(&at, name, FILE, Mode::empty())?;
        Self::read_open(file, path, bytes_max, cache)
    }

    fn read_open(
        file: OwnedFd,
        path: &Path,
        bytes_max: usize,
        cache: Option<HeaderValue>,
    ) -> io::Result<Self> {
        let file = fs::File::from(file);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut content = Vec::with_capacity(
            usize::try_from(metadata.len()).unwrap_or(usize::MAX).min(bytes_max),
        );
        // One byte more shows whether it is too large: it may grow while it is read.
        file.take(bytes_max as u64 + 1).read_to_end(&mut content)?;
        if content.len() > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // RFC 9110 section 8.8.2.1: not later than the message that tells it.
        let modified = metadata.modified()?.min(SystemTime::now());
        let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Self::new(content.into(), content_type(path), Some(modified), cache))
    }

    fn new(
        content: Bytes,
        content_type: HeaderValue,
        modified: Option<u64>,
        cache: Option<HeaderValue>,
    ) -> Self {
        let etag = entity_tag(&content);
        Self { content, content_type, etag, modified, cache }
    }

    /// The same content with this type, not that of its extension.
    pub fn with_type(self, content_type: HeaderValue) -> Self {
        Self { content_type, ..self }
    }

    /// The bytes of the content.
    pub fn content(&self) -> &Bytes {
        &self.content
    }

    /// The answer to a `GET` or `HEAD` of it, which differ in ranges only.
    pub(super) fn answer(&self, request: &Request<'_>) -> Response {
        let selected = Selected {
            etag: self.etag.as_bytes(),
            modified: self.modified,
            length: self.content.len(),
        };
        let text = |status, mut fields: Vec<_>, text: &'static str| {
            fields.extend(render::text_fields());
            Response::new(status, fields, text)
        };
        match Conditions::of(request.fields).judge(request.method, selected) {
            Verdict::Whole => Response::new(StatusCode::OK, self.fields(), self.content.clone()),
            Verdict::Part(part) => {
                let mut fields = self.fields();
                fields.push(self.content_range(&format!("{}-{}", part.start, part.end - 1)));
                let content = self.content.slice(part);
                Response::new(StatusCode::PARTIAL_CONTENT, fields, content)
            }
            Verdict::NotModified => {
                let fields = self.fields_of_not_modified();
                Response::without_length(StatusCode::NOT_MODIFIED, fields)
            }
            Verdict::PreconditionFailed => {
                text(StatusCode::PRECONDITION_FAILED, vec![], "it has changed\n")
            }
            Verdict::NotSatisfiable => text(
                StatusCode::RANGE_NOT_SATISFIABLE,
                vec![self.content_range("*")],
                "it has no such part\n",
            ),
        }
    }

    fn fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        let mut fields = self.fields_of_not_modified();
        fields.extend([
            (header::CONTENT_TYPE, self.content_type.clone()),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        ]);
        let modified = self.modified.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        let date = modified.map(|time| HeaderValue::try_from(httpdate::fmt_http_date(time)));
        fields.extend(date.and_then(Result::ok).map(|date| (header::LAST_MODIFIED, date)));
        fields
    }

    /// RFC 9110 section 15.4.5: what caches need of the fields of a 200, and no more.
    fn fields_of_not_modified(&self) -> Vec<(HeaderName, HeaderValue)> {
        let cache = self.cache.iter().map(|cache| (header::CACHE_CONTROL, cache.clone()));
        std::iter::once((header::ETAG, self.etag.clone())).chain(cache).collect()
    }

    fn content_range(&self, part: &str) -> (HeaderName, HeaderValue) {
        let value = HeaderValue::try_from(format!("bytes {part}/{}", self.content.len()));
        // Visible ASCII and a space, which every field value may be.
        (header::CONTENT_RANGE, value.unwrap_or(HeaderValue::from_static("bytes */*")))
    }
}

/// A strong entity tag (RFC 9110 section 8.8.3) of the content alone: the same on every server that has it, after a
/// restart and by another compiler too. So the hash has fixed keys and a fixed definition, which the standard library
/// does not promise for its own.
fn entity_tag(content: &[u8]) -> HeaderValue {
    let hash = SipHasher13::new().hash(content).as_u128();
    // Visible ASCII, which every field value may be.
    HeaderValue::try_from(format!("\"{hash:032x}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// The type of a file by its extension: bytes for an unknown one, text where there is none.
pub fn content_type(path: &Path) -> HeaderValue {
    if path.extension().is_none() {
        return TEXT_PLAIN;
    }
    let guessed = mime_guess::from_path(path).first_or_octet_stream();
    let charset = if guessed.type_() == mime_guess::mime::TEXT { "; charset=utf-8" } else { "" };
    let unknown = HeaderValue::from_static("application/octet-stream");
    // The types that are guessed are visible ASCII, which every field value may be.
    HeaderValue::try_from(format!("{guessed}{charset}")).unwrap_or(unknown)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_tag_is_the_contents_on_every_machine() {
        // Never to change: a client may send it to another server.
        assert_eq!(entity_tag(b"User-agent: *\n"), "\"b8592c91473474518d74d5b9ad4d506e\"");
        assert_ne!(entity_tag(b""), entity_tag(b"\0"));
    }

    #[test]
    fn a_type_follows_from_the_extension() {
        for (path, expected) in [
            ("a.html", "text/html; charset=utf-8"),
            ("a.CSS", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("favicon.ico", "image/x-icon"),
            ("a.wasm", "application/wasm"),
            ("a.nobody-knows", "application/octet-stream"),
            ("LICENSE", "text/plain; charset=utf-8"),
        ] {
            assert_eq!(content_type(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_file_has_a_limit_and_a_time_that_is_past() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.txt");
        fs::write(&path, "hello").unwrap();
        let file = fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let read = File::read(&path, 5, None).unwrap();
        assert_eq!(read.content(), "hello");
        assert!(read.modified.unwrap() <= now());
        file.set_modified(UNIX_EPOCH - Duration::from_secs(3600)).unwrap();
        assert_eq!(File::read(&path, 5, None).unwrap().modified, Some(0));
        let error = File::read(&path, 4, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(File::read(directory.path(), 5, None).is_err());
    }

    #[test]
    fn no_link_leads_out() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["public/sub", "secret"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("a"), name).unwrap();
        }
        let public = fs::File::open(directory.path().join("public")).unwrap();
        let read = |path: &str| File::read_within(public.as_fd(), Path::new(path), 99, None);
        assert_eq!(read("sub/a").unwrap().content(), "public/sub");
        // It was a directory when it was listed.
        let sub = directory.path().join("public/sub");
        fs::rename(&sub, directory.path().join("away")).unwrap();
        std::os::unix::fs::symlink("../secret", &sub).unwrap();
        assert!(fs::read(sub.join("a")).is_ok());
        assert!(read("sub/a").is_err());
    }

    #[test]
    fn no_pipe_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(File::read(&path, 5, None).is_err());
    }
}
