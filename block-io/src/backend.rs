//! Who executes requests: chosen once per process, said once in the log.

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock};

use tokio::sync::oneshot;

use crate::admission::Permit;
use crate::request::{Op, Request};
use crate::uring::{Near, Uring};
use crate::workers;

static URING: OnceLock<Option<Uring>> = OnceLock::new();

/// Which engine a device uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring where the kernel allows it, else threads. `WALB_IO=plain` forces threads.
    #[default]
    Auto,
    /// For a device on which somebody waits for each request: an io_uring of its own, that the
    /// tasks of the present runtime use without a thread in between. The device must not outlive
    /// the runtime. Else as `Auto`.
    Near,
    /// As `Near`, on a runtime of one thread that works for nobody but those who wait for this
    /// device: a flush that nothing else is waiting beside is done on that thread.
    NearAlone,
    /// Blocking system calls on a few threads.
    Plain,
}

/// The engine of one device, resolved.
pub(crate) enum Backend {
    Uring(&'static Uring),
    Near(Near),
    Plain,
}

impl Backend {
    pub(crate) fn new(engine: Engine) -> Self {
        match engine {
            Engine::Auto => match URING.get_or_init(start_uring) {
                Some(uring) => Self::Uring(uring),
                None => Self::Plain,
            },
            Engine::Near | Engine::NearAlone => {
                let near = Near::start(engine == Engine::NearAlone);
                match (Self::new(Engine::Auto), near) {
                    (Self::Uring(_), Ok(near)) => Self::Near(near),
                    (other, _) => other,
                }
            }
            Engine::Plain => Self::Plain,
        }
    }

    /// Executes `op` and returns it with its results.
    pub(crate) async fn run(&self, file: &Arc<File>, op: Op, permit: Permit) -> io::Result<Op> {
        let (reply, result) = oneshot::channel();
        let mut request = Request { file: Arc::clone(file), op, reply, permit };
        match self {
            Self::Uring(uring) => uring.submit(request),
            Self::Near(near) => near.submit(request),
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

/// `None`, and a line in the log, where io_uring cannot or shall not be used.
fn start_uring() -> Option<Uring> {
    if std::env::var_os("WALB_IO").is_some_and(|choice| choice == "plain") {
        tracing::info!("WALB_IO=plain: I/O by blocking system calls on a few threads");
        return None;
    }
    match Uring::start() {
        Ok(uring) => Some(uring),
        Err(error) => {
            tracing::warn!(%error, "no io_uring here: I/O by blocking system calls, slower");
            None
        }
    }
}
