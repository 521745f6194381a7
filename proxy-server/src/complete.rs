//! That nobody has written to a volume: storage servers say it every few seconds, and it is handed
//! on to the archives that the volume goes to, for which it is the same as for the primary one.
//!
//! Invariant: nothing is kept and nothing is added: who says what of which log the archives judge.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::{CompleteRequest, CompleteTo};
use server_kit::error::RoleError;
use server_kit::net::Endpoint;

use crate::proxy::Proxy;

/// How long an archive may take to hear it; the next will come soon.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Hands it on, one call to each archive. One that does not hear it keeps none of the others.
pub(crate) async fn hand_on(proxy: &Proxy, volumes: Vec<CompleteTo>) {
    let mut calls: BTreeMap<String, (Endpoint, Vec<CompleteTo>)> = BTreeMap::new();
    for said in volumes {
        let known = said.volume.parse().ok().and_then(|name| proxy.find(&name));
        for queue in known.iter().flat_map(|volume| volume.queues()) {
            let address = queue.archive().address;
            let call = calls.entry(address.to_string()).or_insert((address, Vec::new()));
            call.1.push(said.clone());
        }
    }
    let tell = |(name, (address, volumes)): (String, (Endpoint, Vec<CompleteTo>))| async move {
        let mut client = ArchiveClient::new(proxy.env().connector.channel(&address));
        let call = client.complete(CompleteRequest { volumes });
        let told = match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
            Ok(answer) => answer.map(drop).map_err(|e| RoleError::from_status(&name, &e)),
            Err(_) => Err(RoleError::unreachable(&name, "no answer in time")),
        };
        if let Err(error) = told {
            let error = error.full_message();
            tracing::debug!(error, "cannot tell an archive how far its volumes are complete");
        }
    };
    join_all(calls.into_iter().map(tell)).await;
}
