//! Where an NBD server of a role may listen: a Unix socket, or an address that only this host
//! reaches, since there is no TLS yet.

use crate::error::{Reason, RoleError};
use crate::net::Endpoint;
use block_io::nbd::Listener;

/// A listener, and the URI of its exports with `NAME` for the name of the export.
///
/// # Errors
/// The address cannot be listened on, or others could reach it and `insecure` is not said.
pub async fn listen(endpoint: &Endpoint, insecure: bool) -> Result<(Listener, String), RoleError> {
    let failed = |e: block_io::nbd::ServerError| {
        let step = "choose another address: unix:PATH or HOST:PORT";
        RoleError::new(Reason::Io, format!("cannot serve NBD on {endpoint}"))
            .with_next_step(step)
            .with_source(e)
    };
    match endpoint {
        Endpoint::Unix(path) => {
            // Clients do not know where this process runs.
            let path = std::path::absolute(path).map_err(|e| RoleError::io("use", path, e))?;
            let listener = Listener::unix(&path).await.map_err(failed)?;
            Ok((listener, format!("nbd+unix:///NAME?socket={}", path.display())))
        }
        Endpoint::Tcp(address) => {
            let found = tokio::net::lookup_host(address).await;
            let found = found.map_err(|e| RoleError::io("look up", address, e))?.next();
            let none = || RoleError::bad_request(format!("{address} has no address"));
            let found = found.ok_or_else(none)?;
            if !insecure && !found.ip().is_loopback() {
                let message = format!(
                    "refused to serve NBD on {found} without TLS: others can reach it; use \
                     loopback or a Unix socket, or say --insecure"
                );
                return Err(RoleError::bad_request(message));
            }
            let listener = Listener::tcp(found).await.map_err(failed)?;
            let address = listener.tcp_address().unwrap_or(found);
            Ok((listener, format!("nbd://{address}/NAME")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn others_reach_an_export_only_when_told_so() {
        let open = "tcp:0.0.0.0:0".parse().unwrap();
        let refused = listen(&open, false).await.err().unwrap();
        assert_eq!(refused.reason(), Reason::BadRequest);
        assert!(listen(&open, true).await.is_ok());
        let (_listener, uri) = listen(&"127.0.0.1:0".parse().unwrap(), false).await.unwrap();
        assert!(uri.starts_with("nbd://127.0.0.1:") && uri.ends_with("/NAME"), "{uri}");
        let dir = tempfile::tempdir().unwrap();
        let socket = Endpoint::Unix(dir.path().join("s"));
        let (_listener, uri) = listen(&socket, false).await.unwrap();
        assert_eq!(uri, format!("nbd+unix:///NAME?socket={}", dir.path().join("s").display()));
    }
}
