use std::net::Ipv4Addr;
use std::time::Duration;

use adit_lab::{End, Host, Lab, Process};
use anyhow::Context;
use serde_json::{Value, json};

use super::report::Report;
use super::tunnel::Tunnels;

/// The gateway's public address, as the internet sees it.
pub(super) const GATEWAY: &str = "198.51.100.2";
pub(super) const GATEWAY6: &str = "2001:db8:2::2";
/// The web server's.
pub(super) const WEB: &str = "203.0.113.80";
pub(super) const WEB6: &str = "2001:db8:3::80";
/// Where the web server takes bytes to measure throughput.
pub(super) const SINK_PORT: u16 = 5001;
/// The router's interface on the clients' side, where a stranger on the way would listen.
pub(super) const TAP: &str = "clients";

const SOON: Duration = Duration::from_secs(10);

/// A small internet: clients on one network, the gateway on another, a web server on a third, a router between.
pub(super) struct Scenery {
    pub(super) lab: Lab,
    pub(super) router: Host,
    pub(super) gateway: Host,
    pub(super) web: Host,
    /// The first two are called a and b and are looked at closely; the others are the crowd.
    pub(super) clients: Vec<Host>,
    web_server: Process,
    sink: Process,
}

impl Scenery {
    pub(super) fn build(report: &mut Report, lab: Lab, crowd: usize) -> Option<Self> {
        let why = "Every computer you will see is a network namespace: a part of this Linux kernel with its own\n\
                   interfaces, addresses and routes. Nothing here reaches your real network. Lines with a # are commands you\n\
                   could type there (for curl and tcpdump the demonstration has small programs of its own).\n\
                   \n\
                   client-a ─┐\n\
                   client-b ─┼── router (\"the internet\") ──┬── gateway     198.51.100.2\n\
                   others   ─┘                             └── web server  203.0.113.80\n";
        report.step("scenery", "A small internet on this machine", why, |step| {
            let scenery = Self::assemble(lab, crowd)?;
            let (a, web) = (&scenery.clients[0], &scenery.web);
            step.command(a.name(), &format!("ping {WEB}"));
            step.check("answers from the web server", "2 of 2", format!("{} of 2", a.ping(WEB, 2)?));
            step.command(web.name(), &format!("ping {GATEWAY6}"));
            step.check(
                "answers from the gateway over IPv6",
                "2 of 2",
                format!("{} of 2", web.ping(GATEWAY6, 2)?),
            );
            step.figure("hosts", scenery.clients.len() + 4);
            Ok(scenery)
        })
    }

    fn assemble(lab: Lab, crowd: usize) -> anyhow::Result<Self> {
        let router = lab.host("router")?;
        let gateway = lab.host("gateway")?;
        let web = lab.host("web")?;
        let names = ["client-a".to_owned(), "client-b".to_owned()];
        let names = names.into_iter().chain((1..=crowd).map(|number| format!("client-{number}")));
        let clients = names.map(|name| lab.host(&name)).collect::<Result<Vec<_>, _>>()?;

        let mut ends = vec![End::new(&router, TAP).address("192.0.2.1/24").address("2001:db8:1::1/64")];
        ends.extend(clients.iter().enumerate().map(|(index, client)| {
            let (four, six) = client_addresses(index);
            End::new(client, "eth0").address(format!("{four}/24")).address(format!("{six}/64"))
        }));
        lab.switch("switch", ends)?;
        lab.connect(
            End::new(&router, "gateway").address("198.51.100.1/24").address("2001:db8:2::1/64"),
            End::new(&gateway, "eth0").address(format!("{GATEWAY}/24")).address(format!("{GATEWAY6}/64")),
        )?;
        lab.connect(
            End::new(&router, "web").address("203.0.113.1/24").address("2001:db8:3::1/64"),
            End::new(&web, "eth0").address(format!("{WEB}/24")).address(format!("{WEB6}/64")),
        )?;
        router.enable_forwarding()?;
        for client in &clients {
            default_routes(client, "192.0.2.1", "2001:db8:1::1")?;
        }
        default_routes(&gateway, "198.51.100.1", "2001:db8:2::1")?;
        default_routes(&web, "203.0.113.1", "2001:db8:3::1")?;
        for host in clients.iter().chain([&gateway]) {
            host.set_env("ADIT_HOME", &home(host));
        }

        let mut web_server = web.agent(["http-server", "--listen", "[::]:80"]).spawn()?;
        web_server.wait_for_text("listening on", SOON)?;
        let mut sink = web.agent(["tcp-sink", "--listen", &format!("{WEB}:{SINK_PORT}")]).spawn()?;
        sink.wait_for_text("listening on", SOON)?;
        Ok(Self { lab, router, gateway, web, clients, web_server, sink })
    }

    /// What `client` gets for an HTTP request to the web server, as the agent's report.
    pub(super) fn get(&self, client: &Host, address: &str, path: &str) -> anyhow::Result<Value> {
        fetch(client, address, path)
    }

    /// Everybody the web server has seen, in order.
    pub(super) fn visitors(&self) -> Vec<String> {
        peers(&self.web_server)
    }

    /// Everybody who has sent bytes to the sink, in order.
    pub(super) fn senders(&self) -> Vec<String> {
        peers(&self.sink)
    }

    /// Leaves all of it running and says how to use and remove it.
    pub(super) fn keep(mut self, report: &mut Report, tunnels: Option<Tunnels>) -> anyhow::Result<()> {
        self.lab.keep()?;
        self.web_server.detach();
        self.sink.detach();
        tunnels.into_iter().for_each(Tunnels::detach);
        let program = std::env::current_exe().context("find the running program")?;
        let program = program.display();
        let remove = format!("{program} lab remove {}", self.lab.name());
        report.say("\nThe little network stays. To enter a computer of it:");
        let hosts = [&self.router, &self.gateway, &self.web].into_iter().chain(&self.clients);
        let hosts: Vec<Value> = hosts
            .map(|host| {
                let enter = format!("ip netns exec {} env ADIT_HOME={} sh", host.namespace(), home(host));
                report.say(&format!("    {:<11} {enter}", host.name()));
                json!({ "name": host.name(), "namespace": host.namespace(), "enter": enter })
            })
            .collect();
        report.say(&format!("Inside, try `{program} status`, `ip route get {WEB}` or `ping 10.86.0.1`."));
        report.say(&format!("To remove it:\n    {remove}"));
        report.kept(json!({ "lab": self.lab.name(), "hosts": hosts, "remove": remove }));
        Ok(())
    }
}

/// One HTTP request from `client`, as the agent's report.
pub(super) fn fetch(client: &Host, address: &str, path: &str) -> anyhow::Result<Value> {
    let url = http_url(address, path);
    let output = client.agent(["http-get", "--sha256", &url]).deadline(Duration::from_secs(60)).exec()?;
    Ok(output.json()?)
}

pub(super) fn http_url(address: &str, path: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]{path}")
    } else {
        format!("http://{address}{path}")
    }
}

/// The outside addresses of client number `index`.
pub(super) fn client_addresses(index: usize) -> (Ipv4Addr, String) {
    let number = 10 + index;
    (Ipv4Addr::new(192, 0, 2, number as u8), format!("2001:db8:1::{number}"))
}

/// Where adit keeps its files on this host.
pub(super) fn home(host: &Host) -> String {
    host.directory().join("adit").display().to_string()
}

fn default_routes(host: &Host, four: &str, six: &str) -> anyhow::Result<()> {
    host.add_route(&format!("default via {four}"))?;
    host.add_route(&format!("default via {six}"))?;
    Ok(())
}

fn peers(server: &Process) -> Vec<String> {
    let lines = server.stdout();
    let reports = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    reports.filter_map(|report| report["peer"].as_str().map(str::to_owned)).collect()
}
