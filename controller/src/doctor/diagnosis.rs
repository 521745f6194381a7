//! What doctor says: which failure of the recovery manual it is, by which facts, and the way back.

use std::fmt;

/// A row of the recovery manual (docs/operating/recovering.md): F and G are walb's, N are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Row {
    /// A storage server is down.
    F1,
    /// The log overflowed.
    F2,
    /// One proxy is down.
    F3,
    /// All proxies are down.
    F4,
    /// An archive is down.
    F5,
    /// Proxies are full.
    F6,
    /// The data of a device is lost.
    F7,
    /// A storage server lost its state of a target.
    F8a,
    /// A storage server lost its state of another leg.
    F8b,
    /// A proxy lost wdiffs that were not delivered.
    F9a,
    /// A proxy lost its state and nothing else.
    F9b,
    /// A secondary archive lost its data.
    F10x1,
    /// The primary lost its data, another archive has them.
    F10x2,
    /// The primary lost its data, nobody has them.
    F10x3,
    /// Network cut between storage and proxies.
    G1,
    /// Network cut between proxy and archive.
    G2,
    /// A full backup broke off.
    G3,
    /// A hash backup was cut.
    G4,
    /// A full replication was cut.
    G5,
    /// A hash or diff replication was cut.
    G6,
    /// A resync was cut.
    G7,
    /// The device was grown, the archive was not.
    G8,
    /// An apply was interrupted.
    G9,
    /// An archive went down in the middle of a merge or restore.
    G10,
    /// A proxy cannot empty its queues.
    G11,
    /// A hash backup failed half-way.
    G12,
    /// The device role does not answer.
    N1,
    /// A file is damaged.
    N2,
    /// A volume is stopped somewhere.
    N3,
    /// The proxies' lists of archives differ.
    N4,
    /// Another server answers at an address.
    N5,
    /// An archive is full.
    N6,
    /// Every leg is a standby.
    N7,
    /// An archive has damage, by the snapshots that it harms.
    N8,
    /// An archive lost the state of a volume, and has a copy.
    N9,
    /// The newest restorable point is older than it may be.
    N10,
    /// What an archive does by itself fails.
    N11,
    /// An archive cannot read or write its files.
    N12,
}

/// The titles, in the words of the manual.
const TITLES: &[(Row, &str, &str)] = &[
    (Row::F1, "F1", "storage server down"),
    (Row::F2, "F2", "log overflow"),
    (Row::F3, "F3", "one proxy down"),
    (Row::F4, "F4", "all proxies down"),
    (Row::F5, "F5", "archive down"),
    (Row::F6, "F6", "proxy disks full"),
    (Row::F7, "F7", "data of a walb device lost"),
    (Row::F8a, "F8a", "storage metadata lost, the volume was the target"),
    (Row::F8b, "F8b", "storage metadata lost, the volume was not the target"),
    (Row::F9a, "F9a", "proxy data lost, some wdiffs were undelivered"),
    (Row::F9b, "F9b", "proxy data lost, nothing was undelivered"),
    (Row::F10x1, "F10-1", "archive data lost, not the primary"),
    (Row::F10x2, "F10-2", "primary archive data lost, another archive is synchronizing"),
    (Row::F10x3, "F10-3", "primary archive data lost, no other archive is synchronizing"),
    (Row::G1, "G1", "network cut between storage and proxies"),
    (Row::G2, "G2", "network cut between proxy and archive"),
    (Row::G3, "G3", "full backup was interrupted"),
    (Row::G4, "G4", "hash backup was cut"),
    (Row::G5, "G5", "full replication was interrupted"),
    (Row::G6, "G6", "hash or diff replication was interrupted"),
    (Row::G7, "G7", "resync was interrupted"),
    (Row::G8, "G8", "device grown, archive not"),
    (Row::G9, "G9", "archive went down during apply"),
    (Row::G10, "G10", "archive went down during merge or restore"),
    (Row::G11, "G11", "stop empty cannot drain"),
    (Row::G12, "G12", "hash backup failed half-way"),
    (Row::N1, "N1", "device role does not answer"),
    (Row::N2, "N2", "a file is damaged"),
    (Row::N3, "N3", "volume is stopped at a server"),
    (Row::N4, "N4", "proxies differ in where they send the volume"),
    (Row::N5, "N5", "another server answers at this address"),
    (Row::N6, "N6", "archive disk full"),
    (Row::N7, "N7", "no leg of the volume is a target"),
    (Row::N8, "N8", "an archive has damage that another archive can repair"),
    (Row::N9, "N9", "an archive lost the state of a volume"),
    (Row::N10, "N10", "the newest restorable point is too old"),
    (Row::N11, "N11", "what an archive does by itself fails"),
    (Row::N12, "N12", "an archive cannot read or write its files"),
];

impl Row {
    /// All rows.
    pub fn all() -> impl Iterator<Item = Self> {
        TITLES.iter().map(|(row, _, _)| *row)
    }

    /// Its title in the manual's words.
    #[must_use]
    pub fn title(self) -> &'static str {
        TITLES.iter().find(|(row, _, _)| *row == self).map_or("", |(_, _, title)| title)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = TITLES.iter().find(|(row, _, _)| row == self).map_or("", |(_, name, _)| name);
        f.pad(name)
    }
}

/// A `walbc` command as a person types it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The words after `walbc`.
    pub args: Vec<String>,
    /// What it throws away, if anything.
    pub drops: Option<String>,
}

impl Command {
    /// From the words after `walbc`, separated by spaces.
    #[must_use]
    pub fn new(line: &str) -> Self {
        Self { args: line.split(' ').map(str::to_owned).collect(), drops: None }
    }

    /// The same, and it throws this away.
    #[must_use]
    pub fn dropping(line: &str, what: impl Into<String>) -> Self {
        Self { drops: Some(what.into()), ..Self::new(line) }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "walbc {}", self.args.join(" "))
    }
}

/// One step of the way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something that `--fix` runs.
    Run(Command),
    /// Something that only a person can do.
    Person(String),
}

impl Step {
    /// A command that throws nothing away.
    #[must_use]
    pub fn run(line: &str) -> Self {
        Self::Run(Command::new(line))
    }

    /// What a person has to do.
    #[must_use]
    pub fn person(what: impl Into<String>) -> Self {
        Self::Person(what.into())
    }
}

/// The way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It goes on, or heals, by itself; what to watch meanwhile.
    Itself(String),
    /// These steps, in order.
    Steps(Vec<Step>),
}

/// One failure, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Which.
    pub row: Row,
    /// Of which volume; `None`: of a server.
    pub volume: Option<String>,
    /// The facts, with servers and numbers.
    pub evidence: Vec<String>,
    /// What to do.
    pub way: Way,
    /// What must be the same in two looks for this to be a failure and no passing moment.
    pub key: String,
}

impl Diagnosis {
    /// A failure of a volume.
    #[must_use]
    pub fn of(volume: &str, row: Row, evidence: Vec<String>, way: Way) -> Self {
        Self { row, volume: Some(volume.to_owned()), evidence, way, key: String::new() }
    }

    /// A failure of a server.
    #[must_use]
    pub fn of_server(row: Row, name: &str, evidence: Vec<String>, way: Way) -> Self {
        Self { row, volume: None, evidence, way, key: name.to_owned() }
    }

    /// With what must not move between two looks.
    #[must_use]
    pub fn with_key(self, key: impl Into<String>) -> Self {
        Self { key: key.into(), ..self }
    }

    /// The steps; none when it heals by itself.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        match &self.way {
            Way::Itself(_) => &[],
            Way::Steps(steps) => steps,
        }
    }

    /// Whether all steps are commands that throw nothing away.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        let safe = |step: &Step| matches!(step, Step::Run(command) if command.drops.is_none());
        self.steps().iter().all(safe)
    }

    /// Whether it is over: told, and nothing is wrong any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.row == Row::G10
    }

    /// Whether it is nothing but a server that does not answer.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        let down = matches!(self.row, Row::F1 | Row::F3 | Row::F4 | Row::F5);
        down && self.volume.is_none()
    }

    /// Whether the other look found the same.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.row == other.row && self.volume == other.volume && self.key == other.key
    }
}
