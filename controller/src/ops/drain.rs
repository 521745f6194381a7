//! Waiting until the proxies have sent what they hold for an archive, as far as it takes it.

use std::time::Duration;

use proto::v1;
use tokio::time::{Instant, sleep};

use super::{POLL_INTERVAL, recover, sync};
use crate::client::Controller;
use crate::error::ControlError;
use crate::group::ServerRole;

/// How long the queues may stand still before the rest counts as not deliverable.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same while a transfer runs: one wdiff may be large, but an archive may hang.
const LONG_PATIENCE: Duration = Duration::from_secs(120);

/// What waits for an archive at the proxies that answer.
pub(crate) async fn queues(
    ctl: &Controller,
    volume: &str,
    archive: &str,
) -> Result<Vec<(String, v1::ProxyQueue)>, ControlError> {
    let mut found = Vec::new();
    for proxy in ctl.names(ServerRole::Proxy) {
        let queues = match sync::proxy_volume(ctl, &proxy, volume).await {
            Ok(volume) => volume.queues,
            Err(ControlError::Unreachable { .. }) => continue,
            Err(error) => return Err(error),
        };
        let of_archive = |q: &v1::ProxyQueue| q.archive.as_ref().is_some_and(|a| a.name == archive);
        found.extend(queues.into_iter().find(of_archive).map(|queue| (proxy, queue)));
    }
    Ok(found)
}

/// Lets the proxies send what they have for the archive. Returns when nothing is left, or when what
/// is left has not become less for a while; then with one line for each queue that stands still.
pub(crate) async fn drain(
    ctl: &Controller,
    volume: &str,
    archive: &str,
) -> Result<Vec<String>, ControlError> {
    let (mut least, mut moved, mut kicked) = (u64::MAX, Instant::now(), false);
    loop {
        let waiting = queues(ctl, volume, archive).await?;
        let left: u64 = waiting.iter().map(|(_, queue)| queue.wdiffs).sum();
        if left == 0 {
            return Ok(Vec::new());
        }
        if !kicked {
            kicked = true;
            for (proxy, _) in &waiting {
                recover::kick_proxy(ctl, proxy, volume, archive).await?;
            }
        }
        if left < least {
            (least, moved) = (left, Instant::now());
        }
        let sends = waiting.iter().any(|(_, queue)| queue.sending);
        if moved.elapsed() >= if sends { LONG_PATIENCE } else { PATIENCE } {
            let line = |(proxy, queue): (String, v1::ProxyQueue)| {
                (queue.wdiffs > 0).then(|| {
                    let wdiffs = queue.wdiffs;
                    format!("{wdiffs} wdiffs for {archive} wait at {proxy}: {}", queue.error)
                })
            };
            return Ok(waiting.into_iter().filter_map(line).collect());
        }
        sleep(POLL_INTERVAL).await;
    }
}
