//! Random logs, diffs and damage against a naive block map.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use common::{BlockMap, MemoryImage, Plain, all, apply, options, read_back};
use proptest::prelude::*;
use wdiff_format::codec::Codec;
use wdiff_format::compression::{Compression, CompressionKind};
use wdiff_format::convert::{self, convert};
use wdiff_format::error::WdiffError;
use wdiff_format::header::FileType;
use wdiff_format::indexed_reader::IndexedReader;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::open::{Records, WdiffReader};
use wdiff_format::record::{DiffRecord, Payload};
use wdiff_format::redo::{BeyondEnd, Discards, RedoOptions, redo, redo_file};
use wdiff_format::sorted_reader::SortedReader;
use wdiff_format::split::MaxIo;
use wdiff_format::virtual_image::VirtualImage;
use wdiff_format::write::{WriteOptions, write_records};
use wlog_format::units::Lb;

/// Blocks of the device: few, so that I/Os overlap.
const DEVICE: u64 = 400;

/// Data of some blocks: noise, a pattern, or in between.
fn data(seed: u64, blocks: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut data, noise) = (Vec::new(), seed % 3);
    while data.len() < blocks as usize * 512 {
        let word = if noise == 0 || (noise == 1 && next() % 2 == 0) { next() } else { seed };
        data.extend_from_slice(&word.to_le_bytes());
    }
    data
}

fn io() -> impl Strategy<Value = Plain> {
    let length = prop_oneof![4 => 1..9_u32, 1 => 1..150_u32];
    (0..DEVICE, length, 0..8_u8, 1..u64::MAX).prop_map(|(address, blocks, kind, seed)| {
        let blocks = blocks.min(u32::try_from(DEVICE - address).unwrap());
        let kind = if kind > 2 { 0 } else { kind };
        let data = if kind == 0 { data(seed, blocks) } else { Vec::new() };
        Plain { address, blocks, kind, data }
    })
}

fn log(max: usize) -> impl Strategy<Value = Vec<Plain>> {
    prop::collection::vec(io(), 0..max)
}

fn max_io() -> impl Strategy<Value = MaxIo> {
    prop_oneof![Just(MaxIo::NONE), Just(MaxIo::default()), (1..40_u32).prop_map(MaxIo::from_blocks)]
}

fn file_type() -> impl Strategy<Value = FileType> {
    prop_oneof![Just(FileType::Sorted), Just(FileType::Indexed)]
}

fn kind() -> impl Strategy<Value = CompressionKind> {
    prop::sample::select(&CompressionKind::ALL[..])
}

fn record(io: &Plain) -> DiffRecord {
    let payload = match io.kind {
        0 => return DiffRecord::from_raw(Lb(io.address), io.data.clone().into()).unwrap(),
        1 => Payload::AllZero,
        _ => Payload::Discard,
    };
    DiffRecord { address: Lb(io.address), blocks: io.blocks, payload }
}

fn records(log: &[Plain]) -> impl Iterator<Item = Result<DiffRecord, WdiffError>> {
    log.iter().map(|io| Ok(record(io)))
}

fn map(log: &[Plain]) -> BlockMap {
    let mut map = BlockMap::new();
    apply(&mut map, log);
    map
}

fn with(file_type: FileType, max_io: MaxIo, kind: CompressionKind, threads: usize) -> WriteOptions {
    WriteOptions { threads, ..options(file_type, max_io, kind.name()) }
}

fn boxed(bytes: &[u8], file_type: FileType) -> Records {
    let bytes = Bytes::copy_from_slice(bytes);
    match file_type {
        FileType::Sorted => {
            let bytes: Box<dyn Read + Send> = Box::new(std::io::Cursor::new(bytes));
            Box::new(SortedReader::new(bytes, "sorted").unwrap())
        }
        FileType::Indexed => Box::new(indexed(&bytes)),
    }
}

fn indexed(bytes: &[u8]) -> IndexedReader<Bytes> {
    IndexedReader::new(Bytes::copy_from_slice(bytes), "indexed").unwrap()
}

/// What a redo of the damaged file says.
fn redo_damaged(dir: &std::path::Path) -> Result<(), String> {
    let path = dir.join("damaged");
    let file = Arc::new(File::open(&path).unwrap());
    let image = MemoryImage::new(vec![0; usize::try_from(DEVICE).unwrap() * 512]);
    let (discards, beyond_end) = (Discards::Zero, BeyondEnd::Drop);
    let options = RedoOptions { discards, beyond_end, image_blocks: Lb(DEVICE), threads: 1 };
    let done = redo_file(file, path.display().to_string(), &image, &options);
    done.map(drop).map_err(|error| error.to_string())
}

fn ascending_and_disjoint(records: &[Plain]) -> bool {
    records.windows(2).all(|w| w[0].address + u64::from(w[0].blocks) <= w[1].address)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_diff_holds_what_its_log_wrote(
        log in log(60), file_type in file_type(), max_io in max_io(), kind in kind(),
    ) {
        let options = with(file_type, max_io, kind, 2);
        let made = convert(records(&log), Vec::new(), &options).unwrap();
        let back = all(boxed(&made, file_type)).unwrap();
        prop_assert!(ascending_and_disjoint(&back));
        prop_assert_eq!(map(&back), map(&log));
        if file_type == FileType::Indexed {
            for record in back {
                prop_assert!(record.blocks.is_power_of_two(), "{:?}", record);
                prop_assert_eq!(record.address % u64::from(record.blocks), 0, "{:?}", record);
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_show(
        log in log(60), file_type in file_type(), kind in kind(),
    ) {
        let made = |threads| {
            let options = with(file_type, MaxIo::default(), kind, threads);
            convert(records(&log), Vec::new(), &options).unwrap()
        };
        let one = made(1);
        for threads in 2..=4 {
            prop_assert!(made(threads) == one, "{} threads", threads);
        }
    }

    #[test]
    fn a_merge_is_its_diffs_one_after_the_other(
        logs in prop::collection::vec((log(25), file_type(), kind()), 0..6),
        max_io in max_io(), to in file_type(), to_kind in kind(),
    ) {
        let mut expected = BlockMap::new();
        let mut inputs = Vec::new();
        for (log, file_type, kind) in &logs {
            let options = with(*file_type, MaxIo::default(), *kind, 1);
            let made = convert(records(log), Vec::new(), &options).unwrap();
            inputs.push((made, *file_type));
            apply(&mut expected, log);
        }
        let merger = || {
            let inputs = inputs.iter().map(|(bytes, file_type)| boxed(bytes, *file_type));
            Merger::new(inputs.collect(), max_io, Pieces::Joined).unwrap()
        };
        let back = all(merger()).unwrap();
        prop_assert!(ascending_and_disjoint(&back));
        prop_assert_eq!(map(&back), expected.clone());
        let merged = |threads| {
            write_records(merger(), Vec::new(), &with(to, max_io, to_kind, threads)).unwrap()
        };
        let one = merged(1);
        prop_assert!(merged(3) == one);
        prop_assert_eq!(map(&all(boxed(&one, to)).unwrap()), expected);
    }

    #[test]
    fn an_image_is_its_base_with_the_diff_on_it(
        base in 1..u64::MAX, diff in log(30), file_type in file_type(), threads in 1..4_usize,
        step in 1..100_000_usize,
    ) {
        let base = data(base, u32::try_from(DEVICE).unwrap());
        let options = with(file_type, MaxIo::default(), CompressionKind::Snappy, 1);
        let made = convert(records(&diff), Vec::new(), &options).unwrap();
        let (mut zeroed, mut kept) = (base.clone(), base.clone());
        for (address, block) in map(&diff) {
            let at = usize::try_from(address).unwrap() * 512;
            zeroed[at..at + 512].copy_from_slice(block.as_deref().unwrap_or(&[0; 512]));
            if let Some(block) = block {
                kept[at..at + 512].copy_from_slice(&block);
            }
        }
        for (discards, expected) in [(Discards::Zero, &zeroed), (Discards::Ignore, &kept)] {
            let image = MemoryImage::new(base.clone());
            let (beyond_end, image_blocks) = (BeyondEnd::Fail, Lb(DEVICE));
            let options = RedoOptions { discards, beyond_end, image_blocks, threads };
            redo(boxed(&made, file_type), &image, &options).unwrap();
            prop_assert!(image.into_content() == *expected, "redo with {:?}", discards);
            let image = MemoryImage::new(base.clone());
            redo_file(Bytes::from(made.clone()), "made", &image, &options).unwrap();
            prop_assert!(image.into_content() == *expected, "of the file, {:?}", discards);
        }
        let size = base.len() as u64;
        let diff = boxed(&made, file_type);
        let mut image = VirtualImage::new(Bytes::from(base), size, diff, BeyondEnd::Fail, threads);
        let mut read = Vec::new();
        let mut buffer = vec![0; step];
        while let n @ 1.. = image.read(&mut buffer).unwrap() {
            read.extend_from_slice(&buffer[..n]);
        }
        prop_assert!(read == zeroed, "virtual image");
    }

    #[test]
    fn a_flipped_bit_is_found_or_has_no_meaning(
        log in log(20), file_type in file_type(), kind in kind(),
        bit in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = with(file_type, MaxIo::default(), kind, 1);
        let mut made = convert(records(&log), Vec::new(), &options).unwrap();
        let sound = all(read_back(dir.path(), &made)).unwrap();
        let bit = bit.index(made.len() * 8);
        made[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(dir.path().join("damaged"), &made).unwrap();
        let read = WdiffReader::open(&dir.path().join("damaged"))
            .and_then(all);
        let told = read.as_ref().err().map(ToString::to_string);
        prop_assert_eq!(redo_damaged(dir.path()), told.map_or(Ok(()), Err));
        if let Ok(read) = read {
            // Data of an overwritten I/O, or padding: only an indexed file has such.
            prop_assert_eq!(file_type, FileType::Indexed);
            prop_assert_eq!(read, sound);
        }
    }

    #[test]
    fn damage_under_right_checksums_does_no_harm(
        log in log(20), file_type in file_type(), kind in kind(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let options = with(file_type, MaxIo::default(), kind, 1);
        let mut made = convert(records(&log), Vec::new(), &options).unwrap();
        let area = match file_type {
            FileType::Sorted => 32..32 + 16 + 32 * 20,
            FileType::Indexed => {
                let end = made.len() - 24;
                let index = u64::from_le_bytes(made[end..end + 8].try_into().unwrap());
                usize::try_from(index).unwrap()..made.len()
            }
        };
        for (at, value) in hits {
            let at = area.start + at.index(area.len());
            made[at] = value;
        }
        mend(&mut made, file_type, area.start);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("damaged"), &made).unwrap();
        // An error or records that the format allows, but no panic and no huge allocation.
        let read = WdiffReader::open(&dir.path().join("damaged"))
            .and_then(all);
        prop_assert_eq!(redo_damaged(dir.path()).is_ok(), read.is_ok());
        if let Ok(read) = read {
            prop_assert!(ascending_and_disjoint(&read));
        }
    }

    #[test]
    fn codecs_give_back_what_they_got_whatever_came_before(
        inputs in prop::collection::vec((1..u64::MAX, 1..200_u32), 1..8), kind in kind(),
    ) {
        let mut used = Codec::new(Compression::of(kind));
        for (seed, blocks) in inputs {
            let raw = Bytes::from(data(seed, blocks));
            let stored = used.compress(&raw).unwrap();
            let fresh = Codec::new(Compression::of(kind)).compress(&raw).unwrap();
            prop_assert_eq!(&stored, &fresh);
            prop_assert!(stored.kind == CompressionKind::None || stored.bytes.len() < raw.len());
            prop_assert_eq!(used.decompress(stored.kind, &stored.bytes, raw.len()).unwrap(), &raw);
            prop_assert_eq!(used.look(stored.kind, &stored.bytes, raw.len()), Ok(()));
            let wrong_sizes = [raw.len() - 512, raw.len() + 512];
            for size in wrong_sizes {
                prop_assert!(used.decompress(stored.kind, &stored.bytes, size).is_err());
                prop_assert!(used.look(stored.kind, &stored.bytes, size).is_err());
            }
        }
    }
}

proptest! {
    // They take no time, and most damage is seen by its size alone.
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_look_refuses_what_decompressing_refuses(
        seed in 1..u64::MAX, blocks in 1..40_u32, kind in kind(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let raw = Bytes::from(data(seed, blocks));
        let stored = Codec::new(Compression::of(kind)).compress(&raw).unwrap();
        let mut bytes = stored.bytes.to_vec();
        for (at, byte) in damage {
            // Lengths and distances lie thickest at the start.
            let at = at.index(bytes.len().min(64));
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (bytes, mut codec) = (Bytes::from(bytes), Codec::new(Compression::NONE));
        let decompressed = codec.decompress(stored.kind, &bytes, raw.len()).map(|_| ());
        prop_assert_eq!(codec.look(stored.kind, &bytes, raw.len()), decompressed);
    }

    #[test]
    fn garbage_does_not_decompress(
        garbage in prop::collection::vec(any::<u8>(), 1..600), kind in kind(), blocks in 2..9_usize,
    ) {
        let (garbage, mut codec) = (Bytes::from(garbage), Codec::new(Compression::NONE));
        let decompressed = codec.decompress(kind, &garbage, blocks * 512);
        if let Ok(raw) = &decompressed {
            prop_assert_eq!(raw.len(), blocks * 512);
        }
        prop_assert_eq!(codec.look(kind, &garbage, blocks * 512), decompressed.map(|_| ()));
    }
}

#[test]
fn long_discards_cost_nothing_until_they_are_written() {
    let discard = |n: u64| {
        let (address, blocks) = (Lb(n * u64::from(u32::MAX)), u32::MAX);
        Ok(DiffRecord { address, blocks, payload: Payload::Discard })
    };
    // Cut at once these would be 2^42 records.
    let sorted = convert::sort((0..1000).map(discard), MaxIo::from_blocks(1)).unwrap();
    assert!(sorted.take(3).map(|record| record.address).eq((0..3).map(Lb)));
}

/// Makes all checksums of the structures right again.
fn mend(file: &mut [u8], file_type: FileType, from: usize) {
    let end = file.len() - 24;
    let mut fix = |start: usize, len: usize, field: usize| {
        let structure = &mut file[start..start + len];
        structure[field..field + 4].fill(0);
        let salt = wlog_format::units::Salt(0);
        let sum = wlog_format::checksum::checksum(structure, salt);
        structure[field..field + 4].copy_from_slice(&sum.to_le_bytes());
    };
    match file_type {
        FileType::Sorted => fix(from, 4096, 0),
        FileType::Indexed => {
            (from..end).step_by(48).for_each(|at| fix(at, 48, 44));
            fix(end, 24, 20);
        }
    }
}

#[test]
fn an_index_cuts_an_io_and_a_merge_joins_it_again() {
    let write = |address, blocks, seed| {
        let io = Plain { address, blocks, kind: 0, data: data(seed, blocks) };
        convert(records(&[io]), Vec::new(), &options(FileType::Indexed, MaxIo::NONE, "lz4"))
            .unwrap()
    };
    let (older, newer) = (write(3, 45, 2), write(20, 8, 5));
    let pieces: Vec<_> = boxed(&older, FileType::Indexed).map(Result::unwrap).collect();
    let cut: Vec<_> = pieces.iter().map(|p| (p.address.0, p.blocks)).collect();
    assert_eq!(cut, [(3, 1), (4, 4), (8, 8), (16, 16), (32, 16)]);
    assert!(pieces.iter().all(|piece| piece.stored().is_none()));

    let merged = |diffs: &[&Vec<u8>], max_io, pieces| {
        let inputs = diffs.iter().map(|diff| boxed(diff, FileType::Indexed)).collect();
        Merger::new(inputs, max_io, pieces).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    let merge = |diffs: &[&Vec<u8>], max_io| merged(diffs, max_io, Pieces::Joined);
    let whole = merge(&[&older], MaxIo::NONE);
    let stored = Codec::new("lz4".parse().unwrap()).compress(&data(2, 45).into()).unwrap();
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].stored(), Some(&stored), "it passes through as it is");

    let visible = |merged: Vec<DiffRecord>| -> Vec<_> {
        merged.iter().map(|r| (r.address.0, r.blocks)).collect()
    };
    let covered = merge(&[&older, &newer], MaxIo::NONE);
    assert_eq!(visible(covered), [(3, 17), (20, 8), (28, 20)]);
    let kept = merged(&[&older], MaxIo::NONE, Pieces::Kept);
    assert_eq!(visible(kept), cut, "for somebody who wants the records of the original");
    let limited = merge(&[&older], MaxIo::from_blocks(32));
    assert_eq!(visible(limited), [(3, 32), (35, 13)]);
}

#[test]
fn an_index_of_many_ios_keeps_the_order_of_the_log() {
    let mut state = 1_u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    let log: Vec<_> = (0..30_000)
        .map(|_| Plain {
            address: next(200_000),
            blocks: if next(100) == 0 { 3000 } else { 1 + u32::try_from(next(16)).unwrap() },
            kind: 1 + u8::try_from(next(2)).unwrap(),
            data: Vec::new(),
        })
        .collect();
    let options = options(FileType::Indexed, MaxIo::NONE, "none");
    let made = convert(records(&log), Vec::new(), &options).unwrap();
    let back = all(boxed(&made, FileType::Indexed)).unwrap();
    assert!(ascending_and_disjoint(&back));
    assert!(map(&back) == map(&log));
}
