//! The program for musl: one file without shared libraries, for any Linux of this machine's architecture.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::text_of;
use crate::program::{cargo, find, succeeds, target_dir};

/// What came of it.
pub enum Outcome {
    /// The program is here.
    Built(PathBuf),
    /// This machine lacks something.
    Impossible(String),
    /// The compiler has said why.
    Failed,
}

/// What rustc calls this machine with musl.
pub fn target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// Builds the program, where Rust's standard library for musl and a C compiler for it are here.
pub fn build() -> Result<Outcome> {
    let target = target();
    if !has_std(&target)? {
        return Ok(Outcome::Impossible(format!(
            "Rust's standard library for musl is missing. Run: rustup target add {target}"
        )));
    }
    if find("musl-gcc").is_none() {
        return Ok(Outcome::Impossible(
            "a C compiler for musl is missing. Run: sudo apt-get install musl-tools".to_owned(),
        ));
    }
    let mut build = cargo(&["build", "--release", "--locked", "--package", "adit", "--bin", "adit"]);
    build.args(["--target", &target]);
    build.env(format!("CC_{}", target.replace('-', "_")), "musl-gcc");
    if !succeeds(&mut build)? {
        return Ok(Outcome::Failed);
    }
    let program = target_dir()?.join(&target).join("release/adit");
    let needed = text_of(Command::new("readelf").args(["-d"]).arg(&program))?;
    anyhow::ensure!(!needed.contains("NEEDED"), "{} is not static: {needed}", program.display());
    Ok(Outcome::Built(program))
}

fn has_std(target: &str) -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libraries = text_of(Command::new(rustc).args(["--print", "target-libdir", "--target", target]))
        .context("cannot ask rustc where its libraries are")?;
    let Ok(entries) = std::fs::read_dir(Path::new(libraries.trim())) else { return Ok(false) };
    Ok(entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
}
