//! Wdiffs that wait become one sorted wdiff on its way to an archive, on a thread that may block.
//!
//! Invariant: the end message is sent only after every record of every file was read and verified;
//! a damaged file is an error that names it, and the archive gets no end.
use crate::convert::PARALLEL_FROM_BYTES;
use proto::v1::wdiff_transfer_request::Step;
use proto::v1::{WdiffEnd, WdiffTransferRequest};
use server_kit::blocking;
use server_kit::chunks::ChunkSender;
use server_kit::durable::DurableDir;
use server_kit::error::{Reason, RoleError};
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;
use wdiff_format::compression::Compression;
use wdiff_format::error::{InputError, Problem, WdiffError};
use wdiff_format::header::FileType;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::open::{Records, WdiffReader};
use wdiff_format::split::MaxIo;
use wdiff_format::write::{WriteOptions, write_records};
use wlog_format::units::LogUuid;

/// What is merged, and how it is sent.
pub(crate) struct Input {
    pub(crate) dir: Arc<dyn DurableDir>,
    /// Oldest first.
    pub(crate) names: Vec<String>,
    pub(crate) uuid: LogUuid,
    pub(crate) compression: Compression,
    pub(crate) threads: usize,
}

/// Sends the chunks of the merged wdiff and the end message. `Cancelled` when nobody takes them,
/// `Damaged` when a file is not what it was.
pub(crate) fn send(
    input: &Input,
    messages: mpsc::Sender<WdiffTransferRequest>,
) -> Result<(), RoleError> {
    let mut bytes = 0;
    let mut readers = Vec::with_capacity(input.names.len());
    for name in &input.names {
        bytes += input.dir.info(name).map_or(0, |info| info.len_bytes);
        readers.push(open(&*input.dir, name, input.uuid)?);
    }
    let options = WriteOptions {
        file_type: FileType::Sorted,
        uuid: input.uuid,
        compression: input.compression,
        max_io: MaxIo::default(),
        threads: if bytes < PARALLEL_FROM_BYTES { 1 } else { input.threads },
    };
    let wrap = |chunk| WdiffTransferRequest { step: Some(Step::Chunk(chunk)) };
    let output = ChunkSender::new(messages.clone(), wrap);
    let merged = Merger::new(readers, options.max_io, Pieces::Joined).map_err(failed)?;
    let output = write_records(merged, output, &options).map_err(failed)?;
    let end = WdiffEnd { total_bytes: output.sent_bytes() };
    let message = WdiffTransferRequest { step: Some(Step::End(end)) };
    blocking::wait(messages.send(message)).map_err(|_| unwanted())
}

fn open(dir: &dyn DurableDir, name: &str, uuid: LogUuid) -> Result<Records, RoleError> {
    let file = dir.path().join(name).display().to_string();
    let reader = WdiffReader::from_opened(dir.open_file(name), file.as_str()).map_err(failed)?;
    if reader.header().uuid != uuid {
        let message = format!("{file} is damaged: it says that it comes from another log");
        return Err(RoleError::damaged(message).with_file(file));
    }
    Ok(Box::new(reader))
}

fn unwanted() -> RoleError {
    RoleError::cancelled("the archive takes no more")
}

fn failed(error: WdiffError) -> RoleError {
    match &error {
        WdiffError::Output { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => {
            unwanted()
        }
        WdiffError::Input(InputError { place, problem }) => {
            let file = place.file.to_string();
            let reason = match problem {
                Problem::Io(e) | Problem::Open(e) if e.kind() != io::ErrorKind::NotFound => {
                    Reason::Io
                }
                _ => Reason::Damaged,
            };
            RoleError::new(reason, "a staged wdiff cannot be sent")
                .with_file(file)
                .with_next_step("restore the file and kick, or take it away and do a hash backup")
                .with_source(error)
        }
        _ => RoleError::new(Reason::Io, "cannot merge staged wdiffs").with_source(error),
    }
}
