//! Compressing and decompressing one piece of data (`formats.md` §6.2).
//!
//! A [`Codec`] keeps the contexts of the compressors between calls: making them anew for each
//! record costs more than small records themselves. What it writes depends on the input and the
//! [`Compression`] alone, never on what it did before. Reading trusts nothing: the output is never
//! larger than the caller has checked the record to be, and must be exactly that large.

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status as ZlibStatus};
use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status as XzStatus, Stream};
use lz4_flex::block::{self as lz4, CompressTable};
use wlog_format::checksum::checksum;
use wlog_format::reuse::Reuse;
use wlog_format::units::Salt;

use crate::compression::{Compression, CompressionKind};
use crate::walk;

/// Memory that an .xz decoder may take. Preset 9, which the original can write, needs 65 MiB.
const XZ_MEMORY_LIMIT_BYTES: u64 = 80 << 20;

/// Dictionaries of .xz: the least that the format has, and the most that the original can read.
const XZ_DICTIONARY_MIN_BYTES: u32 = 4096;
const XZ_DICTIONARY_MAX_BYTES: u32 = 8 << 20;

/// Compressed data that shares one allocation; a result keeps as much from being freed.
const ROOM_BYTES: usize = 64 << 10;
/// Memory that waits for the results in it to be dropped.
const REUSE_BYTES: usize = 4 << 20;

/// Data as it lies in a file: compressed, with the checksum of the compressed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// How `bytes` are encoded.
    pub kind: CompressionKind,
    /// The encoded bytes.
    pub bytes: Bytes,
    /// Checksum of `bytes`, salt 0 (`formats.md` §2.1).
    pub checksum: u32,
}

/// A codec failed on one piece of data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The compressor failed; it must not on any input.
    #[error("{kind} cannot compress {raw_bytes} bytes: {reason}")]
    Compress {
        /// The codec.
        kind: CompressionKind,
        /// Size of the input.
        raw_bytes: usize,
        /// What the codec says.
        reason: String,
    },
    /// The bytes are no encoding of `raw_bytes` bytes of data.
    #[error("the data is no {kind} encoding of {raw_bytes} bytes: {reason}")]
    Decompress {
        /// The codec that the record names.
        kind: CompressionKind,
        /// The size that the record claims.
        raw_bytes: usize,
        /// What the codec says.
        reason: String,
    },
}

/// One thread's compressor and decompressors.
pub struct Codec {
    compression: Compression,
    /// What was compressed last lies at its start.
    scratch: BytesMut,
    /// Where the next `scratch` comes from, and memory for others.
    reuse: Reuse,
    /// Room for compressed data, which small results share: an allocation for each costs more than
    /// the copy.
    room: BytesMut,
    snappy: snap::raw::Encoder,
    unsnappy: snap::raw::Decoder,
    lz4_table: Option<CompressTable>,
    zlib: Option<Compress>,
    unzlib: Option<Decompress>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    unzstd: Option<Unzstd>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl Codec {
    /// A codec that compresses in this way, and decompresses everything.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            scratch: BytesMut::new(),
            reuse: Reuse::new(REUSE_BYTES),
            room: BytesMut::new(),
            snappy: snap::raw::Encoder::new(),
            unsnappy: snap::raw::Decoder::new(),
            lz4_table: None,
            zlib: None,
            unzlib: None,
            zstd: None,
            unzstd: None,
        }
    }

    /// What it compresses to.
    #[must_use]
    pub const fn compression(&self) -> Compression {
        self.compression
    }

    /// Compresses `raw`. The result is of kind `None`, and shares `raw`, unless compression makes
    /// it strictly smaller.
    ///
    /// # Errors
    /// The compressor failed; the input is never the cause.
    pub fn compress(&mut self, raw: &Bytes) -> Result<Stored, CodecError> {
        self.compress_summed(raw, None)
    }

    /// [`Codec::compress`] for somebody who may know the checksum of `raw`, salt 0.
    pub(crate) fn compress_summed(
        &mut self,
        raw: &Bytes,
        raw_checksum: Option<u32>,
    ) -> Result<Stored, CodecError> {
        let kind = self.compression.kind();
        let failed = |reason: String| CodecError::Compress { kind, raw_bytes: raw.len(), reason };
        let compressed_len = self.compress_to_scratch(raw).map_err(failed)?;
        let Some(len) = compressed_len.filter(|&len| len < raw.len()) else {
            let checksum = raw_checksum.unwrap_or_else(|| checksum(raw, Salt(0)));
            return Ok(Stored { kind: CompressionKind::None, bytes: raw.clone(), checksum });
        };
        let bytes = self.taken_from_scratch(len);
        Ok(Stored { kind, checksum: checksum(&bytes, Salt(0)), bytes })
    }

    /// The first `len` bytes of `scratch`, which it has. Large data is not copied; little data does
    /// not keep all of `scratch`.
    fn taken_from_scratch(&mut self, len: usize) -> Bytes {
        if len >= ROOM_BYTES && len >= self.scratch.len() / 4 {
            let whole = std::mem::take(&mut self.scratch).freeze();
            let bytes = whole.slice(..len);
            self.reuse.put(whole);
            return bytes;
        }
        if self.room.capacity() < len {
            self.room = BytesMut::with_capacity(len.max(ROOM_BYTES));
        }
        self.room.extend_from_slice(self.scratch.split_at(len).0);
        self.room.split().freeze()
    }

    /// Leaves the compressed data in `scratch` and says how long it is; `None` when it would not
    /// be smaller.
    fn compress_to_scratch(&mut self, raw: &[u8]) -> Result<Option<usize>, String> {
        match self.compression.kind() {
            CompressionKind::None => Ok(None),
            CompressionKind::Gzip => self.gzip(raw),
            CompressionKind::Snappy => {
                let scratch = grow(
                    &mut self.scratch,
                    &mut self.reuse,
                    snap::raw::max_compress_len(raw.len()),
                );
                self.snappy.compress(raw, scratch).map(Some).map_err(text)
            }
            CompressionKind::Lzma => self.xz(raw),
            CompressionKind::Lz4 => {
                let scratch = grow(
                    &mut self.scratch,
                    &mut self.reuse,
                    lz4::get_maximum_output_size(raw.len()),
                );
                let table = self.lz4_table.get_or_insert_with(CompressTable::large);
                lz4::compress_into_with_table(raw, scratch, table).map(Some).map_err(text)
            }
            CompressionKind::Zstd => {
                let scratch = grow(
                    &mut self.scratch,
                    &mut self.reuse,
                    zstd::zstd_safe::compress_bound(raw.len()),
                );
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => {
                        let level = self.compression.effective_level();
                        none.insert(zstd::bulk::Compressor::new(level).map_err(text)?)
                    }
                };
                zstd.compress_to_buffer(raw, scratch).map(Some).map_err(text)
            }
        }
    }

    fn gzip(&mut self, raw: &[u8]) -> Result<Option<usize>, String> {
        let scratch = grow(&mut self.scratch, &mut self.reuse, raw.len());
        let level = self.compression.effective_level().unsigned_abs();
        let zlib =
            self.zlib.get_or_insert_with(|| Compress::new(flate2::Compression::new(level), true));
        zlib.reset();
        match zlib.compress(raw, scratch, FlushCompress::Finish).map_err(text)? {
            ZlibStatus::StreamEnd => usize::try_from(zlib.total_out()).map(Some).map_err(text),
            // The room was as large as the input and did not suffice.
            ZlibStatus::Ok | ZlibStatus::BufError => Ok(None),
        }
    }

    fn xz(&mut self, raw: &[u8]) -> Result<Option<usize>, String> {
        let scratch = grow(&mut self.scratch, &mut self.reuse, raw.len());
        let preset = self.compression.effective_level().unsigned_abs();
        let mut options = LzmaOptions::new_preset(preset).map_err(text)?;
        // A dictionary larger than the data costs memory and time, and gains nothing.
        let dictionary = u32::try_from(raw.len()).unwrap_or(XZ_DICTIONARY_MAX_BYTES);
        options.dict_size(dictionary.clamp(XZ_DICTIONARY_MIN_BYTES, XZ_DICTIONARY_MAX_BYTES));
        let mut filters = Filters::new();
        filters.lzma2(&options);
        let mut xz = Stream::new_stream_encoder(&filters, Check::Crc64).map_err(text)?;
        match xz.process(raw, scratch, Action::Finish).map_err(text)? {
            XzStatus::StreamEnd => usize::try_from(xz.total_out()).map(Some).map_err(text),
            XzStatus::Ok | XzStatus::GetCheck | XzStatus::MemNeeded => Ok(None),
        }
    }

    /// Decompresses `stored`, which must give exactly `raw_bytes` bytes. The caller has checked
    /// `raw_bytes` against the format's limits: that much memory is taken before anything is known.
    ///
    /// # Errors
    /// `stored` is not such an encoding.
    pub fn decompress(
        &mut self,
        kind: CompressionKind,
        stored: &Bytes,
        raw_bytes: usize,
    ) -> Result<Bytes, CodecError> {
        let failed = |reason: String| CodecError::Decompress { kind, raw_bytes, reason };
        let raw = match kind {
            CompressionKind::None => stored.clone(),
            CompressionKind::Gzip => self.ungzip(stored, raw_bytes).map_err(failed)?,
            CompressionKind::Lzma => unxz(stored, raw_bytes).map_err(failed)?,
            CompressionKind::Zstd => self.unzstd(stored, raw_bytes).map_err(failed)?,
            CompressionKind::Snappy | CompressionKind::Lz4 => {
                let mut raw = vec![0; raw_bytes];
                self.decompress_into(kind, stored, &mut raw)?;
                Bytes::from(raw)
            }
        };
        if raw.len() == raw_bytes {
            Ok(raw)
        } else {
            Err(failed(format!("it gives {} bytes", raw.len())))
        }
    }

    /// [`Codec::decompress`] to memory that is there, which it must fill.
    ///
    /// # Errors
    /// `stored` is not an encoding of as many bytes.
    pub fn decompress_into(
        &mut self,
        kind: CompressionKind,
        stored: &Bytes,
        raw: &mut [u8],
    ) -> Result<(), CodecError> {
        let raw_bytes = raw.len();
        let failed = |reason: String| CodecError::Decompress { kind, raw_bytes, reason };
        let len = match kind {
            CompressionKind::Snappy => self.unsnappy.decompress(stored, raw).map_err(text),
            CompressionKind::Lz4 => lz4::decompress_into(stored, raw).map_err(text),
            CompressionKind::Zstd => unzstd_of(&mut self.unzstd)
                .and_then(|unzstd| unzstd.decompress_to_buffer(stored, raw))
                .map_err(text),
            CompressionKind::None | CompressionKind::Gzip | CompressionKind::Lzma => {
                raw.copy_from_slice(&self.decompress(kind, stored, raw_bytes)?);
                Ok(raw_bytes)
            }
        };
        match len.map_err(failed)? {
            len if len == raw_bytes => Ok(()),
            len => Err(failed(format!("it gives {len} bytes"))),
        }
    }

    /// Memory for what is read and decompressed, to be given back there.
    pub(crate) const fn memory(&mut self) -> &mut Reuse {
        &mut self.reuse
    }

    /// Sees that `stored` is an encoding of exactly `raw_bytes` bytes, for somebody who does not
    /// want them: what [`Codec::decompress`] takes and refuses, but cheaper.
    ///
    /// # Errors
    /// `stored` is not such an encoding.
    pub fn look(
        &mut self,
        kind: CompressionKind,
        stored: &Bytes,
        raw_bytes: usize,
    ) -> Result<(), CodecError> {
        let sound = match kind {
            CompressionKind::Lz4 => walk::lz4(stored) == Some(raw_bytes),
            CompressionKind::Snappy => walk::snappy(stored) == Some(raw_bytes),
            CompressionKind::Zstd => self.unzstd_to_scratch(stored, raw_bytes),
            CompressionKind::None | CompressionKind::Gzip | CompressionKind::Lzma => false,
        };
        if sound { Ok(()) } else { self.decompress(kind, stored, raw_bytes).map(|_| ()) }
    }

    fn unzstd_to_scratch(&mut self, stored: &[u8], raw_bytes: usize) -> bool {
        let scratch = grow(&mut self.scratch, &mut self.reuse, raw_bytes);
        let Ok(unzstd) = unzstd_of(&mut self.unzstd) else { return false };
        unzstd.decompress_to_buffer(stored, scratch).is_ok_and(|len| len == raw_bytes)
    }

    fn ungzip(&mut self, stored: &[u8], raw_bytes: usize) -> Result<Bytes, String> {
        // One byte more than wanted, so that a longer stream shows.
        let mut raw = Vec::with_capacity(raw_bytes + 1);
        let unzlib = self.unzlib.get_or_insert_with(|| Decompress::new(true));
        unzlib.reset(true);
        let status = unzlib.decompress_vec(stored, &mut raw, FlushDecompress::Finish);
        match status.map_err(text)? {
            ZlibStatus::StreamEnd => whole_input(unzlib.total_in(), stored)?,
            ZlibStatus::Ok | ZlibStatus::BufError => return Err("the stream has no end".into()),
        }
        Ok(Bytes::from(raw))
    }

    fn unzstd(&mut self, stored: &[u8], raw_bytes: usize) -> Result<Bytes, String> {
        let unzstd = unzstd_of(&mut self.unzstd).map_err(text)?;
        let mut raw = Vec::with_capacity(raw_bytes);
        unzstd.decompress_to_buffer(stored, &mut raw).map_err(text)?;
        Ok(Bytes::from(raw))
    }
}

type Unzstd = zstd::bulk::Decompressor<'static>;

fn unzstd_of(kept: &mut Option<Unzstd>) -> std::io::Result<&mut Unzstd> {
    match kept {
        Some(unzstd) => Ok(unzstd),
        none => Ok(none.insert(Unzstd::new()?)),
    }
}

fn unxz(stored: &[u8], raw_bytes: usize) -> Result<Bytes, String> {
    let mut raw = Vec::with_capacity(raw_bytes + 1);
    let mut unxz = Stream::new_stream_decoder(XZ_MEMORY_LIMIT_BYTES, 0).map_err(text)?;
    match unxz.process_vec(stored, &mut raw, Action::Finish).map_err(text)? {
        XzStatus::StreamEnd => whole_input(unxz.total_in(), stored)?,
        XzStatus::Ok | XzStatus::GetCheck | XzStatus::MemNeeded => {
            return Err("the stream has no end".into());
        }
    }
    Ok(Bytes::from(raw))
}

fn whole_input(consumed: u64, stored: &[u8]) -> Result<(), String> {
    if consumed == stored.len() as u64 {
        Ok(())
    } else {
        Err(format!("it ends after {consumed} of {} bytes", stored.len()))
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// A buffer of `len` bytes whose old content does not matter.
fn grow<'a>(scratch: &'a mut BytesMut, reuse: &mut Reuse, len: usize) -> &'a mut [u8] {
    if scratch.len() < len {
        *scratch = reuse.take(len);
    }
    scratch.split_at_mut(len).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_result_is_not_copied_and_a_small_one_keeps_little_memory() {
        let noise = |i: u32| i.wrapping_mul(2_654_435_761).to_le_bytes();
        let half: Vec<u8> = (0..1 << 16).flat_map(noise).chain(vec![7; 1 << 18]).collect();
        let mut codec = Codec::new(Compression::SNAPPY);
        let large = codec.compress(&Bytes::from(half)).unwrap().bytes;
        assert!(codec.scratch.is_empty(), "it is the result's");
        assert!(large.len() > ROOM_BYTES);
        let small = codec.compress(&Bytes::from(vec![7; 1 << 20])).unwrap().bytes;
        assert!(small.len() < ROOM_BYTES && !codec.scratch.is_empty());
        // It shares room with the results to come.
        drop(codec);
        let kept = small.try_into_mut().map_or(usize::MAX, |kept| kept.capacity());
        assert!(kept <= ROOM_BYTES, "{kept}");
    }
}
