//! resolvconf(8), of openresolv or Debian.

use std::path::Path;

use crate::error::HostError;
use crate::guard::Outcome;
use crate::program;

/// Debian's resolvconf orders its sources by name, and `tun.` comes before every other interface.
pub(super) fn name(link: &str) -> String {
    match Path::new("/etc/resolvconf/interface-order").exists() {
        true => format!("tun.{link}"),
        false => link.to_owned(),
    }
}

pub(super) fn make(name: &str, text: &str) -> Result<(), HostError> {
    run(&["-a", name, "-m", "0", "-x"], text, "set the DNS servers with resolvconf")
}

pub(super) fn undo(name: &str) -> Result<Outcome, HostError> {
    run(&["-d", name, "-f"], "", "take our DNS servers back from resolvconf")?;
    Ok(Outcome::Undone)
}

fn run(arguments: &[&str], input: &str, doing: &str) -> Result<(), HostError> {
    let path = program::find("resolvconf").ok_or_else(|| HostError::ProgramMissing {
        doing: doing.to_owned(),
        program: "resolvconf",
        install: "apt install openresolv (Debian, Ubuntu), dnf install openresolv (Fedora)",
    })?;
    program::run(&path, arguments, input, doing)
}
