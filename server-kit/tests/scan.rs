//! Reading parts of a device: every wanted byte once, in order, none else, however the file is
//! allocated.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Arc;

use block_io::device::{BlockDevice, MAX_EXTENTS};
use futures::TryStreamExt;
use proptest::prelude::*;
use server_kit::scan::{self, Bulk, CELL_BYTES, Content, GRAIN_BYTES};

const BLOCK: usize = 4096;

/// A sparse file: data where `data` says so by blocks. With its content.
fn sparse(data: &[bool]) -> (tempfile::TempDir, Arc<dyn BlockDevice>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut file = std::fs::File::create(&path).unwrap();
    file.set_len((data.len() * BLOCK) as u64).unwrap();
    let mut image = vec![0; data.len() * BLOCK];
    for (index, block) in image.chunks_mut(BLOCK).enumerate().filter(|(index, _)| data[*index]) {
        block.fill((index % 251) as u8 + 1);
        file.seek(SeekFrom::Start((index * BLOCK) as u64)).unwrap();
        file.write_all(block).unwrap();
    }
    let options = block_io::OpenOptions { direct: false, ..Default::default() };
    (dir, block_io::open(&path, options).unwrap(), image)
}

/// What `bulks` read, and that it lies in `spans` from begin to end.
fn read(bulks: Vec<Bulk>, spans: &[Range<u64>], image: &[u8]) {
    let mut bulks = bulks.into_iter().peekable();
    for span in spans {
        let mut at = span.start;
        while at < span.end {
            let bulk = bulks.next().unwrap();
            assert_eq!(bulk.offset, at);
            let wanted = &image[at as usize..(at + bulk.len()) as usize];
            match &bulk.content {
                Content::Data(data) => assert!(data == wanted, "at {at}"),
                Content::Zeros(_) => assert!(wanted.iter().all(|b| *b == 0), "at {at}"),
            }
            at += bulk.len();
        }
        assert_eq!(at, span.end);
    }
    assert_eq!(bulks.next(), None);
}

#[tokio::test]
async fn a_file_in_more_pieces_than_the_system_tells_at_once_is_read_to_its_end() {
    let data: Vec<bool> = (0..3 * MAX_EXTENTS).map(|block| block % 2 == 0).collect();
    let (_dir, device, image) = sparse(&data);
    let size = image.len() as u64;
    assert!(device.extents(0, size).await.unwrap().len() > MAX_EXTENTS / 2, "it is not sparse");
    let bulks: Vec<Bulk> = scan::bulks(device, 0, size, CELL_BYTES).try_collect().await.unwrap();
    read(bulks, &scan::whole(size), &image);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn cells_are_all_of_the_spans_and_nothing_else(
        runs in prop::collection::vec((any::<bool>(), 1usize..300), 1..12),
        spans in prop::collection::vec((0u64..60, 1u64..20), 0..20),
    ) {
        let data: Vec<bool> =
            runs.iter().flat_map(|(data, len)| std::iter::repeat_n(*data, *len)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, device, image) = sparse(&data);
            let range = |(begin, len): &(u64, u64)| proto::v1::ByteRange {
                begin: begin * GRAIN_BYTES + 1,
                end: (begin + len) * GRAIN_BYTES,
            };
            let ranges: Vec<_> = spans.iter().map(range).collect();
            let spans = scan::covering(&ranges, image.len() as u64);
            let cells: Vec<Bulk> =
                scan::cells(device, spans.clone(), 0).try_collect().await.unwrap();
            for cell in &cells {
                prop_assert!(cell.offset.is_multiple_of(GRAIN_BYTES));
                let last = cell.offset + cell.len() - 1;
                prop_assert_eq!(cell.offset / CELL_BYTES, last / CELL_BYTES);
            }
            read(cells, &spans, &image);
            Ok(())
        })?;
    }
}
