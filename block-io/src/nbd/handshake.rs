//! The handshake: from the greeting to the choice of an export.
//!
//! [`Negotiation`] is the protocol without I/O: it takes one option and gives the bytes to answer
//! with and what comes next. [`handshake`] moves the bytes.
//!
//! Invariants:
//! - No option allocates more than [`MAX_OPTION_BYTES`]; longer ones are skipped and refused.
//! - Every option but `EXPORT_NAME` gets exactly one final reply, whatever it contains.
//! - Not a byte after the last option is taken from the stream.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::export::Export;
use super::protocol::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, Greeting, InfoBlockSize, InfoExport, MAX_PAYLOAD_BYTES,
    MAX_STRING_BYTES, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHeader, OptionReplyHeader,
    handshake_flags, info, option, option_reply, transmission_flags,
};

/// Most data of one option in bytes: a name of full length and some queries.
const MAX_OPTION_BYTES: u32 = 64 << 10;

/// What there is to serve, by name.
pub(super) struct Exports {
    pub(super) served: BTreeMap<String, Arc<dyn Export>>,
    /// Why these, which should be there, are not.
    pub(super) unavailable: BTreeMap<String, String>,
}

/// What client and server agreed on.
#[derive(Clone)]
pub(super) struct Negotiated {
    pub(super) name: String,
    pub(super) export: Arc<dyn Export>,
    /// Replies to reads are structured.
    pub(super) structured: bool,
    /// `base:allocation` was chosen for this export.
    pub(super) allocation: bool,
}

/// Why a handshake ended without an agreement.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("client broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("client wants the unknown export {0:?}")]
    UnknownExport(String),
}

/// Speaks with a client until it has chosen an export; `None` if it left.
pub(super) async fn handshake<S>(
    stream: &mut S,
    exports: &Exports,
) -> Result<Option<Negotiated>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let flags = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
    let greeting = Greeting {
        magic: U64::new(NBD_MAGIC),
        option_magic: U64::new(OPTION_MAGIC),
        flags: U16::new(flags),
    };
    stream.write_all(greeting.as_bytes()).await?;
    let client_flags = match stream.read_u32().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    if client_flags & !u32::from(flags) != 0 {
        return Err(HandshakeError::Protocol("unknown client flags"));
    }
    let no_zeroes = client_flags & u32::from(handshake_flags::NO_ZEROES) != 0;
    let mut negotiation = Negotiation::new(exports, no_zeroes);
    loop {
        let Some((code, data)) = read_option(stream).await? else { return Ok(None) };
        let step = match data {
            Some(data) => negotiation.answer(code, &data)?,
            None => negotiation.too_long(code)?,
        };
        stream.write_all(&step.reply).await?;
        match step.next {
            Next::Option => {}
            Next::Leave => return Ok(None),
            Next::Enter(negotiated) => return Ok(Some(negotiated)),
        }
    }
}

/// The next option and its data, which is `None` if it was too long to look at. `None` at the end
/// of the stream.
async fn read_option<S>(stream: &mut S) -> Result<Option<(u32, Option<Vec<u8>>)>, HandshakeError>
where
    S: AsyncRead + Unpin,
{
    let mut head = [0; size_of::<OptionHeader>()];
    match stream.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let head: OptionHeader = zerocopy::transmute!(head);
    if head.magic != OPTION_MAGIC {
        return Err(HandshakeError::Protocol("bad option magic"));
    }
    let (code, len) = (head.option.get(), head.len.get());
    if len > MAX_OPTION_BYTES {
        tokio::io::copy(&mut stream.take(u64::from(len)), &mut tokio::io::sink()).await?;
        return Ok(Some((code, None)));
    }
    let mut data = Vec::new();
    stream.take(u64::from(len)).read_to_end(&mut data).await?;
    if u32::try_from(data.len()) != Ok(len) {
        return Ok(None);
    }
    Ok(Some((code, Some(data))))
}

/// The answer to one option.
pub(super) struct Step {
    pub(super) reply: Vec<u8>,
    pub(super) next: Next,
}

/// What follows an answer.
pub(super) enum Next {
    Option,
    Leave,
    Enter(Negotiated),
}

/// A final reply that refuses an option: reply code and a text for people.
type Refusal = (u32, Cow<'static, str>);

const MALFORMED: Refusal = (option_reply::ERR_INVALID, Cow::Borrowed("malformed option"));
const UNKNOWN_EXPORT: Refusal = (option_reply::ERR_UNKNOWN, Cow::Borrowed("no such export"));

/// The state of option haggling.
pub(super) struct Negotiation<'a> {
    exports: &'a Exports,
    no_zeroes: bool,
    structured: bool,
    /// Export for which `base:allocation` was chosen last.
    allocation: Option<String>,
}

impl<'a> Negotiation<'a> {
    pub(super) fn new(exports: &'a Exports, no_zeroes: bool) -> Self {
        Self { exports, no_zeroes, structured: false, allocation: None }
    }

    /// Answers an option; an error means to hang up.
    pub(super) fn answer(&mut self, code: u32, data: &[u8]) -> Result<Step, HandshakeError> {
        if code == option::EXPORT_NAME {
            return self.export_name(data);
        }
        let mut reply = Reply::new(code);
        let result = match code {
            option::ABORT => Ok(Next::Leave),
            option::LIST => self.list(data, &mut reply),
            option::INFO | option::GO => self.info(code, data, &mut reply),
            option::STRUCTURED_REPLY => self.structured_reply(data),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(code, data, &mut reply)
            }
            _ => Err((option_reply::ERR_UNSUP, "option not supported".into())),
        };
        Ok(match result {
            Ok(next) => {
                reply.push(option_reply::ACK, &[]);
                Step { reply: reply.bytes, next }
            }
            Err((refusal, why)) => {
                reply.push(refusal, &[why.as_bytes()]);
                Step { reply: reply.bytes, next: Next::Option }
            }
        })
    }

    /// Answers an option whose data was skipped.
    pub(super) fn too_long(&mut self, code: u32) -> Result<Step, HandshakeError> {
        match code {
            option::EXPORT_NAME => return Err(HandshakeError::Protocol("export name too long")),
            option::SET_META_CONTEXT => self.allocation = None,
            _ => {}
        }
        let mut reply = Reply::new(code);
        reply.push(option_reply::ERR_TOO_BIG, &[b"option too long"]);
        Ok(Step { reply: reply.bytes, next: Next::Option })
    }

    /// The export of a name; the empty name is the default: the only export there is, or would be.
    fn find(&self, name: &str) -> Result<(&'a String, &'a Arc<dyn Export>), Refusal> {
        let Exports { served, unavailable } = self.exports;
        let alone = name.is_empty() && served.len() + unavailable.len() == 1;
        let default = || served.first_key_value().filter(|_| alone);
        if let Some(found) = served.get_key_value(name).or_else(default) {
            return Ok(found);
        }
        let default = || unavailable.first_key_value().filter(|_| alone).map(|(_, why)| why);
        let why = unavailable.get(name).or_else(default).ok_or(UNKNOWN_EXPORT)?;
        Err((option_reply::ERR_UNKNOWN, format!("export not available: {why}").into()))
    }

    fn negotiated(&self, name: &str, export: &Arc<dyn Export>) -> Next {
        Next::Enter(Negotiated {
            name: name.to_owned(),
            export: Arc::clone(export),
            structured: self.structured,
            allocation: self.allocation.as_deref() == Some(name),
        })
    }

    fn export_name(&self, data: &[u8]) -> Result<Step, HandshakeError> {
        let name = String::from_utf8_lossy(data);
        let (name, export) =
            self.find(&name).map_err(|_| HandshakeError::UnknownExport(name.to_string()))?;
        let mut reply = Vec::new();
        reply.extend_from_slice(U64::new(served_bytes(&**export)).as_bytes());
        reply.extend_from_slice(U16::new(flags_of(&**export, self.structured)).as_bytes());
        if !self.no_zeroes {
            reply.extend_from_slice(&[0; 124]);
        }
        Ok(Step { reply, next: self.negotiated(name, export) })
    }

    fn list(&self, data: &[u8], reply: &mut Reply) -> Result<Next, Refusal> {
        if !data.is_empty() {
            return Err(MALFORMED);
        }
        for name in self.exports.served.keys() {
            let len = U32::new(u32::try_from(name.len()).map_err(|_| MALFORMED)?);
            reply.push(option_reply::SERVER, &[len.as_bytes(), name.as_bytes()]);
        }
        Ok(Next::Option)
    }

    fn info(&self, code: u32, data: &[u8], reply: &mut Reply) -> Result<Next, Refusal> {
        let mut input = Input(data);
        let wanted_name = input.string()?;
        let count = input.u16()?;
        let mut name_wanted = false;
        for _ in 0..count {
            name_wanted |= input.u16()? == info::NAME;
        }
        input.end()?;
        let (name, export) = self.find(wanted_name)?;
        let facts = InfoExport {
            kind: U16::new(info::EXPORT),
            size_bytes: U64::new(served_bytes(&**export)),
            flags: U16::new(flags_of(&**export, self.structured)),
        };
        reply.push(option_reply::INFO, &[facts.as_bytes()]);
        let minimum = export.block_bytes();
        let sizes = InfoBlockSize {
            kind: U16::new(info::BLOCK_SIZE),
            minimum: U32::new(minimum),
            preferred: U32::new(minimum.max(4096)),
            maximum: U32::new(MAX_PAYLOAD_BYTES),
        };
        reply.push(option_reply::INFO, &[sizes.as_bytes()]);
        if name_wanted {
            let kind = U16::new(info::NAME);
            reply.push(option_reply::INFO, &[kind.as_bytes(), name.as_bytes()]);
        }
        Ok(if code == option::GO { self.negotiated(name, export) } else { Next::Option })
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<Next, Refusal> {
        if !data.is_empty() {
            return Err(MALFORMED);
        }
        self.structured = true;
        Ok(Next::Option)
    }

    fn meta_context(&mut self, code: u32, data: &[u8], reply: &mut Reply) -> Result<Next, Refusal> {
        let setting = code == option::SET_META_CONTEXT;
        if setting {
            self.allocation = None;
        }
        if !self.structured {
            return Err((option_reply::ERR_INVALID, "negotiate structured replies first".into()));
        }
        let mut input = Input(data);
        let name = input.string()?;
        let count = input.u32()?;
        let mut chosen = count == 0 && !setting;
        for _ in 0..count {
            let query = input.string()?;
            chosen |= query == BASE_ALLOCATION || (query == "base:" && !setting);
        }
        input.end()?;
        let (name, _) = self.find(name)?;
        if chosen {
            let id = U32::new(if setting { BASE_ALLOCATION_ID } else { 0 });
            reply.push(option_reply::META_CONTEXT, &[id.as_bytes(), BASE_ALLOCATION.as_bytes()]);
            if setting {
                self.allocation = Some(name.clone());
            }
        }
        Ok(Next::Option)
    }
}

/// Size of what clients can address in bytes: whole blocks.
pub(super) fn served_bytes(export: &dyn Export) -> u64 {
    let size_bytes = export.size_bytes();
    size_bytes - size_bytes % u64::from(export.block_bytes())
}

fn flags_of(export: &dyn Export, structured: bool) -> u16 {
    use transmission_flags as flags;
    let mut set = flags::HAS_FLAGS | flags::SEND_FLUSH | flags::SEND_FUA | flags::CAN_MULTI_CONN;
    if export.read_only() {
        set |= flags::READ_ONLY;
    } else {
        set |= flags::SEND_TRIM | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO;
    }
    if structured {
        set |= flags::SEND_DF;
    }
    set
}

/// Replies to one option, in wire form.
struct Reply {
    option: u32,
    bytes: Vec<u8>,
}

impl Reply {
    fn new(option: u32) -> Self {
        Self { option, bytes: Vec::new() }
    }

    fn push(&mut self, reply: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let head = OptionReplyHeader {
            magic: U64::new(OPTION_REPLY_MAGIC),
            option: U32::new(self.option),
            reply: U32::new(reply),
            // Names are at most `MAX_STRING_BYTES` long (checked when the server is made).
            len: U32::new(u32::try_from(len).unwrap_or(u32::MAX)),
        };
        self.bytes.extend_from_slice(head.as_bytes());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
    }
}

/// Takes the data of an option apart.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn u16(&mut self) -> Result<u16, Refusal> {
        let (value, rest) = U16::read_from_prefix(self.0).map_err(|_| MALFORMED)?;
        self.0 = rest;
        Ok(value.get())
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        let (value, rest) = U32::read_from_prefix(self.0).map_err(|_| MALFORMED)?;
        self.0 = rest;
        Ok(value.get())
    }

    /// A length and so many bytes of UTF-8.
    fn string(&mut self) -> Result<&'a str, Refusal> {
        let len = self.u32()?;
        if len > MAX_STRING_BYTES {
            return Err((option_reply::ERR_TOO_BIG, "string too long".into()));
        }
        let len = usize::try_from(len).map_err(|_| MALFORMED)?;
        let (text, rest) = self.0.split_at_checked(len).ok_or(MALFORMED)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| MALFORMED)
    }

    fn end(&self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(MALFORMED) }
    }
}
