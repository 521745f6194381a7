//! `walb-device end-overwrite`: the way out when a restore to a volume cannot be run again.

use std::path::PathBuf;

use anyhow::Context;
use proto::v1;
use proto::v1::device_control_client::DeviceControlClient;
use server_kit::error::RoleError;
use server_kit::net::{Connector, RealConnector};

use crate::serve::control_endpoint;

/// Arguments of `walb-device end-overwrite`.
#[derive(Clone, Debug, clap::Args)]
pub struct EndOverwriteArgs {
    /// Unix socket of the control service of the device role
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// The volume
    volume: String,
}

/// Asks the device role to take the volume back into service.
///
/// # Errors
/// When it does not answer, or refuses.
pub async fn end_overwrite(args: EndOverwriteArgs) -> anyhow::Result<()> {
    let endpoint = control_endpoint(&args.control)?;
    let mut client = DeviceControlClient::new(RealConnector.channel(&endpoint));
    let request = v1::VolumeRef { volume: args.volume.clone() };
    let answer = client.end_overwrite(request).await;
    let refused = |status| RoleError::from_status(&endpoint, &status);
    answer.map_err(refused).with_context(|| format!("volume {}", args.volume))?;
    tracing::info!("volume {} is in service with a new log: back it up anew", args.volume);
    Ok(())
}
