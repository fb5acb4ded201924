//! A client that writes raw bytes and reads responses.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::PATIENCE;

/// A client that sends any bytes, right or wrong.
pub struct Client {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    /// The value of a field; `None` where there is none.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

pub fn get_request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).unwrap())
    }

    pub fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// False when the connection has ended.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.send(get_request(path));
        self.response()
    }

    /// The next response, with a body as long as it says.
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    pub fn response_to(&mut self, method: &str) -> Response {
        self.response_or_end(method).expect("a response")
    }

    /// The next response; `None` when the server closes in order before it begins one.
    pub fn response_or_end(&mut self, method: &str) -> Option<Response> {
        self.try_response(method).expect("the server to answer or close")
    }

    /// The next response; `None` when the server closes in order before it begins one.
    ///
    /// # Errors
    /// When the connection is reset.
    pub fn try_response(&mut self, method: &str) -> io::Result<Option<Response>> {
        let Some(head) = self.read_through(b"\r\n\r\n")? else {
            assert!(self.unread.is_empty(), "a head was cut");
            return Ok(None);
        };
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).expect(&head).parse().unwrap();
        let mut response = Response { status, head, body: String::new() };
        let length = response.field("content-length").map_or(0, |length| length.parse().unwrap());
        if method != "HEAD" {
            while self.unread.len() < length {
                assert!(self.receive()? > 0, "the body was cut");
            }
            let rest = self.unread.split_off(length);
            response.body = String::from_utf8(std::mem::replace(&mut self.unread, rest)).unwrap();
        }
        Ok(Some(response))
    }

    /// The sum over all workers of a metric, with a label like `tallyring_visits_total{outcome="erred"`, or of one
    /// that has none, asked of the admin listener.
    pub fn metric(&mut self, row: &str) -> u64 {
        let (name, label) = row.split_once('{').unwrap_or((row, ""));
        let text = self.get("/metrics").body;
        let rows = text.lines().filter(|line| {
            line.split_once(['{', ' '])
                .is_some_and(|(family, rest)| family == name && rest.contains(label))
        });
        rows.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Asks for a metric until it is `wanted`.
    pub fn wait_for_metric(&mut self, row: &str, wanted: u64) {
        let began = Instant::now();
        while self.metric(row) != wanted {
            assert!(began.elapsed() < PATIENCE, "{row} never was {wanted}");
            thread::yield_now();
        }
    }

    fn read_through(&mut self, end: &[u8]) -> io::Result<Option<Vec<u8>>> {
        loop {
            let place = self.unread.windows(end.len()).position(|window| window == end);
            if let Some(place) = place {
                let rest = self.unread.split_off(place + end.len());
                return Ok(Some(std::mem::replace(&mut self.unread, rest)));
            }
            if self.receive()? == 0 {
                return Ok(None);
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer)?;
        self.unread.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    /// Closes with a reset: what is on its way is lost (SO_LINGER of 0, socket(7)).
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Whether all that was received was read.
    pub fn has_read_all(&self) -> bool {
        self.unread.is_empty()
    }

    /// Whether the server closes without another byte. A reset is a close too.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        self.unread.is_empty() && !matches!(self.stream.read(&mut byte), Ok(1..))
    }

    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}
