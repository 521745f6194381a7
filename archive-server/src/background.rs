//! Work that nobody waits for lets go first what somebody waits for.

use crate::archive::Archive;
use proto::v1::OperationStatus;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// So long at most: work that always waits is never done.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until no operation runs but those of the kinds `own`, for a while at most.
pub(crate) async fn idle(archive: &Archive, own: &[&str]) {
    let busy = || {
        let running = |o: &proto::v1::Operation| {
            o.status() == OperationStatus::Running && !own.contains(&o.kind.as_str())
        };
        archive.operations.list().iter().any(running)
    };
    let wait = async {
        while busy() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(PATIENCE, wait) => {}
        () = archive.ending.cancelled() => {}
    }
}
