//! CRC-32C, the checksum of RFC 3720 appendix B.4.

/// What the bytes so far give.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc32c {
    /// Adds the bytes that follow.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let place = self.0.to_le_bytes()[0] ^ byte;
            self.0 = TABLE[usize::from(place)] ^ (self.0 >> 8);
        }
    }

    /// The checksum.
    pub(super) const fn value(self) -> u32 {
        !self.0
    }
}

/// The polynomial, with its bits in reverse.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut place = 0;
    while place < table.len() {
        #[allow(clippy::cast_possible_truncation)]
        let mut value = place as u32;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ (if value & 1 == 1 { POLYNOMIAL } else { 0 });
            bit += 1;
        }
        table[place] = value;
        place += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: u32) {
        let mut whole = Crc32c::default();
        whole.add(bytes);
        let mut pieces = Crc32c::default();
        bytes.iter().for_each(|byte| pieces.add(&[*byte]));
        assert_eq!((whole.value(), pieces.value()), (expected, expected));
    }

    /// The examples of RFC 3720 appendix B.4, and the usual check value.
    #[test]
    fn known_checksums() {
        check(b"", 0);
        check(b"123456789", 0xe306_9283);
        check(&[0; 32], 0x8a91_36aa);
        check(&[0xff; 32], 0x62a8_ab43);
        check(&std::array::from_fn::<u8, 32, _>(|place| u8::try_from(place).unwrap()), 0x46dd_794e);
    }
}
