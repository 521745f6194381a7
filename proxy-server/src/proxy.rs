//! All volumes of a proxy: finding, loading, making and clearing them.
//!
//! Invariant: volumes appear and disappear one at a time, so that two requests cannot make the
//! same one; what is in the map is on disk, or says why not.
use crate::archive::Archive;
use crate::env::Env;
use crate::volume::{State, Volume};
use parking_lot::Mutex;
use proto::v1::ProxyVolume;
use server_kit::blocking;
use server_kit::durable::DurableDir;
use server_kit::error::RoleError;
use server_kit::volume_name::{ServerId, VolumeName};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The volumes of one server.
pub(crate) struct Proxy {
    base: Arc<dyn DurableDir>,
    env: Arc<Env>,
    volumes: Mutex<BTreeMap<VolumeName, Arc<Volume>>>,
    changing: tokio::sync::Mutex<()>,
}

impl Proxy {
    /// Loads what is below `base`, and starts sending for the volumes that were started. Blocks.
    pub(crate) fn load(base: Arc<dyn DurableDir>, env: Arc<Env>) -> Result<Self, RoleError> {
        base.remove_tmp_dirs()?;
        base.remove_tmp_files()?;
        let mut volumes = BTreeMap::new();
        for entry in base.list()? {
            if !base.has_dir(&entry) {
                continue;
            }
            match entry.parse::<VolumeName>() {
                Ok(name) => {
                    let volume = Volume::load(&*base, &name, &env);
                    volumes.insert(name, volume);
                }
                Err(error) => tracing::warn!(%error, "a directory that is none of ours"),
            }
        }
        let (volumes, changing) = (Mutex::new(volumes), tokio::sync::Mutex::default());
        Ok(Self { base, env, volumes, changing })
    }

    pub(crate) fn env(&self) -> &Arc<Env> {
        &self.env
    }

    pub(crate) fn volumes(&self) -> Vec<Arc<Volume>> {
        self.volumes.lock().values().cloned().collect()
    }

    pub(crate) fn find(&self, name: &VolumeName) -> Option<Arc<Volume>> {
        self.volumes.lock().get(name).cloned()
    }

    /// A volume that must be there.
    pub(crate) fn volume(&self, name: &VolumeName) -> Result<Arc<Volume>, RoleError> {
        self.find(name).ok_or_else(|| RoleError::unknown_volume(name))
    }

    /// Adds an archive; the first one makes the volume.
    pub(crate) async fn add_archive(
        &self,
        name: VolumeName,
        archive: Archive,
    ) -> Result<(), RoleError> {
        let _changing = self.changing.lock().await;
        if let Some(volume) = self.find(&name) {
            return volume.add_archive(archive).await;
        }
        let (base, env, key) = (Arc::clone(&self.base), Arc::clone(&self.env), name.clone());
        let runtime = tokio::runtime::Handle::current();
        let volume = blocking::run(move || {
            // Volumes start tasks.
            let _runtime = runtime.enter();
            Volume::create(&*base, &name, archive, &env)
        });
        let volume = volume.await?;
        self.volumes.lock().insert(key, volume);
        Ok(())
    }

    /// Deletes an archive with its queue; the volume goes with the last one.
    pub(crate) async fn delete_archive(
        &self,
        name: VolumeName,
        archive: ServerId,
    ) -> Result<(), RoleError> {
        let _changing = self.changing.lock().await;
        let volume = self.volume(&name)?;
        volume.queue(&archive)?;
        if volume.queues().len() == 1 {
            return self.remove(volume).await;
        }
        volume.delete_archive(archive).await
    }

    /// Removes a volume with everything that waits.
    pub(crate) async fn clear(&self, name: VolumeName) -> Result<(), RoleError> {
        let _changing = self.changing.lock().await;
        self.remove(self.volume(&name)?).await
    }

    async fn remove(&self, volume: Arc<Volume>) -> Result<(), RoleError> {
        let name = volume.name.clone();
        volume.clear(Arc::clone(&self.base)).await?;
        self.volumes.lock().remove(&name);
        Ok(())
    }

    /// Kicks one queue, the queues of one volume, or all; names what was kicked.
    pub(crate) async fn kick(
        &self,
        volume: Option<VolumeName>,
        archive: Option<ServerId>,
    ) -> Result<Vec<String>, RoleError> {
        let sending = |v: &Arc<Volume>| Volume::may_send(&v.cell.view());
        let volumes = match &volume {
            Some(name) => {
                let volume = self.volume(name)?;
                if !sending(&volume) {
                    return Err(volume.cannot("kick", &[State::Started, State::WaitForEmpty]));
                }
                vec![volume]
            }
            None => self.volumes().into_iter().filter(sending).collect(),
        };
        let mut kicked = Vec::new();
        for volume in volumes {
            kicked.extend(volume.kick(archive.as_ref()).await?);
        }
        Ok(kicked)
    }

    /// How a volume stands; one that is not known is Clear.
    pub(crate) fn status(&self, name: &VolumeName) -> ProxyVolume {
        self.find(name).map_or_else(
            || ProxyVolume {
                volume: name.to_string(),
                state: State::Clear.to_string(),
                ..ProxyVolume::default()
            },
            |volume| volume.status(),
        )
    }
}
