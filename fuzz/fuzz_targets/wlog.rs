//! A wlog stream of any content.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wlog_format::stream::WlogReader;

fuzz_target!(|data: &[u8]| {
    let Ok(mut reader) = WlogReader::new(data) else { return };
    while let Ok(Some(_)) = reader.next_pack() {}
});
