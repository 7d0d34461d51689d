//! Where one instance of adit keeps its files: configuration, state and sockets.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::private_file;
use crate::privilege::{self, quote_path};

/// The directories of one instance; several instances live on one host with a home each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Holds `adit.toml`.
    pub config_dir: PathBuf,
    /// What outlives a reboot: the journal, endpoints, leases.
    pub state_dir: PathBuf,
    /// What does not: sockets and pid files.
    pub run_dir: PathBuf,
    chosen: Option<PathBuf>,
}

impl Home {
    /// The home in `directory`, or the one of the system (`/etc/adit`, `/var/lib/adit`, `/run/adit`).
    ///
    /// # Errors
    /// `directory` is empty, or relative while the working directory is gone.
    pub fn new(directory: Option<&Path>) -> anyhow::Result<Self> {
        let Some(directory) = directory else {
            return Ok(Self {
                config_dir: "/etc/adit".into(),
                state_dir: "/var/lib/adit".into(),
                run_dir: "/run/adit".into(),
                chosen: None,
            });
        };
        let directory = std::path::absolute(directory).context("--home names no directory")?;
        Ok(Self {
            state_dir: directory.join("state"),
            run_dir: directory.join("run"),
            config_dir: directory.clone(),
            chosen: Some(directory),
        })
    }

    /// The home for what an ordinary user may do: with nothing chosen, theirs (`~/.config/adit` and the like, or where
    /// `XDG_CONFIG_HOME`, `XDG_STATE_HOME` and `XDG_RUNTIME_DIR` say), unless they are root.
    #[must_use]
    pub fn of_user(self) -> Self {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
        match (&self.chosen, privilege::user_id(), variable("HOME")) {
            (None, Some(1..), Some(home)) => {
                let state = variable("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state"));
                let run = variable("XDG_RUNTIME_DIR").map(|it| it.join("adit"));
                Self {
                    config_dir: variable("XDG_CONFIG_HOME")
                        .unwrap_or_else(|| home.join(".config"))
                        .join("adit"),
                    run_dir: run.unwrap_or_else(|| state.join("adit/run")),
                    state_dir: state.join("adit"),
                    chosen: None,
                }
            }
            _ => self,
        }
    }

    /// The directory that was chosen with `--home`, if one was.
    pub fn chosen(&self) -> Option<&Path> {
        self.chosen.as_deref()
    }

    /// The configuration of the gateway.
    pub fn config_file(&self) -> PathBuf {
        self.config_dir.join("adit.toml")
    }

    /// Makes the directories that are missing, for their owner alone (0700).
    ///
    /// # Errors
    /// The system refused, or others may change what is in one of them.
    pub fn create(&self) -> anyhow::Result<()> {
        [&self.config_dir, &self.state_dir, &self.run_dir]
            .into_iter()
            .try_for_each(|directory| private_file::create_directory(directory))
    }

    /// ` --home DIR` for a command that a person is told to run, or nothing for the home of the system.
    pub fn flag(&self) -> String {
        self.chosen.as_ref().map(|directory| format!(" --home {}", quote_path(directory))).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chosen_home_moves_everything_together() {
        let home = Home::new(Some(Path::new("/a"))).unwrap();
        assert_eq!(home.config_file(), Path::new("/a/adit.toml"));
        assert_eq!(
            (home.state_dir.as_path(), home.run_dir.as_path()),
            (Path::new("/a/state"), Path::new("/a/run"))
        );
        assert_eq!(home.flag(), " --home /a");
        assert_eq!(Home::new(None).unwrap().config_file(), Path::new("/etc/adit/adit.toml"));
    }

    #[test]
    fn a_relative_home_does_not_depend_on_the_working_directory_later() {
        assert!(Home::new(Some(Path::new("x"))).unwrap().config_dir.is_absolute());
        assert!(Home::new(Some(Path::new(""))).is_err());
    }
}
