//! An indexed wdiff of any content, its records decompressed.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use wdiff_format::indexed_reader::IndexedReader;
use wdiff_format::io_at::ReadAt;
use wdiff_format::redo::decode;

struct Memory(Vec<u8>);

impl ReadAt for Memory {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(reader) = IndexedReader::new(Memory(data.to_vec()), "fuzz") else { return };
    for record in decode(reader, 1) {
        if record.is_err() {
            return;
        }
    }
});
