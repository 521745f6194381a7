//! What a cluster is made of: which servers there are, their flags, where everything lies.
//!
//! Leg `n` is the device role `d{n}` with its own data and log devices, followed by the storage
//! role `s{n}`. All files lie below one directory, named after the server that they belong to.

use std::path::{Path, PathBuf};

use server_kit::units::parse_size;

/// The third of each role: there, but neither running nor in the group file at first.
pub const SPARES: [&str; 4] = ["d2", "s2", "p2", "a2"];

/// The first port of a cluster over TCP: below those that the kernel gives to clients.
const FIRST_PORT: usize = 20_000;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Where the cluster's directory is made; else where temporary files go.
    pub below: Option<PathBuf>,
    /// Volume names; on each leg each gets a data device and a log device, sparse files.
    pub volumes: Vec<String>,
    /// Bytes of each data device.
    pub data_bytes: u64,
    /// Bytes of each log device.
    pub log_bytes: u64,
    /// Physical block size of the log devices.
    pub block_bytes: u32,
    /// How many legs: a device role and a storage role each.
    pub storages: usize,
    /// How many proxies.
    pub proxies: usize,
    /// How many archives.
    pub archives: usize,
    /// Whether there are [`SPARES`], to be started by the test.
    pub spares: bool,
    /// Servers listen on TCP instead of Unix sockets.
    pub tcp: bool,
    /// The files of the first legs are behind loop devices: real block devices. Needs root.
    pub loop_devices: bool,
    /// Servers behind a fault proxy: everybody who takes the address from `walb.toml` (all roles
    /// do) goes through it.
    pub fronts: Vec<String>,
    /// Further flags for the device roles.
    pub device_flags: Vec<String>,
    /// Further flags by server name.
    pub flags: Vec<(String, Vec<String>)>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            below: None,
            volumes: vec!["vol0".to_owned()],
            data_bytes: 64 << 20,
            log_bytes: 64 << 20,
            block_bytes: 4096,
            storages: 1,
            proxies: 2,
            archives: 1,
            spares: false,
            tcp: false,
            loop_devices: false,
            fronts: Vec::new(),
            device_flags: Vec::new(),
            flags: Vec::new(),
        }
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

impl Layout {
    /// The layout of the acceptance scenarios (semantics.md §8.1): small devices, two of each
    /// role, short back-offs and checkpoints so that no test waits for them.
    #[must_use]
    pub fn scenario() -> Self {
        let retry = texts(&["--retry-min", "100ms", "--retry-max", "500ms"]);
        let hasty = ["s0", "s1", "s2", "p0", "p1", "p2"];
        Self {
            data_bytes: 12 << 20,
            log_bytes: 12 << 20,
            storages: 2,
            archives: 2,
            device_flags: texts(&["--checkpoint-interval", "500ms"]),
            flags: hasty.map(|name| (name.to_owned(), retry.clone())).into(),
            ..Self::default()
        }
    }

    /// One leg, one proxy, one archive, with a fault proxy in front of `server`: the layout of the
    /// original's scenarios with a repeater.
    #[must_use]
    pub fn behind_fault_proxy(server: &str) -> Self {
        let fronts = vec![server.to_owned()];
        let archives = if server == "a1" { 2 } else { 1 };
        Self { storages: 1, proxies: 1, archives, fronts, ..Self::scenario() }
    }

    /// The same over TCP.
    #[must_use]
    pub fn over_tcp(self) -> Self {
        Self { tcp: true, ..self }
    }

    /// The same on real block devices.
    #[must_use]
    pub fn on_loop_devices(self) -> Self {
        Self { loop_devices: true, ..self }
    }

    /// More flags for one server.
    #[must_use]
    pub fn with_flags(mut self, server: &str, flags: &[&str]) -> Self {
        self.flags.push((server.to_owned(), texts(flags)));
        self
    }

    /// The servers of the group file at first, in order.
    #[must_use]
    pub fn group(&self) -> Vec<String> {
        let named = |letter: char, count| (0..count).map(move |n| format!("{letter}{n}"));
        let storages = named('s', self.storages);
        storages.chain(named('p', self.proxies)).chain(named('a', self.archives)).collect()
    }

    /// Every role process that there is, spares too.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        let mut all: Vec<_> = (0..self.storages).map(|n| format!("d{n}")).collect();
        all.extend(self.group());
        if self.spares {
            all.extend(texts(&SPARES));
        }
        all
    }

    /// Every leg, spare too.
    #[must_use]
    pub fn legs(&self) -> Vec<usize> {
        (0..self.storages).chain(self.spares.then_some(2)).collect()
    }
}

/// The role of a server by its name's first letter.
#[must_use]
pub fn role_of(name: &str) -> &'static str {
    match name.chars().next() {
        Some('d') => "device",
        Some('s') => "storage",
        Some('p') => "proxy",
        _ => "archive",
    }
}

/// An address of the loopback network that this process alone uses: a test is a process, so no
/// port is taken from another one, and none has to be found free.
fn host() -> String {
    let [high, middle, low] = [16, 8, 0].map(|shift| (std::process::id() >> shift) & 255);
    format!("127.{}.{middle}.{low}", 64 + high % 128)
}

/// A server's own port, and that of its fault proxy.
fn ports(layout: &Layout, name: &str) -> (usize, usize) {
    let place = layout.processes().iter().position(|process| process == name);
    let port = FIRST_PORT + 2 * place.unwrap_or_default();
    (port, port + 1)
}

/// Where a server listens.
#[must_use]
pub fn address(layout: &Layout, dir: &Path, name: &str) -> String {
    match layout.tcp {
        true => format!("{}:{}", host(), ports(layout, name).0),
        false => format!("unix:{}", dir.join(format!("{name}.sock")).display()),
    }
}

/// Where the fault proxy in front of a server listens.
#[must_use]
pub fn front_address(layout: &Layout, dir: &Path, name: &str) -> String {
    match layout.tcp {
        true => format!("{}:{}", host(), ports(layout, name).1),
        false => format!("unix:{}", dir.join(format!("{name}-front.sock")).display()),
    }
}

/// Where others find a server: its fault proxy if it has one.
#[must_use]
pub fn public_address(layout: &Layout, dir: &Path, name: &str) -> String {
    if layout.fronts.iter().any(|front| front == name) {
        front_address(layout, dir, name)
    } else {
        address(layout, dir, name)
    }
}

/// A group file.
pub fn group_file<'a>(servers: impl Iterator<Item = (&'a str, String)>) -> String {
    let entry = |(name, address): (&str, String)| {
        let role = role_of(name);
        format!("[[server]]\nname = {name:?}\nrole = {role:?}\naddress = {address:?}\n")
    };
    servers.map(entry).collect()
}

/// The part of a group file that says where volumes belong.
#[must_use]
pub fn legs_of(layout: &Layout, dir: &Path, group: &[String]) -> String {
    let storages: Vec<_> = group.iter().filter(|name| role_of(name) == "storage").collect();
    let entry = |volume: &String| {
        let leg = |storage: &&String| {
            let device = storage.replacen('s', "d", 1);
            let control = dir.join(format!("{device}.control.sock"));
            format!("{storage} = \"{}#{volume}\"", control.display())
        };
        let legs: Vec<_> = storages.iter().map(leg).collect();
        format!("[[volume]]\nname = {volume:?}\nlegs = {{ {} }}\n", legs.join(", "))
    };
    layout.volumes.iter().map(entry).collect()
}

/// The data device of a volume at a leg.
#[must_use]
pub fn data_path(dir: &Path, leg: usize, volume: &str) -> PathBuf {
    dir.join(format!("d{leg}-{volume}.data"))
}

/// The log device of a volume at a leg.
#[must_use]
pub fn log_path(dir: &Path, leg: usize, volume: &str) -> PathBuf {
    dir.join(format!("d{leg}-{volume}.log"))
}

/// The arguments of a role's program, as the group is now.
#[must_use]
pub fn arguments(layout: &Layout, dir: &Path, group: &[String], name: &str) -> Vec<String> {
    let at = |file: String| dir.join(file).display().to_string();
    let mut args = texts(&["serve"]);
    if role_of(name) == "device" {
        let nbd = format!("unix:{}", at(format!("{name}.nbd.sock")));
        args.extend(texts(&["--nbd", &nbd, "--control", &at(format!("{name}.control.sock"))]));
        args.extend(texts(&["--state-dir", &at(format!("{name}.state"))]));
        for volume in &layout.volumes {
            let (data, log) =
                (at(format!("{name}-{volume}.data")), at(format!("{name}-{volume}.log")));
            args.extend(texts(&["--volume", &format!("{volume}={data},{log}")]));
        }
        args.extend(layout.device_flags.iter().cloned());
    } else {
        let (base, listen) = (at(name.to_owned()), address(layout, dir, name));
        args.extend(texts(&["--base", &base, "--listen", &listen, "--id", name]));
    }
    let public = |role: &str| -> Vec<String> {
        let members = group.iter().filter(|name| role_of(name) == role);
        members.map(|name| public_address(layout, dir, name)).collect()
    };
    match role_of(name) {
        "storage" => {
            let archive = public("archive").into_iter().next().unwrap_or_default();
            args.extend(texts(&["--archive", &archive, "--proxy", &public("proxy").join(",")]));
        }
        "archive" => args.extend(texts(&["--backend", "file"])),
        _ => {}
    }
    let own = layout.flags.iter().filter(|(server, _)| server == name);
    args.extend(own.flat_map(|(_, flags)| flags.iter().cloned()));
    args
}

/// A size for layouts, such as `64M`.
///
/// # Panics
/// On a text that is no size: a mistake in the test.
#[must_use]
pub fn size(text: &str) -> u64 {
    parse_size(text).unwrap_or_else(|e| panic!("{e}"))
}
