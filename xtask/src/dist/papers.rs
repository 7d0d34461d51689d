//! What goes with the program: manual pages, completions, the unit. The program itself writes them all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{must, text_of};

/// The papers of one program, in a directory.
pub struct Papers {
    /// Manual pages of section 1.
    pub man: Vec<PathBuf>,
    /// For bash, zsh and fish.
    pub completions: Vec<Completion>,
    unit: String,
    restore_unit: String,
}

/// The completions for a shell.
pub struct Completion {
    /// Where a distribution looks for it, below `/`.
    pub place: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// What is in it.
    pub text: String,
}

const SHELLS: [(&str, &str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions", "adit"),
    ("zsh", "usr/share/zsh/vendor-completions", "_adit"),
    ("fish", "usr/share/fish/vendor_completions.d", "adit.fish"),
];

impl Papers {
    /// Has `program` write its papers.
    pub fn of(program: &Path, directory: &Path) -> Result<Self> {
        let adit = || Command::new(program);
        let man_directory = directory.join("man");
        must(adit().args(["man", "--all"]).arg(&man_directory))?;
        let mut man: Vec<PathBuf> =
            fs::read_dir(&man_directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        man.sort();
        let completions = SHELLS
            .map(|(shell, place, name)| {
                let text = text_of(adit().args(["completions", shell]))?;
                Ok(Completion { place, name, text })
            })
            .into_iter()
            .collect::<Result<_>>()?;
        let unit = text_of(adit().args(["service", "install", "--print"]))?;
        let restore_unit = text_of(adit().args(["service", "install", "--restore", "--print"]))?;
        Ok(Self { man, completions, unit, restore_unit })
    }

    /// The unit for a program installed at `path`.
    pub fn unit(&self, path: &str) -> Result<String> {
        unit_at(&self.unit, path).context("the unit that adit prints has no ExecStart")
    }

    /// The unit that puts back at boot what a tunnel left, for a program installed at `path`.
    pub fn restore_unit(&self, path: &str) -> Result<String> {
        unit_at(&self.restore_unit, path).context("the unit that adit prints has no ExecStart")
    }
}

/// The unit as a package has it: it starts the program where the package puts it, and does not say that
/// `adit service` wrote it, which would take it away again.
fn unit_at(unit: &str, path: &str) -> Option<String> {
    let mut text = String::new();
    let mut has_start = false;
    let lines = unit.lines().skip_while(|line| line.starts_with('#') || line.is_empty());
    for line in lines {
        match line.strip_prefix("ExecStart=") {
            Some(command) => {
                has_start = true;
                let arguments = command.split_once(' ').map(|(_, arguments)| arguments)?;
                text.push_str(&format!("ExecStart={path} {arguments}\n"));
            }
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    has_start.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_starts_the_program_where_the_package_puts_it() {
        let unit = "# Written by `adit service install`\n\n[Unit]\nDescription=x\n[Service]\nExecStart=/tmp/a/adit gateway\n";
        assert_eq!(
            unit_at(unit, "/usr/bin/adit").unwrap(),
            "[Unit]\nDescription=x\n[Service]\nExecStart=/usr/bin/adit gateway\n"
        );
        assert_eq!(unit_at("[Unit]\n", "/usr/bin/adit"), None);
    }
}
