//! `walb wlog gen`: random logs, the same for the same seed and options.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use serde::Serialize;
use server_kit::units::parse_size;
use wlog_format::checksum::checksum;
use wlog_format::pack::{Add, MAX_DISCARD, MAX_WRITE, PackBuilder};
use wlog_format::ring::Ring;
use wlog_format::stream::{Pack, WlogHeader, WlogWriter};
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid, Pb, Salt, to_usize};

use crate::files::output::Output;
use crate::files::packs::Stat;
use crate::files::print_result;

/// Make a wlog of random writes and discards.
///
/// The same seed with the same options gives the same bytes.
#[derive(Debug, Args)]
pub(crate) struct GenArgs {
    /// The wlog to write; `-` is stdout
    #[arg(short, long, value_name = "WLOG")]
    output: PathBuf,
    /// The log ends with the first pack that reaches this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    log_size: u64,
    /// Size of the volume that is written to
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    device_size: u64,
    /// Physical block size: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = parse_block_size)]
    block_size: BlockSize,
    /// Seed of all that is random (default: a random one, said on stderr)
    #[arg(long)]
    seed: Option<u64>,
    /// Smallest write
    #[arg(long, value_name = "SIZE", default_value = "512", value_parser = parse_size)]
    min_io: u64,
    /// Largest write
    #[arg(long, value_name = "SIZE", default_value = "32K", value_parser = parse_size)]
    max_io: u64,
    /// Smallest discard
    #[arg(long, value_name = "SIZE", default_value = "512", value_parser = parse_size)]
    min_discard: u64,
    /// Largest discard
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_size)]
    max_discard: u64,
    /// Largest data of one pack
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_size)]
    max_pack: u64,
    /// No padding records
    #[arg(long)]
    no_padding: bool,
    /// No discards
    #[arg(long)]
    no_discard: bool,
    /// No writes of nothing but zeros
    #[arg(long)]
    no_allzero: bool,
    /// Payload of random bytes (default: a random number in each sector, then zeros)
    #[arg(long)]
    random_data: bool,
    /// Lsid of the first pack
    #[arg(long, value_name = "LSID", default_value_t = 0)]
    begin_lsid: u64,
    /// One JSON document: {"seed", "stat"}
    #[arg(long)]
    json: bool,
}

pub(crate) fn parse_block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = parse_size(text)?;
    let known = [BlockSize::B512, BlockSize::B4096];
    let found = known.into_iter().find(|size| u64::from(size.bytes()) == bytes);
    found.ok_or_else(|| format!("{text:?} is no block size: it is 512 or 4096"))
}

#[derive(Debug, Serialize)]
struct Made {
    seed: u64,
    stat: Stat,
}

pub(super) fn run(args: &GenArgs) -> anyhow::Result<()> {
    let to_stdout = args.output.as_os_str() == "-";
    if args.json && to_stdout {
        bail!(
            "cannot write both the wlog and JSON to stdout: give another -o, or leave --json out"
        );
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    if args.seed.is_none() {
        eprintln!("seed: {seed}");
    }
    let stat = Generator::new(args, seed)?.write()?;
    if to_stdout {
        return Ok(());
    }
    print_result(args.json, &Made { seed, stat: stat.clone() }, |out| {
        let (packs, records, end) = (stat.packs, stat.records, stat.end_lsid);
        writeln!(out, "{packs} packs, {records} records, to lsid {end}")
    })
}

/// What the next record shall be.
enum Io {
    Write { address: Lb, payload: Vec<u8> },
    Discard { address: Lb, len: Lb },
    Padding(Pb),
}

struct Generator<'a> {
    args: &'a GenArgs,
    rng: Xoshiro256PlusPlus,
    header: WlogHeader,
    /// So large that nothing ever wraps in it: packs are built as if the log began at its start.
    ring: Ring,
    device: Lb,
}

impl<'a> Generator<'a> {
    fn new(args: &'a GenArgs, seed: u64) -> anyhow::Result<Self> {
        let device = Lb::from_bytes(args.device_size);
        check_range("--min-io and --max-io", args.min_io, args.max_io, MAX_WRITE.min(device))?;
        let discards = (args.min_discard, args.max_discard.min(device.bytes()));
        check_range("--min-discard and --max-discard", discards.0, discards.1, MAX_DISCARD)?;
        if args.begin_lsid > Lsid::MAX.0 / 2 + 1 {
            bail!("--begin-lsid {} leaves too few lsids: at most 2^63", args.begin_lsid);
        }
        let ring = Ring::new(args.block_size, Pb(0), Pb(1 << 50));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let header = WlogHeader {
            block_size: args.block_size,
            salt: Salt(rng.random()),
            uuid: LogUuid(rng.random()),
            begin: Lsid(args.begin_lsid),
            end: Lsid::INVALID,
        };
        Ok(Self { args, rng, header, ring: ring.context("the ring of a generator")?, device })
    }

    fn write(mut self) -> anyhow::Result<Stat> {
        let failed = || format!("cannot write wlog {}", self.args.output.display());
        let output = Output::create(&self.args.output)?;
        let mut writer = WlogWriter::new(output, self.header.clone()).with_context(failed)?;
        let mut stat = Stat::new(self.header.begin);
        let block_bytes = u64::from(self.args.block_size.bytes());
        let end = self.header.begin + Pb(self.args.log_size / block_bytes);
        while writer.next_lsid() < end {
            let Some(pack) = self.pack(writer.next_lsid()) else { break };
            stat.add(&pack);
            writer.write_pack(&pack).with_context(failed)?;
        }
        writer.finish().with_context(failed)?.commit()?;
        Ok(stat)
    }

    /// A pack of as many records as chance wants and the limits allow.
    fn pack(&mut self, lsid: Lsid) -> Option<Pack> {
        let block_size = self.args.block_size;
        let max = Pb((self.args.max_pack / u64::from(block_size.bytes())).max(1));
        let from_begin = Lsid(lsid.distance_from(self.header.begin).0);
        let mut builder = PackBuilder::new(from_begin, self.ring, self.header.salt, max);
        let mut blocks = Vec::new();
        let wanted = self.rng.random_range(1..=wlog_format::pack::max_records(block_size));
        for _ in 0..wanted {
            let (added, data) = self.offer(&mut builder);
            match added {
                Add::Added(_) => blocks.push(data),
                Add::Full | Add::TooLarge => break,
            }
        }
        Some(Pack { header: builder.finish()?.moved_to(lsid)?, blocks })
    }

    /// Offers one more record; its log blocks come back.
    fn offer(&mut self, builder: &mut PackBuilder) -> (Add, Bytes) {
        let block_size = self.args.block_size;
        let whole_blocks = |len| to_usize(block_size.bytes_of(block_size.pb(len)));
        match self.io() {
            Io::Write { address, mut payload } => {
                let len = Lb::from_bytes(payload.len() as u64);
                let sum = checksum(&payload, self.header.salt);
                payload.resize(whole_blocks(len), 0);
                (builder.try_add_write(address, len, sum), payload.into())
            }
            Io::Discard { address, len } => (builder.try_add_discard(address, len), Bytes::new()),
            Io::Padding(size) => {
                let zeros = vec![0; to_usize(block_size.bytes_of(size))];
                (builder.try_add_padding(size), zeros.into())
            }
        }
    }

    fn io(&mut self) -> Io {
        let class = self.rng.random_range(0..100);
        match class {
            0..5 if !self.args.no_padding => {
                let max = Lb::from_bytes(self.args.max_io);
                Io::Padding(Pb(self.rng.random_range(0..=self.args.block_size.pb(max).0 / 2)))
            }
            5..20 if !self.args.no_discard => {
                let (address, len) = self.place(self.args.min_discard, self.args.max_discard);
                Io::Discard { address, len }
            }
            _ => {
                let (address, len) = self.place(self.args.min_io, self.args.max_io);
                let zero = (20..30).contains(&class) && !self.args.no_allzero;
                let payload = if zero { vec![0; to_usize(len.bytes())] } else { self.payload(len) };
                Io::Write { address, payload }
            }
        }
    }

    /// A place on the device for something of a random length.
    fn place(&mut self, min_bytes: u64, max_bytes: u64) -> (Lb, Lb) {
        let (min, max) = (Lb::from_bytes(min_bytes), Lb::from_bytes(max_bytes).min(self.device));
        let len = self.rng.random_range(min.0..=max.0);
        (Lb(self.rng.random_range(0..=self.device.0 - len)), Lb(len))
    }

    fn payload(&mut self, len: Lb) -> Vec<u8> {
        let mut payload = vec![0; to_usize(len.bytes())];
        if self.args.random_data {
            self.rng.fill_bytes(&mut payload);
            return payload;
        }
        let (sectors, _) = payload.as_chunks_mut::<512>();
        for sector in sectors {
            // Never zero, or the sector would not be a write of something.
            let number = self.rng.random::<u64>() | 1;
            if let Some(start) = sector.first_chunk_mut() {
                *start = number.to_le_bytes();
            }
        }
        payload
    }
}

fn check_range(options: &str, min: u64, max: u64, limit: Lb) -> anyhow::Result<()> {
    let whole = min.is_multiple_of(512) && max.is_multiple_of(512);
    if !whole || min == 0 || min > max || max > limit.bytes() {
        bail!(
            "{options} of {min} and {max} bytes cannot be: whole sectors of 512 are needed, \
             at least one, at most {} bytes for this device, and the smallest first",
            limit.bytes()
        );
    }
    Ok(())
}
