//! The calls that one connection has taken, from their bytes to their answers: which of them have left, and whose
//! answer the bytes are that were received. A value without I/O.

use std::io;

use super::{
    Content,
    fifo::Fifo,
    response_reader::{Answer, ResponseLimits, ResponseReader},
};
use crate::runtime::{clock::Stamp, read_buffer::ReadBuffer};

/// A call that was taken.
#[derive(Debug)]
pub(super) struct Sent {
    /// What becomes of the content of its answer.
    pub(super) content: Content,
    /// When it was taken.
    pub(super) began: Stamp,
    /// The length of its request.
    pub(super) bytes: usize,
}

/// What was taken and has no answer, in the order in which it is sent and answered.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    calls: Fifo<Sent>,
    /// How many of them, from the last, have not left whole. They are in the write under way.
    leaving: usize,
    /// The bytes of that write.
    write_bytes: usize,
    /// How many of these have left.
    left_bytes: usize,
    /// What was read of the first answer.
    response: Option<ResponseReader>,
    /// The last read gave several answers, or there are several to come.
    expects_much: bool,
    /// A write has failed.
    sends_no_more: bool,
}

/// How far a write has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    Whole,
    /// So many bytes of it have left.
    UpTo(usize),
    /// It has failed: not a byte of the last so many calls has left. They are no longer in flight.
    Never(usize),
}

impl InFlight {
    /// A call is taken. It leaves with the next write.
    pub(super) fn push(&mut self, call: Sent) {
        self.leaving += 1;
        self.write_bytes += call.bytes;
        self.calls.push(call);
    }

    /// Whether bytes that are received now can be made sense of: they are an answer to a call that has left whole, or
    /// nobody has asked for them.
    pub(super) fn expects_bytes(&self) -> bool {
        self.awaits_answer() || self.calls.is_empty()
    }

    /// Whether there is a call that has left whole.
    pub(super) fn awaits_answer(&self) -> bool {
        self.calls.len() > self.leaving
    }

    /// Whether many bytes are expected at a time.
    pub(super) fn expects_much(&self) -> bool {
        self.expects_much
    }

    /// Whether the connection is of no more use.
    pub(super) fn is_over(&self) -> bool {
        self.sends_no_more && !self.awaits_answer()
    }

    /// A write has ended, with so many more bytes gone.
    pub(super) fn written(&mut self, result: &io::Result<usize>) -> Left {
        let failed = !matches!(result, Ok(1..));
        self.left_bytes += result.as_ref().map_or(0, |count| *count);
        // The calls of the write, the last first, each with the place of its end.
        let mut end = self.write_bytes;
        let (mut leaving, mut never) = (0, 0);
        for call in self.calls.iter().rev().take(self.leaving) {
            if end <= self.left_bytes {
                break;
            }
            leaving += 1;
            end -= call.bytes;
            never += usize::from(end >= self.left_bytes);
        }
        self.leaving = leaving;
        if failed {
            self.sends_no_more = true;
            self.leaving -= never;
            for _ in 0..never {
                self.calls.pop_last();
            }
            return Left::Never(never);
        }
        if leaving == 0 {
            (self.write_bytes, self.left_bytes) = (0, 0);
            return Left::Whole;
        }
        Left::UpTo(self.left_bytes)
    }

    /// Reads what was received, or the end of the stream. `tell` is told of each answer, and says whether the connection
    /// goes on. What belongs to a call that has not left whole stays unread. Returns whether the connection goes on.
    pub(super) fn read(
        &mut self,
        received: &io::Result<usize>,
        buffer: &mut ReadBuffer,
        limits: &ResponseLimits,
        mut tell: impl FnMut(&Sent, Answer) -> bool,
    ) -> bool {
        match received {
            Ok(1..) => {}
            Ok(0) => {
                if let Some(Ok(answer)) = self.response.as_ref().map(ResponseReader::read_end)
                    && let Some(call) = self.calls.pop()
                {
                    tell(&call, answer);
                }
                return false;
            }
            Err(_) => return false,
        }
        let mut answers = 0;
        while self.awaits_answer() && !buffer.unread().is_empty() {
            let others = self.calls.len() > 1;
            let content = self.calls.first().map(|call| call.content).unwrap_or_default();
            let response = self.response.get_or_insert_with(|| ResponseReader::new(content));
            let Ok((consumed, answer)) = response.read(buffer.unread(), others, limits) else {
                return false;
            };
            buffer.consume(consumed);
            let Some(answer) = answer else { break };
            self.response = None;
            answers += 1;
            if !self.calls.pop().is_some_and(|call| tell(&call, answer)) {
                return false;
            }
        }
        self.expects_much = self.calls.len() > 1 || answers > 1 && !self.calls.is_empty();
        // Else nobody has asked for what is left.
        !self.calls.is_empty() || buffer.unread().is_empty()
    }
}

#[cfg(test)]
mod tests;
