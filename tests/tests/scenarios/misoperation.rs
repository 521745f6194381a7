//! §8.3, misoperation: refused with a reason, and the way back works.

use anyhow::ensure;
use tests::cluster::Layout;

use crate::{base_state, scenario};

// The original's full backup fails because s0 is Target; ours says so before anything is changed.
scenario!(scenario_m1_full_backup_of_a_target, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    v.write(0, 0, 1)?;
    v.walbc("stop-synchronizing a0 VOL")?;
    v.refused("full-backup s0 VOL", "walbc")?;
    v.expect_state("s0", "Target")?;
    v.walbc("start-synchronizing a0 VOL")?;
    ensure!(v.ask("is-synchronizing a0 VOL")?);
    for (server, state) in [("s1", "Standby"), ("p0", "Started"), ("a0", "Archived")] {
        v.expect_state(server, state)?;
    }
});
