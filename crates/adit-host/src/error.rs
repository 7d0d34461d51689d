use std::io;
use std::path::{Path, PathBuf};

use crate::bus::BusError;

/// Why the host could not be changed or put back: what happened, why, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel or the file system refused for lack of rights.
    #[error(
        "cannot {doing}: permission denied. Changing the host's network needs root: run the command with sudo, \
         or grant it CAP_NET_ADMIN"
    )]
    PermissionDenied { doing: String },

    /// A network interface named in the plan is not there.
    #[error(
        "cannot {doing}: there is no network interface {link} in this network namespace. Create the tunnel first, \
         or correct the name (ip link shows what exists)"
    )]
    LinkMissing { doing: String, link: String },

    /// Something that belongs to others occupies the place we need.
    #[error(
        "cannot {doing}: {other} is already there and is not ours. Remove it, or choose another {choose}"
    )]
    Conflict { doing: String, other: String, choose: &'static str },

    /// Another tunnel's name servers are in the resolver's file.
    #[error(
        "cannot set the DNS servers of {link}: {} already holds those of the tunnel {other}, and there is room for one. \
         Stop that tunnel first (adit down {other}), or take the DNS servers out of one of the two configurations. \
         If no such tunnel runs, write your own name servers into the file",
        path.display()
    )]
    DnsTaken { link: String, path: PathBuf, other: String },

    /// An IPv6 address was asked for where IPv6 is off.
    #[error(
        "cannot {doing}: IPv6 is switched off here ({key} = 1). Switch it on (sysctl -w {key}=0), \
         or take the IPv6 addresses out of the configuration"
    )]
    Ipv6Off { doing: String, key: String },

    /// The kernel refused a change.
    #[error("cannot {doing}: {source}{next}")]
    Kernel { doing: String, source: io::Error, next: &'static str },

    /// A file could not be read or written.
    #[error("cannot {doing} {}: {source}{next}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error, next: &'static str },

    /// A program we need is not installed.
    #[error("cannot {doing}: the program {program} is not installed. Install it: {install}")]
    ProgramMissing { doing: String, program: &'static str, install: &'static str },

    /// A program we ran failed.
    #[error(
        "cannot {doing}: {program} failed: {said}. Run `{program} --version` to check that it works here"
    )]
    ProgramFailed { doing: String, program: String, said: String },

    /// A program we ran did not end, so that nobody knows what it did.
    #[error(
        "cannot {doing}: {program} did not end in {secs} s and was killed. Run `{program}` by hand to see what it waits \
         for, and then say this again"
    )]
    ProgramHung { doing: String, program: String, secs: f32 },

    /// Processes cannot be told apart.
    #[error(
        "the packets of one command cannot be told from those of others: there is no cgroup v2 below {root}. Mount it \
         (mount -t cgroup2 none {root}), boot with it (systemd.unified_cgroup_hierarchy=1), or leave `ip netns exec`, \
         which hides it"
    )]
    NoGroups { root: &'static str },
    /// A service on the system bus did not do what it was asked.
    #[error(
        "cannot {doing}: {service} did not do it: {said}. See what it says (journalctl -u {service}); if it does not \
         run, make /etc/resolv.conf a plain file, and adit writes that itself"
    )]
    ServiceFailed { doing: String, service: &'static str, said: String },

    /// A plan names a sysctl that cannot be one.
    #[error("{key:?} is not a sysctl key. Write it like net.ipv4.ip_forward")]
    BadSysctlKey { key: String },

    /// Another live process holds the journal.
    #[error(
        "the journal {} is in use by another running process. Stop that one first (adit down), or use another --home",
        path.display()
    )]
    JournalBusy { path: PathBuf },

    /// Nobody can say what there is to undo.
    #[error(
        "the journal {} cannot be read (line {line}: {reason}). It told what an earlier run changed on this host; nothing \
         was touched now, and what was blocked stays blocked. To recover, restart this machine and remove the file. \
         Without a restart: run `nft delete table inet NAME` for each table of adit that `nft list tables` shows, remove \
         the rules and routes that are marked proto 173 (ip rule, ip -6 rule, ip route show table all), see whether \
         /etc/resolv.conf is yours, and then remove the file",
        path.display()
    )]
    JournalUnreadable { path: PathBuf, line: usize, reason: String },

    /// Somebody else may have written what we would do to the host.
    #[error(
        "the journal {} is not ours: {why}. What it says would be done to this host with our rights, so nothing of it was \
         read. See who made it (ls -l), and remove it",
        path.display()
    )]
    JournalForeign { path: PathBuf, why: String },

    /// The changes were made in a different, still living, network namespace.
    #[error(
        "the changes in {} were made in network namespace {made_in}, and this is {here}. \
         Run the same command inside that namespace (ip netns exec NAME …)",
        journal.display()
    )]
    OtherNamespace { journal: PathBuf, made_in: String, here: String },

    /// Some changes could not be undone; they stay in the journal.
    #[error(
        "{} of the changes could not be undone: {}. They stay recorded in {}: mend the cause and run adit down again",
        failures.len(), failures.join("; "), journal.display()
    )]
    UndoIncomplete { journal: PathBuf, failures: Vec<String> },

    /// A change failed and what was made before it could not all be undone.
    #[error("{cause}. Also, {undo}")]
    RollbackIncomplete { cause: Box<HostError>, undo: Box<HostError> },
}

impl HostError {
    /// Whether what was tried may have been done all the same.
    pub(crate) fn leaves_doubt(&self) -> bool {
        matches!(self, HostError::ProgramHung { .. })
    }

    /// Whether a place for our files is missing, by rights or by a file system that cannot be written.
    pub(crate) fn is_refused_by_file_system(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self, HostError::File { source, .. } if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
    }

    pub(crate) fn kernel(doing: impl Into<String>, source: io::Error) -> HostError {
        let doing = doing.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => HostError::PermissionDenied { doing },
            io::ErrorKind::NetworkUnreachable => HostError::Kernel {
                doing,
                source,
                next: ". The gateway of the route is not reachable from this host: check the address and the interface",
            },
            io::ErrorKind::NetworkDown => {
                HostError::Kernel { doing, source, next: ". The interface is down: bring it up first" }
            }
            _ => HostError::Kernel { doing, source, next: "" },
        }
    }

    pub(crate) fn bus(doing: String, service: &'static str, error: BusError) -> HostError {
        match error {
            BusError::Io(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                HostError::PermissionDenied { doing }
            }
            BusError::Refused { name, .. } if name == "org.freedesktop.DBus.Error.AccessDenied" => {
                HostError::PermissionDenied { doing }
            }
            error => HostError::ServiceFailed { doing, service, said: error.to_string() },
        }
    }

    pub(crate) fn file(doing: &'static str, path: &Path, source: io::Error) -> HostError {
        let next = match source.kind() {
            io::ErrorKind::PermissionDenied => {
                ". Run the command with sudo; if it still fails, the file may be immutable (lsattr shows it)"
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                ". The file system is read-only here (a container?): set it from outside"
            }
            io::ErrorKind::StorageFull => ". The disk is full: free some space",
            _ => "",
        };
        HostError::File { doing, path: path.to_owned(), source, next }
    }
}
