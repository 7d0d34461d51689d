//! The demonstration, built for speed because it measures.

use std::process::Command;

use anyhow::{Result, bail};

use crate::program::{cargo, is_root, root, succeeds, target_dir};
use crate::setup;

/// Builds adit and runs `adit demo` with `args`.
pub fn run(args: &[&str]) -> Result<bool> {
    setup::for_demo()?;
    if !succeeds(&mut cargo(&["build", "--release", "--locked", "--package", "adit", "--bin", "adit"]))? {
        return Ok(false);
    }
    let adit = target_dir()?.join("release/adit");
    if !is_root() {
        bail!(
            "the demonstration makes network namespaces, and that needs root. Run: sudo {} demo {}",
            adit.display(),
            args.join(" ")
        );
    }
    succeeds(Command::new(adit).arg("demo").args(args).current_dir(root()))
}
