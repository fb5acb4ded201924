//! What the benchmark's programs share: a bare io_uring loop, the floors and the counter on it, the visitors that load a
//! server, and the sites of several arms.
//!
//! The loop has multishot accept and receive, provided buffers and static answers, and parses nothing but the end of a
//! head. It is not safe against any peer but those of this benchmark.

use std::{
    collections::HashMap,
    env, io,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use bytes::Bytes;
use procfs::process::Process;

pub mod axum_site;
mod by_descriptor;
pub mod floor;
pub mod hyper_site;
pub mod load;
pub mod per_core;
mod requests;
pub mod ring;
pub mod stub;

/// The answer of every arm to a visit, without the `Date` that a real server sends.
pub const WELCOME: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\
    content-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\n\
    date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nWelcome to my site!";

/// The page of a registered visit.
pub const WELCOME_PAGE: &str = "Welcome to my site!";

/// The page of a visit that was not registered.
pub const SORRY_PAGE: &str = "Error registering your visit";

/// The call that registers a visit.
pub const REGISTER: &[u8] =
    b"POST /counter HTTP/1.1\r\ncontent-length: 0\r\nhost: 127.0.0.1\r\nuser-agent: floor\r\n\r\n";

/// The counter's answer.
pub const COUNTED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n1\n";

/// The size in bytes of the page at `/heavy`, which keeps its thread busy.
pub const HEAVY_BYTES: usize = 4 * 1024 * 1024;

/// The page at `/heavy`.
pub fn heavy() -> Bytes {
    vec![b'x'; HEAVY_BYTES].into()
}

/// The arguments of this process, or the default for each that is missing.
pub fn arguments<const N: usize>(defaults: [&str; N]) -> [String; N] {
    let mut given = env::args().skip(1);
    defaults.map(|default| given.next().unwrap_or_else(|| default.to_owned()))
}

/// The CPU time of each thread of a process by the thread's id, in nanoseconds.
///
/// # Errors
/// When the process has ended.
pub fn thread_nanoseconds(process: u32) -> io::Result<HashMap<i32, u64>> {
    let process = Process::new(process.cast_signed()).map_err(io::Error::other)?;
    let tasks = process.tasks().map_err(io::Error::other)?.flatten();
    // A thread that has just ended has no file any more.
    let time =
        |task: procfs::process::Task| Some((task.tid, task.schedstat().ok()?.sum_exec_runtime));
    Ok(tasks.filter_map(time).collect())
}

/// How long an answer to [`ask`] may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks for a page that fits into a segment, and leaves the connection open; the page of a 200.
///
/// # Errors
/// When the answer is another one, or does not come.
pub fn ask(stream: &TcpStream, path: &str) -> io::Result<String> {
    send_request(stream, path)?;
    read_page(stream, path)
}

/// Sends a request.
///
/// # Errors
/// What write(2) says.
pub fn send_request(mut stream: &TcpStream, path: &str) -> io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
}

/// The page that a request is answered with, which must fit into a segment.
///
/// # Errors
/// When the answer is not a 200, or does not come.
pub fn read_page(mut stream: &TcpStream, path: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    let mut answer = [0; 4096];
    let count = stream.read(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..count]);
    match answer.split_once("\r\n\r\n") {
        Some((head, page)) if head.starts_with("HTTP/1.1 200") => Ok(page.to_owned()),
        _ => Err(io::Error::other(format!("GET {path} is answered with {answer:?}"))),
    }
}

/// How many heads `bytes` contain. The clients of this benchmark send each head in one segment.
pub fn heads(bytes: &[u8]) -> usize {
    bytes.windows(4).filter(|window| *window == b"\r\n\r\n").count()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    #[test]
    fn only_the_page_of_a_200_is_returned() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n17",
            "HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\n17",
            "HTTP/1.1 200 OK\r\n",
            "",
        ];
        let server = thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 512]).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let asked = answers.map(|_| ask(&TcpStream::connect(address).unwrap(), "/counter"));
        server.join().unwrap();
        assert_eq!(asked[0].as_deref().unwrap(), "17");
        assert!(asked[1..].iter().all(Result::is_err), "{asked:?}");
    }

    #[test]
    fn threads_are_found_with_their_time() {
        let own = thread_nanoseconds(std::process::id()).unwrap();
        assert!(own.values().any(|time| *time > 0), "{own:?}");
        assert!(thread_nanoseconds(u32::MAX / 2).is_err());
    }
}
