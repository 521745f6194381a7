//! Transfers that are announced and not begun yet, at most one for each volume. A session holds
//! what was prepared (a transaction, leases) until it is used, replaced, or nobody has come for a
//! while: no volume is held across a network wait without an end.

use parking_lot::Mutex;
use server_kit::volume_name::VolumeName;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wlog_format::units::LogUuid;

/// Sessions of one kind of transfer. Clones share them.
pub(crate) struct Sessions<P>(Arc<Mutex<BTreeMap<VolumeName, (String, P)>>>);

impl<P> Default for Sessions<P> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<P: Send + 'static> Sessions<P> {
    /// Keeps what was prepared; the name of the session. It is forgotten after `silence`.
    pub(crate) fn announce(&self, volume: &VolumeName, prepared: P, silence: Duration) -> String {
        let session = LogUuid::random().to_string();
        let replaced = self.0.lock().insert(volume.clone(), (session.clone(), prepared));
        // Its transaction ends outside of the lock.
        drop(replaced);
        let (sessions, volume, waited) = (Self(self.0.clone()), volume.clone(), session.clone());
        tokio::spawn(async move {
            tokio::time::sleep(silence).await;
            drop(sessions.take(&volume, &waited));
        });
        session
    }

    /// Takes what was prepared for a session, if it is the one that is announced.
    pub(crate) fn take(&self, volume: &VolumeName, session: &str) -> Option<P> {
        let mut sessions = self.0.lock();
        let known = sessions.get(volume).is_some_and(|(name, _)| name == session);
        if known { sessions.remove(volume).map(|(_, prepared)| prepared) } else { None }
    }

    /// Forgets what is announced for a volume if it is of a kind that whoever asks may end.
    pub(crate) fn drop_if(&self, volume: &VolumeName, is_his: impl FnOnce(&P) -> bool) {
        let mut sessions = self.0.lock();
        let ended = match sessions.get(volume) {
            Some((_, prepared)) if is_his(prepared) => sessions.remove(volume),
            _ => None,
        };
        drop(sessions);
        drop(ended);
    }

    /// Forgets what is announced for a volume.
    pub(crate) fn drop_session(&self, volume: &VolumeName) {
        let ended = self.0.lock().remove(volume);
        drop(ended);
    }
}
