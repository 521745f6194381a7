//! What the person at the controller does while things break. Everything may be refused.

use crate::cluster::Cluster;
use crate::roles::VOLUME;
use controller::client::Controller;
use controller::ops::backup;

/// Takes a snapshot of a volume that is not written; it may fail.
pub(crate) fn snapshot(c: &mut Cluster) -> Result<(), String> {
    if !c.is_up(c.index("d0")) {
        return Ok(());
    }
    c.pause_writes()?;
    let take = async |ctl: Controller| backup::snapshot(&ctl, "s0", VOLUME).await;
    let taken = c.control(5000, take)?;
    if let Some(Ok(taken)) = taken {
        c.note(&format!("snapshot {} lsid {}", taken.gid, taken.lsid));
        c.machine.model.lock().note_snapshot(taken.gid)?;
    }
    Ok(())
}
