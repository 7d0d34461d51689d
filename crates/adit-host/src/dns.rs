use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::guard::Outcome;
use crate::plan::Dns;
use crate::program;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLVED: &str = "/run/systemd/resolve";

/// What was made of the resolver's settings, by whom, and what they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "snake_case")]
pub(crate) enum MadeDns {
    Resolvectl { dns: Dns },
    Resolvconf { dns: Dns, name: String },
    File { path: PathBuf, old: OldFile, ours: String },
}

impl fmt::Display for MadeDns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MadeDns::Resolvectl { dns } => write!(f, "{dns} (systemd-resolved)"),
            MadeDns::Resolvconf { dns, .. } => write!(f, "{dns} (resolvconf)"),
            MadeDns::File { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

impl MadeDns {
    /// Who is told.
    pub(crate) fn by(&self) -> String {
        match self {
            MadeDns::Resolvectl { .. } => "systemd-resolved".to_owned(),
            MadeDns::Resolvconf { .. } => "resolvconf".to_owned(),
            MadeDns::File { path, .. } => path.display().to_string(),
        }
    }

    /// Whether it outlives a reboot.
    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self, MadeDns::File { .. })
    }
}

/// What stood at the path before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OldFile {
    Missing,
    Symlink { target: PathBuf },
    File { content: Content, mode: u32, uid: u32, gid: u32 },
}

/// The bytes of a file, readable in the journal when they are text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Bytes(Vec<u8>),
}

impl Content {
    fn new(bytes: Vec<u8>) -> Content {
        String::from_utf8(bytes).map_or_else(|error| Content::Bytes(error.into_bytes()), Content::Text)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Content::Text(text) => text.as_bytes(),
            Content::Bytes(bytes) => bytes,
        }
    }
}

pub(crate) fn prepare(dns: &Dns) -> Result<Option<MadeDns>, HostError> {
    if dns.servers.is_empty() {
        return Ok(None);
    }
    Ok(Some(match Backend::choose(&Facts::gather()) {
        Backend::Resolvectl => MadeDns::Resolvectl { dns: dns.clone() },
        Backend::Resolvconf => MadeDns::Resolvconf { dns: dns.clone(), name: resolvconf_name(&dns.link) },
        Backend::File => look_at_file(Path::new(RESOLV_CONF), dns)?,
    }))
}

pub(crate) fn make(made: &MadeDns) -> Result<(), HostError> {
    match made {
        MadeDns::Resolvectl { dns } => {
            let doing = "set the DNS servers of the tunnel in systemd-resolved";
            let servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
            let servers = servers.iter().map(String::as_str);
            resolvectl(&["dns", &dns.link].into_iter().chain(servers).collect::<Vec<_>>(), doing)?;
            let search = dns.search.iter().map(String::as_str);
            resolvectl(&["domain", &dns.link, "~."].into_iter().chain(search).collect::<Vec<_>>(), doing)?;
            resolvectl(&["default-route", &dns.link, "true"], doing)
        }
        MadeDns::Resolvconf { dns, name } => resolvconf(
            &["-a", name, "-m", "0", "-x"],
            &resolv_conf(dns),
            "set the DNS servers with resolvconf",
        ),
        MadeDns::File { path, old, ours } => {
            let (mode, uid, gid) = match old {
                OldFile::File { mode, uid, gid, .. } => (*mode, *uid, *gid),
                OldFile::Missing | OldFile::Symlink { .. } => (0o644, 0, 0),
            };
            replace(path, ours.as_bytes(), mode, uid, gid)
        }
    }
}

pub(crate) fn undo(made: &MadeDns) -> Result<Outcome, HostError> {
    match made {
        MadeDns::Resolvectl { dns } => {
            let link_is_there = Path::new("/sys/class/net").join(&dns.link).exists();
            // systemd-resolved forgets a link's servers with the link.
            if !link_is_there || !Path::new(RESOLVED).exists() {
                return Ok(Outcome::Gone);
            }
            resolvectl(&["revert", &dns.link], "give DNS back to systemd-resolved")?;
            Ok(Outcome::Undone)
        }
        MadeDns::Resolvconf { name, .. } => {
            resolvconf(&["-d", name, "-f"], "", "take our DNS servers back from resolvconf")?;
            Ok(Outcome::Undone)
        }
        MadeDns::File { path, old, ours } => undo_file(path, old, ours),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Resolvectl,
    Resolvconf,
    File,
}

/// What decides who must be told about name servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    /// Something is mounted over resolv.conf: `ip netns exec` and containers do so, and then it is ours alone.
    mounted_over: bool,
    /// Where resolv.conf leads when it is a symlink.
    target: Option<PathBuf>,
    content: String,
    resolved_runs: bool,
    resolvectl: bool,
    resolvconf: bool,
}

impl Facts {
    fn gather() -> Facts {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        Facts {
            mounted_over: mounts.lines().any(|line| line.split(' ').nth(4) == Some(RESOLV_CONF)),
            target: fs::read_link(RESOLV_CONF).ok().map(|target| Path::new("/etc").join(target)),
            content: fs::read(RESOLV_CONF)
                .map(|it| String::from_utf8_lossy(&it).into_owned())
                .unwrap_or_default(),
            resolved_runs: Path::new(RESOLVED).exists(),
            resolvectl: program::find("resolvectl").is_some(),
            resolvconf: program::find("resolvconf").is_some(),
        }
    }
}

impl Backend {
    /// A manager is told only when resolv.conf shows that programs really ask it; a file that somebody wrote by hand
    /// wins over any manager that happens to be installed.
    fn choose(facts: &Facts) -> Backend {
        if facts.mounted_over {
            return Backend::File;
        }
        let leads_to = |needle: &str| {
            facts.target.as_ref().is_some_and(|target| target.to_string_lossy().contains(needle))
        };
        let asks_resolved = leads_to("systemd/resolve")
            || leads_to("systemd/resolv.conf")
            || facts.content.lines().any(|line| line.split_whitespace().eq(["nameserver", "127.0.0.53"]));
        let asks_resolvconf = leads_to("resolvconf/")
            || facts.content.lines().any(|line| line.starts_with('#') && line.contains("resolvconf"));
        match () {
            () if facts.resolved_runs && facts.resolvectl && asks_resolved => Backend::Resolvectl,
            () if facts.resolvconf && asks_resolvconf => Backend::Resolvconf,
            () => Backend::File,
        }
    }
}

fn resolvectl(arguments: &[&str], doing: &str) -> Result<(), HostError> {
    let path = program::find("resolvectl").ok_or_else(|| HostError::ProgramMissing {
        doing: doing.to_owned(),
        program: "resolvectl",
        install: "apt install systemd-resolved (Debian, Ubuntu), dnf install systemd-resolved (Fedora)",
    })?;
    program::run(&path, arguments, "", doing)
}

fn resolvconf(arguments: &[&str], input: &str, doing: &str) -> Result<(), HostError> {
    let path = program::find("resolvconf").ok_or_else(|| HostError::ProgramMissing {
        doing: doing.to_owned(),
        program: "resolvconf",
        install: "apt install openresolv (Debian, Ubuntu), dnf install openresolv (Fedora)",
    })?;
    program::run(&path, arguments, input, doing)
}

/// Debian's resolvconf orders its sources by name, and `tun.` comes before every other interface.
fn resolvconf_name(link: &str) -> String {
    match Path::new("/etc/resolvconf/interface-order").exists() {
        true => format!("tun.{link}"),
        false => link.to_owned(),
    }
}

const HEADER: &str = "# adit wrote this for ";
const HEADER_END: &str = "; what was here returns when the tunnel stops.";

/// The tunnel whose servers these are, when we wrote them.
fn owner(content: &[u8]) -> Option<String> {
    let rest = content.strip_prefix(HEADER.as_bytes())?;
    let line = String::from_utf8_lossy(rest.split(|byte| *byte == b'\n').next()?).into_owned();
    Some(line.split(HEADER_END).next().unwrap_or_default().to_owned())
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = format!("{HEADER}{}{HEADER_END}\n", dns.link);
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.search.is_empty() {
        text.push_str(&format!("search {}\n", dns.search.join(" ")));
    }
    text
}

fn look_at_file(path: &Path, dns: &Dns) -> Result<MadeDns, HostError> {
    let read = || -> io::Result<OldFile> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(OldFile::Missing),
            metadata => metadata?,
        };
        if metadata.is_symlink() {
            return Ok(OldFile::Symlink { target: fs::read_link(path)? });
        }
        let content = Content::new(fs::read(path)?);
        Ok(OldFile::File {
            content,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        })
    };
    let old = read().map_err(|error| HostError::file("read", path, error))?;
    // Each would return the other's servers, and the user's would be lost.
    if let OldFile::File { content, .. } = &old
        && let Some(other) = owner(content.bytes())
    {
        return Err(HostError::DnsTaken { link: dns.link.clone(), path: path.to_owned(), other });
    }
    Ok(MadeDns::File { path: path.to_owned(), old, ours: resolv_conf(dns) })
}

fn undo_file(path: &Path, old: &OldFile, ours: &str) -> Result<Outcome, HostError> {
    // A kill between writing and renaming leaves it.
    let _ = fs::remove_file(beside(path));
    let is_link = fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
    let now = if is_link { None } else { fs::read(path).ok() };
    let already = match (old, &now) {
        (OldFile::Missing, None) => !is_link,
        (OldFile::Symlink { .. }, None) => is_link,
        (OldFile::File { content, .. }, Some(now)) => content.bytes() == now,
        _ => false,
    };
    if already {
        return Ok(Outcome::Gone);
    }
    // Ours, or the start of ours when a crash cut the writing short.
    if !now.as_ref().is_some_and(|now| ours.as_bytes().starts_with(now)) {
        return Ok(Outcome::LeftAlone(format!("{} was changed by somebody else meanwhile", path.display())));
    }
    match old {
        OldFile::Missing => fs::remove_file(path).map_err(|error| HostError::file("remove", path, error))?,
        OldFile::Symlink { target } => {
            let beside = beside(path);
            let put = || -> io::Result<()> {
                match fs::remove_file(&beside) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                symlink(target, &beside)?;
                fs::rename(&beside, path)
            };
            put().map_err(|error| HostError::file("restore", path, error))?;
        }
        OldFile::File { content, mode, uid, gid } => replace(path, content.bytes(), *mode, *uid, *gid)?,
    }
    Ok(Outcome::Undone)
}

/// Replaces a file atomically, or in place where something is mounted over it.
fn replace(path: &Path, content: &[u8], mode: u32, uid: u32, gid: u32) -> Result<(), HostError> {
    let new = beside(path);
    let rename = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        chown(&new, Some(uid), Some(gid))?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    let in_place = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    let renamed = rename();
    if renamed.is_err() {
        let _ = fs::remove_file(&new);
    }
    match renamed {
        Err(error) if needs_writing_in_place(error.kind()) => in_place(),
        renamed => renamed,
    }
    .map_err(|error| HostError::file("write", path, error))
}

fn needs_writing_in_place(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{CrossesDevices, ReadOnlyFilesystem, ResourceBusy};
    matches!(kind, ResourceBusy | CrossesDevices | ReadOnlyFilesystem)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".adit-new");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns() -> Dns {
        Dns { link: "adit0".into(), servers: vec!["10.9.0.1".parse().unwrap()], search: vec!["lan".into()] }
    }

    #[test]
    fn a_manager_is_told_only_when_resolv_conf_leads_to_it() {
        let all = Facts { resolved_runs: true, resolvectl: true, resolvconf: true, ..Facts::default() };
        let stub =
            Facts { target: Some("/etc/../run/systemd/resolve/stub-resolv.conf".into()), ..all.clone() };
        assert_eq!(Backend::choose(&stub), Backend::Resolvectl);
        let by_address = Facts { content: "nameserver 127.0.0.53\n".into(), ..all.clone() };
        assert_eq!(Backend::choose(&by_address), Backend::Resolvectl);
        let openresolv =
            Facts { content: "# Generated by resolvconf\nnameserver 1.1.1.1".into(), ..all.clone() };
        assert_eq!(Backend::choose(&openresolv), Backend::Resolvconf);
        let debian = Facts { target: Some("/etc/resolvconf/run/resolv.conf".into()), ..all.clone() };
        assert_eq!(Backend::choose(&debian), Backend::Resolvconf);
        let by_hand = Facts { content: "nameserver 9.9.9.9\n".into(), ..all.clone() };
        assert_eq!(Backend::choose(&by_hand), Backend::File);
        assert_eq!(Backend::choose(&Facts { mounted_over: true, ..stub.clone() }), Backend::File);
        assert_eq!(Backend::choose(&Facts { resolvectl: false, ..stub }), Backend::File);
    }

    #[test]
    fn a_file_comes_back_with_content_mode_and_bytes_that_are_not_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let before = b"nameserver 10.0.0.1 # caf\xe9\n";
        fs::write(&path, before).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let made = look_at_file(&path, &dns()).unwrap();
        make(&made).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("nameserver 10.9.0.1\nsearch lan\n"));
        let kept: MadeDns = serde_json::from_str(&serde_json::to_string(&made).unwrap()).unwrap();
        assert_eq!(undo(&kept).unwrap(), Outcome::Undone);
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(undo(&kept).unwrap(), Outcome::Gone);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_symlink_and_an_absence_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let made = look_at_file(&path, &dns()).unwrap();
        make(&made).unwrap();
        assert!(path.exists());
        assert_eq!(undo(&made).unwrap(), Outcome::Undone);
        assert!(!path.exists());

        symlink("../run/nowhere", &path).unwrap();
        let made = look_at_file(&path, &dns()).unwrap();
        make(&made).unwrap();
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
        assert_eq!(undo(&made).unwrap(), Outcome::Undone);
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("../run/nowhere"));
    }

    #[test]
    fn a_file_somebody_else_rewrote_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let made = look_at_file(&path, &dns()).unwrap();
        make(&made).unwrap();
        fs::write(&path, "nameserver 10.0.0.77\n").unwrap();
        assert!(matches!(undo(&made).unwrap(), Outcome::LeftAlone(_)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.77\n");
    }

    #[test]
    fn the_servers_of_another_tunnel_are_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let made = look_at_file(&path, &dns()).unwrap();
        make(&made).unwrap();
        let second = Dns { link: "adit1".into(), ..dns() };
        let error = look_at_file(&path, &second).unwrap_err();
        assert!(matches!(&error, HostError::DnsTaken { other, .. } if other == "adit0"), "{error}");
        assert!(error.to_string().contains("adit down adit0"), "{error}");
        assert_eq!(undo(&made).unwrap(), Outcome::Undone);
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.1\n");
        assert!(look_at_file(&path, &second).is_ok());
    }

    #[test]
    fn a_new_file_that_was_never_renamed_is_swept_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let made = look_at_file(&path, &dns()).unwrap();
        fs::write(beside(&path), "# adit").unwrap();
        assert_eq!(undo(&made).unwrap(), Outcome::Gone);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.1\n");
    }

    #[test]
    fn a_file_cut_short_by_a_crash_is_still_ours() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let made = look_at_file(&path, &dns()).unwrap();
        for kept in [0, 7] {
            fs::write(&path, &resolv_conf(&dns()).as_bytes()[..kept]).unwrap();
            assert_eq!(undo(&made).unwrap(), Outcome::Undone);
            assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.1\n");
        }
    }
}
