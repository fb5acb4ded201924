//! Reads what a client received, by a parser of its own, and judges it: each answer must be the next request's, and one
//! that this request may get.

use crate::{
    request::{Request, Subject},
    server::{file, shown_page},
};

/// An answer, as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The fields, with names in lower case.
    pub fields: Vec<(String, String)>,
    /// The content.
    pub content: Vec<u8>,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// Whether it says that the connection ends.
    pub fn closes(&self) -> bool {
        self.field("connection") == Some("close")
    }
}

/// Takes the first answer off `bytes`, if it is whole: how many bytes it is, and what it says.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8], head_only: bool) -> Result<Option<(usize, Answer)>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > 2_000 {
            Err(String::from("a head without end"))
        } else {
            Ok(None)
        };
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| String::from("a head of bytes"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let (status, _) = status.and_then(|rest| rest.split_once(' ')).ok_or("no status line")?;
    let status: u16 = status.parse().map_err(|_| format!("the status {status:?}"))?;
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or_else(|| format!("the field {line:?}"))?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err(format!("the field {line:?}"));
        }
        fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut answer = Answer { status, fields, content: Vec::new() };
    if status < 200 {
        return Ok(Some((end + 4, answer)));
    }
    let count = |name: &str| answer.fields.iter().filter(|(known, _)| known == name).count();
    if count("date") != 1 || count("content-length") > 1 || count("connection") > 1 {
        return Err(format!("the fields {:?}", answer.fields));
    }
    let length = match (status, answer.field("content-length")) {
        (204 | 304, None) => 0,
        (_, Some(length)) => length.parse().map_err(|_| format!("the length {length:?}"))?,
        (_, None) => return Err(format!("no length: {:?}", answer.fields)),
    };
    let length = if head_only { 0 } else { length };
    let Some(content) = bytes.get(end + 4..end + 4 + length) else { return Ok(None) };
    answer.content = content.to_vec();
    Ok(Some((end + 4 + length, answer)))
}

/// What an answer tells of its visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was welcomed.
    Welcome,
    /// It was not registered.
    Sorry,
    /// The server has too much to do.
    Overloaded,
    /// It was no visit.
    Nothing,
}

/// Judges an answer to `request`. A welcome shows `number`, and nothing in its place if there is none.
///
/// # Errors
/// What is wrong with it.
pub fn judge(request: &Request, answer: &Answer, number: Option<u64>) -> Result<Told, String> {
    let wrong = || {
        let content = String::from_utf8_lossy(&answer.content[..answer.content.len().min(80)]);
        let Request { method, subject, .. } = request;
        Err(format!("{method} of {subject:?} was answered with {}, {content:?}", answer.status))
    };
    if request.closes() && !answer.closes() {
        return Err(String::from("an answer does not say that the connection closes"));
    }
    let told = match (request.subject, request.method) {
        (Subject::Server, _) => {
            return if answer.status == 200 { Ok(Told::Nothing) } else { wrong() };
        }
        (Subject::Nothing, _) => {
            return if answer.status == 404 { Ok(Told::Nothing) } else { wrong() };
        }
        (_, "OPTIONS") => return if answer.status == 200 { Ok(Told::Nothing) } else { wrong() },
        (Subject::Visit(_), "DELETE") | (Subject::File(_), "DELETE" | "POST") => {
            return if answer.status == 405 { Ok(Told::Nothing) } else { wrong() };
        }
        (Subject::File(number), _) => {
            return match is(request, answer, &file(number)) && answer.status == 200 {
                true => Ok(Told::Nothing),
                false => wrong(),
            };
        }
        (Subject::Visit(visit), _) => {
            let any = |welcome: bool, number| {
                (0..2).any(|version| {
                    is(request, answer, &shown_page(visit, version, welcome, number))
                })
            };
            match answer.status {
                200 if any(true, number) => Told::Welcome,
                200 if any(false, None) => Told::Sorry,
                503 if answer.field("retry-after") == Some("1") => Told::Overloaded,
                _ => return wrong(),
            }
        }
    };
    Ok(told)
}

/// Whether the content of `answer` is `content`, of which a `HEAD` sees the length.
fn is(request: &Request, answer: &Answer, content: &str) -> bool {
    if request.method == "HEAD" {
        return answer.field("content-length") == Some(&content.len().to_string());
    }
    answer.content == content.as_bytes()
}
