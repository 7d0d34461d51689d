//! A client, a router and a gateway, and one tunnel between them.

use std::time::Duration;

use adit_lab::{End, Host, Lab, Process, wait_for};
use anyhow::{Context, Result, bail};

use super::Programs;
use crate::bench::machine;
use crate::bench::measure::echo_times;
use crate::bench::product;
use crate::bench::tunnel::certificate;

const SOON: Duration = Duration::from_secs(15);
const CLIENT: &str = "192.0.2.1";
const GATEWAY: &str = "198.51.100.2";
const OUTSIDE_PORT: &str = "51820";
const MTU_BYTES: &str = "1420";

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Tcp,
    Tls,
    Openvpn,
    WireguardGo,
    /// No tunnel.
    Bare,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "adit, TCP",
            Self::Tls => "adit, TLS",
            Self::Openvpn => "OpenVPN, TCP",
            Self::WireguardGo => "wireguard-go",
            Self::Bare => "no tunnel",
        }
    }
}

/// A tunnel that is up. Dropping it ends its processes and hosts.
pub struct World {
    client: Host,
    gateway: Host,
    /// The gateway inside.
    address: String,
    ends: Vec<Process>,
    _slow: Option<Process>,
    _lab: Lab,
}

/// What a bulk transfer brought.
pub struct Flow {
    pub gbps: f64,
    pub gigabits: f64,
    pub tunnel_cpu_secs: f64,
}

impl World {
    /// A tunnel over a clean link, or over one with a delay (one way) and a share of lost packets.
    pub fn start(programs: &Programs, kind: Kind, slow: Option<(u32, u32)>) -> Result<Self> {
        let lab = Lab::with_agent("streams", [programs.adit.clone(), "lab".to_owned()])?;
        let (client, router, gateway) = (lab.host("client")?, lab.host("router")?, lab.host("gateway")?);
        router.enable_forwarding()?;
        let ends = [(&client, "192.0.2", "eth0"), (&gateway, "198.51.100", "eth1")];
        for ((host, net, name), own) in ends.into_iter().zip([1, 2]) {
            let far = End::new(&router, name).address(format!("{net}.254/24"));
            lab.connect(End::new(host, "eth0").address(format!("{net}.{own}/24")), far)?;
            host.add_route(&format!("default via {net}.254"))?;
        }
        let slow = slow.map(|(delay, lost)| detour(programs, &router, delay, lost)).transpose()?;
        let hosts = [&client, &gateway];
        let (address, ends) = match kind {
            Kind::Tcp | Kind::Tls => {
                let carrier = if kind == Kind::Tcp { "tcp" } else { "tls" };
                let endpoint = format!("{GATEWAY}:{OUTSIDE_PORT}");
                let ends = product::start(&programs.adit, hosts, &endpoint, carrier)?;
                (product::INSIDE.to_owned(), ends.into())
            }
            Kind::Openvpn => openvpn(hosts).map(|(address, ends)| (address, ends.into()))?,
            Kind::WireguardGo => {
                wireguard_go(programs, hosts).map(|(address, ends)| (address, ends.into()))?
            }
            Kind::Bare => (GATEWAY.to_owned(), Vec::new()),
        };
        let world = Self { client, gateway, address, ends, _slow: slow, _lab: lab };
        wait_for(format!("an answer through {}", kind.name()), 2 * SOON, || {
            let ping = ["ping", "-n", "-q", "-c", "1", "-W", "1", &world.address];
            world.client.attempt(ping).is_ok_and(|output| output.ok()).then_some(())
        })
        .with_context(|| world.ends.iter().map(|it| it.stdout() + &it.stderr()).collect::<String>())?;
        Ok(world)
    }

    /// One iperf3 of some seconds.
    pub fn flow(&self, secs: u32, arguments: &[&str]) -> Result<Flow> {
        let mut server = self.gateway.spawn(["iperf3", "-s", "-1", "--forceflush"])?;
        server.wait_for_text("Server listening", SOON)?;
        let text = secs.to_string();
        let argv = [&["iperf3", "-J", "-c", &self.address, "-t", &text], arguments].concat();
        let used = || -> Result<f64> {
            let all = self.ends.iter().map(|end| machine::cpu_time_of(end.id())).sum::<Result<Duration>>()?;
            Ok(all.as_secs_f64())
        };
        let before = used()?;
        let output =
            self.client.command(argv).deadline(Duration::from_secs(u64::from(secs) + 40)).attempt()?;
        let after = used()?;
        server.end();
        let report = output.json()?;
        if !output.ok() {
            bail!("iperf3 {arguments:?}: {}", report["error"]);
        }
        let sums = ["sum_received", "sum_received_bidir_reverse"].map(|name| &report["end"][name]);
        let total = |key: &str| sums.iter().filter_map(|sum| sum[key].as_f64()).sum::<f64>();
        Ok(Flow {
            gbps: total("bits_per_second") / 1e9,
            gigabits: total("bytes") * 8.0 / 1e9,
            tunnel_cpu_secs: after - before,
        })
    }

    /// Fifty echoes a second, to be waited for.
    pub fn start_echoes(&self, secs: u32) -> Result<Process> {
        let count = (secs * 50).to_string();
        Ok(self.client.spawn(["ping", "-n", "-i", "0.02", "-c", &count, "-W", "3", &self.address])?)
    }

    /// The round trips of echoes beside nothing else, in microseconds.
    pub fn echoes(&self, secs: u32) -> Result<Vec<f64>> {
        let mut pings = self.start_echoes(secs)?;
        let text = pings.finish(Duration::from_secs(u64::from(secs) + 30)).unwrap_or_else(|_| pings.stdout());
        Ok(echo_times(&text))
    }
}

/// Leads what the router forwards through a device that delays and loses.
fn detour(programs: &Programs, router: &Host, delay: u32, lost: u32) -> Result<Process> {
    let (delay, lost, seed) = (delay.to_string(), lost.to_string(), "6002");
    let mut process = router.spawn([&programs.slow_path, "slow0", &delay, &lost, seed])?;
    process.wait_for_text("ready", SOON)?;
    router.ip(["link", "set", "slow0", "txqueuelen", "20000", "up"])?;
    router.lead_through("slow0", &["eth0", "eth1"])?;
    Ok(process)
}

fn wireguard_go(programs: &Programs, hosts: [&Host; 2]) -> Result<(String, [Process; 2])> {
    let names = [0, 1].map(|at| format!("s{}n{at}", std::process::id()));
    let mut ends = Vec::new();
    for (host, name) in hosts.into_iter().zip(&names) {
        ends.push(host.spawn([&programs.wireguard_go, "-f", name])?);
        wait_for("the device", SOON, || host.has_interface(name).then_some(()))?;
    }
    let mut keys = Vec::new();
    for host in hosts {
        let secret = host.exec(["wg", "genkey"])?.stdout;
        let public = host.command(["wg", "pubkey"]).input(secret.clone()).exec()?.stdout.trim().to_owned();
        keys.push((secret, public));
    }
    for (at, host) in hosts.into_iter().enumerate() {
        let endpoint = format!("{}:{OUTSIDE_PORT}", [GATEWAY, CLIENT][at]);
        let allowed = format!("10.9.0.{}/32", [1, 2][at]);
        let own = ["wg", "set", &names[at], "listen-port", OUTSIDE_PORT, "private-key", "/dev/stdin"];
        let peer = ["peer", &keys[1 - at].1, "allowed-ips", &allowed, "endpoint", &endpoint];
        host.command(own.iter().chain(&peer).copied()).input(keys[at].0.clone()).exec()?;
        host.add_address(&names[at], &format!("10.9.0.{}/24", [2, 1][at]))?;
        host.ip(["link", "set", &names[at], "mtu", MTU_BYTES, "up"])?;
    }
    Ok(("10.9.0.1".to_owned(), ends.try_into().ok().context("two ends")?))
}

fn openvpn(hosts: [&Host; 2]) -> Result<(String, [Process; 2])> {
    let prints = [certificate(hosts[0])?, certificate(hosts[1])?];
    let mut ends = Vec::new();
    // The gateway first: a client that finds nobody waits for seconds.
    for at in [1, 0] {
        let host = hosts[at];
        let (own, other) = ([CLIENT_INSIDE, GATEWAY_INSIDE][at], [GATEWAY_INSIDE, CLIENT_INSIDE][at]);
        let (key, cert) = (host.directory().join("ovpn.key"), host.directory().join("ovpn.crt"));
        let (key, cert) = (key.display().to_string(), cert.display().to_string());
        let role: &[&str] = match at {
            0 => &[
                "--tls-client",
                "--proto",
                "tcp-client",
                "--remote",
                GATEWAY,
                "--connect-retry",
                "1",
                "--nobind",
            ],
            _ => &["--tls-server", "--proto", "tcp-server"],
        };
        let argv = [
            &[
                "openvpn",
                "--dev",
                "ovpn0",
                "--dev-type",
                "tun",
                "--port",
                OUTSIDE_PORT,
                "--ifconfig",
                own,
                other,
            ][..],
            role,
            &["--tun-mtu", MTU_BYTES, "--key", &key, "--cert", &cert, "--peer-fingerprint", &prints[1 - at]],
            &[
                "--dh",
                "none",
                "--data-ciphers",
                "AES-256-GCM",
                "--disable-dco",
                "--tcp-nodelay",
                "--verb",
                "1",
            ],
        ]
        .concat();
        ends.push(host.spawn(argv)?);
        std::thread::sleep(Duration::from_millis(500));
    }
    ends.reverse();
    Ok((GATEWAY_INSIDE.to_owned(), ends.try_into().ok().context("two ends")?))
}

const CLIENT_INSIDE: &str = "10.9.0.2";
const GATEWAY_INSIDE: &str = "10.9.0.1";
