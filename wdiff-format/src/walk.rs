//! Walking through LZ4 and snappy blocks without decompressing them.
//!
//! Both are sequences of runs of literal bytes and of copies of bytes that came out before. Whether
//! a decoder takes a block depends on the lengths and distances alone, never on the bytes, so going
//! from length to length tells it, at a fraction of the cost. A walk ends well for nothing that the
//! decoders refuse.

/// The shortest copy that LZ4 has; lengths count from here.
const LZ4_COPY_MIN: usize = 4;

/// How many bytes the LZ4 block `stored` gives; `None` when it is none.
pub(crate) fn lz4(stored: &[u8]) -> Option<usize> {
    let (mut rest, mut raw_bytes) = (stored, 0);
    loop {
        let token;
        (token, rest) = rest.split_first()?;
        let literals = lz4_length(token >> 4, &mut rest)?;
        rest = rest.get(literals..)?;
        raw_bytes += literals;
        // The last sequence has no copy.
        if rest.is_empty() {
            return Some(raw_bytes);
        }
        let distance;
        (distance, rest) = rest.split_first_chunk()?;
        check_distance(u16::from_le_bytes(*distance).into(), raw_bytes)?;
        raw_bytes += LZ4_COPY_MIN + lz4_length(token & 15, &mut rest)?;
    }
}

/// A length of which the token has `nibble`: 15 goes on in the bytes that follow, up to one that is
/// not 255.
fn lz4_length(nibble: u8, rest: &mut &[u8]) -> Option<usize> {
    let mut length = usize::from(nibble);
    if nibble == 15 {
        loop {
            let (&more, tail) = rest.split_first()?;
            *rest = tail;
            length += usize::from(more);
            if more != 255 {
                break;
            }
        }
    }
    Some(length)
}

/// How many bytes the snappy block `stored` gives; `None` when it is none.
pub(crate) fn snappy(stored: &[u8]) -> Option<usize> {
    let mut rest = stored;
    let claimed = snappy_header(&mut rest)?;
    let mut raw_bytes = 0;
    while let Some((&tag, tail)) = rest.split_first() {
        rest = tail;
        let upper = usize::from(tag >> 2);
        // The two lowest bits: how many bytes the distance has; none for literals.
        let (distance, length) = match tag & 3 {
            0 => {
                // From 60 on: in how many bytes more the length stands.
                let length = 1 + if upper < 60 { upper } else { number(&mut rest, upper - 59)? };
                rest = rest.get(length..)?;
                raw_bytes += length;
                continue;
            }
            1 => (upper >> 3 << 8 | number(&mut rest, 1)?, 4 + (upper & 7)),
            2 => (number(&mut rest, 2)?, 1 + upper),
            _ => (number(&mut rest, 4)?, 1 + upper),
        };
        check_distance(distance, raw_bytes)?;
        raw_bytes += length;
    }
    (raw_bytes == claimed).then_some(raw_bytes)
}

/// The size that a snappy block claims: seven bits in each byte, in five bytes at most.
fn snappy_header(rest: &mut &[u8]) -> Option<usize> {
    let mut claimed = 0;
    for shift in [0, 7, 14, 21, 28] {
        let byte = number(rest, 1)?;
        claimed |= (byte & 127) << shift;
        if byte < 128 {
            return Some(claimed);
        }
    }
    None
}

/// Takes a little-endian number of `bytes` bytes, 4 at most.
fn number(rest: &mut &[u8], bytes: usize) -> Option<usize> {
    let (digits, tail) = rest.split_at_checked(bytes)?;
    *rest = tail;
    Some(digits.iter().rev().fold(0, |number, &digit| number << 8 | usize::from(digit)))
}

/// Can a copy begin `distance` bytes before the end of what came out?
fn check_distance(distance: usize, raw_bytes: usize) -> Option<()> {
    (1..=raw_bytes).contains(&distance).then_some(())
}
