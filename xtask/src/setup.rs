//! The system packages that the tests and the demonstration need, on Debian and Ubuntu.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::program::{cargo, find, is_root, root, succeeds, works};

/// Programs (or files, by their full name), any of which will do, and the package that has the first.
struct Need {
    programs: &'static [&'static str],
    package: &'static str,
}

const fn need(programs: &'static [&'static str], package: &'static str) -> Need {
    Need { programs, package }
}

const BUILD: &[Need] =
    &[need(&["cc"], "gcc"), need(&["make"], "make"), need(&["cmake"], "cmake"), need(&["clang"], "clang")];

const DEMO: &[Need] = &[
    need(&["ip"], "iproute2"),
    need(&["nft"], "nftables"),
    need(&["tcpdump"], "tcpdump"),
    need(&["ethtool"], "ethtool"),
    need(&["ping"], "iputils-ping"),
    need(&["sysctl"], "procps"),
];

const TEST: &[Need] = &[
    need(&["curl"], "curl"),
    need(&["debootstrap"], "debootstrap"),
    need(&["dig"], "bind9-dnsutils"),
    need(&["dnsmasq"], "dnsmasq-base"),
    need(&["git"], "git"),
    need(&["iperf3"], "iperf3"),
    need(&["nginx", "/usr/sbin/nginx"], "nginx-light"),
    need(&["openssl"], "openssl"),
    need(&["resolvconf", "resolvectl"], "openresolv"),
    need(&["/usr/lib/python3/dist-packages/prometheus_client/parser.py"], "python3-prometheus-client"),
    need(&["dbus-daemon"], "dbus-daemon"),
    need(&["busctl"], "systemd"),
    need(&["chattr"], "e2fsprogs"),
    need(&["socat"], "socat"),
    need(&["systemd-analyze"], "systemd"),
    need(&["tinyproxy"], "tinyproxy"),
    need(&["tmux"], "tmux"),
    need(&["tshark"], "tshark"),
    need(&["udhcpc"], "udhcpc"),
    need(&["wg"], "wireguard-tools"),
    need(&["wireguard-go"], "wireguard-go"),
    need(&["zbarimg"], "zbar-tools"),
];

/// What some distributions do not have as a package; the tests that want it say that they did not run.
const EXTRA: &[Need] =
    &[need(&["caddy"], "caddy"), need(&["chromium", "chromium-browser", "google-chrome"], "chromium")];

const BENCH: &[Need] =
    &[need(&["iperf3"], "iperf3"), need(&["wg"], "wireguard-tools"), need(&["wireguard-go"], "wireguard-go")];

const BENCH_OPENVPN: &[Need] = &[need(&["openvpn"], "openvpn"), need(&["openssl"], "openssl")];

const DIST: &[Need] = &[
    need(&["dpkg-deb"], "dpkg-dev"),
    need(&["strip"], "binutils"),
    need(&["gzip"], "gzip"),
    need(&["musl-gcc"], "musl-tools"),
];

/// Services that the tests run by themselves. Installing them would change the name servers, or the network, of this
/// machine, so they are only unpacked, with what else they need, below `target/unpacked`.
struct Unpacked {
    programs: &'static [&'static str],
    package: &'static str,
}

const UNPACKED: &[Unpacked] = &[
    Unpacked {
        programs: &["usr/lib/systemd/systemd-resolved", "lib/systemd/systemd-resolved"],
        package: "systemd-resolved",
    },
    Unpacked { programs: &["usr/sbin/NetworkManager"], package: "network-manager" },
];

impl Unpacked {
    fn unpack(&self) -> Result<()> {
        let place = root().join("target/unpacked").join(self.package);
        let is_in = |place: &Path| self.programs.iter().any(|it| place.join(it).exists());
        if is_in(Path::new("/")) || is_in(&place) {
            return Ok(());
        }
        std::fs::create_dir_all(&place)?;
        println!("unpacking {} into {}", self.package, place.display());
        let install = ["--simulate", "install", "--no-install-recommends", self.package];
        let told = apt().args(install).output()?;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let names = told.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
        if !succeeds(apt().arg("download").args(names).current_dir(&place))? {
            bail!("apt-get could not download {}: see above", self.package);
        }
        for file in place.read_dir()?.flatten().map(|it| it.path()) {
            if file.extension().is_some_and(|it| it == "deb") {
                succeeds(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&place))?;
                std::fs::remove_file(&file)?;
            }
        }
        match is_in(&place) {
            true => Ok(()),
            false => bail!("{} has no {}", self.package, self.programs[0]),
        }
    }
}

/// Installs all that is missing.
pub fn run() -> Result<bool> {
    for_tests()?;
    println!("everything the build, the tests and the demonstration need is here");
    Ok(true)
}

/// Installs what the build and the demonstration need.
pub fn for_demo() -> Result<()> {
    install(&missing(&[BUILD, DEMO]))
}

/// Installs what the build and the benchmark need, and OpenVPN if it is to be measured.
pub fn for_bench(openvpn: bool) -> Result<()> {
    install(&missing(&[BUILD, DEMO, BENCH, if openvpn { BENCH_OPENVPN } else { &[] }]))
}

/// Installs what the build and the tests need.
pub fn for_tests() -> Result<()> {
    install(&missing(&[BUILD, DEMO, TEST]))?;
    for service in UNPACKED {
        service.unpack()?;
    }
    for extra in missing(&[EXTRA]) {
        if let Err(error) = install(&[extra]) {
            println!("going on without {extra}: {error}");
        }
    }
    components()
}

/// Installs what the packages are made with, Rust's standard library for `musl` too where rustup gets it.
pub fn for_dist(musl: &str) -> Result<()> {
    install(&missing(&[BUILD, DIST]))?;
    if find("rustup").is_some() && !succeeds(Command::new("rustup").args(["target", "add", musl]))? {
        println!("going on without Rust's standard library for {musl}");
    }
    Ok(())
}

/// rustfmt and clippy, which a minimal rustup lacks.
fn components() -> Result<()> {
    for (verb, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if works(&mut cargo(&[verb, "--version"])) {
            continue;
        }
        if !succeeds(Command::new("rustup").args(["component", "add", component]))? {
            bail!("cargo {verb} is missing. Run: rustup component add {component}");
        }
    }
    Ok(())
}

fn missing(needs: &[&[Need]]) -> Vec<&'static str> {
    let needs = needs.iter().flat_map(|list| list.iter());
    needs.filter(|need| !need.programs.iter().any(|name| is_there(name))).map(|need| need.package).collect()
}

fn is_there(name: &str) -> bool {
    if name.starts_with('/') { Path::new(name).exists() } else { find(name).is_some() }
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !is_root() {
        bail!("these packages are missing: {}. Run: sudo sh -c '{line}'", packages.join(" "));
    }
    if find("apt-get").is_none() {
        bail!("these packages are missing, and this is no Debian or Ubuntu: {}", packages.join(" "));
    }
    println!("installing {}", packages.join(" "));
    let mut update = apt();
    let mut install = apt();
    update.arg("update");
    install.args(["install", "-y", "--no-install-recommends"]).args(packages);
    if !succeeds(&mut update)? || !succeeds(&mut install)? {
        bail!("apt-get failed: see above. By hand: {line}");
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed() {
        let needs = [need(&["sh"], "dash"), need(&["no-such-program"], "absent")];
        assert_eq!(missing(&[&needs]), ["absent"]);
    }

    #[test]
    fn any_program_of_a_need_will_do() {
        let needs = [need(&["no-such-program", "sh"], "dash")];
        assert!(missing(&[&needs]).is_empty());
        assert!(missing(&[&[need(&["/etc/passwd"], "base-passwd")]]).is_empty());
        assert_eq!(missing(&[&[need(&["/no/such/file"], "absent")]]), ["absent"]);
    }
}
