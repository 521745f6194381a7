//! The proxies in order of priority, and which of them are worth a try (`semantics.md` §3.6).
//!
//! A proxy that cannot be reached is asked in the background until it answers, and transfers go
//! past it meanwhile, so that a dead first proxy does not cost every transfer its time limit. A
//! refusal changes nothing: the next transfer may be welcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::v1::host_client::HostClient;
use proto::v1::proxy_client::ProxyClient;
use proto::v1::{Empty, Role};
use server_kit::net::{Connector, Endpoint};
use server_kit::packing::Way;
use server_kit::retry::Backoff;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

/// How often a proxy that is down is asked: soon at first, for it may only be starting again.
const PROBE_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How long a proxy is left out that did nothing with what it took.
const AVOIDED: Duration = Duration::from_secs(300);
/// How long its answer may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// One proxy.
pub struct Proxy {
    /// Its address, which is also its name in messages.
    pub address: String,
    /// How data travels to it.
    pub way: Way,
    channel: Channel,
    is_down: AtomicBool,
    /// It took a transfer and did nothing with it: it is passed over for a while, though it
    /// answers.
    avoided_until: Mutex<Option<Instant>>,
}

impl Proxy {
    /// A client for one transfer.
    #[must_use]
    pub fn client(&self) -> ProxyClient<Channel> {
        ProxyClient::new(self.channel.clone())
    }

    async fn answers(&self) -> bool {
        let mut client = HostClient::new(self.channel.clone());
        let answer = tokio::time::timeout(PROBE_TIMEOUT, client.info(Empty {})).await;
        matches!(answer, Ok(Ok(info)) if info.get_ref().role() == Role::Proxy)
    }
}

/// All proxies of this server.
pub struct ProxySet {
    proxies: Vec<Arc<Proxy>>,
    stop: CancellationToken,
    _stop_probes: DropGuard,
}

impl ProxySet {
    /// The proxies in order of priority. Nothing is connected yet.
    #[must_use]
    pub fn new(connector: &dyn Connector, endpoints: &[Endpoint]) -> Self {
        let proxy = |endpoint: &Endpoint| {
            Arc::new(Proxy {
                address: endpoint.to_string(),
                way: Way::to(endpoint),
                channel: connector.channel(endpoint),
                is_down: AtomicBool::new(false),
                avoided_until: Mutex::default(),
            })
        };
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        Self { proxies: endpoints.iter().map(proxy).collect(), stop, _stop_probes: guard }
    }

    /// Whom to try, in order, and who is left out because it is known to be down. When all are
    /// down, all are tried.
    #[must_use]
    pub fn candidates(&self) -> (Vec<Arc<Proxy>>, Vec<Arc<Proxy>>) {
        let now = Instant::now();
        let is_down = |p: &Arc<Proxy>| {
            let avoided = p.avoided_until.lock().is_some_and(|until| now < until);
            avoided || p.is_down.load(Ordering::Relaxed)
        };
        let (down, up): (Vec<_>, Vec<_>) = self.proxies.iter().cloned().partition(is_down);
        if up.is_empty() { (down, up) } else { (up, down) }
    }

    /// All of them, in order of priority.
    #[must_use]
    pub fn all(&self) -> &[Arc<Proxy>] {
        &self.proxies
    }

    /// The proxy at this address, if it is one of ours.
    #[must_use]
    pub fn find(&self, address: &str) -> Option<Arc<Proxy>> {
        self.proxies.iter().find(|p| p.address == address).cloned()
    }

    /// It does nothing with what it takes: it is left out for a while, unless no other is left.
    pub fn avoid(&self, proxy: &Proxy) {
        tracing::warn!(proxy = proxy.address, "takes logs and does nothing with them");
        *proxy.avoided_until.lock() = Some(Instant::now() + AVOIDED);
    }

    /// A connection to it failed: it is left out until it answers.
    pub fn mark_down(&self, proxy: &Arc<Proxy>) {
        if proxy.is_down.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(proxy = proxy.address, "does not answer");
        let (proxy, stop) = (Arc::clone(proxy), self.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut backoff = Backoff::new(PROBE_INTERVAL.0, PROBE_INTERVAL.1);
            while proxy.is_down.load(Ordering::Relaxed) {
                tokio::time::sleep(backoff.next_delay()).await;
                if proxy.answers().await {
                    proxy.is_down.store(false, Ordering::Relaxed);
                    tracing::info!(proxy = proxy.address, "answers again");
                }
            }
        }));
    }

    /// All of them are worth a try again.
    pub fn kick(&self) {
        for proxy in &self.proxies {
            proxy.is_down.store(false, Ordering::Relaxed);
            *proxy.avoided_until.lock() = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server_kit::net::RealConnector;

    #[tokio::test]
    async fn a_dead_proxy_is_passed_over_while_another_is_left() {
        let endpoints = ["unix:/nonexistent/a", "unix:/nonexistent/b"].map(|t| t.parse().unwrap());
        let set = ProxySet::new(&RealConnector, &endpoints);
        let order = |set: &ProxySet| -> Vec<_> {
            set.candidates().0.iter().map(|p| p.address.clone()).collect()
        };
        assert_eq!(order(&set), ["unix:/nonexistent/a", "unix:/nonexistent/b"]);
        let (all, _) = set.candidates();
        set.mark_down(&all[0]);
        assert_eq!(order(&set), ["unix:/nonexistent/b"]);
        set.mark_down(&all[1]);
        assert_eq!(order(&set).len(), 2, "when none is left, all are tried");
        set.kick();
        assert_eq!(order(&set).len(), 2);
    }
}
