use std::time::Duration;

use adit_lab::{Host, Invocation, Process, wait_for};
use anyhow::Context;
use serde_json::Value;

use super::report::{Report, Step};
use super::scenery::{GATEWAY, Scenery, home};
use super::snapshot::Snapshot;

/// The gateway's addresses inside.
pub(super) const INSIDE: &str = "10.86.0.1";
pub(super) const INSIDE6: &str = "fd86:ad17::1";

const NETWORK: &str = "10.86.0.0/24";
const NETWORK6: &str = "fd86:ad17::/64";
const PORT: u16 = 51820;
const SOON: Duration = Duration::from_secs(15);

/// The gateway and the clients that have joined it.
pub(super) struct Tunnels {
    pub(super) gateway: Gateway,
    pub(super) a: Client,
    pub(super) b: Client,
    pub(super) crowd: Vec<Client>,
}

impl Tunnels {
    pub(super) fn open(report: &mut Report, scenery: &Scenery) -> Option<Self> {
        let why = "A gateway is the computer whose address the others will borrow. It needs a key of its own, an\n\
                   address that clients can reach, and one UDP port.";
        let gateway = report
            .step("gateway", "The gateway starts", why, |step| Gateway::start(step, &scenery.gateway))?;
        let why = "Each client gets a file with its key and the gateway's. With `adit up` both prove to each other who\n\
                   they are and agree on a secret that lasts two minutes and was never sent: the handshake.";
        report.step("handshake", "Two clients join", why, move |step| {
            let [a, b, ..] = scenery.clients.as_slice() else { anyhow::bail!("the scenery has no clients") };
            let a = gateway.admit(step, a, "tun-a", "aes-256-gcm")?;
            let b = gateway.admit(step, b, "tun-b", "chacha20-poly1305")?;
            for (client, suite) in [(&a, "aes-256-gcm"), (&b, "chacha20-poly1305")] {
                client.up(Some(step))?;
                step.command(client.host.name(), "adit status --json");
                let peer = client.wait_for_handshake()?;
                let ago = peer["last_handshake_secs_ago"].as_u64();
                let seen = ago.map_or("never".to_owned(), |secs| format!("{secs} s ago"));
                let recent = ago.is_some_and(|secs| secs < 60);
                step.verify(
                    format!("{}'s last handshake", client.host.name()),
                    recent,
                    "within a minute",
                    seen,
                );
                step.check("sealed with", suite, peer["suite"].as_str().unwrap_or("nothing"));
            }
            let known = gateway.status()?["peers"].as_array().map_or(0, Vec::len);
            step.check("peers the gateway knows", 2, known);
            Ok(Self { gateway, a, b, crowd: Vec::new() })
        })
    }

    /// Leaves everything running.
    pub(super) fn detach(mut self) {
        self.gateway.process.detach();
    }
}

/// `adit gateway` on its host.
pub(super) struct Gateway {
    pub(super) host: Host,
    pub(super) process: Process,
    /// What the host's network was before.
    pub(super) network_before: Snapshot,
}

impl Gateway {
    fn start(step: &mut Step, host: &Host) -> anyhow::Result<Self> {
        let network_before = Snapshot::of_host(host)?;
        let endpoint = format!("{GATEWAY}:{PORT}");
        let init = ["init", "--endpoint", &endpoint, "--network", NETWORK, "--network6", NETWORK6];
        step.command(host.name(), &format!("adit {}", init.join(" ")));
        adit(host, init)?.exec()?;
        step.command(host.name(), "adit gateway");
        let process = Self::spawn(host)?;
        let gateway = Self { host: host.clone(), process, network_before };
        let status = gateway.status()?;
        step.check("role", "gateway", status["role"].as_str().unwrap_or("none"));
        let addresses = host.addresses(status["interface"].as_str().unwrap_or("adit0"))?.join(", ");
        step.check("addresses inside the tunnel", format!("{INSIDE}/24, {INSIDE6}/64"), addresses);
        Ok(gateway)
    }

    /// Starts it (again) and returns when it is ready.
    pub(super) fn spawn(host: &Host) -> anyhow::Result<Process> {
        let mut process = adit(host, ["gateway"])?.spawn()?;
        process.wait_for_text("gateway ready", SOON)?;
        Ok(process)
    }

    pub(super) fn status(&self) -> anyhow::Result<Value> {
        status(&self.host)
    }

    /// Adds a peer and gives its file to `host`; the running gateway learns of it by itself.
    pub(super) fn admit(
        &self,
        step: &mut Step,
        host: &Host,
        interface: &str,
        suite: &str,
    ) -> anyhow::Result<Client> {
        step.command(
            self.host.name(),
            &format!("adit peer add {} --suite {suite} > {interface}.conf", host.name()),
        );
        self.admit_quietly(host, interface, suite)
    }

    pub(super) fn admit_quietly(&self, host: &Host, interface: &str, suite: &str) -> anyhow::Result<Client> {
        let before = self.status()?["peers"].as_array().map_or(0, Vec::len);
        let profile = adit(&self.host, ["peer", "add", host.name(), "--suite", suite])?.exec()?.stdout;
        let addresses: Vec<&str> = profile
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(key, _)| key.trim().eq_ignore_ascii_case("address"))
            .flat_map(|(_, value)| value.split(','))
            .filter_map(|address| address.trim().split('/').next())
            .collect();
        let inside = addresses.iter().find(|address| !address.contains(':'));
        let inside6 = addresses.iter().find(|address| address.contains(':'));
        let (inside, inside6) =
            inside.zip(inside6).context("the client's file has no Address of each family")?;
        let client = Client {
            host: host.clone(),
            interface: interface.to_owned(),
            inside: (*inside).to_owned(),
            inside6: (*inside6).to_owned(),
            profile: host.write(&format!("{interface}.conf"), &profile)?.display().to_string(),
            network_before: Snapshot::of_host(host)?,
        };
        wait_for("the gateway to know the new peer", SOON, || {
            let peers = self.status().ok()?["peers"].as_array()?.len();
            (peers > before).then_some(())
        })?;
        Ok(client)
    }
}

/// A host that has a file for the tunnel.
pub(super) struct Client {
    pub(super) host: Host,
    pub(super) interface: String,
    pub(super) inside: String,
    pub(super) inside6: String,
    /// What the host's network was before.
    pub(super) network_before: Snapshot,
    profile: String,
}

impl Client {
    pub(super) fn up(&self, step: Option<&mut Step>) -> anyhow::Result<()> {
        if let Some(step) = step {
            step.command(self.host.name(), &format!("adit up {}.conf", self.interface));
        }
        adit(&self.host, ["up", &self.profile])?.exec()?;
        Ok(())
    }

    pub(super) fn down(&self, step: &mut Step) -> anyhow::Result<()> {
        step.command(self.host.name(), "adit down");
        adit(&self.host, ["down"])?.exec()?;
        Ok(())
    }

    /// The gateway as this client's status shows it, once there was a handshake.
    pub(super) fn wait_for_handshake(&self) -> anyhow::Result<Value> {
        let peer = wait_for(format!("a handshake of {}", self.host.name()), SOON, || {
            let peer = status(&self.host).ok()?["peers"][0].take();
            peer["last_handshake_secs_ago"].is_u64().then_some(peer)
        })?;
        Ok(peer)
    }
}

fn status(host: &Host) -> anyhow::Result<Value> {
    let output = adit(host, ["status", "--json"])?.exec()?;
    let status = output.json()?;
    anyhow::ensure!(
        status["schema"] == 1,
        "`{}` printed another schema: {}",
        output.command,
        output.stdout.trim()
    );
    Ok(status)
}

/// This program on `host`, with its home there.
fn adit<const N: usize>(host: &Host, arguments: [&str; N]) -> anyhow::Result<Invocation> {
    let program = std::env::current_exe().context("find the running program")?.display().to_string();
    let command = arguments.iter().fold(host.command([program]), |command, argument| command.arg(*argument));
    Ok(command.env("ADIT_HOME", home(host)).deadline(Duration::from_secs(30)))
}
