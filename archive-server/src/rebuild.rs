//! Rebuild: the state of a volume is lost or damaged, and is made anew from what its directory has.
//!
//! What is provable: a second copy of the state file is written before each change of the first
//! (`Volume::store`), so it is never behind it, and at most a step ahead that is safe to repeat.
//! Without it: the names of the wdiffs are the catalogue, the length of the image is the size, the
//! newest wdiff tells the log; where the base image is no file tells, so a person has to say it.
//! Invariants: nothing is guessed, what is not known is asked for; what a person said is told in
//! status until a comparison of content has proved it.

use crate::archive::Archive;
use crate::load;
use crate::record::{COPY_FILE, Kept, Rebuilt, Record, STATE_FILE};
use crate::state::State;
use crate::volume::Volume;
use proto::v1::{RebuildReply, RebuildRequest};
use server_kit::durable::StateFile;
use server_kit::error::{Reason, RoleError};
use std::sync::Arc;
use wdiff_format::diff_set::DiffSet;
use wdiff_format::gid::{BaseState, Diff, Gid, Snapshot};
use wdiff_format::open::WdiffReader;
use wlog_format::units::{Lb, LogUuid};

/// Makes the state of a broken volume anew, and loads it.
pub(crate) async fn rebuild(
    archive: &Arc<Archive>,
    request: RebuildRequest,
) -> Result<RebuildReply, RoleError> {
    let name = request.volume.clone();
    let (volume, notes) = archive.anew(&name, move |broken| make(broken, &request)).await?;
    crate::apply::mend(archive, &volume);
    if volume.cell.state() == State::Broken {
        return Err(volume.broken("rebuild"));
    }
    tracing::warn!(volume = name, notes = notes.join("; "), "the state was made anew");
    let (base, latest, wdiffs) = volume.with(|c| (c.base, c.latest.0, c.diffs.len() as u64));
    Ok(RebuildReply { notes, base: Some(base.into()), latest: Some(latest.into()), wdiffs })
}

/// Writes the state; what was taken from where. Blocks.
fn make(volume: &Volume, request: &RebuildRequest) -> Result<Vec<String>, RoleError> {
    let file = StateFile::<Record>::new(volume.dir.clone(), STATE_FILE);
    let copy = StateFile::<Record>::new(volume.dir.clone(), COPY_FILE);
    if matches!(file.load(), Ok(Some(_))) {
        let message = format!(
            "the state of volume {} is whole, so it needs no rebuild; what is wrong: {}",
            volume.name,
            volume.fault_text().1
        );
        return Err(RoleError::new(Reason::WrongState, message).with_volume(&volume.name));
    }
    let (record, notes) = match copy.load() {
        Ok(Some(record)) => from_copy(volume, record, request)?,
        _ => from_files(volume, request)?,
    };
    copy.store(&record)?;
    file.store(&record)?;
    Ok(notes)
}

fn refused(volume: &Volume, why: &str, step: String) -> RoleError {
    let message = format!("cannot rebuild volume {}: {why}", volume.name);
    RoleError::bad_request(message).with_volume(&volume.name).with_next_step(step)
}

fn from_copy(
    volume: &Volume,
    mut record: Record,
    request: &RebuildRequest,
) -> Result<(Record, Vec<String>), RoleError> {
    let base = record.base().map_err(|e| RoleError::damaged(e.to_string()))?;
    let said = request.base_gid.map(Gid);
    if said.is_some_and(|gid| gid != base.snapshot().begin()) {
        let why = format!("the second copy of its state says that the base image is {base}");
        return Err(refused(volume, &why, "leave --base out".to_owned()));
    }
    let note = "its state is the second copy; it is proved when a verification is through";
    record.rebuilt = Some(Rebuilt { by_hand: false, note: note.to_owned() });
    Ok((record, vec![note.to_owned()]))
}

fn from_files(
    volume: &Volume,
    request: &RebuildRequest,
) -> Result<(Record, Vec<String>), RoleError> {
    let size_bytes = volume.images.found()?.ok_or_else(|| {
        let step =
            format!("walbc clear ARCHIVE {}, then a full backup or replication", volume.name);
        refused(volume, "its base image is missing", step)
    })?;
    let mut diffs = DiffSet::new();
    load::read_diffs(&*volume.dir, volume.dir.list()?, &mut diffs)?;
    let base = base_gid(volume, &diffs, request)?;
    let mut record = Record::new();
    record.state = Kept::Archived;
    record.size_lb = Lb::from_bytes(size_bytes).0;
    record.set_base(&BaseState::at(Snapshot::clean(base), 0));
    let mut notes = vec![
        format!("the base image is at gid {base} since you say so: no file tells"),
        "whether an apply was under way is not known".to_owned(),
        format!("its size is that of the image: {size_bytes} bytes"),
    ];
    record.log_uuid = log_uuid(volume, &diffs, request, &mut notes)?;
    record.archive_uuid =
        given(volume, "archive-uuid", &request.archive_uuid)?.unwrap_or_else(|| {
            let fresh = "its lineage is a new one: other archives take nothing from it and give \
                     nothing to it without a resync, or rebuild it with --archive-uuid";
            notes.push(fresh.to_owned());
            LogUuid::random()
        });
    let note = format!(
        "rebuilt without its state: that its base image is at gid {base} is not proved; compare \
         with another archive (walbc repair ARCHIVE {} --from OTHER), or drill a snapshot that was \
         drilled before",
        volume.name
    );
    record.rebuilt = Some(Rebuilt { by_hand: true, note });
    Ok((record, notes))
}

/// Where the base image is, as a person says; the wdiffs must lead on from there.
fn base_gid(volume: &Volume, diffs: &DiffSet, request: &RebuildRequest) -> Result<Gid, RoleError> {
    let oldest = diffs.iter().next().map(|d| d.begin().begin());
    let again = |gid: &str| {
        let name = &volume.name;
        let uuid = match request.archive_uuid.is_empty() {
            true => format!(
                " --archive-uuid UUID, that of the volume at another archive (walbc status {name} \
                 --json); leave it out if there is none"
            ),
            false => String::new(),
        };
        format!("walbc rebuild ARCHIVE {name} --base {gid}{uuid}")
    };
    let Some(base) = request.base_gid.map(Gid) else {
        let why = match oldest {
            Some(gid) => format!(
                "no file tells at which snapshot its base image is; the oldest wdiff begins at \
                 gid {gid}, which it most likely is"
            ),
            None => "no file tells at which snapshot its base image is".to_owned(),
        };
        return Err(refused(volume, &why, again(&oldest.map_or("GID".into(), |g| g.to_string()))));
    };
    if diffs.is_empty() || diffs.pick(Snapshot::clean(base)).is_some() {
        return Ok(base);
    }
    let why = format!("no wdiff leads on from gid {base}");
    Err(refused(volume, &why, again(&oldest.map_or("GID".into(), |g| g.to_string()))))
}

fn given(volume: &Volume, flag: &str, uuid: &[u8]) -> Result<Option<LogUuid>, RoleError> {
    if uuid.is_empty() {
        return Ok(None);
    }
    let uuid = proto::convert::uuid(uuid);
    uuid.map(Some).map_err(|e| refused(volume, &format!("--{flag}: {e}"), String::new()))
}

/// The log that the history ends with.
fn log_uuid(
    volume: &Volume,
    diffs: &DiffSet,
    request: &RebuildRequest,
    notes: &mut Vec<String>,
) -> Result<LogUuid, RoleError> {
    if let Some(uuid) = given(volume, "log-uuid", &request.log_uuid)? {
        return Ok(uuid);
    }
    let newest: Vec<&Diff> = diffs.iter().collect();
    for diff in newest.into_iter().rev() {
        let name = volume.diff_name(diff)?;
        let opened = WdiffReader::from_opened(volume.dir.open_file(&name), name.as_str());
        if let Ok(uuid) = opened.map(|w| w.header().uuid)
            && uuid != LogUuid::ZERO
        {
            notes.push(format!("its log is {uuid}, as {name} says"));
            return Ok(uuid);
        }
    }
    let step = format!(
        "take log_uuid of the storage server from walbc status {} --json, and add --log-uuid UUID",
        volume.name
    );
    Err(refused(volume, "no wdiff tells of which log it is", step))
}
