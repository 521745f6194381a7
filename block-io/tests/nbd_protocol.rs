//! The NBD server, byte by byte: what it must answer, and what it must survive.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

mod nbd_support;

use std::collections::BTreeMap;
use std::time::Duration;

use nbd_support::raw::{Raw, Reply, be32, be64, option, request};
use nbd_support::{Event, Fault, MemoryExport, PAGE, Served};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

const MIB: usize = 1 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const DF: u16 = 4;

fn done(cookie: u64, kind: u16, payload: Vec<u8>) -> Reply {
    Reply::Chunk { cookie, flags: 1, kind, payload }
}

fn data_chunk(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], data].concat()
}

/// Error number of an error chunk.
fn error_of(reply: &Reply) -> (u64, u32) {
    match reply {
        Reply::Chunk { cookie, flags: 1, kind: 0x8001, payload } => (*cookie, be32(payload)),
        Reply::Simple { cookie, error } => (*cookie, *error),
        Reply::Chunk { .. } => panic!("not an error: {reply:?}"),
    }
}

#[tokio::test]
async fn reads_across_holes_come_as_data_and_hole_chunks() {
    let served = Served::new(MemoryExport::new(MIB)).await;
    served.export.fill(PAGE, &[1; 2 * PAGE]);
    let mut raw = Raw::structured(&served.socket).await;
    raw.send(&request(READ, 0, 5, 0, 4 * PAGE as u32)).await;
    let hole = |offset: usize, len: usize| {
        [&(offset as u64).to_be_bytes()[..], &(len as u32).to_be_bytes()].concat()
    };
    let chunk = |kind, payload| Reply::Chunk { cookie: 5, flags: 0, kind, payload };
    assert_eq!(raw.reply().await, chunk(2, hole(0, PAGE)));
    assert_eq!(raw.reply().await, chunk(1, data_chunk(PAGE as u64, &[1; 2 * PAGE])));
    assert_eq!(raw.reply().await, done(5, 2, hole(3 * PAGE, PAGE)));
    // Whoever does not want fragments gets the zeroes.
    raw.send(&request(READ, DF, 6, 0, 2 * PAGE as u32)).await;
    let all = [vec![0; PAGE], vec![1; PAGE]].concat();
    assert_eq!(raw.reply().await, done(6, 1, data_chunk(0, &all)));
    served.stop().await;
}

#[tokio::test]
async fn simple_replies_carry_zeroes_as_data() {
    let served = Served::new(MemoryExport::new(MIB)).await;
    served.export.fill(0, &[1; PAGE]);
    let mut raw = Raw::simple(&served.socket).await;
    raw.send(&request(READ, 0, 5, 0, MIB as u32)).await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 5, error: 0 });
    let expected = [vec![1; PAGE], vec![0; MIB - PAGE]].concat();
    assert!(raw.take(MIB).await == expected);
    raw.send(&request(READ, 0, 6, MIB as u64, 512)).await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 6, error: 22 });
    served.stop().await;
}

#[tokio::test]
async fn export_name_pads_with_zeroes_unless_told_not_to() {
    let served = Served::new(MemoryExport::new(MIB)).await;
    let facts = [&(MIB as u64).to_be_bytes()[..], &0b1001_0110_1101_u16.to_be_bytes()].concat();
    for (flags, padding) in [(3, 0), (1, 124)] {
        let mut raw = Raw::greeted(&served.socket, flags).await;
        raw.send(&option(1, b"")).await;
        assert_eq!(raw.take(10).await, facts);
        assert_eq!(raw.take(padding).await, vec![0; padding]);
        raw.send(&request(DISC, 0, 0, 0, 0)).await;
        assert_eq!(raw.rest().await, b"");
    }
    let mut raw = Raw::greeted(&served.socket, 3).await;
    raw.send(&option(1, b"other")).await;
    assert_eq!(raw.rest().await, b"");
    // Flags that nobody offered.
    assert_eq!(Raw::greeted(&served.socket, 4).await.rest().await, b"");
    served.stop().await;
}

#[tokio::test]
async fn a_bad_option_is_refused_and_the_next_one_works() {
    let served = Served::new(MemoryExport::new(MIB)).await;
    let mut raw = Raw::greeted(&served.socket, 3).await;
    let unsup = 0x8000_0001;
    let invalid = 0x8000_0003;
    let unknown = 0x8000_0006;
    let too_big = 0x8000_0009;
    let long = vec![0; 100_000];
    let name = [&5000_u32.to_be_bytes()[..], &[b'a'; 5000], &[0, 0]].concat();
    for (code, data, refusal) in [
        (5, &b""[..], unsup),
        (0xffff_ffff, b"abc", unsup),
        (3, b"x", invalid),
        (8, b"x", invalid),
        (7, b"", invalid),
        (7, b"\x00\x00\x00\x09vol\x00\x00", invalid),
        (6, b"\x00\x00\x00\x03vol\x00\x02\x00\x00", invalid),
        (6, b"\x00\x00\x00\x03vol\x00\x00\x00", invalid),
        (6, b"\x00\x00\x00\x03\xff\xff\xff\x00\x00", invalid),
        (7, b"\x00\x00\x00\x03vox\x00\x00", unknown),
        // Metadata without structured replies.
        (10, b"\x00\x00\x00\x03vol\x00\x00\x00\x00", invalid),
        (7, &long, too_big),
        (7, &name, too_big),
    ] {
        raw.send(&option(code, data)).await;
        let (answered, reply, _) = raw.option_reply().await;
        assert_eq!((answered, reply), (code, refusal), "{code} {data:?}");
    }
    raw.send(&option(3, b"")).await;
    assert_eq!(raw.option_reply().await, (3, 2, b"\x00\x00\x00\x03vol".to_vec()));
    assert_eq!(raw.option_reply().await, (3, 1, vec![]));
    raw.send(&option(2, b"ignored")).await;
    assert_eq!(raw.option_reply().await, (2, 1, vec![]));
    assert_eq!(raw.rest().await, b"");
    served.stop().await;
}

#[tokio::test]
async fn block_status_is_cut_joined_and_of_one_extent_on_request() {
    let served = Served::new(MemoryExport::new(MIB)).await;
    served.export.fill(PAGE, &[1; 2 * PAGE]);
    let mut raw = Raw::structured(&served.socket).await;
    let status = |extents: &[(usize, u32)]| {
        let words = extents.iter().flat_map(|(len, flags)| [*len as u32, *flags]);
        [1].into_iter().chain(words).flat_map(u32::to_be_bytes).collect::<Vec<u8>>()
    };
    raw.send(&request(7, 0, 1, 512, 3 * PAGE as u32)).await;
    let expected = status(&[(PAGE - 512, 3), (2 * PAGE, 0), (512, 3)]);
    assert_eq!(raw.reply().await, done(1, 5, expected));
    raw.send(&request(7, 8, 2, 0, 4 * PAGE as u32)).await;
    assert_eq!(raw.reply().await, done(2, 5, status(&[(PAGE, 3)])));
    raw.send(&request(7, 8, 3, PAGE as u64, PAGE as u32)).await;
    assert_eq!(raw.reply().await, done(3, 5, status(&[(PAGE, 0)])));
    // Not chosen, not served.
    let mut raw = Raw::simple(&served.socket).await;
    raw.send(&request(7, 0, 3, 0, PAGE as u32)).await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 3, error: 22 });
    served.stop().await;
}

#[tokio::test]
async fn the_payload_of_a_refused_write_is_skipped() {
    let served = Served::new(MemoryExport::new(MIB)).await;
    let mut raw = Raw::structured(&served.socket).await;
    // The payload looks like requests: a server that does not skip it would obey.
    let trap = request(WRITE, 0, 99, 0, 0).repeat(100);
    raw.send(&[request(WRITE, 0, 1, 1, trap.len() as u32), trap].concat()).await;
    assert_eq!(error_of(&raw.reply().await), (1, 22));
    let long = 33 * MIB;
    raw.send(&request(WRITE, 0, 2, 0, long as u32)).await;
    raw.send(&vec![0x25; long]).await;
    assert_eq!(error_of(&raw.reply().await), (2, 22));
    raw.send(&[request(WRITE, 0, 3, MIB as u64, 512), vec![1; 512]].concat()).await;
    assert_eq!(error_of(&raw.reply().await), (3, 28));
    raw.send(&[request(WRITE, 1, 4, 512, 512), vec![1; 512]].concat()).await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 4, error: 0 });
    let begin = Event::WriteBegin { offset: 512, len: 512, fua: true };
    assert_eq!(served.export.events(), [begin, Event::WriteEnd { offset: 512 }]);
    served.stop().await;
}

#[tokio::test]
async fn replies_overtake_slower_ones() {
    let export = MemoryExport::new(MIB).delayed(Duration::from_millis(50));
    let served = Served::new(export).await;
    let mut raw = Raw::simple(&served.socket).await;
    let slow = [request(WRITE, 0, 1, 0, 512), vec![1; 512]].concat();
    let fast = [request(WRITE, 0, 2, 4096, 512), vec![2; 512]].concat();
    raw.send(&[slow, fast].concat()).await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 2, error: 0 });
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 1, error: 0 });
    served.stop().await;
}

#[tokio::test]
async fn errors_of_the_export_are_answered_and_the_connection_goes_on() {
    let served = Served::new(MemoryExport::new(MIB)).await;
    served.export.fail(Fault::ShortRead);
    let mut raw = Raw::structured(&served.socket).await;
    raw.send(&request(READ, 0, 1, 0, 512)).await;
    assert_eq!(error_of(&raw.reply().await), (1, 5));
    served.export.heal();
    served.export.fail(Fault::Flush);
    raw.send(&request(3, 0, 2, 0, 0)).await;
    assert_eq!(error_of(&raw.reply().await), (2, 5));
    served.export.heal();
    raw.send(&request(3, 0, 3, 0, 0)).await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 3, error: 0 });
    served.stop().await;
}

/// A request of a random kind: often nearly right, sometimes anything.
fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let command = prop_oneof![8 => 0_u16..8, 1 => any::<u16>()];
    let flags = prop_oneof![8 => Just(0), 4 => 0_u16..32, 1 => any::<u16>()];
    let offset = prop_oneof![8 => (0_u64..2050).prop_map(|n| n * 512), 1 => any::<u64>()];
    let len = prop_oneof![8 => (0_u32..64).prop_map(|n| n * 512), 1 => 0_u32..100_000];
    (command, flags, offset, len).prop_filter_map(
        "no disconnect",
        |(command, flags, offset, len)| {
            (command != DISC).then(|| {
                let payload = if command == WRITE { len as usize } else { 0 };
                [request(command, flags, 0, offset, len), vec![0x25; payload]].concat()
            })
        },
    )
}

/// Room for what one write of a series writes.
const SLOT: usize = 64 << 10;

/// What disturbs a series of writes of one size.
#[derive(Clone, Copy, Debug)]
enum Surprise {
    None,
    OtherLength(usize),
    Refused,
    Read,
    Flush,
}

fn any_surprise() -> impl Strategy<Value = Surprise> {
    prop_oneof![
        (1_usize..128).prop_map(|sectors| Surprise::OtherLength(sectors * 512)),
        Just(Surprise::Refused),
        Just(Surprise::Read),
        Just(Surprise::Flush),
    ]
}

impl Surprise {
    /// The requests of one slot; what they write is written to `image` as well. Payloads look like
    /// requests, so that taking the one for the other shows.
    fn requests(self, slot: usize, usual: usize, image: &mut [u8]) -> Vec<u8> {
        let (cookie, offset) = (slot as u64, slot * SLOT);
        let len = if let Self::OtherLength(len) = self { len } else { usual };
        let head = request(WRITE, 0, cookie, offset as u64, len as u32);
        let mut payload = request(WRITE, 0, cookie, 512, usual as u32).repeat(len / 28 + 1);
        payload.truncate(len);
        let refused = [request(WRITE, 0, cookie, 1, len as u32), payload.clone()].concat();
        image[offset..offset + len].copy_from_slice(&payload);
        let before = match self {
            Self::None | Self::OtherLength(_) => Vec::new(),
            Self::Refused => refused,
            Self::Read => request(READ, 0, cookie, 0, 512),
            Self::Flush => request(3, 0, cookie, 0, 0),
        };
        [before, head, payload].concat()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The server is whole: it serves a well-behaved client, and kept its promises to the export.
async fn still_serves(served: &Served) {
    let mut raw = Raw::structured(&served.socket).await;
    raw.send(&[request(WRITE, 0, 1, 0, 512), vec![3; 512]].concat()).await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 1, error: 0 });
    raw.send(&request(READ, DF, 2, 0, 512)).await;
    assert_eq!(raw.reply().await, done(2, 1, data_chunk(0, &[3; 512])));
    let violations = served.export.state.lock().violations.clone();
    assert!(violations.is_empty(), "{violations:?}");
}

/// Sends everything, closes the sending side, and returns what came back. The server may close
/// before it has read everything.
async fn exchange(raw: &mut Raw, bytes: &[u8]) -> Vec<u8> {
    let (mut input, mut output) = raw.stream.split();
    let send = async {
        let _ = output.write_all(bytes).await;
        let _ = output.shutdown().await;
    };
    let mut received = Vec::new();
    let receive = tokio::io::AsyncReadExt::read_to_end(&mut input, &mut received);
    let both = async { tokio::join!(send, receive) };
    let _ = tokio::time::timeout(Duration::from_secs(30), both).await.expect("the server closes");
    received
}

/// How many final replies each cookie got.
fn final_replies(mut bytes: &[u8]) -> BTreeMap<u64, usize> {
    let mut found = BTreeMap::new();
    while !bytes.is_empty() {
        let (cookie, len, last) = match be32(bytes) {
            0x6744_6698 => (be64(&bytes[8..]), 16, true),
            0x668e_33ef => (be64(&bytes[8..]), 20 + be32(&bytes[16..]) as usize, bytes[5] == 1),
            other => panic!("reply begins with {other:#x}"),
        };
        *found.entry(cookie).or_default() += usize::from(last);
        bytes = &bytes[len..];
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_request_gets_one_reply(requests in prop::collection::vec(any_request(), 1..60)) {
        runtime().block_on(async {
            let served = Served::new(MemoryExport::new(MIB)).await;
            let mut raw = Raw::structured(&served.socket).await;
            let mut bytes = Vec::new();
            for (cookie, mut request) in requests.into_iter().enumerate() {
                request[8..16].copy_from_slice(&(cookie as u64).to_be_bytes());
                bytes.push(request);
            }
            let count = bytes.len() as u64;
            bytes.push(request(DISC, 0, 0, 0, 0));
            let replies = final_replies(&exchange(&mut raw, &bytes.concat()).await);
            let expected: BTreeMap<u64, usize> = (0..count).map(|cookie| (cookie, 1)).collect();
            assert_eq!(replies, expected);
            still_serves(&served).await;
            served.stop().await;
        });
    }

    #[test]
    fn payloads_arrive_whole_however_they_are_cut(
        // Seven sectors are 128 heads: payloads that look like heads where heads are expected.
        usual in prop_oneof![1_usize..24, Just(7), Just(14)].prop_map(|sectors| sectors * 512),
        surprises in prop::collection::vec(
            prop_oneof![6 => Just(Surprise::None), 1 => any_surprise()], 1..60),
        cuts in prop::collection::vec(1_usize..60_000, 1..40),
    ) {
        runtime().block_on(async {
            let served = Served::new(MemoryExport::new(60 * SLOT)).await;
            let mut raw = Raw::structured(&served.socket).await;
            let mut image = vec![0; 60 * SLOT];
            let mut bytes = Vec::new();
            for (slot, surprise) in surprises.iter().enumerate() {
                bytes.extend(surprise.requests(slot, usual, &mut image));
            }
            bytes.extend(request(DISC, 0, 0, 0, 0));
            let (mut sent, mut cuts) = (0, cuts.into_iter().cycle());
            while sent < bytes.len() {
                let end = bytes.len().min(sent + cuts.next().unwrap());
                raw.send(&bytes[sent..end]).await;
                tokio::task::yield_now().await;
                sent = end;
            }
            raw.rest().await;
            assert!(served.export.state.lock().data == image, "not what was written");
            still_serves(&served).await;
            served.stop().await;
        });
    }

    #[test]
    fn truncated_and_garbled_requests_end_the_connection_alone(
        requests in prop::collection::vec(any_request(), 0..20),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        cut in any::<prop::sample::Index>(),
        flip in any::<prop::sample::Index>(),
    ) {
        runtime().block_on(async {
            let served = Served::new(MemoryExport::new(MIB)).await;
            let mut raw = Raw::structured(&served.socket).await;
            let mut bytes = [requests.concat(), garbage].concat();
            bytes.push(0);
            let flip = flip.index(bytes.len());
            bytes[flip] ^= 0xff;
            bytes.truncate(cut.index(bytes.len() + 1));
            exchange(&mut raw, &bytes).await;
            still_serves(&served).await;
            served.stop().await;
        });
    }

    #[test]
    fn a_handshake_of_garbage_ends_alone(
        flags in prop_oneof![4 => Just(3_u32), 1 => any::<u32>()],
        options in prop::collection::vec(
            (prop_oneof![8 => 0_u32..12, 1 => any::<u32>()],
             prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..40)),
            0..12),
        garbage in prop::collection::vec(any::<u8>(), 0..100),
        cut in any::<prop::sample::Index>(),
    ) {
        runtime().block_on(async {
            let served = Served::new(MemoryExport::new(MIB)).await;
            let mut raw = Raw::greeted(&served.socket, flags).await;
            let options: Vec<Vec<u8>> =
                options.iter().map(|(code, data)| option(*code, data)).collect();
            let mut bytes = [options.concat(), garbage].concat();
            bytes.truncate(cut.index(bytes.len() + 1));
            exchange(&mut raw, &bytes).await;
            still_serves(&served).await;
            served.stop().await;
        });
    }
}
