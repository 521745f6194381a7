//! Packs of any content, pushed in two pieces: never a panic, never memory beyond what was pushed.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wlog_format::checksum::checksum;
use wlog_format::stream::PackDecoder;
use wlog_format::units::{BlockSize, Lsid, Salt};

fuzz_target!(|data: &[u8]| {
    let mut log = data.to_vec();
    if log.len() < 512 {
        return;
    }
    // The header's checksum is made right, so that the fuzzer gets behind it.
    log[0..4].fill(0);
    let sum = checksum(&log[..512], Salt(7));
    log[0..4].copy_from_slice(&sum.to_le_bytes());
    let mut lsid = [0; 8];
    lsid.copy_from_slice(&log[8..16]);
    let begin = Lsid(u64::from_le_bytes(lsid));
    let mut decoder = PackDecoder::new(BlockSize::B512, Salt(7), begin);
    let log = Bytes::from(log);
    let middle = log.len() / 2;
    for piece in [log.slice(..middle), log.slice(middle..)] {
        decoder.push(piece);
        while let Ok(Some(pack)) = decoder.next_pack() {
            let bytes: usize = pack.ios().map(|(_, payload)| payload.len()).sum();
            assert!(bytes <= log.len());
        }
    }
});
