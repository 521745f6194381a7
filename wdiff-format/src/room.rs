//! One piece of memory for what several records hold when uncompressed: an allocation for each, and
//! to clear it, cost more than small records themselves.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::codec::Codec;
use crate::error::WdiffError;

/// The memory, while it is filled.
pub(crate) struct Room {
    memory: BytesMut,
    used: usize,
}

/// Where the uncompressed data of something is.
pub(crate) enum Raw {
    /// In the room.
    Room(Range<usize>),
    /// In memory of its own, or as it lies in the file.
    Apart(Bytes),
}

impl Room {
    /// Of `bytes` bytes. Its memory is used again once all that was in it is dropped.
    pub(crate) fn new(codec: &mut Codec, bytes: usize) -> Self {
        Self { memory: codec.memory().take(bytes), used: 0 }
    }

    /// Lets `fill` fill the next `bytes` bytes.
    ///
    /// # Errors
    /// What `fill` says.
    pub(crate) fn add(
        &mut self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), WdiffError>,
    ) -> Result<Raw, WdiffError> {
        let at = self.used..self.used + bytes;
        if self.memory.len() < at.end {
            // Somebody wants more than was said.
            let mut apart = BytesMut::zeroed(bytes);
            fill(&mut apart)?;
            return Ok(Raw::Apart(apart.freeze()));
        }
        fill(self.memory.split_at_mut(at.end).0.split_at_mut(at.start).1)?;
        self.used = at.end;
        Ok(Raw::Room(at))
    }

    /// All that was added: what [`Raw::of`] wants.
    pub(crate) fn done(self, codec: &mut Codec) -> Bytes {
        let memory = self.memory.freeze();
        codec.memory().put(memory.clone());
        memory
    }
}

impl Raw {
    /// The data. `room` is where it was added.
    pub(crate) fn of(self, room: &Bytes) -> Bytes {
        match self {
            Self::Room(at) => room.slice(at),
            Self::Apart(raw) => raw,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::Compression;

    #[test]
    fn pieces_lie_side_by_side_and_what_does_not_fit_lies_apart() {
        let mut codec = Codec::new(Compression::NONE);
        let mut room = Room::new(&mut codec, 64 << 10);
        let mut add = |byte: u8, bytes| {
            room.add(bytes, |raw| {
                raw.fill(byte);
                Ok(())
            })
        };
        let raws = [(1, 512), (2, 0), (3, 63 << 10), (4, 1024), (5, 512)];
        let added = raws.map(|(byte, bytes)| add(byte, bytes).unwrap());
        assert!(matches!(added[3], Raw::Apart(_)), "512 bytes are left");
        let room = room.done(&mut codec);
        for (raw, (byte, bytes)) in added.into_iter().zip(raws) {
            assert_eq!(raw.of(&room), vec![byte; bytes]);
        }
    }
}
