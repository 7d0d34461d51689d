//! Who needs which sysctl: the gateways and tunnels of one network namespace share its switches, and the last to go
//! puts them back.
//!
//! One file per network namespace, under the lock of their directory. A hold counts while its journal exists; a file of
//! another boot, or of a namespace that is gone and had the same number, says nothing. Should it be lost, each journal still tells what was there before.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf, absolute};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::namespace;
use crate::plan::Sysctl;
use crate::sysctl::MadeSysctl;

const DIRECTORY: &str = "/run/adit/sysctls";
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The holds of the calling thread's network namespace, locked.
#[derive(Debug)]
pub(crate) struct Holds {
    directory: PathBuf,
    path: PathBuf,
    content: Content,
    _lock: File,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Content {
    boot: String,
    /// Of the namespace whose number is the name of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cookie: Option<u64>,
    holds: Vec<Hold>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hold {
    #[serde(flatten)]
    made: MadeSysctl,
    journals: Vec<PathBuf>,
}

impl Holds {
    pub(crate) fn lock() -> Result<Holds, HostError> {
        Holds::lock_in(Path::new(DIRECTORY))
    }

    fn lock_in(directory: &Path) -> Result<Holds, HostError> {
        let lock = lock(directory)?;
        let path = directory.join(namespace::current().trim_matches(|c: char| !c.is_ascii_digit()));
        let content = read(&path)?;
        Ok(Holds { directory: directory.to_owned(), path, content, _lock: lock })
    }

    /// The change that those who hold `wanted` live on.
    pub(crate) fn made(&self, wanted: &Sysctl) -> Option<&MadeSysctl> {
        self.content.holds.iter().map(|hold| &hold.made).find(|made| made.makes(wanted))
    }

    pub(crate) fn hold(&mut self, made: &MadeSysctl, journal: &Path) -> Result<(), HostError> {
        let journal = name(journal)?;
        match self.content.holds.iter_mut().find(|hold| hold.made.makes(made.sysctl())) {
            Some(hold) if hold.journals.contains(&journal) => return Ok(()),
            Some(hold) => hold.journals.push(journal),
            None => self.content.holds.push(Hold { made: made.clone(), journals: vec![journal] }),
        }
        self.save()
    }

    /// The journals beside `journal` that hold it too.
    pub(crate) fn others(&self, made: &MadeSysctl, journal: &Path) -> Result<Vec<PathBuf>, HostError> {
        let journal = name(journal)?;
        let holds = self.content.holds.iter().filter(|hold| hold.made.makes(made.sysctl()));
        Ok(holds.flat_map(|hold| &hold.journals).filter(|it| **it != journal).cloned().collect())
    }

    pub(crate) fn release(&mut self, made: &MadeSysctl, journal: &Path) -> Result<(), HostError> {
        let journal = name(journal)?;
        for hold in self.content.holds.iter_mut().filter(|hold| hold.made.makes(made.sysctl())) {
            hold.journals.retain(|it| *it != journal);
        }
        self.content.holds.retain(|hold| !hold.journals.is_empty());
        self.save()
    }

    fn save(&mut self) -> Result<(), HostError> {
        let problem = |error| HostError::file("write", &self.path, error);
        if self.content.holds.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(problem(error)),
                _ => Ok(()),
            };
        }
        self.content.boot = namespace::boot();
        self.content.cookie = namespace::cookie();
        let new = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(&self.content).map_err(io::Error::other)?)?;
            fs::rename(&new, &self.path)
        };
        write().map_err(problem)
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        // Fails while anybody holds anything, as it should.
        let _ = fs::remove_dir(&self.directory);
    }
}

fn lock(directory: &Path) -> Result<File, HostError> {
    let problem = |error| HostError::file("lock the directory", directory, error);
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        created.map_err(|error| HostError::file("create the directory", directory, error))?;
        let file = match File::open(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(problem)?,
        };
        match file.try_lock() {
            Ok(()) => {
                // Between our open and our lock its former holder may have removed the directory.
                let ours = file.metadata().map_err(problem)?.ino();
                if fs::metadata(directory).is_ok_and(|there| there.ino() == ours) {
                    return Ok(file);
                }
            }
            Err(TryLockError::WouldBlock) if Instant::now() < patience => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => return Err(problem(io::ErrorKind::TimedOut.into())),
            Err(TryLockError::Error(error)) => return Err(problem(error)),
        }
    }
}

fn read(path: &Path) -> Result<Content, HostError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::default()),
        bytes => bytes.map_err(|error| HostError::file("read", path, error))?,
    };
    let mut content = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!("{} cannot be read and is begun anew ({error})", path.display());
        Content::default()
    });
    if content.boot != namespace::boot() || !namespace::may_be_here(content.cookie) {
        return Ok(Content::default());
    }
    for hold in &mut content.holds {
        hold.journals.retain(|journal| fs::symlink_metadata(journal).is_ok());
    }
    content.holds.retain(|hold| !hold.journals.is_empty());
    Ok(content)
}

/// A journal is the same file whatever directory its user stands in.
fn name(journal: &Path) -> Result<PathBuf, HostError> {
    absolute(journal).map_err(|error| HostError::file("find", journal, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> MadeSysctl {
        let text = r#"{"key":"net.ipv4.ip_forward","value":"1","old":"0"}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_hold_lasts_as_long_as_its_journal_and_its_boot() {
        let directory = tempfile::tempdir().unwrap();
        let holds = directory.path().join("adit/sysctls");
        let journals = ["a", "b"].map(|name| directory.path().join(name));
        for journal in &journals {
            fs::write(journal, "").unwrap();
            Holds::lock_in(&holds).unwrap().hold(&made(), journal).unwrap();
        }
        let others = || Holds::lock_in(&holds).unwrap().others(&made(), &journals[0]).unwrap();
        assert_eq!(others(), [journals[1].clone()]);
        let file = Holds::lock_in(&holds).unwrap().path.clone();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&holds).unwrap().mode() & 0o777, 0o700);

        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace(&namespace::boot(), "an-earlier-one")).unwrap();
        assert!(others().is_empty());
        if let Some(cookie) = namespace::cookie() {
            let of_another = text.replace(&format!("\"cookie\":{cookie}"), "\"cookie\":7777777");
            assert_ne!(of_another, text);
            fs::write(&file, of_another).unwrap();
            assert!(others().is_empty(), "the number went to another namespace");
        }
        fs::write(&file, &text[..text.len() / 2]).unwrap();
        assert!(others().is_empty());
        fs::write(&file, &text).unwrap();
        assert_eq!(others().len(), 1);
        fs::remove_file(&journals[1]).unwrap();
        assert!(others().is_empty());

        Holds::lock_in(&holds).unwrap().release(&made(), &journals[0]).unwrap();
        assert!(!holds.exists());
    }

    #[test]
    fn one_at_a_time_looks_and_writes() {
        let directory = tempfile::tempdir().unwrap();
        let holds = directory.path().join("sysctls");
        let journals: Vec<PathBuf> = (0..8).map(|it| directory.path().join(it.to_string())).collect();
        let holds = &holds;
        thread::scope(|scope| {
            for journal in &journals {
                scope.spawn(move || {
                    fs::write(journal, "").unwrap();
                    Holds::lock_in(holds).unwrap().hold(&made(), journal).unwrap();
                });
            }
        });
        assert_eq!(Holds::lock_in(holds).unwrap().others(&made(), Path::new("/")).unwrap().len(), 8);
        thread::scope(|scope| {
            for journal in &journals {
                scope.spawn(move || Holds::lock_in(holds).unwrap().release(&made(), journal).unwrap());
            }
        });
        assert!(!holds.exists());
    }
}
