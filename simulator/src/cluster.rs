//! All hosts, each with a runtime of its own whose time stands still but for the ticks of the
//! simulator, on one thread.
//!
//! A tick lets every host run for the same simulated time, one after the other; then the network
//! moves. To kill a process its runtime is dropped: every task ends where it waits. Hosts can also
//! die at the n-th change to their file system from now.

use crate::Case;
use crate::defect::{Defect, Defects};
use crate::fs::Fs;
use crate::life::Life;
use crate::net::Net;
use crate::plan::{Past, Plan};
use crate::roles::{Machine, Process, VOLUME, endpoint};
use controller::client::Controller;
use controller::error::ControlError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use server_kit::simulation::Simulation;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// The wall clock when a simulation begins.
const EPOCH_S: u64 = 1_700_000_000;
/// The longest tick, when nothing is under way.
const TICK_MAX_MS: u64 = 20;

/// The role itself; it should never end.
type Role = JoinHandle<Result<(), String>>;

/// A host and the process on it.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) fs: Fs,
    process: Option<(Runtime, Life, Role)>,
    defects: Defects,
    power_cut: bool,
}

/// The whole of a simulation.
pub(crate) struct Cluster {
    pub(crate) simulation: Simulation,
    pub(crate) rng: StdRng,
    pub(crate) net: Net,
    pub(crate) machine: Machine,
    pub(crate) hosts: Vec<Host>,
    pub(crate) now_ms: u64,
    /// How far the wall clock is off.
    pub(crate) wall_ahead_s: u64,
    controller: Runtime,
    pub(crate) ctl: Controller,
    events: DefaultHasher,
    idle: u64,
    verbose: bool,
    pub(crate) plan: Plan,
    pub(crate) past: Past,
    armed: Arc<AtomicBool>,
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // With I/O, though there is none: parking then is a poll and not a timed wait, much cheaper.
    builder.enable_all().start_paused(true).build().unwrap()
}

fn group(archives: &[&str], proxies: &[&str]) -> String {
    let entry = |name: &&str, role| {
        let at = endpoint(name);
        format!("[[server]]\nname = \"{name}\"\nrole = \"{role}\"\naddress = \"{at}\"\n")
    };
    let archives = archives.iter().map(|a| entry(a, "archive"));
    let proxies = proxies.iter().map(|p| entry(p, "proxy"));
    std::iter::once(entry(&"s0", "storage")).chain(proxies).chain(archives).collect()
}

impl Cluster {
    pub(crate) fn new(case: Case, simulation: &Simulation) -> Result<Self, String> {
        let mut rng = StdRng::seed_from_u64(case.seed);
        let plan = case.story.map_or_else(|| Plan::draw(&mut rng), Plan::of);
        let Plan { archives, proxies, overflows, .. } = plan;
        let canary = case.canary;
        let armed = Arc::new(AtomicBool::new(false));
        let net = Net::new(rng.random());
        let names = ["d0", "s0"].into_iter().chain(proxies.iter().copied());
        let hosts = names.chain(archives.iter().copied()).map(|name| Host {
            name,
            fs: Fs::new(rng.random()),
            process: None,
            defects: Defects::of(canary, name, &armed),
            power_cut: false,
        });
        let hosts = hosts.collect();
        let machine = Machine::new(&Defects::of(canary, "d0", &armed), overflows);
        let controller = runtime();
        controller.block_on(machine.format());
        let group = group(archives, proxies).parse()?;
        let ctl = Controller::with_connector(group, net.connector("c0", &Life::default()));
        let verbose = std::env::var_os(crate::VERBOSE).is_some();
        let mut cluster = Self {
            simulation: simulation.clone(),
            rng,
            net,
            machine,
            hosts,
            now_ms: 0,
            wall_ahead_s: 0,
            controller,
            ctl,
            events: DefaultHasher::new(),
            idle: 0,
            verbose,
            plan,
            past: Past::default(),
            armed,
        };
        for index in 0..cluster.hosts.len() {
            cluster.start(index);
        }
        Ok(cluster)
    }

    /// What was set up is durable; from now on defects have an effect.
    pub(crate) fn arm(&self) {
        self.hosts.iter().for_each(|host| host.fs.settle());
        self.armed.store(true, Ordering::Relaxed);
    }

    /// Notes what happens: the fingerprint of the run.
    pub(crate) fn note(&mut self, event: &str) {
        (self.now_ms, event).hash(&mut self.events);
        if self.verbose {
            eprintln!("{:>8} ms  {event}", self.now_ms);
        }
    }

    /// The fingerprint of the run so far.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut events = self.events.clone();
        (self.now_ms, self.net.moved()).hash(&mut events);
        events.finish()
    }

    pub(crate) fn is_up(&self, index: usize) -> bool {
        self.hosts[index].process.is_some()
    }

    pub(crate) fn start(&mut self, index: usize) {
        let seed = self.rng.random();
        let host = &mut self.hosts[index];
        if host.process.is_some() {
            return;
        }
        let life = Life::default();
        let process = Process {
            host: host.name,
            life: life.clone(),
            net: self.net.clone(),
            fs: host.fs.clone(),
            machine: self.machine.clone(),
            defects: host.defects.clone(),
            power_cut: host.power_cut,
            seed,
            archives: self.plan.archives,
            proxies: self.plan.proxies,
            heals: self.plan.heals,
        };
        let runtime = runtime();
        let task = runtime.spawn(process.run());
        host.process = Some((runtime, life, task));
        host.power_cut = false;
        let name = host.name;
        self.note(&format!("start {name}"));
    }

    /// The process ends where it is; its disks stay as they are, or lose power.
    pub(crate) fn kill(&mut self, index: usize, power_cut: bool) {
        let seed = self.rng.random();
        let host = &mut self.hosts[index];
        let name = host.name;
        host.fs.die_in(None);
        if let Some((runtime, life, _)) = host.process.take() {
            life.end();
            drop(runtime);
            self.net.forget(name);
            if name == "d0" && !power_cut {
                self.machine.log.killed();
                self.machine.data.killed();
            }
        }
        if power_cut {
            host.fs.power_cut();
            if name == "d0" {
                self.machine.log.power_cut(seed);
                self.machine.data.power_cut(seed ^ 1);
            }
        }
        host.power_cut |= power_cut;
        self.note(&format!("{} {name}", if power_cut { "power cut" } else { "kill" }));
    }

    /// The disk of a host is full, or has room again.
    pub(crate) fn set_full(&self, index: usize, full: bool) {
        if full || !self.has(index, Defect::FullForEver) {
            self.hosts[index].fs.set_full(full);
        }
    }

    pub(crate) fn has(&self, index: usize, defect: Defect) -> bool {
        self.hosts[index].defects.has(defect)
    }

    /// A host loses its disk; its process comes up again on an empty one.
    pub(crate) fn lose_disk(&mut self, index: usize) {
        self.kill(index, false);
        self.hosts[index].fs.wipe();
        let name = self.hosts[index].name;
        self.note(&format!("{name} has lost its disk"));
        self.start(index);
    }

    /// Lets all hosts run for a moment.
    pub(crate) fn tick(&mut self) -> Result<(), String> {
        let tick_ms = 1 + (self.idle / 8).min(TICK_MAX_MS - 1);
        let tick = Duration::from_millis(tick_ms);
        for index in 0..self.hosts.len() {
            let Some((runtime, life, task)) = &mut self.hosts[index].process else { continue };
            runtime.block_on(async { tokio::time::sleep(tick).await });
            if life.is_over() {
                self.note("died at a change to its files");
                let power_cut = self.rng.random();
                self.kill(index, power_cut);
            } else if task.is_finished() {
                let ended = runtime.block_on(task);
                return Err(format!("{} ended: {ended:?}", self.hosts[index].name));
            }
        }
        self.now_ms += tick_ms;
        let wall = EPOCH_S + self.wall_ahead_s + self.now_ms / 1000;
        self.simulation.set_unix_seconds(wall);
        self.idle = if self.net.deliver(self.now_ms) { 0 } else { self.idle + 1 };
        Ok(())
    }

    pub(crate) fn run_for(&mut self, ms: u64) -> Result<(), String> {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.tick()?;
        }
        Ok(())
    }

    /// Runs an operation of the controller, at most so long; `None` when it was not over by then.
    pub(crate) fn control<T>(
        &mut self,
        limit_ms: u64,
        operation: impl AsyncFnOnce(Controller) -> Result<T, ControlError>,
    ) -> Result<Option<Result<T, ControlError>>, String> {
        let end = self.now_ms + limit_ms;
        let mut operation = pin!(operation(self.ctl.clone()));
        loop {
            let step = async {
                tokio::select! {
                    biased;
                    done = &mut operation => Some(done),
                    () = tokio::time::sleep(Duration::from_millis(1)) => None,
                }
            };
            let before = self.now_ms;
            if let Some(done) = self.controller.block_on(step) {
                return Ok(Some(done));
            }
            self.tick()?;
            // The controller's clock goes as fast as the others'.
            let behind = Duration::from_millis((self.now_ms - before).saturating_sub(1));
            self.controller.block_on(async { tokio::time::sleep(behind).await });
            if self.now_ms >= end {
                return Ok(None);
            }
        }
    }

    /// Stops the application and waits until what it has begun is over; whether that is so. A ring
    /// that is full, and from which nobody ships, holds it back.
    pub(crate) fn pause_writes(&mut self, limit_ms: u64) -> Result<bool, String> {
        self.machine.writing.store(false, Ordering::Relaxed);
        let end = self.now_ms + limit_ms;
        while self.machine.model.lock().is_open() && self.now_ms < end {
            self.run_for(20)?;
        }
        Ok(!self.machine.model.lock().is_open())
    }

    pub(crate) fn resume_writes(&self) {
        self.machine.writing.store(true, Ordering::Relaxed);
    }

    /// Waits for a condition with a deadline.
    pub(crate) fn until(
        &mut self,
        what: &str,
        limit_ms: u64,
        mut condition: impl FnMut(&mut Self) -> Result<bool, String>,
    ) -> Result<(), String> {
        let end = self.now_ms + limit_ms;
        while !condition(self)? {
            if self.now_ms >= end {
                return Err(format!("stuck: {what} within {limit_ms} ms"));
            }
            self.run_for(50)?;
        }
        Ok(())
    }

    pub(crate) fn index(&self, name: &str) -> usize {
        self.hosts.iter().position(|h| h.name == name).unwrap()
    }

    /// The volume at the storage role.
    pub(crate) fn storage_volume(&mut self) -> Result<Option<proto::v1::StorageVolume>, String> {
        let look =
            async |ctl: Controller| controller::ops::look::storage_volume(&ctl, "s0", VOLUME).await;
        Ok(self.control(20_000, look)?.and_then(Result::ok))
    }
}
