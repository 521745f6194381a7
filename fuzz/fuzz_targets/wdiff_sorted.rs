//! A sorted wdiff of any content, its records decompressed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wdiff_format::redo::decode;
use wdiff_format::sorted_reader::SortedReader;

fuzz_target!(|data: &[u8]| {
    let Ok(reader) = SortedReader::new(data, "fuzz") else { return };
    for record in decode(reader, 1) {
        if record.is_err() {
            return;
        }
    }
});
