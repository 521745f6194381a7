//! All volumes of the server: a directory each below the base directory.
//!
//! Invariants: a directory without a record was left half-made by a kill and is removed at start;
//! one with a damaged record is shown as such and can only be cleared, it does not keep the others
//! from working; no two volumes use one device.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use server_kit::blocking;
use server_kit::durable::{DurableDir, DurableError};
use server_kit::error::RoleError;
use server_kit::volume_name::VolumeName;
use tokio::sync::Mutex;

use crate::book::{Book, Record};
use crate::device::address::DeviceAddress;
use crate::log::Log;
use crate::shared::Shared;
use crate::state::State;
use crate::volume::Volume;

/// What there is of a name.
#[derive(Clone)]
pub enum Entry {
    /// A volume.
    Volume(Arc<Volume>),
    /// A directory whose record cannot be read, and why.
    Damaged(Arc<str>),
}

/// All volumes.
pub struct Registry {
    base: Arc<dyn DurableDir>,
    shared: Arc<Shared>,
    entries: RwLock<BTreeMap<VolumeName, Entry>>,
    /// Held while a volume comes or goes.
    changing: Mutex<()>,
}

impl Registry {
    /// Finds the volumes below `base`, and removes what a kill left half-made. Nothing runs yet.
    ///
    /// # Errors
    /// The base directory cannot be used. A single volume never fails the server.
    pub async fn open(base: Arc<dyn DurableDir>, shared: Arc<Shared>) -> Result<Self, RoleError> {
        let here = Arc::clone(&base);
        let found = blocking::run(move || find(&here)).await?;
        let mut entries = BTreeMap::new();
        for (name, book) in found {
            let entry = match book {
                Ok(book) => Entry::Volume(Volume::new(name.clone(), Arc::clone(&shared), book)),
                Err(error) => {
                    tracing::error!(volume = %name, %error, "cannot use a volume");
                    Entry::Damaged(error.to_string().into())
                }
            };
            entries.insert(name, entry);
        }
        let entries = RwLock::new(entries);
        Ok(Self { base, shared, entries, changing: Mutex::new(()) })
    }

    /// Every volume goes on where it was.
    pub fn resume(&self) {
        self.volumes().iter().for_each(Volume::resume);
    }

    /// All entries by name.
    #[must_use]
    pub fn entries(&self) -> Vec<(VolumeName, Entry)> {
        self.entries.read().iter().map(|(name, entry)| (name.clone(), entry.clone())).collect()
    }

    /// All volumes that can be used.
    #[must_use]
    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        let entries = self.entries.read();
        let usable = |entry: &Entry| match entry {
            Entry::Volume(volume) => Some(Arc::clone(volume)),
            Entry::Damaged(_) => None,
        };
        entries.values().filter_map(usable).collect()
    }

    /// What there is of that name.
    #[must_use]
    pub fn entry(&self, name: &VolumeName) -> Option<Entry> {
        self.entries.read().get(name).cloned()
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// Unknown, or damaged.
    pub fn volume(&self, name: &VolumeName) -> Result<Arc<Volume>, RoleError> {
        match self.entry(name) {
            Some(Entry::Volume(volume)) => Ok(volume),
            Some(Entry::Damaged(why)) => Err(damaged(name, &why)),
            None => Err(RoleError::unknown_volume(name)),
        }
    }

    /// Clear -> SyncReady.
    ///
    /// # Errors
    /// The name or the device is taken, or the device cannot be used.
    pub async fn init(&self, name: VolumeName, address: DeviceAddress) -> Result<(), RoleError> {
        let _changing = self.changing.lock().await;
        if self.entry(&name).is_some() {
            let message = format!("volume {name} is set up already");
            return Err(RoleError::already_exists(message).with_volume(&name));
        }
        let user = self.volumes().into_iter().find(|v| *v.device.address() == address);
        if let Some(user) = user {
            let message = format!("device {address} is used by volume {}", user.name);
            return Err(RoleError::already_exists(message).with_volume(&name));
        }
        let device = self.shared.devices.find(&address);
        let info = device.info().await?;
        Log::open(device.open_log(&info)?, info.status.log_uuid).await?;
        device.open_data(&info)?;
        let (base, new) = (Arc::clone(&self.base), name.clone());
        let create = move || Book::create(base.create_dir(new.as_str())?, Record::new(address));
        let book = blocking::run(create).await?;
        let volume = Volume::new(name.clone(), Arc::clone(&self.shared), book);
        self.entries.write().insert(name, Entry::Volume(volume));
        Ok(())
    }

    /// SyncReady -> Clear; also removes a damaged volume. The device is left alone.
    ///
    /// # Errors
    /// Unknown volume, wrong state.
    pub async fn clear(&self, name: &VolumeName) -> Result<(), RoleError> {
        let _changing = self.changing.lock().await;
        let transition = match self.entry(name) {
            Some(Entry::Volume(v)) => {
                Some(v.begin(&[State::SyncReady], State::ClearVol, "clear")?)
            }
            Some(Entry::Damaged(_)) => None,
            None => return Err(RoleError::unknown_volume(name)),
        };
        let (base, doomed) = (self.base.clone(), name.to_string());
        blocking::run(move || base.remove_dir(&doomed)).await?;
        self.entries.write().remove(name);
        if let Some(transition) = transition {
            transition.commit(State::Clear);
        }
        Ok(())
    }

    /// Ends all tasks; what they do is finished unless `force`.
    pub async fn stop(&self, force: bool) {
        let volumes = self.volumes();
        volumes.iter().filter_map(|v| v.follower()).for_each(|f| f.request_stop(force));
        futures::future::join_all(volumes.iter().map(|v| v.unfollow(force))).await;
    }
}

/// The error for a volume that can only be cleared.
#[must_use]
pub fn damaged(name: &VolumeName, why: &str) -> RoleError {
    RoleError::damaged(format!("volume {name} cannot be used: {why}"))
        .with_volume(name)
        .with_state(State::Damaged, &[])
        .with_next_step(format!("walbc clear S {name}, walbc init-storage S {name}, full-backup"))
}

type Found = Vec<(VolumeName, Result<Book, DurableError>)>;

/// The volumes below `base`.
fn find(dir: &Arc<dyn DurableDir>) -> Result<Found, DurableError> {
    dir.remove_tmp_dirs()?;
    let mut found = Vec::new();
    for text in dir.list()? {
        // Other files and directories are none of ours.
        let (Ok(name), true) = (text.parse::<VolumeName>(), dir.has_dir(&text)) else { continue };
        match dir.open_dir(&text).and_then(Book::open) {
            Ok(Some(book)) => found.push((name, Ok(book))),
            Ok(None) => {
                tracing::warn!(volume = %name, "removing a volume that was never set up");
                dir.remove_dir(&text)?;
            }
            Err(error) => found.push((name, Err(error))),
        }
    }
    Ok(found)
}
