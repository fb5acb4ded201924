//! What clients send before their first request, where the server expects a PROXY header.

use std::time::Duration;

use fastrand::Rng;

/// The beginning of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// A valid header. At the place, if there is one, it pauses.
    Header(Vec<u8>, Option<(usize, Duration)>),
    /// A valid header, together with what follows.
    Joined(Vec<u8>),
    /// A part of one, and nothing more.
    Part(Vec<u8>),
    /// Anything else, or nothing, before the requests.
    Wrong(Vec<u8>),
}

/// The plainest header.
pub const PLAIN: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

impl Opening {
    /// Draws one. A header has to come within `time`.
    pub fn draw(rng: &mut Rng, time: Duration) -> Self {
        let header = header(rng);
        let place = rng.usize(1..header.len());
        match rng.u8(0..12) {
            0 => Self::Wrong(Vec::new()),
            1 => Self::Wrong(wrong(rng)),
            2 => Self::Part(header[..place].to_vec()),
            3..=6 => Self::Joined(header),
            7 | 8 => {
                // Some wait for longer than they may.
                let most = if rng.u8(0..4) == 0 { time * 2 } else { time / 3 };
                Self::Header(header, Some((place, most.mul_f64(rng.f64()))))
            }
            _ => Self::Header(header, None),
        }
    }

    /// Whether the server may answer what follows.
    pub fn is_valid(&self) -> bool {
        matches!(self, Self::Header(..) | Self::Joined(_))
    }
}

/// A header of either version, in each of its forms.
fn header(rng: &mut Rng) -> Vec<u8> {
    let binary = |command: u8, family: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
        [SIGNATURE, &[command, family], &length, content].concat()
    };
    // So many that it does not fit a read, and not those of a small buffer.
    let extension = |bytes: u16| {
        let length = bytes.to_be_bytes();
        [&[0xe0], &length[..], &vec![b'x'; usize::from(bytes)]].concat()
    };
    let content = |addresses: usize, bytes: u16| [vec![7; addresses], extension(bytes)].concat();
    match rng.u8(0..8) {
        0 => b"PROXY UNKNOWN\r\n".to_vec(),
        1 => b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n".to_vec(),
        2 => binary(0x20, 0x00, b""),
        3 => binary(0x21, 0x11, &[7; 12]),
        4 => binary(0x21, 0x21, &content(36, rng.u16(0..=1024 - 3))),
        5 => binary(0x21, 0x31, &content(216, rng.u16(0..=300))),
        _ => PLAIN.to_vec(),
    }
}

/// What is nearly a header.
fn wrong(rng: &mut Rng) -> Vec<u8> {
    let wrong: &[&[u8]] = &[
        b"PROXY TCP4 192.0.2.01 198.51.100.7 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\n",
        b"PROXY TCP4  192.0.2.1 198.51.100.7 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 56324\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.7 56324 443\r\n",
        b"proxy UNKNOWN\r\n",
        b"\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ];
    wrong[rng.usize(0..wrong.len())].to_vec()
}
