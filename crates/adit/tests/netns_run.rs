//! `adit run`: one command of somebody without rights, whose only network is the tunnel.

mod common;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use adit_lab::{Capture, Host, Output, Process, wait_for};
use adit_proto::suite::Suite;
use common::device::{Device, Program};
use common::internet::{GATEWAY, GATEWAY6, INSIDE, Internet, WEB, WEB6, admit, init, start_gateway};
use common::peer::{Interface, Peer};
use common::rootless::{Nobody, OPEN_TUN};
use common::wire::ip_packets;
use common::{SOON, on};

const NOBODY: u32 = 65_534;

/// A gateway that is ready, and somebody with its file `run.conf` on the first client.
struct World {
    nobody: Nobody,
    file: String,
    gateway: Process,
    internet: Internet,
}

impl World {
    fn new(prefix: &str) -> Self {
        let internet = Internet::new(prefix, 1);
        init(&internet.gateway);
        let path = admit(&internet.gateway, "run", &internet.clients[0], &["--dns", INSIDE]);
        let nobody = Nobody::on(&internet.clients[0]);
        let file = nobody.write("run.conf", fs::read(path).unwrap()).display().to_string();
        let gateway = start_gateway(&internet.gateway);
        Self { nobody, file, gateway, internet }
    }

    fn client(&self) -> &Host {
        &self.nobody.host
    }

    /// The words of `adit run` with the file, for a shell.
    fn words(&self) -> [String; 4] {
        [self.nobody.adit(), "run".to_owned(), self.file.clone(), "--".to_owned()]
    }

    fn run(&self, command: &[&str]) -> Output {
        let words = self.words().into_iter().chain(command.iter().map(ToString::to_string));
        self.nobody.command(words).attempt().unwrap()
    }

    fn shell(&self, script: &str) -> Output {
        self.run(&["sh", "-c", script])
    }
}

/// The processes that run a program of this path.
fn running(program: &str) -> Vec<String> {
    let name = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path().join("exe")).ok()?;
        (target == Path::new(program)).then(|| entry.file_name().to_string_lossy().into_owned())
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(name).collect()
}

/// The network namespace of a process.
fn namespace(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()
}

/// How many processes are in a network namespace.
fn inhabitants(namespace: &Path) -> usize {
    let is_in = |entry: &fs::DirEntry| {
        fs::read_link(entry.path().join("ns/net")).is_ok_and(|target| target == namespace)
    };
    fs::read_dir("/proc").unwrap().flatten().filter(is_in).count()
}

#[test]
fn the_web_server_sees_the_gateway_and_a_plain_command_is_seen_as_itself() {
    let world = World::new("runweb");
    for (url, gateway) in [(format!("http://{WEB}/"), GATEWAY), (format!("http://[{WEB6}]/"), GATEWAY6)] {
        let seen = world.run(&["curl", "-sS", "-m", "10", &url]);
        assert_eq!(seen.stdout.trim(), gateway, "{}", seen.stderr);
        let plain = world.nobody.command(["curl", "-sS", "-m", "10", &url]).exec().unwrap();
        assert_ne!(plain.stdout.trim(), gateway);
    }
    let ping = world.run(&["ping", "-n", "-c", "1", "-W", "5", WEB]);
    assert!(ping.ok(), "ping needs no rights: {}{}", ping.stdout, ping.stderr);
}

#[test]
fn the_command_has_loopback_and_the_tunnel_and_no_rights_over_them() {
    let world = World::new("runroom");
    let links = world.run(&["ip", "-o", "link"]).stdout;
    let names: Vec<&str> = links.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(names, ["lo", "adit0"]);
    let loopback = world.shell("ping -c 1 -W 2 127.0.0.1 && ping -c 1 -W 2 ::1");
    assert!(loopback.ok(), "{}{}", loopback.stdout, loopback.stderr);

    let status = world.run(&["cat", "/proc/self/status"]).stdout;
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1\n"), "no program gives capabilities: {status}");
    for script in ["ip link set adit0 down", "ip route del default", "umount /etc/resolv.conf"] {
        assert!(!world.shell(script).ok(), "{script}");
    }
    assert!(world.shell("ip route show default").stdout.contains("adit0"));
}

#[test]
fn the_command_runs_as_if_called_directly() {
    let world = World::new("runsame");
    let direct = |script: &str| world.nobody.command(["sh", "-c", script]).attempt().unwrap();
    for script in [
        "id",
        "pwd",
        "umask",
        "env | sort | grep -v ^_",
        "ulimit -a",
        "ps -o pgid= -p $$ | tr -d ' '; echo $$",
    ] {
        let (direct, inside) = (direct(script), world.shell(script));
        if script.starts_with("ps") {
            for output in [&direct, &inside] {
                let lines: Vec<&str> = output.stdout.lines().collect();
                assert_eq!(lines[0], lines[1], "the shell leads the process group it was started in");
            }
        } else {
            assert_eq!(inside.stdout, direct.stdout, "{script}: {}", inside.stderr);
        }
    }
    let made = world.nobody.path("made");
    assert!(world.shell(&format!("echo text > {made}")).ok());
    let found = fs::metadata(&made).unwrap();
    assert_eq!((found.uid(), found.gid()), (NOBODY, NOBODY));

    let words = world.words().into_iter().chain(["cat".to_owned()]);
    let echoed = world.nobody.command(words).input("in and out").exec().unwrap();
    assert_eq!((echoed.stdout.as_str(), echoed.stderr.as_str()), ("in and out", ""));
    let open = world.run(&["sh", "-c", "ls -l /proc/$$/fd"]).stdout;
    assert!(!open.contains("socket:") && !open.contains("/dev/net/tun"), "{open}");
}

#[test]
fn exit_codes_and_signals_are_those_of_the_command() {
    let world = World::new("runend");
    for code in [0, 7, 255] {
        assert_eq!(world.shell(&format!("exit {code}")).code(), Some(code));
    }
    assert_eq!(world.run(&["/no/such/command"]).code(), Some(127));
    assert_eq!(world.run(&[&world.file]).code(), Some(126));
    // A shell tells 128 and the signal.
    let words = world.words().join(" ");
    let told = format!("{words} sh -c 'kill -TERM $$'; echo $?");
    let output = world.nobody.command(["sh", "-c", &told]).exec().unwrap();
    assert_eq!(output.stdout.trim(), "143");

    let script = "trap 'echo caught; exit 5' USR1; echo waiting; while :; do sleep 0.1; done";
    let argv = world.words().into_iter().chain(["sh", "-c", script].map(str::to_owned));
    let mut process = world.nobody.command(argv).spawn().unwrap();
    process.wait_for_text("waiting", SOON).unwrap();
    world.client().exec(["kill", "-USR1", &process.id().to_string()]).unwrap();
    assert_eq!(process.wait(SOON).unwrap().code(), Some(5));
    assert!(process.stdout().contains("caught"));
}

#[test]
fn the_terminal_is_the_commands_and_its_interrupt_key_ends_it() {
    let world = World::new("runtty");
    let line =
        format!("{} sh -c 'tty; test -t 0 && test -t 1 && echo terminal; sleep 30'", world.words().join(" "));
    let mut process = world.nobody.command(["script", "-qefc", &line, "/dev/null"]).spawn().unwrap();
    process.wait_for_text("terminal", SOON).unwrap();
    assert!(process.stdout().contains("/dev/pts/"), "{}", process.stdout());
    process.send_input(b"\x03").unwrap();
    assert_eq!(process.wait(SOON).unwrap().code(), Some(130), "{}", process.stdout());
}

#[test]
fn names_are_asked_through_the_tunnel_and_from_nobody_on_the_host() {
    let world = World::new("rundns");
    world.client().set_resolv_conf("nameserver 127.0.0.1\n").unwrap();
    let asked_outside = answer_names(world.client(), "127.0.0.1:53", [192, 0, 2, 1]);
    let asked_inside = answer_names(&world.internet.gateway, &format!("{INSIDE}:53"), [203, 0, 113, 80]);
    let direct = world.nobody.command(["getent", "ahostsv4", "web.test"]).exec().unwrap();
    assert!(direct.stdout.contains("192.0.2.1"), "the resolver of the host works: {}", direct.stdout);
    let before = asked_outside();

    let inside = world.run(&["getent", "ahostsv4", "web.test"]);
    assert!(inside.stdout.contains(WEB), "{}{}", inside.stdout, inside.stderr);
    let page = world.run(&["curl", "-sS", "-m", "10", "http://web.test/"]);
    assert_eq!(page.stdout.trim(), GATEWAY, "{}", page.stderr);
    assert!(asked_inside() >= 2);
    let host = world.run(&["dig", "+tries=1", "+time=1", "@127.0.0.1", "web.test"]);
    assert!(!host.ok(), "{}", host.stdout);

    let without = fs::read_to_string(&world.file).unwrap();
    let without: Vec<&str> = without.lines().filter(|line| !line.starts_with("DNS")).collect();
    world.nobody.write("run.conf", without.join("\n"));
    let unnamed = world.run(&["getent", "ahostsv4", "web.test"]);
    assert!(!unnamed.ok() && unnamed.stderr.contains("names no DNS server"), "{}", unnamed.stderr);
    assert_eq!(asked_outside(), before, "the host was asked");
}

/// Answers every question for an IPv4 address on a thread that ends with the test; how many were asked.
fn answer_names(host: &Host, place: &str, address: [u8; 4]) -> impl Fn() -> usize + use<> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let socket = on(host, || UdpSocket::bind(place).unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut question) {
            counter.fetch_add(1, Relaxed);
            let name_len = question[12..len].iter().position(|byte| *byte == 0).unwrap();
            let end = 12 + name_len + 5;
            let is_ipv4 = question[end - 3] == 1;
            let mut answer = question[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
            if is_ipv4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
                answer.extend(address);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    move || asked.load(Relaxed)
}

#[test]
fn without_the_gateway_nothing_of_the_command_gets_out() {
    let mut world = World::new("runclosed");
    let script = "curl -sS -m 5 $0; echo first; read go; curl -sS -m 3 $0; echo second";
    let url = format!("http://{WEB}/");
    let argv = world.words().into_iter().chain(["sh", "-c", script, &url].map(str::to_owned));
    let mut process = world.nobody.command(argv).spawn().unwrap();
    process.wait_for_text("first", SOON).unwrap();
    assert!(process.stdout().contains(GATEWAY), "{}", process.stdout());
    world.gateway.crash();

    let capture = Capture::start(world.client(), "eth0").unwrap();
    process.send_input(b"go\n").unwrap();
    process.wait_for_text("second", SOON).unwrap();
    assert_eq!(process.stdout().matches(GATEWAY).count(), 1, "{}", process.stdout());
    // The control: a plain command of the same user is captured.
    world.nobody.command(["curl", "-sS", "-m", "5", &url]).exec().unwrap();
    let packets = ip_packets(&capture.stop().unwrap());
    let to = |address: &str| packets.iter().filter(|it| it.destination.to_string() == address).count();
    assert!(to(GATEWAY) > 0, "the tunnel tries to reach its gateway");
    let connections = packets
        .iter()
        .filter(|it| it.destination.to_string() == WEB && it.protocol == 6 && it.payload[13] & 0x12 == 0x02);
    assert_eq!(connections.count(), 1, "only the plain command opened a connection");
}

#[test]
fn nothing_is_left_after_the_command_and_a_killed_tunnel_leaves_it_without_network() {
    let world = World::new("runafter");
    let argv = world.words().into_iter().chain(["sleep", "30"].map(str::to_owned));
    let mut process = world.nobody.command(argv.clone()).spawn().unwrap();
    let is_asleep = |process: &Process| {
        fs::read_to_string(format!("/proc/{}/comm", process.id())).is_ok_and(|name| name == "sleep\n")
    };
    wait_for("the command to start", SOON, || is_asleep(&process).then_some(())).unwrap();
    assert_eq!(running(&world.nobody.adit()).len(), 1, "the tunnel of the command");
    let room = namespace(process.id());
    assert_eq!(inhabitants(&room), 1);
    process.crash();
    let is_over = || (running(&world.nobody.adit()).is_empty() && inhabitants(&room) == 0).then_some(());
    wait_for("everything to go with the command", SOON, is_over).unwrap();

    let script = format!("echo up; read go; curl -sS -m 3 http://{WEB}/; ip -o link");
    let argv = world.words().into_iter().chain(["sh", "-c", &script].map(str::to_owned));
    let mut process = world.nobody.command(argv).spawn().unwrap();
    process.wait_for_text("up", SOON).unwrap();
    let [tunnel] = running(&world.nobody.adit()).try_into().unwrap();
    world.client().exec(["kill", "-9", &tunnel]).unwrap();
    wait_for("the tunnel to go", SOON, || running(&world.nobody.adit()).is_empty().then_some(())).unwrap();
    process.send_input(b"go\n").unwrap();
    process.wait(SOON).unwrap();
    let (said, links) = (process.stdout(), process.stdout().matches("lo:").count());
    assert!(!said.contains(GATEWAY) && !said.contains("adit0") && links == 1, "{said}");
}

#[test]
fn a_system_without_user_namespaces_is_explained_with_the_command_that_allows_them() {
    let world = World::new("rundenied");
    let words = world.words().join(" ");
    // The limit is one of the user namespace: in one of its own it can be set without touching the machine.
    let denied = |limit: u32| {
        let script = format!(
            "echo {limit} > /proc/sys/user/max_user_namespaces && \
             exec setpriv --inh-caps=-all --bounding-set=-all,+setfcap {words} echo it runs"
        );
        let argv = [
            "sh",
            "-c",
            OPEN_TUN,
            "sh",
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "unshare",
            "-Ur",
            "sh",
            "-c",
        ];
        world.client().command(argv).arg(script).attempt().unwrap()
    };
    let output = denied(0);
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("`sudo sysctl user.max_user_namespaces=15000`"), "{}", output.stderr);
    let output = denied(100);
    assert_eq!((output.code(), output.stdout.trim()), (Some(0), "it runs"), "{}", output.stderr);
    wait_for("the tunnels to go", SOON, || running(&world.nobody.adit()).is_empty().then_some(())).unwrap();
}

#[test]
fn root_runs_commands_as_root_without_rights_over_the_network() {
    let world = World::new("runroot");
    let file =
        world.client().write("root.conf", fs::read(&world.file).unwrap()).unwrap().display().to_string();
    let run = |script: &str| {
        world.client().attempt([&world.nobody.adit(), "run", &file, "--", "sh", "-c", script]).unwrap()
    };
    let url = format!("http://{WEB}/");
    let seen = run(&format!("curl -sS -m 10 {url}"));
    assert_eq!(seen.stdout.trim(), GATEWAY, "{}", seen.stderr);
    // Files of others are within reach of root, the network of the host is not.
    let others = run(&format!("id -u; test -r {} && echo readable", world.file));
    assert_eq!(others.stdout, "0\nreadable\n", "{}", others.stderr);
    assert!(!run("ip link set adit0 down").ok() && !run("nsenter -t 1 -n true").ok());
}

#[test]
fn it_works_with_a_stock_wireguard_gateway() {
    let internet = Internet::new("rungo", 1);
    let (server, client) = (common::peer::secret(), common::peer::secret());
    let gateway = &internet.gateway;
    let interface = Interface::new(&server, 1, [Peer::new(&client, 2)]);
    let device = Device::start(Program::WireguardGo, gateway, &interface);
    gateway.enable_forwarding().unwrap();
    gateway.command(["nft", "-f", "-"]).input(
        "table ip nat { chain post { type nat hook postrouting priority 100; oifname eth0 masquerade; }; }",
    ).exec().unwrap();
    let endpoint = format!("{GATEWAY}:{}", common::peer::PORT).parse().unwrap();
    let mut peer = Peer::new(&server, 1).at(endpoint).suite(Suite::ChaCha20Poly1305);
    peer.allowed_ips = "0.0.0.0/0".to_owned();
    let file = Interface::new(&client, 2, [peer]).file("Address = 10.9.0.2/32\nMTU = 1420\n");
    let nobody = Nobody::on(&internet.clients[0]);
    let file = nobody.write("go.conf", file).display().to_string();
    let url = format!("http://{WEB}/");
    let seen =
        nobody.command([&nobody.adit(), "run", &file, "--", "curl", "-sS", "-m", "10", &url]).attempt();
    let seen = seen.unwrap();
    assert_eq!(seen.stdout.trim(), GATEWAY, "{}", seen.stderr);
    assert!(device.shown(&client.public_key()).rx_bytes > 0);
    wait_for("the tunnel to go", Duration::from_secs(5), || running(&nobody.adit()).is_empty().then_some(()))
        .unwrap();
}
