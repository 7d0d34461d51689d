use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_lab::{Content, End, Host, Lab, Output, Process, wait_for};
use serde_json::Value;

use super::{ADIT, SOON};

/// Where the gateway is.
pub const GATEWAY: &str = "198.51.100.2";
pub const GATEWAY6: &str = "2001:db8:2::2";
/// Where the web server is.
pub const WEB: &str = "203.0.113.80";
pub const WEB6: &str = "2001:db8:3::80";
/// The gateway's addresses inside.
pub const INSIDE: &str = "10.86.0.1";
pub const INSIDE6: &str = "fd86:ad17::1";

/// Clients, a gateway and a web server, each on a network of its own, and the router between them.
pub struct Internet {
    pub clients: Vec<Host>,
    pub gateway: Host,
    /// Joins the networks.
    pub router: Host,
    pub web: Host,
    web_server: Process,
    // The last to go: it ends what the hosts still run.
    pub lab: Lab,
}

impl Internet {
    pub fn new(prefix: &str, clients: usize) -> Self {
        let lab = super::lab(prefix);
        let host = |name: &str| lab.host(name).unwrap();
        let (router, gateway, web) = (host("router"), host("gateway"), host("web"));
        let clients: Vec<Host> = (0..clients).map(|number| host(&format!("client-{number}"))).collect();
        router.enable_forwarding().unwrap();
        let join = |host: &Host, v4: &str, v6: &str| {
            let (net4, net6) = (v4.rsplit_once('.').unwrap().0, v6.rsplit_once("::").unwrap().0);
            let far = End::new(&router, host.name())
                .address(format!("{net4}.1/24"))
                .address(format!("{net6}::1/64"));
            let near = End::new(host, "eth0").address(format!("{v4}/24")).address(format!("{v6}/64"));
            lab.connect(near, far).unwrap();
            host.add_route(&format!("default via {net4}.1")).unwrap();
            host.add_route(&format!("default via {net6}::1")).unwrap();
            host.set_resolv_conf("# of this host\nnameserver 192.0.2.53\n").unwrap();
        };
        join(&gateway, GATEWAY, GATEWAY6);
        join(&web, WEB, WEB6);
        for (number, client) in clients.iter().enumerate() {
            let (v4, v6) = client_addresses(number);
            join(client, &v4, &v6);
        }
        let mut web_server = web.agent(["http-server", "--listen", "[::]:80"]).spawn().unwrap();
        web_server.wait_for_text("listening", SOON).unwrap();
        for host in clients.iter().chain([&gateway]) {
            wait_for("link-local addresses", SOON, || {
                let seen = host.ip(["-6", "addr", "show", "dev", "eth0"]).ok()?.stdout;
                (seen.contains("fe80::") && !seen.contains("tentative")).then_some(())
            })
            .unwrap();
        }
        Self { clients, gateway, router, web, web_server, lab }
    }

    /// Whom the web server sees when `client` comes, over IPv4 and over IPv6.
    pub fn seen_from(&self, client: &Host) -> [String; 2] {
        [format!("http://{WEB}/"), format!("http://[{WEB6}]/")].map(|url| {
            let report = client.agent(["http-get", &url]).exec().unwrap().json().unwrap();
            report["text"].as_str().unwrap().trim().to_owned()
        })
    }

    /// A download of `content` that takes its time, once the web server has begun with it.
    pub fn start_download(&self, client: &Host, content: Content, kilobytes_per_second: u32) -> Process {
        let Content { seed, bytes } = content;
        let target = format!("/file?bytes={bytes}&seed={seed}&kbps={kilobytes_per_second}");
        let begun = || self.web_server.stdout().matches(&target).count();
        let before = begun();
        let url = format!("http://{WEB}{target}");
        let download =
            client.agent(["http-get", "--sha256", "--patience-seconds", "25", &url]).spawn().unwrap();
        wait_for("the download to begin", SOON, || (begun() > before).then_some(())).unwrap();
        download
    }
}

/// The end of a download: every byte is right, and one connection was enough. Its report.
pub fn finish_download(mut download: Process, content: Content) -> Value {
    let output = download.finish(Duration::from_secs(25)).unwrap();
    let report: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(report["sha256"], content.sha256(), "{report}");
    assert_eq!((&report["bytes"], &report["resumed"]), (&content.bytes.into(), &0.into()), "{report}");
    report
}

/// The outside addresses of a client.
pub fn client_addresses(number: usize) -> (String, String) {
    (format!("10.{}.0.2", 100 + number), format!("2001:db8:{}::2", 10 + number))
}

/// Where adit keeps its files on this host.
pub fn home(host: &Host) -> PathBuf {
    host.directory().join("home")
}

/// `adit ARGUMENTS` on `host`; any exit code is fine.
pub fn adit(host: &Host, arguments: &[&str]) -> Output {
    adit_at(host, &home(host), arguments)
}

/// Like [`adit`], for another home.
pub fn adit_at(host: &Host, home: &Path, arguments: &[&str]) -> Output {
    let home = home.display().to_string();
    host.attempt([&[ADIT, "--home", &home], arguments].concat()).unwrap()
}

/// `adit ARGUMENTS` on `host`; it has to succeed.
pub fn succeed(host: &Host, arguments: &[&str]) -> Output {
    let output = adit(host, arguments);
    assert!(output.ok(), "adit {arguments:?}: {}", output.stderr);
    output
}

/// Writes the configuration of a gateway.
pub fn init(gateway: &Host) {
    let endpoint = format!("{GATEWAY}:51820");
    succeed(gateway, &["init", "--endpoint", &endpoint, "--network6", "fd86:ad17::/64"]);
}

/// Makes a peer of the gateway and gives its file to `host`, as `NAME.conf`; where that is.
pub fn admit(gateway: &Host, name: &str, host: &Host, arguments: &[&str]) -> String {
    let file = succeed(gateway, &[&["peer", "add", name], arguments].concat()).stdout;
    host.write(&format!("{name}.conf"), file).unwrap().display().to_string()
}

/// `adit gateway` that is ready.
pub fn start_gateway(gateway: &Host) -> Process {
    start_gateway_at(gateway, &home(gateway))
}

/// Like [`start_gateway`], for another home.
pub fn start_gateway_at(gateway: &Host, home: &Path) -> Process {
    let mut process = gateway.spawn([ADIT, "--home", &home.display().to_string(), "gateway"]).unwrap();
    process.wait_for_text("gateway ready", SOON).unwrap();
    process
}

/// Ends the gateway as a service manager does.
pub fn stop_gateway(mut gateway: Process) {
    gateway.terminate();
    assert_eq!(gateway.wait(SOON).unwrap().code(), Some(0), "{}", gateway.stderr());
}

/// `adit status --json`.
pub fn status(host: &Host) -> Value {
    succeed(host, &["status", "--json"]).json().unwrap()
}

/// The entry of a peer in the status of a gateway.
pub fn peer_status(gateway: &Host, name: &str) -> Value {
    let status = status(gateway);
    let mut peers = status["peers"].as_array().into_iter().flatten();
    peers.find(|peer| peer["name"] == name).unwrap_or_else(|| panic!("{name} in {status}")).clone()
}

/// Ends the background process of a tunnel as the kernel does when it is out of memory.
pub fn kill_tunnel(host: &Host, interface: &str) {
    let file = home(host).join("run").join(format!("{interface}.pid"));
    let pid = fs::read_to_string(file).unwrap().trim().to_owned();
    host.exec(["kill", "-9", &pid]).unwrap();
    let directory = PathBuf::from("/proc").join(pid);
    wait_for("the killed process to go", SOON, || (!directory.exists()).then_some(())).unwrap();
}
