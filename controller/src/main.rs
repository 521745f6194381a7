//! The `walbc` program: see the `controller` library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    ExitCode::from(controller::cli::main().await.code())
}
