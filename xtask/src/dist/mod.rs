//! Packages: a `.deb`, and a tarball for any Linux.
//!
//! ```text
//!   adit (built here, or given) ─► papers: manual pages, completions, unit ─┬─► adit_VERSION_ARCH.deb
//!   adit for musl, where it can be built ───────────────────────────────────┴─► adit-VERSION-ARCH-linux-LIBC.tar.gz
//! ```

mod deb;
mod musl;
mod papers;
mod tarball;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::papers::Papers;
use crate::program::{cargo, find, root, succeeds, target_dir};
use crate::setup;

/// What `cargo xtask dist` is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Package this program instead of building one; there is no tarball for musl then.
    binary: Option<PathBuf>,
    /// Where the packages go.
    out: Option<PathBuf>,
}

impl Options {
    /// `None` is a usage error.
    pub fn parse(mut args: &[&str]) -> Option<Self> {
        let mut options = Self::default();
        while let [flag, value, rest @ ..] = args {
            match *flag {
                "--binary" => options.binary = Some(value.into()),
                "--out" => options.out = Some(value.into()),
                _ => return None,
            }
            args = rest;
        }
        args.is_empty().then_some(options)
    }
}

/// A program to be packaged, and what is said of it.
struct Program {
    path: PathBuf,
    version: String,
    /// `x86_64` and the like.
    machine: String,
}

/// Makes the packages and the list of their checksums.
pub fn run(options: &Options) -> Result<bool> {
    let out = match &options.out {
        Some(out) => out.clone(),
        None => target_dir()?.join("dist"),
    };
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let work = out.join(".work");
    let _ = fs::remove_dir_all(&work);
    if options.binary.is_none() {
        setup::for_dist(&musl::target())?;
    }
    let built = match &options.binary {
        Some(binary) => binary.clone(),
        None => match build()? {
            Some(binary) => binary,
            None => return Ok(false),
        },
    };
    let program = prepare(&built, &work.join("gnu"))?;
    let papers = Papers::of(&program.path, &work.join("papers"))?;
    let mut made = vec![deb::make(&program, &papers, &work.join("deb"), &out)?];
    made.push(tarball::make(&program, &papers, "gnu", &work, &out)?);
    if options.binary.is_none() {
        match musl::build()? {
            musl::Outcome::Built(path) => {
                let program = prepare(&path, &work.join("musl"))?;
                made.push(tarball::make(&program, &papers, "musl", &work, &out)?);
            }
            musl::Outcome::Impossible(why) => {
                println!("no static tarball: {why}");
            }
            musl::Outcome::Failed => return Ok(false),
        }
    }
    checksums(&made, &out)?;
    fs::remove_dir_all(&work)?;
    for path in &made {
        println!("{}  {} KiB", path.display(), fs::metadata(path)?.len() / 1024);
    }
    Ok(true)
}

fn build() -> Result<Option<PathBuf>> {
    if !succeeds(&mut cargo(&["build", "--release", "--locked", "--package", "adit", "--bin", "adit"]))? {
        return Ok(None);
    }
    Ok(Some(target_dir()?.join("release/adit")))
}

/// A copy without what only debuggers read.
fn prepare(binary: &Path, directory: &Path) -> Result<Program> {
    fs::create_dir_all(directory)?;
    let path = directory.join("adit");
    fs::copy(binary, &path).with_context(|| format!("cannot copy {}", binary.display()))?;
    if find("strip").is_none() || !succeeds(Command::new("strip").arg("--strip-unneeded").arg(&path))? {
        bail!("strip does not work; install binutils");
    }
    let said = text_of(Command::new(&path).arg("--version"))?;
    let version = said.split_whitespace().nth(1).context("adit does not say its version")?.to_owned();
    Ok(Program { path, version, machine: std::env::consts::ARCH.to_owned() })
}

/// In the form of `sha256sum -c`.
fn checksums(made: &[PathBuf], out: &Path) -> Result<()> {
    let names = made.iter().filter_map(|path| path.file_name());
    let sums = text_of(Command::new("sha256sum").args(names).current_dir(out))?;
    fs::write(out.join("SHA256SUMS"), sums)?;
    Ok(())
}

/// What a command writes; it has to succeed.
fn text_of(command: &mut Command) -> Result<String> {
    let output =
        command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", command.get_program().display(), output.status, said.trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a command that has to succeed.
fn must(command: &mut Command) -> Result<()> {
    text_of(command).map(drop)
}

/// The time that files in packages have: that of the last commit, so that the same commit makes the same packages.
fn source_date() -> String {
    let stamp = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()).output();
    let stamp = stamp.ok().filter(|output| output.status.success());
    let stamp = stamp.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    stamp.filter(|text| !text.is_empty()).unwrap_or_else(|| "0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_values_and_nothing_else_is_one() {
        assert_eq!(Options::parse(&[]), Some(Options::default()));
        let options = Options::parse(&["--binary", "/x/adit", "--out", "y"]).unwrap();
        assert_eq!((options.binary, options.out), (Some("/x/adit".into()), Some("y".into())));
        assert_eq!(Options::parse(&["--binary"]), None);
        assert_eq!(Options::parse(&["x"]), None);
        assert_eq!(Options::parse(&["--x", "y"]), None);
    }
}
