//! Requests and answers that are cut at every byte.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::*;
use crate::{
    config::RESPONSE_HEAD,
    runtime::read_buffer::ReadBufferPool,
    upstream::{ShortContent, UpstreamLimits},
};

fn limits() -> ResponseLimits {
    ResponseLimits::new(&UpstreamLimits {
        connect_timeout: Duration::ZERO,
        call_timeout: Duration::ZERO,
        connections_max: 1,
        pipeline_max: 10,
        queue_max: 1,
        idle_timeout: Duration::ZERO,
        head: RESPONSE_HEAD,
        drain_bytes_max: 10,
    })
}

/// Calls whose requests have these lengths, of which nothing was written. Each keeps its content.
fn taken(lengths: &[usize]) -> InFlight {
    let mut calls = InFlight::default();
    for &bytes in lengths {
        calls.push(Sent { content: Content::Kept, began: Stamp::default(), bytes });
    }
    calls
}

/// The same, written whole.
fn sent(lengths: &[usize]) -> InFlight {
    let mut calls = taken(lengths);
    assert_eq!(calls.written(&Ok(lengths.iter().sum())), Left::Whole);
    calls
}

/// What was received.
struct Bytes {
    buffer: ReadBuffer,
    pool: ReadBufferPool,
}

impl Bytes {
    fn new() -> Self {
        Self { buffer: ReadBuffer::default(), pool: ReadBufferPool::new(16 * 1024) }
    }

    /// Receives some more, as much of it as the buffer takes at once.
    fn receive(&mut self, bytes: &mut &[u8], much: bool) -> io::Result<usize> {
        self.buffer.make_room(&self.pool, much).unwrap();
        let receiving = pin!(self.buffer.receive(bytes));
        match receiving.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(received) => received,
            Poll::Pending => panic!("the bytes are there"),
        }
    }
}

/// What the calls are told, in their order, when `text` is received in these pieces, and then the end: the contents,
/// or the statuses where there is none. `false` at the end says that the connection has ended before.
fn read(calls: &mut InFlight, pieces: &[&str]) -> (Vec<String>, bool) {
    let (limits, mut bytes, mut told) = (limits(), Bytes::new(), Vec::new());
    for piece in pieces {
        let mut piece = piece.as_bytes();
        while !piece.is_empty() {
            let received = bytes.receive(&mut piece, calls.expects_much());
            let goes_on = calls.read(&received, &mut bytes.buffer, &limits, |_, answer| {
                told.push(tell(&answer));
                answer.reusable
            });
            if !goes_on {
                return (told, false);
            }
        }
    }
    let end = |_: &Sent, answer: Answer| {
        told.push(tell(&answer));
        answer.reusable
    };
    assert!(!calls.read(&Ok(0), &mut bytes.buffer, &limits, end), "it goes on after its end");
    (told, true)
}

fn tell(answer: &Answer) -> String {
    let content = answer.content.as_deref().and_then(ShortContent::whole);
    let text = content.map(|bytes| str::from_utf8(bytes).unwrap().to_owned());
    text.unwrap_or_else(|| answer.status.to_string())
}

/// Answers of all lengths and framings, and what is told of them.
const ANSWERS: [(&str, &str); 5] = [
    ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n11", "11"),
    ("HTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2", "2"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n3\r\n2\r\n33\r\n0\r\n\r\n", "333"),
    ("HTTP/1.1 204 Counted\r\n\r\n", ""),
    ("HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\n5", "5"),
];

fn all_answers() -> (String, Vec<&'static str>) {
    (ANSWERS.map(|(text, _)| text).concat(), ANSWERS.map(|(_, told)| told).to_vec())
}

#[test]
fn each_answer_is_its_own_calls_however_they_are_cut() {
    let (text, told) = all_answers();
    for cut in 0..=text.len() {
        let (one, other) = text.split_at(cut);
        let mut calls = sent(&[10; 5]);
        let (answers, _) = read(&mut calls, &[one, other]);
        assert_eq!(answers, told, "cut at {cut}");
    }
    for size in 1..text.len() {
        let pieces: Vec<_> =
            text.as_bytes().chunks(size).map(|piece| str::from_utf8(piece).unwrap()).collect();
        assert_eq!(read(&mut sent(&[10; 5]), &pieces).0, told, "{size} bytes at a time");
    }
}

#[test]
fn a_connection_that_ends_has_answered_the_calls_whose_answers_were_whole() {
    let (text, told) = all_answers();
    let ends: Vec<usize> = ANSWERS
        .iter()
        .scan(0, |end, (text, _)| {
            *end += text.len();
            Some(*end)
        })
        .collect();
    for cut in 0..text.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let mut calls = sent(&[10; 5]);
        let (answers, _) = read(&mut calls, &[&text[..cut]]);
        assert_eq!(answers, told[..whole], "it ends after {cut} bytes");
        assert_eq!(calls.calls.len(), 5 - whole);
    }
}

#[test]
fn what_nobody_has_asked_for_ends_the_connection() {
    let (text, told) = all_answers();
    let more = text.clone() + "H";
    assert_eq!(
        read(&mut sent(&[10; 5]), &[&more]),
        (told.clone().into_iter().map(String::from).collect(), false)
    );
    assert!(!read(&mut sent(&[10; 5]), &[&text, "H"]).1);
    assert!(read(&mut sent(&[10; 5]), &[&text]).1);
    assert_eq!(read(&mut InFlight::default(), &["H"]), (vec![], false));
}

#[test]
fn an_answer_that_ends_its_connection_is_the_last() {
    let close = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1";
    let (text, _) = all_answers();
    let mut calls = sent(&[10; 6]);
    assert_eq!(read(&mut calls, &[&format!("{close}{text}")]), (vec!["1".to_owned()], false));
    // One without a length has its end with the connection, and the others have none.
    let mut calls = sent(&[10; 3]);
    let (answers, _) = read(&mut calls, &[ANSWERS[0].0, "HTTP/1.1 200 OK\r\n\r\n", ANSWERS[1].0]);
    assert_eq!(answers, ["11", "200"]);
    assert_eq!(calls.calls.len(), 1);
}

#[test]
fn a_malformed_answer_ends_the_connection_and_no_later_one_is_told() {
    let (text, _) = all_answers();
    let (answers, goes_on) = read(&mut sent(&[10; 7]), &[ANSWERS[0].0, "nonsense\r\n\r\n", &text]);
    assert_eq!((answers, goes_on), (vec!["11".to_owned()], false));
}

/// The requests of calls, of which the write under way takes `first` bytes and then fails, after another that takes
/// `second`, if that is not nothing.
#[track_caller]
fn check_failure(lengths: &[usize], first: usize, second: usize) {
    let mut calls = taken(lengths);
    let all: usize = lengths.iter().sum();
    for (left, count) in [(first, first), (first + second, second)] {
        if count > 0 {
            let expected = if left == all { Left::Whole } else { Left::UpTo(left) };
            assert_eq!(calls.written(&Ok(count)), expected, "{left} of {lengths:?}");
        }
    }
    let left = first + second;
    if left == all {
        return;
    }
    let mut start = 0;
    let (mut whole, mut never) = (0, 0);
    for length in lengths {
        whole += usize::from(start + length <= left);
        never += usize::from(start >= left);
        start += length;
    }
    let mut failed = taken(lengths);
    (failed.leaving, failed.left_bytes) = (calls.leaving, calls.left_bytes);
    for (mut calls, result) in [(calls, Ok(0)), (failed, Err(io::ErrorKind::BrokenPipe.into()))] {
        assert_eq!(calls.written(&result), Left::Never(never), "{left} of {lengths:?}");
        assert_eq!(calls.calls.len(), lengths.len() - never);
        assert_eq!((calls.awaits_answer(), calls.is_over()), (whole > 0, whole == 0));
        // Those that have left whole are answered all the same, and no other.
        let answers = ANSWERS[0].0.repeat(lengths.len());
        let (told, _) = read(&mut calls, &[&answers]);
        assert_eq!(told.len(), whole, "{left} of {lengths:?}");
        assert!(calls.is_over());
    }
}

#[test]
fn a_write_that_fails_at_any_byte_has_sent_the_calls_before_it() {
    let lengths = [3, 1, 4, 1, 5];
    let all = lengths.iter().sum();
    for first in 0..=all {
        for second in 0..=all - first {
            check_failure(&lengths, first, second);
        }
    }
    check_failure(&[7], 0, 0);
    check_failure(&[7], 6, 0);
}

#[test]
fn an_answer_waits_until_its_request_has_left_whole() {
    let (limits, mut bytes) = (limits(), Bytes::new());
    let mut calls = sent(&[10]);
    calls.push(Sent { content: Content::Kept, began: Stamp::default(), bytes: 10 });
    let text = ANSWERS[0].0.repeat(2);
    let received = bytes.receive(&mut text.as_bytes(), true);
    let mut told = 0;
    assert!(calls.read(&received, &mut bytes.buffer, &limits, |_, _| {
        told += 1;
        true
    }));
    assert_eq!((told, bytes.buffer.unread().len()), (1, ANSWERS[0].0.len()));
    assert!(!calls.awaits_answer() && !calls.expects_bytes());
    assert_eq!(calls.written(&Ok(9)), Left::UpTo(9));
    assert!(!calls.expects_bytes());
    assert_eq!(calls.written(&Ok(1)), Left::Whole);
    assert!(calls.expects_bytes());
    let held = Ok(bytes.buffer.unread().len());
    assert!(calls.read(&held, &mut bytes.buffer, &limits, |_, _| {
        told += 1;
        true
    }));
    assert_eq!((told, bytes.buffer.unread().len()), (2, 0));
}

#[test]
fn each_call_has_its_own_time_and_its_own_wish_for_the_content() {
    let (limits, mut bytes, mut calls) = (limits(), Bytes::new(), InFlight::default());
    let wishes = [Content::Kept, Content::Discarded, Content::Kept];
    for (number, content) in (1..).zip(wishes) {
        calls.push(Sent { content, began: Stamp::new(number), bytes: 5 });
    }
    assert_eq!(calls.written(&Ok(15)), Left::Whole);
    let text = [ANSWERS[0].0, ANSWERS[1].0, ANSWERS[4].0].concat();
    let received = bytes.receive(&mut text.as_bytes(), true);
    let mut told = Vec::new();
    assert!(calls.read(&received, &mut bytes.buffer, &limits, |call, answer| {
        told.push((call.began, tell(&answer)));
        true
    }));
    let expected = [(1, "11"), (2, "200"), (3, "5")];
    assert_eq!(told, expected.map(|(number, text)| (Stamp::new(number), text.to_owned())));
}
