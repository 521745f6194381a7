//! Looking: every server is asked at once, each with a short time limit.

use std::time::Duration;

use proto::v1;

use super::view::{Look, Seen, ServerLook};
use crate::client::{At, Controller};
use crate::error::ControlError;
use crate::group::{Server, ServerRole};

/// How long one server may take to answer everything.
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// One look at the whole group; `only` narrows it to one volume.
pub(super) async fn look(ctl: &Controller, only: Option<&str>) -> Look {
    let servers = ctl.group().servers().iter().map(|server| look_at(ctl, server));
    Look {
        servers: futures::future::join_all(servers).await,
        legs: ctl.group().legs().to_vec(),
        only: only.map(str::to_owned),
    }
}

async fn look_at(ctl: &Controller, server: &Server) -> ServerLook {
    let seen = match tokio::time::timeout(SERVER_TIMEOUT, ask(ctl, server)).await {
        Ok(answer) => answer.map_err(|error| why(&error)),
        Err(_) => Err(format!("no answer within {}", humantime::format_duration(SERVER_TIMEOUT))),
    };
    let (name, address) = (server.name.clone(), server.address.to_string());
    ServerLook { name, role: server.role, address, seen }
}

/// The cause alone: name and address of the server stand beside it.
fn why(error: &ControlError) -> String {
    match error {
        ControlError::Unreachable { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

async fn ask(ctl: &Controller, server: &Server) -> Result<Seen, ControlError> {
    let mut host = ctl.host(server);
    let info = host.info(v1::Empty {}).await.at(server)?;
    let operations = host.list_operations(v1::Empty {}).await.at(server)?.operations;
    let mut seen = Seen { info, operations, ..Seen::default() };
    match server.role {
        ServerRole::Storage => {
            let (server, mut client) = ctl.storage(&server.name)?;
            seen.peers = client.get_peers(v1::Empty {}).await.at(server)?;
            seen.storages = client.list(v1::Empty {}).await.at(server)?.volumes;
        }
        ServerRole::Proxy => {
            let (server, mut client) = ctl.proxy(&server.name)?;
            seen.proxies = client.list(v1::Empty {}).await.at(server)?.volumes;
        }
        ServerRole::Archive => {
            let (server, mut client) = ctl.archive(&server.name)?;
            seen.archives = client.list(v1::Empty {}).await.at(server)?.volumes;
        }
    }
    Ok(seen)
}
