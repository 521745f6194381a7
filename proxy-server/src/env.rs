//! What all volumes of a server share: its id, limits, ways to others and end.
use crate::settings::Limits;
use server_kit::net::Connector;
use server_kit::shutdown::Shutdown;
use server_kit::volume_name::ServerId;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// The surroundings of a volume.
pub(crate) struct Env {
    pub(crate) id: ServerId,
    pub(crate) limits: Limits,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) shutdown: Shutdown,
    pub(crate) receive_slots: Semaphore,
    pub(crate) send_slots: Semaphore,
    pub(crate) senders: TaskTracker,
}

impl Env {
    pub(crate) fn new(
        id: ServerId,
        limits: Limits,
        connector: Arc<dyn Connector>,
        shutdown: Shutdown,
    ) -> Self {
        let receive_slots = Semaphore::new(limits.max_receiving);
        let send_slots = Semaphore::new(limits.max_sending);
        let senders = TaskTracker::new();
        Self { id, limits, connector, shutdown, receive_slots, send_slots, senders }
    }
}
