//! A super sector of any content: decoded or refused; what is decoded encodes to the same fields.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wlog_format::checksum::checksum;
use wlog_format::superblock::SuperBlock;
use wlog_format::units::Salt;

fuzz_target!(|data: &[u8]| {
    let mut sector = data.to_vec();
    sector.resize(4096, 0);
    // The checksum is made right, so that the fuzzer gets behind it.
    for size in [512, 4096] {
        let mut block = sector[..size].to_vec();
        block[4..8].fill(0);
        let sum = checksum(&block, Salt(0));
        block[4..8].copy_from_slice(&sum.to_le_bytes());
        block.resize(4096, 0);
        if let Ok(decoded) = SuperBlock::decode(&block) {
            assert_eq!(SuperBlock::decode(&decoded.encode()).ok(), Some(decoded));
        }
    }
});
