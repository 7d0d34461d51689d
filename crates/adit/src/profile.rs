//! The profiles of a home: wg-quick files by name, which `up`, `proxy` and `run` use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};

use crate::config::InterfaceName;
use crate::config::diagnostic::did_you_mean;
use crate::config::wgquick::WgQuick;
use crate::home::Home;
use crate::private_file;

/// What a verb that needs a profile is called, for messages: `up`, `proxy`, `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForVerb(pub &'static str, pub &'static str);

/// The directory of stored profiles.
pub fn directory(home: &Home) -> PathBuf {
    home.config_dir.join("profiles")
}

/// Where the profile of that name is stored.
pub fn path(home: &Home, name: &InterfaceName) -> PathBuf {
    directory(home).join(format!("{name}.conf"))
}

/// The file that a command means: a file by its name, a stored profile by its own, or the only one there is.
///
/// # Errors
/// There is none of that name, or none or several to choose from.
pub fn find(home: &Home, named: Option<&Path>, verb: ForVerb) -> anyhow::Result<PathBuf> {
    let Some(named) = named else { return only(home, verb) };
    // With a `/` or an ending it is a path; what else lies about under the name of a profile does not hide it.
    let is_bare = named.components().count() == 1 && named.extension().is_none();
    let names = if is_bare { all(home) } else { Vec::new() };
    if let Some((_, path)) = names.iter().find(|(name, _)| Path::new(name) == named) {
        return Ok(path.clone());
    }
    if !is_bare || named.is_file() {
        return Ok(named.to_owned());
    }
    let wanted = named.to_string_lossy();
    Err(match did_you_mean(&wanted, names.iter().map(|(name, _)| name.as_str())) {
        Some(word) => anyhow!("there is no profile `{wanted}`; did you mean `{word}`?"),
        None if names.is_empty() => anyhow!(
            "there is no profile `{wanted}`, and no other; `adit join URL{}` makes one, or name a FILE.conf",
            home.flag()
        ),
        None => anyhow!(
            "there is no profile `{wanted}` in {}; there are: {}",
            directory(home).display(),
            list(&names)
        ),
    })
}

fn only(home: &Home, ForVerb(verb, rest): ForVerb) -> anyhow::Result<PathBuf> {
    let names = all(home);
    match names.as_slice() {
        [(_, path)] => Ok(path.clone()),
        [] => bail!(
            "there is no profile in {1}; name a file: `adit {verb} FILE.conf{0}{rest}`, or get one with `adit join URL{0}`",
            home.flag(),
            directory(home).display()
        ),
        [(first, _), ..] => bail!(
            "there are several profiles in {}: {}; name one: `adit {verb} {first}{}{rest}`",
            directory(home).display(),
            list(&names),
            home.flag()
        ),
    }
}

fn list(names: &[(String, PathBuf)]) -> String {
    names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Every profile by name, in order: stored ones, and files beside `adit.toml` whose name is not stored.
pub fn all(home: &Home) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for directory in [directory(home), home.config_dir.clone()] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_profile = path.extension().is_some_and(|extension| extension == "conf");
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_profile) else {
                continue;
            };
            if !name.starts_with('.') && found.iter().all(|(known, _)| known != name) {
                found.push((name.to_owned(), path.clone()));
            }
        }
    }
    found.sort();
    found
}

/// A name that no profile and no interface of this host has: `adit0`, `adit1` and so on.
///
/// # Errors
/// The system does not say which interfaces there are, or all names are taken.
pub fn free_name(home: &Home) -> anyhow::Result<InterfaceName> {
    let taken = all(home);
    for number in 0..1000 {
        let name = format!("adit{number}");
        if taken.iter().all(|(known, _)| *known != name) && !adit_host::link_exists(&name)? {
            return Ok(name.parse()?);
        }
    }
    bail!("every name from adit0 to adit999 is taken; choose one with --name")
}

/// Makes the directory of profiles, for its owner alone.
///
/// # Errors
/// The system refused.
pub fn create_directory(home: &Home) -> anyhow::Result<()> {
    home.create()?;
    private_file::create_directory(&directory(home))
}

/// Stores a profile, whole or not at all; where it is.
///
/// # Errors
/// The file cannot be written.
pub fn store(home: &Home, name: &InterfaceName, file: &WgQuick) -> anyhow::Result<PathBuf> {
    create_directory(home)?;
    let path = path(home, name);
    private_file::write(&path, file.to_text().as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: ForVerb = ForVerb("run", " -- CMD");

    fn home() -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        create_directory(&home).unwrap();
        (directory, home)
    }

    #[test]
    fn the_profile_need_not_be_named_when_there_is_only_one() {
        let (_directory, home) = home();
        let only = || find(&home, None, RUN);
        assert!(only().unwrap_err().to_string().contains("no profile"));
        let first = directory(&home).join("first.conf");
        fs::write(&first, "").unwrap();
        fs::write(home.config_file(), "").unwrap();
        assert_eq!(only().unwrap(), first);
        fs::write(home.config_dir.join("second.conf"), "").unwrap();
        let error = only().unwrap_err().to_string();
        assert!(
            error.contains("first, second")
                && error.contains("`adit run first --home ")
                && error.contains(" -- CMD`"),
            "{error}"
        );
    }

    #[test]
    fn a_name_means_a_stored_profile_and_a_path_a_file() {
        let (_directory, home) = home();
        let stored = directory(&home).join("work.conf");
        let beside = home.config_dir.join("work.conf");
        fs::write(&beside, "").unwrap();
        assert_eq!(find(&home, Some("work".as_ref()), RUN).unwrap(), beside, "the former place");
        fs::write(&stored, "").unwrap();
        assert_eq!(find(&home, Some("work".as_ref()), RUN).unwrap(), stored);
        for path in ["work.conf", "./work", "/x/work.conf"] {
            assert_eq!(find(&home, Some(path.as_ref()), RUN).unwrap(), Path::new(path));
        }
        let error = find(&home, Some("wrok".as_ref()), RUN).unwrap_err().to_string();
        assert!(error.contains("did you mean `work`?"), "{error}");
        let error = find(&home, Some("elsewhere".as_ref()), RUN).unwrap_err().to_string();
        assert!(error.contains("there are: work"), "{error}");
    }

    #[test]
    fn names_that_are_taken_are_passed_over() {
        let (_directory, home) = home();
        let free = || free_name(&home).unwrap().to_string();
        let first = free();
        fs::write(directory(&home).join(format!("{first}.conf")), "").unwrap();
        assert_ne!(free(), first);
    }
}
