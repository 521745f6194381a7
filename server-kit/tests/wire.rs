//! Real sockets: addresses, the Host service, operations, errors, shutdown as a client sees them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
use proto::v1::host_client::HostClient;
use proto::v1::{Empty, OperationRef, OperationStatus, Role, ShutdownRequest, StopMode};
use server_kit::error::{Reason, RoleError};
use server_kit::net::{Connector, Endpoint, Listener, RealConnector};
use server_kit::operations::{Operations, Outcome};
use server_kit::role::RoleServer;
use server_kit::shutdown::Shutdown;
use std::time::Duration;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Channel;

const DEADLINE: Duration = Duration::from_secs(10);

struct Served {
    endpoint: Endpoint,
    operations: Operations,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), RoleError>>,
}

async fn served(endpoint: &Endpoint) -> Served {
    let listener = Listener::bind(endpoint, false).await.unwrap();
    let (operations, shutdown) = (Operations::new(), Shutdown::new());
    let endpoint = listener.endpoint().clone();
    let server = RoleServer {
        base: None,
        role: Role::Proxy,
        id: "p0".parse().unwrap(),
        listener,
        operations: operations.clone(),
        shutdown: shutdown.clone(),
    };
    let task = tokio::spawn(server.run(Routes::default()));
    Served { endpoint, operations, shutdown, task }
}

fn client(endpoint: &Endpoint) -> HostClient<Channel> {
    HostClient::new(RealConnector.channel(endpoint))
}

fn unix(dir: &tempfile::TempDir) -> Endpoint {
    Endpoint::Unix(dir.path().join("s"))
}

#[test]
fn addresses_are_parsed_strictly_and_printed_as_typed() {
    for good in ["unix:/tmp/x", "127.0.0.1:80", "[::1]:0", "localhost:9000", "unix:rel"] {
        assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
    }
    assert_eq!("tcp:h:1".parse(), Ok(Endpoint::Tcp("h:1".into())));
    for bad in ["", "unix:", "host", "host:", "host:99999", ":80", "::1:80", "a b:1", "[::1:80"] {
        assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn others_can_reach_a_server_only_when_insecure_was_said() {
    let open: Endpoint = "0.0.0.0:0".parse().unwrap();
    let refused = Listener::bind(&open, false).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::BadRequest);
    assert!(refused.detail().next_step.contains("--insecure"));
    // Bound and dropped at once: nothing is served on it.
    assert!(Listener::bind(&open, true).await.is_ok());
}

#[tokio::test]
async fn a_role_says_who_it_is_over_unix_and_tcp() {
    let dir = tempfile::tempdir().unwrap();
    for endpoint in [unix(&dir), "127.0.0.1:0".parse().unwrap()] {
        let served = served(&endpoint).await;
        let info = client(&served.endpoint).info(Empty {}).await.unwrap().into_inner();
        assert_eq!((info.role(), info.id.as_str()), (Role::Proxy, "p0"));
        served.shutdown.request(StopMode::Graceful);
        tokio::time::timeout(DEADLINE, served.task).await.unwrap().unwrap().unwrap();
    }
    assert!(!dir.path().join("s").exists(), "the socket's name is gone");
}

#[tokio::test]
async fn a_dead_socket_is_taken_over_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = unix(&dir);
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap());
    let served = served(&endpoint).await;
    let refused = Listener::bind(&endpoint, false).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::AlreadyExists);
    assert!(client(&endpoint).info(Empty {}).await.is_ok());
    served.shutdown.request(StopMode::Force);
}

#[tokio::test]
async fn a_channel_names_an_unreachable_peer_and_reconnects_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = unix(&dir);
    let mut client = client(&endpoint);
    let status = client.info(Empty {}).await.unwrap_err();
    let error = RoleError::from_status(&endpoint, &status);
    assert_eq!(error.reason(), Reason::Unreachable);
    assert!(error.to_string().contains(&endpoint.to_string()), "{error}");
    for _ in 0..2 {
        let served = served(&endpoint).await;
        let answered = async { while client.info(Empty {}).await.is_err() {} };
        tokio::time::timeout(DEADLINE, answered).await.unwrap();
        served.shutdown.request(StopMode::Force);
        tokio::time::timeout(DEADLINE, served.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn operations_are_watched_to_their_end_and_cancelled_by_id() {
    let dir = tempfile::tempdir().unwrap();
    let served = served(&unix(&dir)).await;
    let mut client = client(&served.endpoint);
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let started = served.operations.start("restore", "v0", |handle| async move {
        handle.set_total(10);
        wait.await.unwrap();
        handle.advance(10);
        Ok(Outcome { gid: Some(3), path: Some("/r".into()) })
    });
    let stuck = served.operations.start("apply", "v1", |handle| async move {
        handle.cancelled().await;
        Err(RoleError::cancelled("given up at block 7"))
    });
    assert_eq!(served.operations.running("v0"), ["restore"]);
    let mut watch =
        client.watch_operation(OperationRef { id: started.id.clone() }).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), OperationStatus::Running);
    go.send(()).unwrap();
    let mut last = None;
    while let Some(operation) = watch.message().await.unwrap() {
        last = Some(operation);
    }
    let last = last.unwrap();
    assert_eq!((last.status(), last.gid), (OperationStatus::Done, Some(3)));
    assert_eq!((last.done_bytes, last.total_bytes), (10, 10));
    client.cancel_operation(OperationRef { id: stuck.id.clone() }).await.unwrap();
    let end = client.watch_operation(OperationRef { id: stuck.id }).await.unwrap();
    let mut end = end.into_inner();
    let mut status = OperationStatus::Running;
    while let Some(operation) = end.message().await.unwrap() {
        status = operation.status();
    }
    assert_eq!(status, OperationStatus::Cancelled);
    assert!(served.operations.running("v1").is_empty());
    served.shutdown.request(StopMode::Force);
}

#[tokio::test]
async fn bad_requests_are_typed_and_the_server_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let served = served(&unix(&dir)).await;
    let mut client = client(&served.endpoint);
    let unknown = client.cancel_operation(OperationRef { id: "x".into() }).await.unwrap_err();
    assert_eq!(RoleError::from_status("p0", &unknown).reason(), Reason::BadRequest);
    let unknown = client.watch_operation(OperationRef::default()).await.unwrap_err();
    assert_eq!(RoleError::from_status("p0", &unknown).reason(), Reason::BadRequest);
    let mode = client.shutdown(ShutdownRequest { mode: 77 }).await.unwrap_err();
    assert_eq!(RoleError::from_status("p0", &mode).reason(), Reason::BadRequest);
    let mut other =
        proto::v1::proxy_client::ProxyClient::new(RealConnector.channel(&served.endpoint));
    let status = other.list(Empty {}).await.unwrap_err();
    assert_eq!(RoleError::from_status("p0", &status).reason(), Reason::WrongPeer);
    assert!(client.info(Empty {}).await.is_ok());
    served.shutdown.request(StopMode::Force);
}

#[tokio::test]
async fn a_graceful_shutdown_waits_for_what_runs_and_a_forced_one_cancels_it() {
    let dir = tempfile::tempdir().unwrap();
    let served = served(&unix(&dir)).await;
    let operation = served.operations.start("restore", "v0", |handle| async move {
        handle.cancelled().await;
        Err(RoleError::cancelled("given up"))
    });
    let mut client = client(&served.endpoint);
    client.shutdown(ShutdownRequest { mode: StopMode::Graceful.into() }).await.unwrap();
    drop(client);
    assert_eq!(served.operations.get(&operation.id).unwrap().status(), OperationStatus::Running);
    assert!(!served.task.is_finished());
    served.shutdown.request(StopMode::Force);
    tokio::time::timeout(DEADLINE, served.task).await.unwrap().unwrap().unwrap();
    let ended = served.operations.get(&operation.id).unwrap();
    assert_eq!(ended.status(), OperationStatus::Cancelled);
}

#[tokio::test]
async fn a_forced_shutdown_cuts_requests_that_would_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let served = served(&unix(&dir)).await;
    let mut client = client(&served.endpoint);
    let (end, deaf) = tokio::sync::oneshot::channel::<()>();
    let operation = served.operations.start("apply", "v0", |_| async {
        // Does not look at its token.
        deaf.await.map_err(|_| RoleError::cancelled("ended"))?;
        Ok(Outcome::default())
    });
    let watch = client.watch_operation(OperationRef { id: operation.id }).await.unwrap();
    let mut watch = watch.into_inner();
    assert!(watch.message().await.unwrap().is_some());
    served.shutdown.request(StopMode::Force);
    let cut = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap_err();
    assert_eq!(RoleError::from_status("p0", &cut).reason(), Reason::Unreachable);
    drop(end);
    tokio::time::timeout(DEADLINE, served.task).await.unwrap().unwrap().unwrap();
    let status = client.info(Empty {}).await.unwrap_err();
    assert_eq!(RoleError::from_status("p0", &status).reason(), Reason::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn a_deaf_operation_does_not_hold_up_a_forced_shutdown() {
    let (operations, shutdown) = (Operations::new(), Shutdown::new());
    operations.start("apply", "v0", |_| std::future::pending());
    shutdown.request(StopMode::Force);
    tokio::time::timeout(DEADLINE, operations.finish(&shutdown)).await.unwrap();
}

#[tokio::test]
async fn an_operation_that_panics_has_failed_and_old_ones_are_forgotten() {
    let operations = Operations::new();
    let started = operations.start("restore", "v0", |_| async { panic!("boom") });
    let ended = async {
        while operations.get(&started.id).unwrap().status() == OperationStatus::Running {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.unwrap();
    assert_eq!(operations.get(&started.id).unwrap().status(), OperationStatus::Failed);
    for _ in 0..300 {
        let o = operations.start("apply", "v0", |_| async { Ok(Outcome::default()) });
        let ended = async {
            while operations.get(&o.id).unwrap().status() == OperationStatus::Running {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, ended).await.unwrap();
    }
    assert!(operations.list().len() <= server_kit::operations::FINISHED_MAX + 2);
    assert!(operations.get(&started.id).is_err());
}
