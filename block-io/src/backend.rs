//! Who executes requests: chosen once per process, said once in the log.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::sync::{SemaphorePermit, oneshot};

use crate::request::{Op, Request};
use crate::workers;

/// Which engine a device uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring where the kernel allows it, else threads. `WALB_IO=plain` forces threads.
    #[default]
    Auto,
    /// Blocking system calls on a few threads.
    Plain,
}

/// The engine of one device, resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backend {
    Plain,
}

impl Backend {
    pub(crate) fn new(engine: Engine) -> Self {
        match engine {
            Engine::Auto | Engine::Plain => Self::Plain,
        }
    }

    /// Executes `op` and returns it with its results.
    pub(crate) async fn run(
        self,
        file: &Arc<File>,
        op: Op,
        permit: SemaphorePermit<'static>,
    ) -> io::Result<Op> {
        let (reply, result) = oneshot::channel();
        let mut request = Request { file: Arc::clone(file), op, reply, permit };
        match self {
            Self::Plain => {
                workers::run(move || {
                    let done = request.op.run_blocking(&request.file);
                    request.answer(done);
                    Ok(())
                })
                .await?;
            }
        }
        result.await.unwrap_or_else(|_| Err(io::Error::other("the I/O engine has died")))
    }
}
