//! A tunnel between the two hosts: two processes of the program that is measured.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use adit_lab::{Host, Process, wait_for};
use anyhow::{Context, Result, bail};

use super::options::Peer;
use super::product;
use super::programs::Programs;
use super::world::World;

const MTU_BYTES: &str = "1420";
const SOON: Duration = Duration::from_secs(10);
/// Peers in one conversation with a device.
const PEERS_AT_ONCE: usize = 200;

/// Both ends of a tunnel, up and with a session. Dropping it ends them.
pub struct Tunnel {
    /// Where the gateway is reached: inside the tunnel, or directly where there is none.
    pub address: String,
    pub port: u16,
    ends: Option<[End; 2]>,
}

struct End {
    process: Process,
    interface: String,
}

impl Tunnel {
    /// Starts both ends in their hosts. The inside addresses are determined by the peer, so that several kinds of
    /// tunnels can stand side by side.
    pub fn start(world: &World, programs: &Programs, peer: Peer) -> Result<Self> {
        let number = peer as u8 + 1;
        let (address, port) = (format!("10.9.{number}.2"), 5_000 + u16::from(number));
        let tunnel = match peer {
            Peer::None => Self { address: World::GATEWAY.to_owned(), port, ends: None },
            Peer::Openvpn => {
                let ends = openvpn(world, &programs.of(peer)?, number, port)?;
                Self { address, port, ends: Some(ends) }
            }
            Peer::AesTcp => {
                let endpoint = format!("{}:{port}", World::GATEWAY);
                let hosts = [&world.client, &world.gateway];
                let ends = product::start(&programs.of(peer)?, hosts, &endpoint, "tcp")?;
                let ends = ends.map(|process| End { process, interface: String::new() });
                Self { address: product::INSIDE.to_owned(), port, ends: Some(ends) }
            }
            _ => {
                let ends = devices(world, &programs.of(peer)?, peer, number, port)?;
                Self { address, port, ends: Some(ends) }
            }
        };
        wait_for(format!("an answer through {}", peer.name()), 2 * SOON, || {
            let ping = ["ping", "-n", "-q", "-c", "1", "-W", "1", &tunnel.address];
            world.client.attempt(ping).is_ok_and(|output| output.ok()).then_some(())
        })
        .with_context(|| format!("{} does not come up{}", peer.name(), tunnel.complaints()))?;
        Ok(tunnel)
    }

    /// The ids of the tunnel's processes, the gateway's last.
    pub fn pids(&self) -> Vec<u32> {
        self.ends.iter().flatten().map(|end| end.process.id()).collect()
    }

    /// The id of the gateway's process.
    pub fn gateway_pid(&self) -> Option<u32> {
        self.pids().last().copied()
    }

    /// The public key of the gateway, in hexadecimal.
    pub fn gateway_key(&self) -> Result<String> {
        let [client, _] = self.ends.as_ref().context("no tunnel")?;
        peer_of(&client.interface)
    }

    /// Makes peers known to the gateway; dropping the answer makes it forget them.
    pub fn crowd(&self, keys: Vec<String>, suite: Option<&'static str>) -> Result<Crowd> {
        let [_, gateway] = self.ends.as_ref().context("no tunnel")?;
        let crowd = Crowd { interface: gateway.interface.clone(), keys };
        let suite = suite.map(|suite| format!("suite={suite}\n")).unwrap_or_default();
        for (part, keys) in crowd.keys.chunks(PEERS_AT_ONCE).enumerate() {
            let peers = keys.iter().enumerate().map(|(at, key)| {
                let number = part * PEERS_AT_ONCE + at;
                format!(
                    "public_key={key}\n{suite}allowed_ip=10.{}.{}.{}/32\n",
                    64 + (number >> 16),
                    (number >> 8) & 255,
                    number & 255
                )
            });
            set(&crowd.interface, &peers.collect::<String>())?;
        }
        Ok(crowd)
    }

    fn complaints(&self) -> String {
        let said = self.ends.iter().flatten().map(|end| end.process.stdout() + &end.process.stderr());
        let said: String = said.collect();
        if said.trim().is_empty() { String::new() } else { format!("; it says:\n{}", said.trim()) }
    }
}

/// Peers that a gateway knows beside the one that is active.
pub struct Crowd {
    interface: String,
    keys: Vec<String>,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for keys in self.keys.chunks(PEERS_AT_ONCE) {
            let peers: String = keys.iter().map(|key| format!("public_key={key}\nremove=true\n")).collect();
            if let Err(error) = set(&self.interface, &peers) {
                eprintln!("{}: peers could not be removed: {error:#}", self.interface);
                return;
            }
        }
    }
}

/// Keys that nobody has the private half of.
pub fn strangers(count: usize) -> Result<Vec<String>> {
    let mut bytes = vec![0; count * 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.chunks_exact(32).map(|key| key.iter().map(|byte| format!("{byte:02x}")).collect()).collect())
}

/// What a device has to be told beside WireGuard's own settings.
pub fn suite_of(peer: Peer) -> Option<&'static str> {
    matches!(peer, Peer::Aes | Peer::Null).then_some("aes-256-gcm")
}

/// Two userspace WireGuard devices.
fn devices(world: &World, program: &str, peer: Peer, number: u8, port: u16) -> Result<[End; 2]> {
    let hosts = [&world.client, &world.gateway];
    let mut ends = Vec::new();
    for host in hosts {
        ends.push(device(host, program, peer)?);
    }
    let ends: [End; 2] = ends.try_into().ok().context("two ends")?;
    let secrets = [private_key(&world.client)?, private_key(&world.gateway)?];
    let publics = [public_key(&world.client, &secrets[0])?, public_key(&world.gateway, &secrets[1])?];
    for at in [0, 1] {
        let (host, name) = (hosts[at], &ends[at].interface);
        let (own, other) = (at + 1, 2 - at);
        let endpoint = format!("{}:{port}", [World::CLIENT, World::GATEWAY][1 - at]);
        let allowed = format!("10.9.{number}.{other}/32");
        let port = port.to_string();
        let words = ["wg", "set", name, "listen-port", &port, "private-key", "/dev/stdin"];
        let peer_words = ["peer", &publics[1 - at], "allowed-ips", &allowed, "endpoint", &endpoint];
        host.command(words.iter().chain(&peer_words).copied()).input(secrets[at].clone()).exec()?;
        if let Some(suite) = suite_of(peer) {
            set(name, &format!("public_key={}\nsuite={suite}\n", peer_of(name)?))?;
        }
        host.add_address(name, &format!("10.9.{number}.{own}/24"))?;
        host.ip(["link", "set", name, "mtu", MTU_BYTES, "up"])?;
    }
    Ok(ends)
}

fn device(host: &Host, program: &str, peer: Peer) -> Result<End> {
    // The sockets of all devices share one directory on the machine.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("b{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let argv = match peer {
        Peer::Aes | Peer::Chacha | Peer::Null => vec![program, "wg", "-f", &name],
        // It would become the user who logged in, and there may be none.
        Peer::Gotatun => vec![program, "-f", "--disable-drop-privileges", &name],
        _ => vec![program, "-f", &name],
    };
    let mut process = host.spawn(argv)?;
    wait_for(format!("the socket of {program}"), SOON, || {
        (process.ended().is_some() || socket(&name).exists()).then_some(())
    })?;
    if process.ended().is_some() {
        bail!("{program} ended at once: {}", process.stderr().trim());
    }
    Ok(End { process, interface: name })
}

fn private_key(host: &Host) -> Result<String> {
    Ok(host.exec(["wg", "genkey"])?.stdout)
}

fn public_key(host: &Host, secret: &str) -> Result<String> {
    Ok(host.command(["wg", "pubkey"]).input(secret).exec()?.stdout.trim().to_owned())
}

fn socket(interface: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{interface}.sock"))
}

/// The only peer of a device.
fn peer_of(interface: &str) -> Result<String> {
    let answer = converse(interface, "get=1\n\n")?;
    let key = answer.lines().find_map(|line| line.strip_prefix("public_key="));
    Ok(key.with_context(|| format!("{interface} has no peer"))?.to_owned())
}

fn set(interface: &str, settings: &str) -> Result<()> {
    let answer = converse(interface, &format!("set=1\n{settings}\n"))?;
    if answer.lines().any(|line| line == "errno=0") {
        Ok(())
    } else {
        bail!("{interface} answers {answer:?}")
    }
}

/// One conversation on the socket that userspace WireGuard devices have.
fn converse(interface: &str, request: &str) -> Result<String> {
    let mut stream =
        UnixStream::connect(socket(interface)).with_context(|| format!("{interface} has gone"))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// OpenVPN, point to point with TLS, because without it has no AES-GCM.
fn openvpn(world: &World, program: &str, number: u8, port: u16) -> Result<[End; 2]> {
    let hosts = [&world.client, &world.gateway];
    let mut prints = Vec::new();
    for host in hosts {
        prints.push(certificate(host)?);
    }
    let mut ends = Vec::new();
    for (at, host) in hosts.into_iter().enumerate() {
        let interface = format!("ovpn{number}");
        let (own, other) = (format!("10.9.{number}.{}", at + 1), format!("10.9.{number}.{}", 2 - at));
        let role = ["--tls-client", "--tls-server"][at];
        let remote = [World::CLIENT, World::GATEWAY][1 - at];
        let port = port.to_string();
        let (key, cert) = (host.directory().join("ovpn.key"), host.directory().join("ovpn.crt"));
        let (key, cert) = (key.display().to_string(), cert.display().to_string());
        let argv = [
            &[program, "--dev", &interface, "--dev-type", "tun", "--proto", "udp", "--remote", remote][..],
            &["--port", &port, "--ifconfig", &own, &other, "--tun-mtu", MTU_BYTES, role],
            &["--key", &key, "--cert", &cert, "--peer-fingerprint", &prints[1 - at], "--dh", "none"],
            &["--data-ciphers", "AES-256-GCM", "--disable-dco", "--verb", "1"],
        ]
        .concat();
        ends.push(End { process: host.spawn(argv)?, interface });
    }
    ends.try_into().ok().context("two ends")
}

/// Makes a key and a certificate for a host; returns the fingerprint.
pub fn certificate(host: &Host) -> Result<String> {
    let (key, cert) = (host.directory().join("ovpn.key"), host.directory().join("ovpn.crt"));
    let (key, cert) = (key.display().to_string(), cert.display().to_string());
    let new =
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let made = ["-days", "2", "-subj", "/CN=bench", "-keyout", &key, "-out", &cert];
    host.exec(new.iter().chain(&made).copied())?;
    let shown = host.exec(["openssl", "x509", "-fingerprint", "-sha256", "-noout", "-in", &cert])?.stdout;
    Ok(shown.trim().split_once('=').context("openssl names no fingerprint")?.1.to_owned())
}
