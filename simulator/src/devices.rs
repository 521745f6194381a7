//! The device as the storage role sees it: the control service over the simulated network, and its
//! disks.

use crate::defect::{Defect, Defects};
use crate::roles::Machine;
use block_io::device::BlockDevice;
use futures::future::BoxFuture;
use server_kit::error::RoleError;
use std::sync::Arc;
use storage_server::device::address::DeviceAddress;
use storage_server::device::control::ControlDevices;
use storage_server::device::{Devices, Info, Positions, Regions, Seen, WalbDevice};
use tokio::sync::watch;
use wlog_format::units::{Lb, LogUuid, Lsid};

/// The control service of the simulated device, and its disks.
pub(crate) struct SimDevices {
    pub(crate) control: ControlDevices,
    pub(crate) machine: Machine,
    pub(crate) defects: Defects,
}

struct SimDevice {
    control: Arc<dyn WalbDevice>,
    machine: Machine,
    defects: Defects,
}

impl Devices for SimDevices {
    fn find(&self, address: &DeviceAddress) -> Arc<dyn WalbDevice> {
        let (machine, defects) = (self.machine.clone(), self.defects.clone());
        Arc::new(SimDevice { control: self.control.find(address), machine, defects })
    }
}

impl WalbDevice for SimDevice {
    fn address(&self) -> &DeviceAddress {
        self.control.address()
    }
    fn info(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        Box::pin(async move {
            let mut info = self.control.info().await?;
            if self.defects.has(Defect::HiddenOverflow) {
                info.status.overflow = false;
                info.status.positions.oldest = Lsid(0);
            }
            Ok(info)
        })
    }
    fn set_oldest(&self, oldest: Lsid) -> BoxFuture<'_, Result<Positions, RoleError>> {
        if !self.defects.has(Defect::EarlyRelease) {
            return self.control.set_oldest(oldest);
        }
        Box::pin(async move {
            let all = self.control.info().await?.status.positions.prev_written;
            self.control.set_oldest(all).await
        })
    }
    fn resize(&self, size: Lb) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.control.resize(size)
    }
    fn take_checkpoint(&self) -> BoxFuture<'_, Result<Positions, RoleError>> {
        self.control.take_checkpoint()
    }
    fn reset_log(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.control.reset_log()
    }
    fn regions(&self, uuid: LogUuid, since: Lsid) -> BoxFuture<'_, Result<Regions, RoleError>> {
        self.control.regions(uuid, since)
    }
    fn begin_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.control.begin_overwrite()
    }
    fn end_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.control.end_overwrite()
    }
    fn open_data_for_writing(&self, _: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        Ok(Arc::new(self.machine.data.clone()))
    }
    fn watch(&self) -> watch::Receiver<Seen> {
        self.control.watch()
    }
    fn open_log(&self, _: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        Ok(Arc::new(self.machine.log.clone()))
    }
    fn open_data(&self, _: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        Ok(Arc::new(self.machine.data.clone()))
    }
}
