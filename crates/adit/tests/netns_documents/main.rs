//! Every block of commands in the documents: run here as it stands, or named with the reason why not.

mod blocks;
#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use adit_lab::{Host, Invocation, Process, wait_for};

use blocks::{BLOCKS, Block, How, STAYING, blocks, checkout, is_block};
use common::internet::{
    GATEWAY, INSIDE, Internet, WEB, WEB6, admit, home, init, start_gateway, status, stop_gateway, succeed,
};
use common::proxied::{Recorder, serve_names};
use common::rootless::Nobody;
use common::{ADIT, SOON};

/// A place where people type commands: `sudo` does nothing there, as they are root, and `adit` is the one under test.
struct Desk {
    host: Host,
    path: String,
    /// What comes before each command, in mounts of its own: files of the machine that a command would change.
    prepared: String,
    environment: Vec<(&'static str, String)>,
}

impl Desk {
    fn new(host: &Host) -> Self {
        let bin = host.directory().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let adit = format!("#!/bin/sh\nexec {ADIT} --home {} \"$@\"\n", home(host).display());
        for (name, script) in [("adit", adit.as_str()), ("sudo", "#!/bin/sh\nexec env \"$@\"\n")] {
            fs::write(bin.join(name), script).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
        Self { host: host.clone(), path, prepared: String::new(), environment: Vec::new() }
    }

    fn command(&self, script: &str) -> Invocation {
        let script = format!("{}{script}", self.prepared);
        let invocation = self.host.command(["sh", "-c", &script]).env("PATH", &self.path);
        self.environment.iter().fold(invocation, |it, (key, value)| it.env(*key, value))
    }

    fn run(&self, command: &str) -> String {
        let output = self.command(command).deadline(Duration::from_secs(90)).attempt().unwrap();
        assert!(output.ok(), "{command}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    fn start(&self, command: &str, ready: &str) -> Process {
        let script = format!("exec {}", command.trim_start_matches("sudo "));
        let mut process = self.command(&script).spawn().unwrap();
        process.wait_for_text(ready, SOON).unwrap_or_else(|error| panic!("{command}: {error}"));
        process
    }
}

#[test]
fn the_commands_of_the_documents_work_as_they_stand() {
    let net = Internet::new("docs", 1);
    let (server, laptop) = (Desk::new(&net.gateway), Desk::new(&net.clients[0]));
    let mut staying = Vec::new();
    let mut invitation = String::new();
    let mut run = 0;
    let blocks = blocks();
    for row in BLOCKS {
        let block = blocks.iter().find(|block| is_block(block, row)).unwrap();
        let desk = match row.2 {
            How::Server => &server,
            How::ServerWith(line) => {
                let document = fs::read_to_string(checkout().join(row.0)).unwrap();
                assert!(document.lines().any(|it| it == line), "{line}");
                let path = home(&net.gateway).join("adit.toml");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(&path, text.replacen("[gateway]\n", &format!("[gateway]\n{line}\n"), 1)).unwrap();
                &server
            }
            How::Laptop => &laptop,
            How::Connected => {
                succeed(&net.clients[0], &["up"]);
                &laptop
            }
            How::Here(..) | How::Elsewhere(..) | How::Never(_) => continue,
        };
        for written in &block.commands {
            let mut command = written.replace("adit://...", &invitation);
            if matches!(row.2, How::Connected) {
                // The network is picked anew by each gateway.
                let api = status(&net.clients[0])["peers"][0]["inside_api"][0].as_str().unwrap().to_owned();
                command = command.replace("10.86.0.1:9585", &api);
            }
            let bare = command.split(" #").next().unwrap().trim();
            if let Some((_, ready)) = STAYING.iter().find(|(start, _)| bare.starts_with(start)) {
                staying.push(desk.start(bare, ready));
            } else {
                let output = desk.run(&command);
                if output.starts_with("adit://") {
                    invitation = output.trim().to_owned();
                }
            }
            run += 1;
        }
    }
    assert!(run >= 7 && !invitation.is_empty(), "{run} commands were run");
    assert_eq!(staying.len(), 1);
    let peers = server.run("adit peer list");
    assert!(peers.contains("laptop"), "{peers}");
}

/// The lines of a block, each of which a test has to take.
struct Script {
    place: String,
    lines: std::vec::IntoIter<String>,
}

impl Script {
    fn of(document: &str, start: &str) -> Self {
        let is_it = |it: &Block| it.document == document && it.commands[0].starts_with(start);
        let block = blocks().into_iter().find(is_it).unwrap();
        Self { place: format!("{document}:{}", block.line), lines: block.commands.into_iter() }
    }

    /// The next line, which begins like this.
    fn line(&mut self, start: &str) -> String {
        let line = self.lines.next().unwrap_or_else(|| panic!("{}: no line `{start}`", self.place));
        assert!(line.starts_with(start), "{}: `{line}` is not `{start}`", self.place);
        line
    }

    fn end(mut self) {
        assert_eq!(self.lines.next(), None, "{}: a line that was not run", self.place);
    }
}

/// The second address of the web server, which `bank.example` and `corp.example` have.
const OTHER: &str = "203.0.113.81";
/// What the web server sees of the client when it comes by itself.
const OWN: &str = "10.100.0.2";

/// The internet of the documents: names, and web sites with certificates.
struct World {
    net: Internet,
    gateway: Process,
    /// Whom the sites' certificate is believed from.
    certificate: Vec<u8>,
    _sites: Process,
}

impl World {
    fn new(prefix: &str) -> Self {
        let net = Internet::new(prefix, 1);
        net.web.add_address("eth0", &format!("{OTHER}/24")).unwrap();
        serve_names(
            &net.web,
            |name| if name == "bank.example" || name == "corp.example" { OTHER } else { WEB },
        );
        for host in [&net.clients[0], &net.gateway] {
            host.set_resolv_conf(&format!("nameserver {WEB}\n")).unwrap();
        }
        let at = net.web.directory().display().to_string();
        let request = format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=example.org \
             -addext subjectAltName=DNS:example.org,DNS:bank.example,DNS:corp.example -keyout {at}/key.pem -out {at}/cert.pem"
        );
        net.web.exec(["sh", "-c", &request]).unwrap();
        let certificate = fs::read(net.web.directory().join("cert.pem")).unwrap();
        let server = format!(
            "daemon off; pid {at}/pid; error_log {at}/error.log; events {{}}\nhttp {{ access_log off;\n\
             client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fcgi;\n\
             uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             server {{ listen 443 ssl; ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;\n\
             location / {{ return 200 $remote_addr; }} }} }}\n"
        );
        let file = net.web.write("nginx.conf", server).unwrap().display().to_string();
        let sites = net.web.spawn(["nginx", "-e", &format!("{at}/first.log"), "-c", &file]).unwrap();
        wait_for("the sites", SOON, || {
            net.web.exec(["ss", "-ltnH", "sport = :443"]).ok().filter(|it| !it.stdout.is_empty())
        })
        .unwrap();
        init(&net.gateway);
        let gateway = start_gateway(&net.gateway);
        Self { net, gateway, certificate, _sites: sites }
    }

    fn client(&self) -> &Host {
        &self.net.clients[0]
    }

    fn invitation(&self) -> String {
        succeed(&self.net.gateway, &["invite", "laptop"]).stdout.trim().to_owned()
    }

    /// The laptop's, which has joined.
    fn desk(&self) -> Desk {
        let mut desk = Desk::new(self.client());
        let authority = self.client().write("authority.pem", &self.certificate).unwrap();
        desk.environment.push(("CURL_CA_BUNDLE", authority.display().to_string()));
        succeed(self.client(), &["join", "--no-up", "--name", "laptop", &self.invitation()]);
        desk
    }
}

#[test]
fn what_needs_no_root_works_for_nobody_as_it_is_written() {
    let world = World::new("docsnobody");
    let nobody = Nobody::on(world.client());
    let authority = nobody.write("authority.pem", &world.certificate).display().to_string();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", nobody.directory().display());
    let command =
        |line: &str| nobody.command(["sh", "-c", line]).env("PATH", &path).env("CURL_CA_BUNDLE", &authority);
    let run = |line: String, input: &str| {
        let output = command(&line).input(input).deadline(Duration::from_secs(60)).attempt().unwrap();
        assert!(output.ok(), "{line}: {}{}", output.stdout, output.stderr);
        output.stdout.trim().to_owned()
    };
    let mut script = Script::of("README.md", "adit join --no-up");
    run(script.line("adit join --no-up").replace("adit://...", &world.invitation()), "");
    assert_eq!(run(script.line("adit run -- curl"), ""), GATEWAY);
    assert_eq!(run(script.line("adit run -- bash"), "curl -sS https://example.org\n"), GATEWAY);
    script.end();

    let mut script = Script::of("README.md", "adit proxy --socks5");
    let start = |line: String| {
        let mut process = command(&format!("exec {line}")).spawn().unwrap();
        process.wait_for_text("proxy ready", SOON).unwrap_or_else(|error| panic!("{line}: {error}"));
        process
    };
    let stop = |mut process: Process| {
        process.terminate();
        assert_eq!(process.wait(SOON).unwrap().code(), Some(0), "{}", process.stderr());
    };
    let proxy = start(script.line("adit proxy --socks5 --http"));
    assert_eq!(run(script.line("curl --socks5-hostname"), ""), GATEWAY);
    assert_eq!(run("curl -sS --proxy http://127.0.0.1:8118 https://example.org".into(), ""), GATEWAY);
    stop(proxy);
    let proxy = start(script.line("adit proxy -L 8080:"));
    assert_eq!(run("curl -sS http://127.0.0.1:8080/".into(), ""), GATEWAY);
    stop(proxy);
    let _program =
        Recorder::start(world.client(), 3000, b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let proxy = start(script.line("adit proxy -R 9000:"));
    let page = world.net.gateway.exec(["curl", "-sS", "--max-time", "10", "http://10.86.0.2:9000/"]).unwrap();
    assert_eq!(page.stdout, "hello");
    stop(proxy);
    script.end();
    stop_gateway(world.gateway);
}

#[test]
fn a_split_tunnel_works_as_it_is_written() {
    let world = World::new("docssplit");
    let mut desk = world.desk();
    // `ip netns exec` hides the control groups of the machine.
    "mount -t cgroup2 none /sys/fs/cgroup && ".clone_into(&mut desk.prepared);
    let seen = |name: &str| desk.run(&format!("curl -4sS -m 10 https://{name}"));
    let mut script = Script::of("docs/split-tunnel.md", "sudo adit up --exclude");
    desk.run(&script.line("sudo adit up --exclude"));
    assert_eq!([seen("example.org"), seen("bank.example")], [GATEWAY, OWN]);
    desk.run("sudo adit down");
    desk.run(&script.line("sudo adit up --include"));
    assert_eq!([seen("example.org"), seen("corp.example")], [OWN, GATEWAY]);
    desk.run("sudo adit down && sudo adit up laptop");
    assert_eq!(seen("bank.example"), GATEWAY);
    assert_eq!(desk.run(&script.line("sudo adit exclude -- curl")), OWN);
    desk.run("sudo adit down");
    assert_eq!(seen("bank.example"), OWN);
    assert_eq!(desk.run(&script.line("adit run laptop -- curl")), GATEWAY);
    script.end();
    stop_gateway(world.gateway);
}

#[test]
fn addresses_and_speed_are_told_and_leaks_looked_for_as_it_is_written() {
    let world = World::new("docstold");
    let public = "192.0.2.100";
    let rule = format!("ip saddr 10.100.0.0/24 snat to {public}");
    let chain = "type nat hook postrouting priority srcnat";
    world.net.router.nft(&format!("table ip homes {{ chain leaving {{ {chain}\n{rule}\n}}\n}}")).unwrap();
    let mut desk = world.desk();
    // Services of this internet, named as a setting is.
    desk.environment.push(("ADIT_IP_SERVICES", format!("http://{WEB}/ http://[{WEB6}]/")));
    desk.run("sudo adit up");
    let mut script = Script::of("README.md", "sudo adit ip");
    let both = desk.run(&script.line("sudo adit ip  "));
    assert!(both.contains(GATEWAY) && both.contains(public), "{both}");
    let outside = desk.run(&script.line("sudo adit ip --outside"));
    assert!(outside.contains(public) && !outside.contains(GATEWAY), "{outside}");
    let speed = desk.run(&script.line("sudo adit bench"));
    assert!(speed.contains("What limits the download:"), "{speed}");
    script.end();

    let mut script = Script::of("docs/split-tunnel.md", "sudo adit verify");
    let found = desk.run(&script.line("sudo adit verify"));
    assert!(!found.contains("LEAKED"), "{found}");
    script.end();
    desk.run("sudo adit down");
    stop_gateway(world.gateway);
}

#[test]
fn wg_quick_works_with_adit_as_its_device_as_it_is_written() {
    let net = Internet::new("docswg", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    admit(&net.gateway, "phone", client, &["--suite", "chacha20-poly1305"]);
    let at = client.directory().display().to_string();
    let bin = client.directory().join("local-bin");
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(client.directory().join("sockets")).unwrap();
    symlink(ADIT, bin.join("adit")).unwrap();
    let mut desk = Desk::new(client);
    desk.prepared = format!(
        "mkdir -p /run/wireguard && mount --bind {at}/sockets /run/wireguard && mount --bind {at}/local-bin /usr/local/bin \
         && cd {at} && "
    );
    let mut script = Script::of("README.md", "sudo ln -s adit");
    desk.run(&script.line("sudo ln -s adit"));
    desk.run(&script.line("sudo WG_QUICK_USERSPACE_IMPLEMENTATION"));
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
    assert_eq!(net.seen_from(client)[0], GATEWAY);
    let shown = desk.run(&script.line("sudo wg show"));
    assert!(shown.contains("interface: phone") && shown.contains("latest handshake"), "{shown}");
    script.end();
    desk.run("wg-quick down ./phone.conf");
    stop_gateway(gateway);
}
