//! The programs that are measured, and those that measure: built or found before anything runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::options::{Options, Peer};
use crate::program::{cargo, find, root, succeeds, target_dir};

/// Where each program is.
pub struct Programs {
    pub adit: PathBuf,
    /// The load generator of handshakes.
    pub initiator: PathBuf,
    paths: BTreeMap<Peer, PathBuf>,
    pub versions: BTreeMap<String, String>,
}

impl Programs {
    /// Builds what is ours and finds what is not.
    pub fn ready(options: &Options) -> Result<Self> {
        let build = ["build", "--release", "--locked", "--package", "adit", "--bin", "adit"];
        let example = ["build", "--release", "--locked", "--package", "adit-proto", "--example", "initiator"];
        if !succeeds(&mut cargo(&build))? || !succeeds(&mut cargo(&example))? {
            bail!("adit could not be built: see above");
        }
        let release = target_dir()?.join("release");
        let adit = release.join("adit");
        let mut programs = Self {
            initiator: release.join("examples/initiator"),
            paths: BTreeMap::new(),
            versions: BTreeMap::new(),
            adit: adit.clone(),
        };
        for peer in &options.peers {
            let path = match peer {
                Peer::Aes | Peer::Chacha | Peer::AesTcp => adit.clone(),
                Peer::Null => null_adit()?,
                Peer::WireguardGo => match &options.wireguard_go {
                    Some(path) => path.canonicalize().with_context(|| format!("no {}", path.display()))?,
                    None => installed("wireguard-go")?,
                },
                Peer::Openvpn => installed("openvpn")?,
                Peer::Gotatun => gotatun()?,
                Peer::None => continue,
            };
            programs.versions.insert(peer.name().to_owned(), version(*peer, &path));
            programs.paths.insert(*peer, path);
        }
        programs.versions.insert("iperf3".to_owned(), first_line(Path::new("iperf3")));
        Ok(programs)
    }

    /// The program of a peer that has one.
    pub fn of(&self, peer: Peer) -> Result<String> {
        let path = self.paths.get(&peer).with_context(|| format!("{} has no program", peer.name()))?;
        Ok(path.display().to_string())
    }
}

fn installed(name: &str) -> Result<PathBuf> {
    find(name).with_context(|| format!("{name} is not installed. Run: apt-get install {name}"))
}

fn version(peer: Peer, path: &Path) -> String {
    let line = first_line(path);
    match peer {
        Peer::Aes => format!("{line}, aes-256-gcm, {}", revision()),
        Peer::Chacha => format!("{line}, chacha20-poly1305, {}", revision()),
        Peer::AesTcp => {
            format!("{line}, `gateway` and `up`, aes-256-gcm over one TCP connection, {}", revision())
        }
        Peer::Null => format!("{line} without a cipher: no product, a bound; {}", revision()),
        Peer::Openvpn => format!("{}, AES-256-GCM over UDP, without kernel offload", short(&line)),
        _ => line,
    }
}

/// Name and version: `OpenVPN 2.6.14 x86_64-…` has more to say than anybody asks.
fn short(line: &str) -> String {
    line.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn first_line(path: &Path) -> String {
    let output = Command::new(path).arg("--version").output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").to_owned()
}

fn revision() -> String {
    let mut git = Command::new("git");
    let output = git.args(["describe", "--always", "--dirty", "--abbrev=10"]).current_dir(root()).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    if text.is_empty() { "an unknown revision".to_owned() } else { text }
}

/// `gotatun` from crates.io, built below the target directory.
fn gotatun() -> Result<PathBuf> {
    let tools = target_dir()?.join("tools");
    let program = tools.join("bin/gotatun");
    if let Some(installed) = find("gotatun") {
        return Ok(installed);
    }
    if !program.exists() {
        println!("building gotatun-cli (some minutes, once)");
        let mut command = cargo(&["install", "gotatun-cli", "--locked", "--quiet"]);
        if !succeeds(command.arg("--root").arg(&tools))? {
            bail!("gotatun-cli could not be built: see above");
        }
    }
    Ok(program)
}

/// adit with a cipher that does nothing, built from a copy of the sources in which one file is another: no source of
/// the product has a way to turn its cipher off.
fn null_adit() -> Result<PathBuf> {
    let place = target_dir()?.join("null-cipher");
    let sources = place.join("sources");
    if sources.exists() {
        fs::remove_dir_all(&sources)?;
    }
    fs::create_dir_all(&sources)?;
    for entry in ["Cargo.toml", "Cargo.lock", "crates", "xtask", "fuzz"] {
        copy(&root().join(entry), &sources.join(entry))?;
    }
    copy(&root().join(NULL_AEAD), &sources.join(AEAD))?;
    println!("building adit without a cipher, to see what the cipher costs");
    let mut command = cargo(&["build", "--release", "--locked", "--package", "adit", "--bin", "adit"]);
    command.current_dir(&sources).env("CARGO_TARGET_DIR", place.join("target"));
    if !succeeds(&mut command)? {
        bail!("adit without a cipher could not be built: see above");
    }
    Ok(place.join("target/release/adit"))
}

const AEAD: &str = "crates/adit-proto/src/aead.rs";
const NULL_AEAD: &str = "xtask/null-cipher/aead.rs";

/// Copies files with their times, so that an unchanged source is not built again.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in from.read_dir()? {
            let name = entry?.file_name();
            if name != "target" && name != "corpus" {
                copy(&from.join(&name), &to.join(&name))?;
            }
        }
        return Ok(());
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let modified = from.metadata()?.modified()?;
    Ok(fs::File::options().append(true).open(to)?.set_modified(modified)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str) -> String {
        fs::read_to_string(root().join(path)).unwrap()
    }

    /// The public items of a file, as others see them.
    fn interface(source: &str) -> Vec<String> {
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        let items =
            source.split("pub ").skip(1).map(|item| item.split(['{', ';', '=']).next().unwrap_or_default());
        let bare = |item: &str| item.replace([' ', '\n', '_'], "").replace(",)", ")");
        items.map(bare).collect()
    }

    #[test]
    fn the_null_cipher_has_the_interface_of_the_true_one() {
        let real = interface(&source(AEAD));
        assert!(real.iter().any(|item| item.starts_with("fnseal(")), "{real:?}");
        assert_eq!(interface(&source(NULL_AEAD)), real);
    }

    #[test]
    fn the_null_cipher_says_what_it_is_and_the_true_one_is_another() {
        assert!(source(NULL_AEAD).contains("NOTHING IS ENCRYPTED"));
        assert!(source(AEAD).contains("seal_in_place") && !source(NULL_AEAD).contains("seal_in_place"));
    }
}
