//! A client that goes through everything that can happen to it, in a random order, while it and a container behind it
//! talk all the time and a stranger listens outside. `ADIT_LEAK_TRANSITIONS` says how many things happen, and
//! `ADIT_LEAK_SEED` which; `cargo xtask leaks` sets them.

mod common;

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_lab::pcap::Frame;
use adit_lab::{Capture, Host, Process, wait_for};

use common::SOON;
use common::dhcp::Dhcp;
use common::internet::{
    GATEWAY, WEB, WEB6, client_addresses, home, kill_tunnel, start_gateway, status, succeed,
};
use common::leak::{LeakWorld, ROUTER};
use common::picture::Picture;

/// Every kind happens this often, in a random order, unless the environment says how many.
const ROUNDS: usize = 3;
/// So many are captured at a time.
const CHUNK: usize = 50;

/// What can happen. The time until it is over is part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Transition {
    DownAndUp,
    Kill,
    CrashLoop,
    LinkFlap,
    GatewayRestart,
    RouterChange,
    RogueHalves,
    RogueNetwork,
    RogueHost,
    DhcpRoute,
    RouterAdvertisement,
    Redirect,
    FirewallFlush,
    RuleFlush,
    TableReplaced,
    Suspend,
    Ipv6Appears,
}

use Transition::*;

const ALL: [Transition; 17] = [
    DownAndUp,
    Kill,
    CrashLoop,
    LinkFlap,
    GatewayRestart,
    RouterChange,
    RogueHalves,
    RogueNetwork,
    RogueHost,
    DhcpRoute,
    RouterAdvertisement,
    Redirect,
    FirewallFlush,
    RuleFlush,
    TableReplaced,
    Suspend,
    Ipv6Appears,
];

/// xorshift64 (Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pause(&mut self) {
        thread::sleep(Duration::from_millis(20 + self.roll(80)));
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn ip(host: &Host, line: &str) {
    host.ip(line.split(' ')).unwrap();
}

/// Like [`ip`], where the kernel or a router may have done it already.
fn ip_if_needed(host: &Host, line: &str) {
    let argv: Vec<&str> = ["ip"].into_iter().chain(line.split(' ')).collect();
    host.attempt(argv).unwrap();
}

fn up(world: &LeakWorld) {
    succeed(&world.client, &["up", &world.file]);
}

/// What the link lost while it was down.
fn readdress(host: &Host) {
    let (_, v6) = client_addresses(0);
    ip_if_needed(host, &format!("-6 addr add {v6}/64 dev eth0 nodad"));
    ip(host, &format!("route replace default via {ROUTER} dev eth0"));
    ip_if_needed(host, &format!("-6 route add default via {} dev eth0", v6.replace("::2", "::1")));
}

/// Rogue routes come and go.
fn rogue(world: &LeakWorld, dice: &mut Dice, routes: &[String]) {
    for route in routes {
        ip(&world.client, &format!("route replace {route}"));
    }
    dice.pause();
    for route in routes {
        ip(&world.client, &format!("route del {route}"));
    }
}

/// Lets it happen. The span of time in which the host is open on purpose, or open by somebody else's flush.
fn happen(
    transition: Transition,
    world: &mut LeakWorld,
    dhcp: &Dhcp,
    dice: &mut Dice,
) -> Option<(Duration, Duration)> {
    let client = world.client.clone();
    let from = now();
    match transition {
        DownAndUp => {
            succeed(&client, &["down"]);
            dice.pause();
            up(world);
            return Some((from, now()));
        }
        Kill => {
            kill_tunnel(&client, "tun-0");
            dice.pause();
            up(world);
        }
        CrashLoop => {
            for _ in 0..2 {
                kill_tunnel(&client, "tun-0");
                up(world);
            }
        }
        LinkFlap => {
            ip(&client, "link set eth0 down");
            dice.pause();
            ip(&client, "link set eth0 up");
            readdress(&client);
        }
        GatewayRestart => {
            world.gateway.crash();
            dice.pause();
            world.gateway = start_gateway(&world.net.gateway);
        }
        RouterChange => {
            ip(&client, "route replace default via 10.100.0.9 dev eth0");
            dice.pause();
            ip(&client, &format!("route replace default via {ROUTER} dev eth0"));
        }
        RogueHalves => {
            let halves = ["0.0.0.0/1", "128.0.0.0/1", "::/1"];
            let via = |net: &&str| match net.contains(':') {
                true => format!("{net} via 2001:db8:10::1 dev eth0"),
                false => format!("{net} via {ROUTER} dev eth0"),
            };
            rogue(world, dice, &halves.iter().map(via).collect::<Vec<_>>());
        }
        RogueNetwork => rogue(world, dice, &[format!("203.0.113.0/24 via {ROUTER} dev eth0")]),
        RogueHost => {
            let hosts = [format!("{WEB}/32 dev eth0"), format!("{WEB6}/128 dev eth0")];
            rogue(world, dice, &hosts);
        }
        DhcpRoute => {
            dhcp.lease(&client);
            dice.pause();
            ip(&client, "route flush proto dhcp");
        }
        RouterAdvertisement => {
            let argv = ["router-advert", "--device", "client-0", "--network", WEB6, "--prefix-len", "128"];
            world.net.router.agent(argv).exec().unwrap();
            dice.pause();
        }
        Redirect => {
            let (victim, _) = client_addresses(0);
            let argv = ["icmp-redirect", "--victim", &victim, "--to", WEB, "--by", "10.100.0.9"];
            world.net.router.agent(argv).exec().unwrap();
            dice.pause();
        }
        FirewallFlush => {
            let before = repairs(&client);
            client.exec(["nft", "flush", "ruleset"]).unwrap();
            wait_for("the table to be back", SOON, || (repairs(&client) > before).then_some(())).unwrap();
        }
        RuleFlush => {
            let before = repairs(&client);
            ip(&client, "rule flush");
            ip_if_needed(&client, "rule add from all lookup main pref 32766");
            ip_if_needed(&client, "rule add from all lookup default pref 32767");
            wait_for("the rules to be back", SOON, || (repairs(&client) > before).then_some(())).unwrap();
        }
        TableReplaced => {
            ip(&client, "route replace default dev eth0 table 51820");
            dice.pause();
        }
        Suspend => {
            let pid = std::fs::read_to_string(home(&client).join("run/tun-0.pid")).unwrap();
            client.exec(["kill", "-STOP", pid.trim()]).unwrap();
            dice.pause();
            client.exec(["kill", "-CONT", pid.trim()]).unwrap();
        }
        Ipv6Appears => {
            client.set_sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
            dice.pause();
            client.set_sysctl("net.ipv6.conf.eth0.disable_ipv6", "0").unwrap();
            readdress(&client);
        }
    }
    None
}

fn repairs(client: &Host) -> u64 {
    status(client)["host"]["repairs"].as_u64().unwrap()
}

fn from_environment(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// How many frames of the client the router's card has taken.
fn taken(router: &Host) -> u64 {
    let file = "/sys/class/net/client-0/statistics/rx_packets";
    router.exec(["cat", file]).unwrap().stdout.trim().parse().unwrap()
}

/// Listens without a pause, in pieces that fit into memory.
struct Listener {
    piece: u32,
    capture: Capture,
    taken: u64,
}

impl Listener {
    fn start(world: &LeakWorld, piece: u32) -> Self {
        let path = world.net.router.directory().join(format!("piece-{}.pcap", piece % 2));
        let capture = Capture::start_at(&world.net.router, "client-0", &path).unwrap();
        Self { piece, capture, taken: taken(&world.net.router) }
    }

    /// The next listens before this one stops. It has to have heard all that the router's card took.
    fn turn_over(&mut self, world: &LeakWorld) -> Vec<Frame> {
        let next = Self::start(world, self.piece + 1);
        let listener = std::mem::replace(self, next);
        listener.stop(world)
    }

    fn stop(self, world: &LeakWorld) -> Vec<Frame> {
        let taken = taken(&world.net.router) - self.taken;
        let frames = self.capture.stop().unwrap();
        let heard = frames.iter().filter(|frame| world.sent(frame)).count() as u64;
        assert!(heard >= taken, "the listener missed frames: {heard} of {taken}");
        frames
    }
}

type Span = (Duration, Duration);

/// What happened when, and what leaked.
#[derive(Default)]
struct Record {
    /// While the host is open on purpose.
    open: Vec<Span>,
    times: Vec<(Duration, Transition)>,
    heard: usize,
    heard_while_open: usize,
    leaks: BTreeMap<(String, Option<Transition>), usize>,
}

impl Record {
    fn judge(&mut self, world: &LeakWorld, frames: &[Frame]) {
        self.heard += frames.len();
        for frame in frames {
            for (class, _) in world.leaks(std::slice::from_ref(frame)) {
                if self.open.iter().any(|(from, to)| (*from..=*to).contains(&frame.time)) {
                    self.heard_while_open += 1;
                    continue;
                }
                let last = self.times.iter().rev().find(|(at, _)| *at <= frame.time);
                *self.leaks.entry((class, last.map(|(_, transition)| *transition))).or_default() += 1;
            }
        }
    }
}

/// Every kind equally often, in a random order.
fn script(count: usize, dice: &mut Dice) -> Vec<Transition> {
    let mut all: Vec<_> = ALL.into_iter().cycle().take(count).collect();
    for last in (1..all.len()).rev() {
        all.swap(last, dice.roll(last as u64 + 1) as usize);
    }
    all
}

fn carries(client: &Host) -> bool {
    client.attempt(["ping", "-n", "-q", "-c", "1", "-W", "1", WEB]).unwrap().ok()
}

#[test]
fn no_frame_leaks_whatever_happens_in_whatever_order() {
    let seed = from_environment("ADIT_LEAK_SEED").unwrap_or_else(|| now().as_nanos() as u64 | 1);
    let count = from_environment("ADIT_LEAK_TRANSITIONS").map_or(ROUNDS * ALL.len(), |it| it as usize);
    println!("ADIT_LEAK_SEED={seed} ADIT_LEAK_TRANSITIONS={count}");
    let mut dice = Dice(seed.max(1));
    let mut world = LeakWorld::new("leakall");
    let client = world.client.clone();
    // As trusting as a host can be.
    for key in ["net.ipv4.conf.all.accept_redirects", "net.ipv4.conf.eth0.accept_redirects"] {
        client.set_sysctl(key, "1").unwrap();
    }
    client.set_sysctl("net.ipv6.conf.eth0.accept_ra", "2").unwrap();
    client.set_sysctl("net.ipv6.conf.eth0.accept_ra_rt_info_max_plen", "128").unwrap();
    // The neighbour it is misled to.
    world.net.router.add_address("client-0", "10.100.0.9/24").unwrap();
    let networks = [format!("{WEB}/32"), format!("{GATEWAY}/32"), "0.0.0.0/1".to_owned()];
    let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
    let dhcp = Dhcp::start(&world.net.router, "client-0", &client_addresses(0).0, &networks);
    let before = Picture::of(&client);

    let mut listener = Listener::start(&world, 0);
    let talkers = world.talk(20);
    thread::sleep(Duration::from_millis(500));
    let control = world.leaks(&listener.turn_over(&world));
    assert!(control.len() > 30, "the listener is deaf: {control:?}");
    println!("control: {} classes, {} frames", control.len(), control.values().sum::<usize>());
    up(&world);
    let mut record = Record { open: vec![(Duration::ZERO, now())], ..Record::default() };
    let mut happened: BTreeMap<Transition, u32> = BTreeMap::new();
    for (number, transition) in script(count, &mut dice).into_iter().enumerate() {
        *happened.entry(transition).or_default() += 1;
        record.times.push((now(), transition));
        let open = happen(transition, &mut world, &dhcp, &mut dice);
        record.open.extend(open);
        dice.pause();
        if number % CHUNK == CHUNK - 1 {
            let frames = listener.turn_over(&world);
            record.judge(&world, &frames);
            println!("{} of {count}: {} frames heard, leaks {:?}", number + 1, record.heard, record.leaks);
        }
    }
    wait_for("the tunnel to carry at the end", SOON, || carries(&client).then_some(()))
        .unwrap_or_else(|_| panic!("seed {seed}: nothing is carried: {:?}", status(&client)));
    quiet(talkers);
    let frames = listener.stop(&world);
    record.judge(&world, &frames);
    let Record { heard, heard_while_open, leaks, .. } = &record;
    println!("{happened:?}\n{heard} frames heard; {heard_while_open} beside the tunnel while it was down");
    assert!(leaks.is_empty(), "seed {seed}: {leaks:?}");
    assert!(*heard_while_open > 0, "the listener is deaf");

    succeed(&client, &["down"]);
    // What router advertisements left is the router's.
    ip_if_needed(&client, "-6 route flush proto ra");
    // Routes that went with a link come back in another order.
    let differences = || {
        let after = Picture::of(&client);
        [before.changed_lines(&after, |_| false), after.changed_lines(&before, |_| false)].concat()
    };
    wait_for("the host to be as it was", SOON, || differences().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("seed {seed}: {:#?}", differences()));
}

fn quiet(talkers: [Process; 2]) {
    for mut talker in talkers {
        talker.close_input();
        talker.wait(SOON).unwrap();
    }
}
