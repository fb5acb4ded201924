//! An answer to a visit: whether it is complete, and whether the visit was registered.

use crate::SORRY_PAGE;

/// Stands for the status of a sorry page.
const NOT_REGISTERED: u16 = 0;

/// An answer that is being received. Only its status and its length matter.
pub(super) enum Answer {
    Head(Vec<u8>),
    Body { status: u16, left: usize },
}

impl Default for Answer {
    fn default() -> Self {
        Self::Head(Vec::new())
    }
}

impl Answer {
    /// Takes bytes; the status when the answer is complete, 0 for a malformed one.
    pub(super) fn advance(&mut self, bytes: &mut &[u8]) -> Option<u16> {
        if let Self::Head(held) = self {
            let before = held.len();
            held.extend_from_slice(bytes);
            let Some(end) = held.windows(4).position(|window| window == b"\r\n\r\n") else {
                *bytes = &[];
                return None;
            };
            let taken = end + 4 - before;
            let (status, left) = head(&held[..end + 4]).unwrap_or((0, 0));
            *bytes = &bytes[taken..];
            *self = Self::Body { status, left };
        }
        let Self::Body { status, left } = self else { return None };
        let taken = bytes.len().min(*left);
        *bytes = &bytes[taken..];
        *left -= taken;
        if *left > 0 {
            return None;
        }
        let status = *status;
        *self = Self::default();
        Some(status)
    }
}

fn head(bytes: &[u8]) -> Option<(u16, usize)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    response.parse(bytes).ok()?;
    let status = response.code?;
    let length = response.headers.iter().find(|f| f.name.eq_ignore_ascii_case("content-length"));
    let length = std::str::from_utf8(length?.value).ok()?.parse().ok()?;
    // The sorry page is recognised by its length.
    let status = if status == 200 && length == SORRY_PAGE.len() { NOT_REGISTERED } else { status };
    Some((status, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_says_sorry_is_no_registered_visit() {
        let answer = |page: &str| {
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len());
            Answer::default().advance(&mut text.as_bytes())
        };
        assert_eq!(answer(crate::WELCOME_PAGE), Some(200));
        assert_eq!(answer(SORRY_PAGE), Some(NOT_REGISTERED));
    }

    #[test]
    fn an_answer_may_come_in_any_pieces() {
        let answers = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\
                        HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
        for size in 1..answers.len() {
            let (mut answer, mut seen) = (Answer::default(), Vec::new());
            for mut piece in answers.chunks(size) {
                while !piece.is_empty() {
                    seen.extend(answer.advance(&mut piece));
                }
            }
            assert_eq!(seen, [200, 503], "in pieces of {size}");
        }
    }
}
