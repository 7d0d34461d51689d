//! `/etc/resolv.conf` itself: a file, a symlink or nothing; one that is [immutable](https://man7.org/linux/man-pages/man1/chattr.1.html),
//! or has something mounted on it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, OFlags, ioctl_getflags, ioctl_setflags};
use serde::{Deserialize, Serialize};

use super::MadeDns;
use crate::error::HostError;
use crate::guard::Outcome;
use crate::plan::Dns;

/// What stood at the path before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OldFile {
    Missing,
    Symlink {
        target: PathBuf,
    },
    File {
        content: Content,
        mode: u32,
        uid: u32,
        gid: u32,
        /// Protected by `chattr +i`, and so is ours in its place.
        #[serde(default)]
        immutable: bool,
    },
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

const HEADER: &str = "# adit wrote this for ";
const HEADER_END: &str = "; what was here returns when the tunnel stops.";

/// The tunnel whose servers these are, when we wrote them.
fn owner(content: &[u8]) -> Option<String> {
    let rest = content.strip_prefix(HEADER.as_bytes())?;
    let line = String::from_utf8_lossy(rest.split(|byte| *byte == b'\n').next()?).into_owned();
    Some(line.split(HEADER_END).next().unwrap_or_default().to_owned())
}

/// What resolv.conf says for these servers.
pub(super) fn text(dns: &Dns) -> String {
    let mut text = format!("{HEADER}{}{HEADER_END}\n", dns.link);
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.search.is_empty() {
        text.push_str(&format!("search {}\n", dns.search.join(" ")));
    }
    text
}

fn look(path: &Path) -> Result<OldFile, HostError> {
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
            immutable: is_immutable(path),
        })
    };
    read().map_err(|error| HostError::file("read", path, error))
}

pub(super) fn look_at(path: &Path, dns: &Dns) -> Result<MadeDns, HostError> {
    let old = look(path)?;
    // Each would return the other's servers, and the user's would be lost.
    if let OldFile::File { content, .. } = &old
        && let Some(other) = owner(content.bytes())
    {
        return Err(HostError::DnsTaken { link: dns.link.clone(), path: path.to_owned(), other });
    }
    Ok(MadeDns::File { path: path.to_owned(), old, ours: text(dns) })
}

/// Ours in the place of what others wrote over it, which returns when the tunnel stops; `None` where ours still stands.
pub(super) fn again(path: &Path, old: &OldFile, ours: &str, dns: &Dns) -> Result<Option<MadeDns>, HostError> {
    let now = look(path)?;
    let old = match &now {
        OldFile::File { content, .. } if content.bytes() == ours.as_bytes() => return Ok(None),
        // Ours cut short, or with something added: what was there before is still what returns.
        OldFile::File { content, .. } if ours.as_bytes().starts_with(content.bytes()) => old,
        OldFile::File { content, .. } if owner(content.bytes()).is_some_and(|it| it == dns.link) => old,
        OldFile::File { .. } => return look_at(path, dns).map(Some),
        OldFile::Missing | OldFile::Symlink { .. } => &now,
    };
    Ok(Some(MadeDns::File { path: path.to_owned(), old: old.clone(), ours: ours.to_owned() }))
}

pub(super) fn make(path: &Path, old: &OldFile, ours: &str) -> Result<(), HostError> {
    match old {
        OldFile::File { mode, uid, gid, immutable, .. } => {
            replace(path, ours.as_bytes(), *mode, *uid, *gid, *immutable)
        }
        OldFile::Missing | OldFile::Symlink { .. } => replace(path, ours.as_bytes(), 0o644, 0, 0, false),
    }
}

pub(super) fn undo(path: &Path, old: &OldFile, ours: &str) -> Result<Outcome, HostError> {
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
        // A kill may have come before the protection was put back.
        if let OldFile::File { immutable: true, .. } = old {
            let protected = set_immutable(path, true);
            protected.map_err(|error| HostError::file("protect", path, error))?;
        }
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
        OldFile::File { content, mode, uid, gid, immutable } => {
            replace(path, content.bytes(), *mode, *uid, *gid, *immutable)?;
        }
    }
    Ok(Outcome::Undone)
}

/// Replaces a file, and an immutable one by one that is immutable too.
fn replace(
    path: &Path,
    content: &[u8],
    mode: u32,
    uid: u32,
    gid: u32,
    immutable: bool,
) -> Result<(), HostError> {
    if !immutable {
        return replace_unprotected(path, content, mode, uid, gid);
    }
    set_immutable(path, false).map_err(|error| HostError::file("unprotect", path, error))?;
    let replaced = replace_unprotected(path, content, mode, uid, gid);
    let protected = set_immutable(path, true).map_err(|error| HostError::file("protect", path, error));
    replaced.and(protected)
}

fn is_immutable(path: &Path) -> bool {
    let flags = fs::File::open(path).and_then(|file| Ok(ioctl_getflags(&file)?));
    flags.is_ok_and(|flags| flags.contains(IFlags::IMMUTABLE))
}

fn set_immutable(path: &Path, immutable: bool) -> io::Result<()> {
    let file = fs::File::open(path)?;
    let mut flags = ioctl_getflags(&file)?;
    flags.set(IFlags::IMMUTABLE, immutable);
    Ok(ioctl_setflags(&file, flags)?)
}

/// Replaces a file atomically, or in place where something is mounted over it.
fn replace_unprotected(path: &Path, content: &[u8], mode: u32, uid: u32, gid: u32) -> Result<(), HostError> {
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
        // Never through a symlink: what it leads to would not come back.
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let mut file = fs::OpenOptions::new().write(true).truncate(true).custom_flags(flags).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    let renamed = rename();
    if renamed.is_err() {
        let _ = fs::remove_file(&new);
    }
    match renamed {
        Err(error) if needs_writing_in_place(error.kind()) => match path.is_symlink() {
            true => Err(error),
            false => in_place(),
        },
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
    fn a_file_comes_back_with_content_mode_and_bytes_that_are_not_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let before = b"nameserver 10.0.0.1 # caf\xe9\n";
        fs::write(&path, before).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let made = look_at(&path, &dns()).unwrap();
        super::super::make(&made).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("nameserver 10.9.0.1\nsearch lan\n"));
        let kept: MadeDns = serde_json::from_str(&serde_json::to_string(&made).unwrap()).unwrap();
        assert_eq!(super::super::undo(&kept).unwrap(), Outcome::Undone);
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(super::super::undo(&kept).unwrap(), Outcome::Gone);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_symlink_and_an_absence_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let made = look_at(&path, &dns()).unwrap();
        super::super::make(&made).unwrap();
        assert!(path.exists());
        assert_eq!(super::super::undo(&made).unwrap(), Outcome::Undone);
        assert!(!path.exists());

        symlink("../run/nowhere", &path).unwrap();
        let made = look_at(&path, &dns()).unwrap();
        super::super::make(&made).unwrap();
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
        assert_eq!(super::super::undo(&made).unwrap(), Outcome::Undone);
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("../run/nowhere"));
    }

    #[test]
    fn a_file_somebody_else_rewrote_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let made = look_at(&path, &dns()).unwrap();
        super::super::make(&made).unwrap();
        fs::write(&path, "nameserver 10.0.0.77\n").unwrap();
        assert!(matches!(super::super::undo(&made).unwrap(), Outcome::LeftAlone(_)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.77\n");
    }

    #[test]
    fn what_others_write_over_ours_is_what_returns() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let mut made = look_at(&path, &dns()).unwrap();
        super::super::make(&made).unwrap();
        let ours = fs::read_to_string(&path).unwrap();
        assert_eq!(super::super::again(&made, &dns()).unwrap(), None);
        let writes: [(&str, &str); 4] = [
            (&ours[..9], "nameserver 10.0.0.1\n"),
            (&format!("{ours}options edns0\n"), "nameserver 10.0.0.1\n"),
            ("nameserver 10.0.0.77\n", "nameserver 10.0.0.77\n"),
            ("", "nameserver 10.0.0.77\n"),
        ];
        for (written, returns) in writes {
            fs::write(&path, written).unwrap();
            made = super::super::again(&made, &dns()).unwrap().expect(written);
            super::super::make(&made).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), ours);
            assert_eq!(super::super::undo(&made).unwrap(), Outcome::Undone);
            assert_eq!(fs::read_to_string(&path).unwrap(), returns, "after {written:?}");
            super::super::make(&made).unwrap();
        }
        fs::remove_file(&path).unwrap();
        symlink("../run/elsewhere", &path).unwrap();
        made = super::super::again(&made, &dns()).unwrap().unwrap();
        super::super::make(&made).unwrap();
        assert_eq!(super::super::undo(&made).unwrap(), Outcome::Undone);
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("../run/elsewhere"));
    }

    #[test]
    fn the_servers_of_another_tunnel_are_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let made = look_at(&path, &dns()).unwrap();
        super::super::make(&made).unwrap();
        let second = Dns { link: "adit1".into(), ..dns() };
        let error = look_at(&path, &second).unwrap_err();
        assert!(matches!(&error, HostError::DnsTaken { other, .. } if other == "adit0"), "{error}");
        assert!(error.to_string().contains("adit down adit0"), "{error}");
        assert_eq!(super::super::undo(&made).unwrap(), Outcome::Undone);
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.1\n");
        assert!(look_at(&path, &second).is_ok());
    }

    #[test]
    fn a_new_file_that_was_never_renamed_is_swept_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let made = look_at(&path, &dns()).unwrap();
        fs::write(beside(&path), "# adit").unwrap();
        assert_eq!(super::super::undo(&made).unwrap(), Outcome::Gone);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.1\n");
    }

    #[test]
    fn a_file_cut_short_by_a_crash_is_still_ours() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let made = look_at(&path, &dns()).unwrap();
        for kept in [0, 7] {
            fs::write(&path, &text(&dns()).as_bytes()[..kept]).unwrap();
            assert_eq!(super::super::undo(&made).unwrap(), Outcome::Undone);
            assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.1\n");
        }
    }
}
