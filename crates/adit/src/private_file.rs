//! Files that hold keys: only their owner may read them, and they change as a whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use zeroize::Zeroizing;

use crate::privilege::{self, quote_path as quote};

/// The largest file that is read.
pub const MAX_BYTES: u64 = 16 << 20;

/// Why a file with keys in it was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is not there.
    #[error("there is no file {0}")]
    Missing(PathBuf),
    /// The name is there, and leads nowhere.
    #[error("{0} is a symbolic link that leads to no file")]
    Dangling(PathBuf),
    /// Others may read or change the file.
    #[error("{path} can be read or changed by others (mode {mode:04o}) and holds keys")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody else, who can change it.
    #[error("{path} belongs to user {owner}, not to root or to you")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
    /// It is a directory or a device.
    #[error("{0} is not a file")]
    NotAFile(PathBuf),
    /// It is larger than any configuration.
    #[error("{0} is larger than 16 MiB")]
    TooLarge(PathBuf),
    /// The system refused.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ReadError {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Missing(_) => "check the name of the file".to_owned(),
            Self::Dangling(path) => format!("`ls -l {}` shows where it leads", quote(path)),
            Self::Exposed { path, .. } => format!("run `chmod 600 {}`", quote(path)),
            Self::Foreign { path, .. } => {
                format!("look into it, and if it is right run `chown root: {}`", quote(path))
            }
            Self::NotAFile(_) | Self::TooLarge(_) => "name the configuration file itself".to_owned(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run the command with sudo, or choose your own directory with --home DIR".to_owned()
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                "name a file, or begin to write into the pipe".to_owned()
            }
            Self::Io { .. } => "check the name and the disk".to_owned(),
        }
    }
}

/// Reads a file that holds keys. A pipe (`/dev/stdin`, `<(...)`) is taken as it is.
///
/// # Errors
/// The file is missing, exposed to others, foreign, too large or unreadable.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound if path.is_symlink() => ReadError::Dangling(path.to_owned()),
        io::ErrorKind::NotFound => ReadError::Missing(path.to_owned()),
        _ => ReadError::Io { path: path.to_owned(), source },
    };
    let file = open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let kind = metadata.file_type();
    if kind.is_file() {
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(ReadError::Exposed { path: path.to_owned(), mode });
        }
        let owner = metadata.uid();
        if owner != 0 && Some(owner) != privilege::user_id() && Some(owner) != privilege::sudo_user_id() {
            return Err(ReadError::Foreign { path: path.to_owned(), owner });
        }
    } else if kind.is_dir() {
        return Err(ReadError::NotAFile(path.to_owned()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len().min(MAX_BYTES) as usize + 1));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ReadError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

/// How long a pipe with a name may wait for somebody who writes into it.
const PIPE_PATIENCE: Duration = Duration::from_secs(5);

/// Opening a pipe with a name waits for its writer, who may never come.
fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.file_type().is_fifo() {
        return File::open(path);
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let named = path.to_owned();
    std::thread::Builder::new().name("pipe".into()).spawn(move || {
        let _ = sender.send(File::open(named));
    })?;
    receiver.recv_timeout(PIPE_PATIENCE).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, "it is a pipe, and nobody writes into it"))
    })
}

/// Writes a file that only its owner may read. It is the old file or the new file after a crash,
/// never a part of one.
///
/// # Errors
/// The system refused; the old file is as it was.
pub fn write(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    // The file behind a symbolic link is replaced, not the link.
    let path = match fs::canonicalize(path) {
        Ok(path) => path,
        Err(_) if path.is_symlink() => bail!(
            "{} is a symbolic link that leads to no file; nothing was written: remove the link, or make what it leads to",
            path.display()
        ),
        Err(_) => path.to_owned(),
    };
    replace(&path, contents, 0o600)
}

/// Writes a file that everybody may read, for another program: the old one or the new one, as [`write()`] does it. A
/// symbolic link of that name is replaced, not followed.
///
/// # Errors
/// The system refused; the old file is as it was.
pub fn write_public(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    replace(path, contents, 0o644)
}

/// Keeps `path` as it is under another name: with `suffix` and the next number. Where that is.
///
/// # Errors
/// The file cannot be read or kept.
pub fn keep_backup(path: &Path, suffix: &str) -> anyhow::Result<PathBuf> {
    let contents = read(path)?;
    for number in 1..10_000 {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("{suffix}{number}"));
        let backup = PathBuf::from(name);
        if fs::symlink_metadata(&backup).is_err() {
            write(&backup, &contents)?;
            return Ok(backup);
        }
    }
    bail!("there are too many backups of {}; remove some", path.display())
}

fn replace(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let mut new = name.to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = directory.join(new);
    let written = write_new(&new, contents, mode).and_then(|()| fs::rename(&new, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&new);
        return Err(error).with_context(|| format!("cannot write {}; nothing was changed", path.display()));
    }
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot write {} to the disk", directory.display()))
}

/// Removes what [`write()`] left of those files in `directory` whose writer was killed. To be called while nobody writes
/// to them.
pub fn remove_unfinished(directory: &Path, is_meant: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_suffix(".new"));
        if let Some((file, pid)) = rest.and_then(|rest| rest.rsplit_once('.'))
            && pid.bytes().all(|byte| byte.is_ascii_digit())
            && is_meant(file)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn write_new(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // Whatever the umask says.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(contents)?;
    file.sync_all()
}

/// Makes a directory (and those above it) that only its owner may enter; one that exists stays as it is.
///
/// # Errors
/// The system refused, or others may change what is in the directory.
pub fn create_directory(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    if let Err(error) = made {
        let fix = match error.kind() {
            io::ErrorKind::PermissionDenied => "run with sudo, or choose your own directory with --home DIR",
            _ => "check the path",
        };
        bail!("cannot make the directory {}: {error}; {fix}", path.display());
    }
    let mode = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.mode();
    let sticky = mode & 0o1000 != 0;
    if mode & 0o022 != 0 && !sticky {
        bail!(
            "others may change what is in {} (mode {:04o}); run `chmod 700 {}`",
            path.display(),
            mode & 0o7777,
            quote(path)
        );
    }
    Ok(())
}

/// Holds the lock of a file that several `adit` may change, until it is dropped.
///
/// # Errors
/// The lock file cannot be made.
pub fn lock(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open the lock file {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// When stdout is a file that others may read, takes their access away before a key goes in. Below sudo
/// the file belongs to who called sudo, and root protects it all the same.
///
/// # Errors
/// The system refused.
pub fn protect_stdout() -> anyhow::Result<()> {
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned().context("stdout is closed")?);
    let metadata = stdout.metadata().context("cannot look at stdout")?;
    let user = privilege::user_id();
    let ours = user == Some(0) || user == Some(metadata.uid());
    if metadata.file_type().is_file() && metadata.mode() & 0o077 != 0 && ours {
        stdout
            .set_permissions(fs::Permissions::from_mode(0o600))
            .context("cannot make the output file private")?;
        eprintln!("note: the output holds a key, so only its owner may read the file now (mode 0600)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_private_and_replaces_the_old_one_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(&read(&path).unwrap()[..], b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a.json", "a.json.17.new", "b.json.17.new", "a.json.x.new", "a.json.new"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        remove_unfinished(directory.path(), |name| name == "a.json");
        let mut left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a.json", "a.json.new", "a.json.x.new", "b.json.17.new"]);
    }

    #[test]
    fn a_symbolic_link_survives_a_write() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        write(&real, b"one").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write(&link, b"two").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"two");
    }

    #[test]
    fn a_symbolic_link_that_leads_nowhere_is_named_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(matches!(read(&link), Err(ReadError::Dangling(_))));
        let error = write(&link, b"one").unwrap_err().to_string();
        assert!(error.contains("leads to no file"), "{error}");
        assert!(link.is_symlink() && !real.exists());
        write(&real, b"one").unwrap();
        write(&link, b"two").unwrap();
        assert_eq!(&read(&link).unwrap()[..], b"two");
    }

    #[test]
    fn a_public_file_takes_the_place_of_a_link_and_leaves_what_it_led_to() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        write(&real, b"one").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_public(&link, b"two").unwrap();
        assert!(!link.is_symlink());
        assert_eq!((fs::read(&real).unwrap(), fs::read(&link).unwrap()), (b"one".to_vec(), b"two".to_vec()));
        assert_eq!(fs::metadata(&link).unwrap().mode() & 0o7777, 0o644);
    }

    #[test]
    fn a_pipe_is_read_from_its_writer_and_one_that_nobody_writes_into_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (silent, spoken) = (directory.path().join("silent"), directory.path().join("spoken"));
        let made = std::process::Command::new("mkfifo").args([&silent, &spoken]).status().unwrap();
        assert!(made.success());
        let error = read(&silent).unwrap_err();
        assert!(error.to_string().contains("nobody writes into it"), "{error}");
        let named = spoken.clone();
        let writer = std::thread::spawn(move || fs::write(named, "x").unwrap());
        assert_eq!(&read(&spoken).unwrap()[..], b"x");
        writer.join().unwrap();
    }

    #[test]
    fn a_file_that_others_may_touch_is_refused_with_the_line_to_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write(&path, b"x").unwrap();
        assert!(read(&path).is_ok());
        for mode in [0o640, 0o604, 0o620, 0o610, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err();
            assert!(matches!(error, ReadError::Exposed { .. }), "{mode:o}: {error}");
            assert_eq!(error.fix(), format!("run `chmod 600 {}`", path.display()));
        }
        let spaced = ReadError::Exposed { path: "/a b".into(), mode: 0o644 };
        assert_eq!(spaced.fix(), "run `chmod 600 '/a b'`");
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read(directory.path()), Err(ReadError::NotAFile(_))));
        assert!(matches!(read(&directory.path().join("none")), Err(ReadError::Missing(_))));
        let path = directory.path().join("large");
        write(&path, b"").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(read(&path), Err(ReadError::TooLarge(_))));
    }

    #[test]
    fn new_directories_are_private_and_open_ones_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        create_directory(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(create_directory(&path).is_err());
    }
}
