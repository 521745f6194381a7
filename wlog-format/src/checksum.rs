//! The walb checksum: 32-bit, additive, salted (`formats.md` §2.1).
//!
//! It catches lost and damaged words, not exchanged ones: the sum does not know the order of the
//! words. A structure that holds its own checksum is summed with that field zero; once it is
//! filled in, the sum over the whole structure is zero ([`is_sound`]).

use crate::units::Salt;

/// The checksum of `data`.
///
/// ```
/// use wlog_format::{checksum::checksum, units::Salt};
/// assert_eq!(checksum(b"abcd", Salt(0)), 0x9b9c_9d9f);
/// ```
#[must_use]
pub fn checksum(data: &[u8], salt: Salt) -> u32 {
    word_sum(data).wrapping_add(salt.0).wrapping_neg()
}

/// The checksum with salt 0 of data whose checksum with `salt` is known.
#[must_use]
pub const fn unsalted(checksum: u32, salt: Salt) -> u32 {
    checksum.wrapping_add(salt.0)
}

/// Is this a structure whose own checksum field fits its bytes?
#[must_use]
pub fn is_sound(structure: &[u8], salt: Salt) -> bool {
    checksum(structure, salt) == 0
}

/// The wrapping sum of the little-endian words of `data`, the last one filled up with zeros.
fn word_sum(data: &[u8]) -> u32 {
    let (words, rest) = data.as_chunks::<4>();
    // A plain fold: the compiler turns it into vector additions.
    let sum = words.iter().fold(0_u32, |sum, word| sum.wrapping_add(u32::from_le_bytes(*word)));
    sum.wrapping_add(partial_word(rest))
}

/// Up to three bytes as a little-endian word.
fn partial_word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// The checksum of data that comes in parts, cut anywhere.
#[derive(Clone, Debug)]
pub struct Checksummer {
    sum: u32,
    /// How many bytes of the current word have been summed, 0..=3.
    phase: u32,
}

impl Checksummer {
    /// Nothing summed yet.
    #[must_use]
    pub const fn new(salt: Salt) -> Self {
        Self { sum: salt.0, phase: 0 }
    }

    /// Goes on with the next part.
    pub fn update(&mut self, part: &[u8]) {
        let missing = (4 - self.phase) % 4;
        let (head, body) = part.split_at(part.len().min(missing as usize));
        self.add(partial_word(head) << (8 * self.phase), head.len());
        self.add(word_sum(body), body.len());
    }

    fn add(&mut self, words: u32, bytes: usize) {
        self.sum = self.sum.wrapping_add(words);
        self.phase = match bytes % 4 {
            0 => self.phase,
            1 => (self.phase + 1) % 4,
            2 => (self.phase + 2) % 4,
            _ => (self.phase + 3) % 4,
        };
    }

    /// The checksum of all parts.
    #[must_use]
    pub const fn finish(&self) -> u32 {
        self.sum.wrapping_neg()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of `formats.md` §2.1.
    const VECTORS: [(&[u8], u32, u32); 6] = [
        (b"a", 0, 0xffff_ff9f),
        (b"abcd", 0, 0x9b9c_9d9f),
        (b"abcde", 0, 0x9b9c_9d3a),
        (b"abcdefgh", 0, 0x3335_373a),
        (b"abcde", 0x1234_5678, 0x8968_46c2),
        (b"", 7, 0_u32.wrapping_sub(7)),
    ];

    #[test]
    fn a_salt_can_be_taken_out() {
        let data = [0xff, 7, 0, 0x80, 0xfe, 1];
        for salt in [0, 1, 0x8000_0000, u32::MAX] {
            assert_eq!(unsalted(checksum(&data, Salt(salt)), Salt(salt)), checksum(&data, Salt(0)));
        }
    }

    #[test]
    fn checksum_gives_the_documented_vectors() {
        for (data, salt, expected) in VECTORS {
            assert_eq!(checksum(data, Salt(salt)), expected, "{data:?}");
        }
    }

    #[test]
    fn checksum_in_parts_does_not_depend_on_the_cuts() {
        let data: Vec<u8> = (0..=255).collect();
        for first in 0..12 {
            for second in first..20 {
                let mut parts = Checksummer::new(Salt(5));
                parts.update(&data[..first]);
                parts.update(&data[first..second]);
                parts.update(&data[second..]);
                assert_eq!(parts.finish(), checksum(&data, Salt(5)), "{first} {second}");
            }
        }
    }

    #[test]
    fn a_structure_with_its_checksum_in_place_is_sound() {
        let mut block = [7_u8; 64];
        block[8..12].fill(0);
        let sum = checksum(&block, Salt(9));
        block[8..12].copy_from_slice(&sum.to_le_bytes());
        assert!(is_sound(&block, Salt(9)));
        assert!(!is_sound(&block, Salt(8)));
        block[40] ^= 1;
        assert!(!is_sound(&block, Salt(9)));
    }
}
