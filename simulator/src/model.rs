//! What the volume must hold: the application's writes in their order, and what it was at each
//! snapshot.
//!
//! Writes come in batches; those of one batch are in flight together, on different blocks. So the
//! volume is always what it was after some batch, with some of the writes of the next. Each write
//! has a value of its own, which fills its block: what is found tells which write it was.

use std::collections::BTreeMap;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Blocks of the volume at first.
pub(crate) const BLOCKS: usize = 64;
/// Blocks that it may grow to.
pub(crate) const BLOCKS_MAX: usize = 96;
/// Bytes of the volume at first.
pub(crate) const SIZE: usize = BLOCK * BLOCKS;

/// What each block holds; 0 is zeros. Always [`BLOCKS_MAX`]: what a volume has not yet is zeros.
pub(crate) type Image = Vec<u64>;
type Batch = BTreeMap<usize, u64>;

/// The content of a block.
pub(crate) fn block(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 8)
}

/// The values in an image, or which block is none.
pub(crate) fn values(bytes: &[u8]) -> Result<Image, String> {
    if !bytes.len().is_multiple_of(BLOCK) || !(SIZE..=BLOCK * BLOCKS_MAX).contains(&bytes.len()) {
        return Err(format!("an image of {} bytes", bytes.len()));
    }
    let parse = |(index, data): (usize, &[u8])| {
        let mut first = [0; 8];
        first.copy_from_slice(&data[..8]);
        let value = u64::from_le_bytes(first);
        if data == block(value) { Ok(value) } else { Err(format!("block {index} is torn")) }
    };
    let mut image: Image = bytes.chunks(BLOCK).enumerate().map(parse).collect::<Result<_, _>>()?;
    image.resize(BLOCKS_MAX, 0);
    Ok(image)
}

/// All that was written.
#[derive(Default)]
pub(crate) struct Model {
    batches: Vec<Batch>,
    /// The last batch is in flight.
    open: bool,
    /// Batches that a flush covers.
    flushed: usize,
    next_value: u64,
    /// By gid: batches before the snapshot.
    snapshots: BTreeMap<u64, usize>,
}

impl Model {
    pub(crate) fn new_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    pub(crate) fn begin(&mut self, batch: Batch) {
        assert!(!self.open, "one batch at a time");
        self.batches.push(batch);
        self.open = true;
    }

    pub(crate) fn end(&mut self) {
        self.open = false;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    pub(crate) fn flushed(&mut self) {
        self.flushed = self.batches.len();
    }

    fn image(&self, batches: usize) -> Image {
        let mut image = vec![0; BLOCKS_MAX];
        for (block, value) in self.batches.iter().take(batches).flatten() {
            image[*block] = *value;
        }
        image
    }

    /// Whether a block that was read, while no batch is in flight, is what was written last.
    pub(crate) fn check_read(&self, block: usize, value: u64) -> Result<(), String> {
        let writes = self.batches.iter().rev().find_map(|batch| batch.get(&block));
        match writes.copied().unwrap_or(0) {
            last if last == value => Ok(()),
            last => Err(format!("block {block} is read as {value}, the last write was {last}")),
        }
    }

    /// The last state from batch `from` on that the image can be.
    fn find(&self, image: &Image, from: usize) -> Option<usize> {
        (from..=self.batches.len()).rev().find(|&k| self.fits(image, k))
    }

    /// Whether the image is the state after `k` batches with some writes of the next.
    fn fits(&self, image: &Image, k: usize) -> bool {
        let next = self.batches.get(k);
        let was = self.image(k);
        image.iter().enumerate().all(|(block, value)| {
            *value == was[block] || next.and_then(|b| b.get(&block)) == Some(value)
        })
    }

    /// The device has come up again, after a power cut or a kill, and holds `image`.
    pub(crate) fn recover(&mut self, image: &Image, power_cut: bool) -> Result<(), String> {
        let acknowledged = self.batches.len() - usize::from(self.open);
        let least = if power_cut { self.flushed } else { acknowledged };
        let Some(k) = self.find(image, least) else {
            return Err(format!(
                "lost acknowledged writes: the volume is no state from batch {least} to {}{}",
                self.batches.len(),
                self.find(image, 0).map_or(String::new(), |k| format!(", but batch {k}"))
            ));
        };
        let was = self.image(k);
        let part: Batch =
            image.iter().copied().enumerate().filter(|(block, v)| was[*block] != *v).collect();
        self.batches.truncate(k);
        if !part.is_empty() {
            self.batches.push(part);
        }
        self.open = false;
        // Redo made permanent what it found.
        self.flushed = self.batches.len();
        if let Some((gid, at)) = self.snapshots.iter().find(|(_, at)| **at > self.batches.len()) {
            return Err(format!("snapshot {gid} was taken at batch {at}, which the device lost"));
        }
        Ok(())
    }

    pub(crate) fn note_snapshot(&mut self, gid: u64) -> Result<(), String> {
        let now = self.batches.len();
        match self.snapshots.insert(gid, now) {
            Some(before) if before != now => {
                Err(format!("gid {gid} is used again: at batch {before} and now {now}"))
            }
            _ => Ok(()),
        }
    }

    /// The storage role has lost what it knew: gids that never came to the archive may be given
    /// again. Those that did not are forgotten.
    pub(crate) fn only_arrived(&mut self, arrived: &[u64]) {
        self.snapshots.retain(|gid, _| arrived.contains(gid));
    }

    pub(crate) fn snapshots(&self) -> Vec<u64> {
        self.snapshots.keys().copied().collect()
    }

    /// Whether `image` may be snapshot `gid`, given that an earlier one was batch `from`; which
    /// batch it is at the latest.
    pub(crate) fn check(&self, gid: u64, image: &Image, from: usize) -> Result<usize, String> {
        if let Some(&k) = self.snapshots.get(&gid) {
            if *image == self.image(k) {
                return Ok(k);
            }
            let found = self.find(image, 0);
            return Err(format!("snapshot {gid} must be batch {k}, it is {found:?}"));
        }
        (from..=self.batches.len())
            .find(|&k| self.fits(image, k))
            .ok_or_else(|| format!("snapshot {gid} is no state from batch {from} on"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_found_and_strangers_are_not() {
        let mut model = Model::default();
        model.begin(Batch::from([(0, 1), (1, 2)]));
        model.end();
        model.flushed();
        model.note_snapshot(5).unwrap();
        model.begin(Batch::from([(1, 3), (2, 4)]));
        let mut image = vec![0; BLOCKS_MAX];
        (image[0], image[1], image[2]) = (1, 2, 4);
        assert_eq!(model.check(6, &image, 0), Ok(1));
        assert!(model.check(5, &image, 0).is_err());
        model.recover(&image, true).unwrap();
        assert_eq!(model.image(2), image);
        image[0] = 9;
        assert!(model.check(6, &image, 0).is_err());
        assert!(model.recover(&vec![0; BLOCKS_MAX], true).is_err());
        let bytes: Vec<u8> = image.iter().flat_map(|v| block(*v)).collect();
        assert_eq!(values(&bytes).unwrap(), image);
        assert_eq!(values(&bytes[..SIZE]).unwrap(), image, "what it has not yet is zeros");
        assert!(values(&bytes[..SIZE + 512]).is_err());
        assert_eq!(model.check_read(1, 2), Ok(()));
        assert!(model.check_read(1, 3).is_err(), "the write that was lost");
        assert_eq!(model.check_read(9, 0), Ok(()));
    }
}
