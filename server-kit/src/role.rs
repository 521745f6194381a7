//! The life of a role's process, the same for all: logs, signals, bind, ready, serve, stop.
//!
//! A binary is `run_main(args.log_json, |shutdown| serve(args, shutdown))`, and a role's `serve`
//! ends with [`RoleServer::run`]; `walb` runs several of them in one process.
use crate::config::ConfigError;
use crate::error::RoleError;
use crate::host::HostService;
use crate::net::{self, Listener};
use crate::operations::Operations;
use crate::shutdown::{self, Shutdown};
use crate::telemetry;
use crate::volume_name::ServerId;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::v1::Role;
use std::path::PathBuf;
use std::process::ExitCode;
use tonic::service::Routes;

/// The exit code of a command line that cannot be used, as clap gives it.
const USAGE: u8 = 2;

/// What a role serves with.
pub struct RoleServer {
    /// Which role.
    pub role: Role,
    /// Its id (`--id`).
    pub id: ServerId,
    /// Where its state lies, if it has any.
    pub base: Option<PathBuf>,
    /// Where it listens.
    pub listener: Listener,
    /// Its long operations.
    pub operations: Operations,
    /// What ends it.
    pub shutdown: Shutdown,
}

impl RoleServer {
    /// Adds the `Host` service to the role's own and serves until shutdown; then waits for the
    /// operations that run.
    ///
    /// # Errors
    /// `Io` when the transport fails.
    pub async fn run(self, routes: Routes) -> Result<(), RoleError> {
        let Self { role, id, base, listener, operations, shutdown } = self;
        let name = role.as_str_name().trim_start_matches("ROLE_").to_lowercase();
        tracing::info!(role = name, %id, at = %listener.endpoint(), "serving");
        let (known, jobs, end) = (id.clone(), operations.clone(), shutdown.clone());
        let host = HostService { role, id: known, base, operations: jobs, shutdown: end }.server();
        shutdown::ready();
        let served = net::serve(listener, routes.add_service(host), &shutdown).await;
        shutdown::stopping();
        operations.finish(&shutdown).await;
        tracing::info!(role = name, %id, "stopped");
        served
    }
}

/// The `main` of a role: sets up logs, runtime and signals, runs `serve` and turns its result into
/// an exit code (0 stopped as asked, 1 failed, 2 the command line or the configuration is wrong).
pub fn run_main<F, Fut>(log_json: bool, serve: F) -> ExitCode
where
    F: FnOnce(Shutdown) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    telemetry::init(log_json);
    raise_file_limit();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let result = runtime.block_on(async { serve(Shutdown::from_signals()?).await });
            // A thread that still blocks (a read from a dead disk) must not keep the process.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            if let Some(step) = error.downcast_ref::<RoleError>().map(|e| &e.detail().next_step)
                && !step.is_empty()
            {
                tracing::error!("what to do: {step}");
            }
            match error.downcast_ref::<ConfigError>() {
                Some(_) => ExitCode::from(USAGE),
                None => ExitCode::FAILURE,
            }
        }
    }
}

/// A role keeps many files open (a proxy merges a thousand wdiffs at once); the usual soft limit of
/// 1024 is for programs that use `select`, which we do not.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
