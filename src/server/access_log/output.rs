//! Where the access log goes, and how lines get there: whole, or ended where a write failed.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{Access, OFlags},
    io::Errno,
};

use crate::{config::AccessLogOutput, metrics::AccessLogMetrics};

/// Why the access log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("access-log: cannot write {}: {problem}", path.display())]
pub struct OpenError {
    path: PathBuf,
    problem: String,
}

/// What helps against all that cannot be written.
const ELSEWHERE: &str = "name another file by --access-log, or off";

impl OpenError {
    fn new(path: &Path, problem: impl ToString) -> Self {
        Self { path: path.to_owned(), problem: problem.to_string() }
    }

    fn of(path: &Path, error: &io::Error) -> Self {
        let metadata = fs::metadata(path);
        let is = |kind: fn(&fs::FileType) -> bool| {
            metadata.as_ref().is_ok_and(|metadata| kind(&metadata.file_type()))
        };
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            _ if is(fs::FileType::is_dir) => {
                Self::new(path, "it is a directory; name a file in it")
            }
            Some(Errno::NXIO) if is(FileTypeExt::is_fifo) => {
                Self::new(path, "nobody reads this FIFO; start its reader first")
            }
            _ if is(FileTypeExt::is_socket) => {
                Self::new(path, "it is a socket; name a file, or - for standard output")
            }
            Some(Errno::NOENT) => {
                Self::new(path, format!("its directory does not exist; make it, or {ELSEWHERE}"))
            }
            _ => Self::new(path, format!("{error}; {ELSEWHERE}")),
        }
    }
}

/// Whether the access log could be opened, without making a file or waking a reader.
pub fn probe(output: &AccessLogOutput) -> Result<(), OpenError> {
    let AccessLogOutput::File(path) = output else { return Ok(()) };
    match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_fifo() => Ok(()),
        Ok(_) => options().create(false).open(path).map(drop),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let directory = directory.unwrap_or(Path::new("."));
            let may = rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK);
            may.map_err(io::Error::from)
        }
        Err(error) => Err(error),
    }
    .map_err(|error| OpenError::of(path, &error))
}

fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    // A FIFO that nobody reads must not keep this thread: neither here nor in a write.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    options.append(true).create(true).mode(0o640).custom_flags(flags);
    options
}

/// What the log is written to.
pub(super) struct File {
    file: fs::File,
    output: AccessLogOutput,
    /// Whether it ends in the middle of a line: of a process that was killed, or on a disk that was full.
    is_torn: bool,
}

impl File {
    pub(super) fn open(output: &AccessLogOutput) -> Result<Self, OpenError> {
        let (file, is_torn) = match output {
            AccessLogOutput::Stdout => {
                let owned = io::stdout().as_fd().try_clone_to_owned();
                let file = owned.map_err(|error| OpenError::new(Path::new("-"), error))?;
                (file.into(), false)
            }
            AccessLogOutput::File(path) => {
                let file = options().open(path).map_err(|error| OpenError::of(path, &error))?;
                (file, ends_torn(path))
            }
        };
        Ok(Self { file, output: output.clone(), is_torn })
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a file ends in the middle of a line. One that cannot be read is taken to be whole.
fn ends_torn(path: &Path) -> bool {
    let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    let last = || -> io::Result<u8> {
        let mut file = fs::File::open(path)?;
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        Ok(last[0])
    };
    is_file && last().is_ok_and(|last| last != b'\n')
}

/// How a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// All is written.
    Done,
    /// The reader takes no more for now; the rest is kept.
    Blocked,
}

/// Lines that are gathered and written together.
pub(super) struct Lines<W> {
    writer: W,
    /// What is to be written, and how much of it was.
    batch: Vec<u8>,
    written: usize,
    /// How many lines it has.
    lines: u64,
    /// Whether what was written last is the first part of a line. The next batch begins with its end, so that no line
    /// follows half of another.
    is_torn: bool,
    metrics: Arc<AccessLogMetrics>,
}

impl Lines<File> {
    pub(super) fn new(file: File, metrics: Arc<AccessLogMetrics>) -> Self {
        let is_torn = file.is_torn;
        Self { writer: file, batch: Vec::new(), written: 0, lines: 0, is_torn, metrics }
    }

    /// Opens the file again. When that fails, the one that was open stays.
    pub(super) fn reopen(&mut self) -> Result<(), OpenError> {
        if self.writer.output == AccessLogOutput::Stdout {
            return Ok(());
        }
        let file = File::open(&self.writer.output)?;
        // What waits for a reader would begin in the middle of a line.
        self.give_up();
        let is_file = file.file.metadata().is_ok_and(|metadata| metadata.is_file());
        self.is_torn = if is_file { file.is_torn } else { self.is_torn };
        self.writer = file;
        Ok(())
    }
}

impl<W: Write> Lines<W> {
    /// The size of what is to be written.
    pub(super) fn bytes(&self) -> usize {
        self.batch.len()
    }

    /// Whether nothing is to be written.
    pub(super) fn is_written(&self) -> bool {
        self.batch.is_empty()
    }

    /// Adds a line, which `write` appends with its end.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.batch.is_empty() && self.is_torn {
            self.batch.push(b'\n');
        }
        write(&mut self.batch);
        self.lines += 1;
    }

    /// Writes what was added.
    ///
    /// # Errors
    /// The error, and how many lines are lost.
    pub(super) fn write(&mut self) -> Result<Progress, (io::Error, u64)> {
        while let rest @ [_, ..] = &self.batch[self.written..] {
            match self.writer.write(rest) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), self.give_up())),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Blocked);
                }
                Err(error) => return Err((error, self.give_up())),
            }
        }
        self.give_up();
        Ok(Progress::Done)
    }

    /// Drops what is not written; how many lines that are.
    pub(super) fn give_up(&mut self) -> u64 {
        let written = &self.batch[..self.written];
        let mut ends = written.iter().filter(|&&byte| byte == b'\n').count() as u64;
        if let Some(&last) = written.last() {
            // The first one was that of a line before.
            ends -= u64::from(self.is_torn);
            self.is_torn = last != b'\n';
        }
        let lost = self.lines - ends;
        self.metrics.written.add(ends);
        self.metrics.lost.add(lost);
        (self.written, self.lines) = (0, 0);
        self.batch.clear();
        lost
    }

    /// A line was not even added.
    pub(super) fn lose_one(&self) {
        self.metrics.lost.increment();
    }

    /// How many lines were lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.metrics.lost.read()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Takes so many bytes at a time, and fails once where it is told to.
    struct Faulty {
        taken: Vec<u8>,
        at_a_time: usize,
        fails_at: Option<usize>,
        kind: io::ErrorKind,
    }

    impl Write for Faulty {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.fails_at.map_or(usize::MAX, |place| place - self.taken.len());
            if room == 0 {
                self.fails_at = None;
                return Err(self.kind.into());
            }
            let taken = bytes.len().min(room).min(self.at_a_time);
            self.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(at_a_time: usize, fails_at: Option<usize>, kind: io::ErrorKind) -> Lines<Faulty> {
        Lines {
            writer: Faulty { taken: Vec::new(), at_a_time, fails_at, kind },
            batch: Vec::new(),
            written: 0,
            lines: 0,
            is_torn: false,
            metrics: Arc::default(),
        }
    }

    fn add(lines: &mut Lines<Faulty>, numbers: std::ops::Range<usize>) {
        for number in numbers {
            lines.add(|line| line.extend_from_slice(format!("line {number}\n").as_bytes()));
        }
    }

    /// Three batches of two lines, of which a write fails at this byte.
    #[track_caller]
    fn check(at_a_time: usize, fails_at: usize, kind: io::ErrorKind) {
        let mut lines = lines(at_a_time, Some(fails_at), kind);
        let mut lost = 0;
        for batch in 0..3 {
            add(&mut lines, batch * 2..batch * 2 + 2);
            loop {
                match lines.write() {
                    Ok(Progress::Done) => break,
                    Ok(Progress::Blocked) => assert_eq!(kind, io::ErrorKind::WouldBlock),
                    Err((error, number)) => {
                        assert_eq!(error.kind(), kind);
                        lost += number;
                        break;
                    }
                }
            }
            assert!(lines.is_written());
        }
        let written = lines.metrics.written.read();
        assert_eq!((written + lost, lines.metrics.lost.read()), (6, lost));
        let text = String::from_utf8(lines.writer.taken).unwrap();
        let whole = |line: &&str| line.len() == "line 0".len();
        // A line of which only the end was missing counts as lost.
        let ended_later = kind == io::ErrorKind::StorageFull && fails_at % "line 0\n".len() == 6;
        let expected = written + u64::from(ended_later);
        assert_eq!(text.lines().filter(whole).count() as u64, expected, "at {fails_at}: {text:?}");
        let torn: Vec<_> = text.lines().filter(|line| !whole(line)).collect();
        assert!(torn.len() <= 1, "at {fails_at}: {text:?}");
        assert!(torn.iter().all(|torn| "line ".starts_with(torn)), "at {fails_at}: {text:?}");
        // Nothing comes after the last batch that would end its line.
        let last = fails_at > "line 0\n".len() * 4;
        assert!(text.ends_with('\n') || last, "at {fails_at}: {text:?}");
        match kind {
            io::ErrorKind::StorageFull => assert!((1..=2).contains(&lost), "at {fails_at}"),
            _ => assert_eq!(lost, 0, "at {fails_at}"),
        }
    }

    #[test]
    fn a_write_fails_at_each_byte() {
        let kinds =
            [io::ErrorKind::StorageFull, io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
        for kind in kinds {
            for at_a_time in [1, 5, 7, 100] {
                for fails_at in 0.."line 0\n".len() * 6 {
                    check(at_a_time, fails_at, kind);
                }
            }
        }
    }

    #[test]
    fn a_line_that_cannot_be_ended_is_ended_later() {
        let mut lines = lines(100, Some(3), io::ErrorKind::StorageFull);
        add(&mut lines, 0..1);
        assert_eq!(lines.write().unwrap_err().1, 1);
        // The end of the line itself fails.
        lines.writer.fails_at = Some(3);
        add(&mut lines, 1..2);
        assert_eq!(lines.write().unwrap_err().1, 1);
        // Nothing but the end of the line is written.
        lines.writer.fails_at = Some(4);
        add(&mut lines, 2..3);
        assert_eq!(lines.write().unwrap_err().1, 1);
        add(&mut lines, 3..4);
        assert_eq!(lines.write().unwrap(), Progress::Done);
        assert_eq!(lines.writer.taken, b"lin\nline 3\n");
        assert_eq!((lines.metrics.written.read(), lines.lost()), (1, 3));
    }

    #[track_caller]
    fn refused(path: &Path, problem: &str) {
        let output = AccessLogOutput::File(path.to_owned());
        for error in [probe(&output).err(), File::open(&output).err()] {
            let said = error.expect("refused").to_string();
            assert_eq!(said, format!("access-log: cannot write {}: {problem}", path.display()));
        }
    }

    #[test]
    fn what_is_no_place_for_a_log_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        refused(directory.path(), "it is a directory; name a file in it");
        let none = directory.path().join("none/access.log");
        refused(&none, &format!("its directory does not exist; make it, or {ELSEWHERE}"));
        let socket = directory.path().join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        refused(&socket, "it is a socket; name a file, or - for standard output");
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        refused(&file.join("access.log"), &format!("Not a directory (os error 20); {ELSEWHERE}"));
    }

    #[test]
    fn a_file_is_made_for_its_owner_and_group_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let output = AccessLogOutput::File(path.clone());
        probe(&output).unwrap();
        assert!(!path.exists(), "a probe makes nothing");
        let mut lines = Lines::new(File::open(&output).unwrap(), Arc::default());
        lines.add(|line| line.extend_from_slice(b"one\n"));
        lines.write().unwrap();
        probe(&output).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
        // Renamed and opened anew, as by logrotate; then a start after a process that was killed in a write.
        fs::rename(&path, directory.path().join("access.log.1")).unwrap();
        lines.reopen().unwrap();
        lines.add(|line| line.extend_from_slice(b"two\n"));
        lines.write().unwrap();
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"thr").unwrap();
        let mut lines = Lines::new(File::open(&output).unwrap(), Arc::default());
        lines.add(|line| line.extend_from_slice(b"four\n"));
        lines.write().unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("access.log.1")).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\nthr\nfour\n");
        assert_eq!((lines.metrics.written.read(), lines.lost()), (1, 0));
    }
}
