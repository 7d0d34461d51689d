//! A client that goes through everything that can happen to it, in a random order, while it and a container behind it
//! talk all the time and a stranger listens outside. `ADIT_LEAK_TRANSITIONS` says how many things happen, and
//! `ADIT_LEAK_SEED` which.

mod common;

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_lab::{Host, wait_for};

use common::SOON;
use common::internet::{
    GATEWAY, WEB, WEB6, client_addresses, home, kill_tunnel, start_gateway, status, succeed,
};
use common::leak::{LeakWorld, ROUTER};
use common::picture::Picture;

const TRANSITIONS: u32 = 60;

/// What can happen. The time until it is over is part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Transition {
    DownAndUp,
    Kill,
    CrashLoop,
    LinkFlap,
    GatewayRestart,
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

const ALL: [Transition; 16] = [
    DownAndUp,
    Kill,
    CrashLoop,
    LinkFlap,
    GatewayRestart,
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

/// Like [`ip`], where the kernel may have done it already.
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
    ip_if_needed(host, &format!("route add default via {ROUTER} dev eth0"));
    ip_if_needed(host, &format!("-6 route add default via {}", v6.replace("::2", "::1")));
}

/// A rogue route comes and goes.
fn rogue(world: &LeakWorld, dice: &mut Dice, routes: &[String]) {
    for route in routes {
        ip(&world.client, &format!("route add {route}"));
    }
    dice.pause();
    for route in routes {
        ip(&world.client, &format!("route del {route}"));
    }
}

/// Lets it happen. The span of time in which the host is open on purpose, or open by somebody else's flush.
fn happen(transition: Transition, world: &mut LeakWorld, dice: &mut Dice) -> Option<(Duration, Duration)> {
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
            let route = format!("{WEB}/32 via {ROUTER} dev eth0 proto dhcp metric 100");
            rogue(world, dice, &[route, format!("{GATEWAY}/32 via {ROUTER} dev eth0 proto dhcp metric 100")]);
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
            return Some((from, now()));
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
            ip(&client, "-6 addr flush dev eth0 scope global");
            dice.pause();
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

#[test]
fn no_frame_leaks_whatever_happens_in_whatever_order() {
    let seed = from_environment("ADIT_LEAK_SEED").unwrap_or_else(|| now().as_nanos() as u64 | 1);
    let count = from_environment("ADIT_LEAK_TRANSITIONS").unwrap_or(TRANSITIONS.into());
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
    let before = Picture::of(&client);

    let capture = world.listen();
    let talkers = world.talk(20);
    thread::sleep(Duration::from_millis(500));
    let heard = world.leaks(&capture.frames().unwrap());
    assert!(heard.len() > 30, "the listener is deaf: {heard:?}");
    up(&world);
    let mut open = vec![(Duration::ZERO, now())];
    let mut flushes = Vec::new();
    let mut happened: BTreeMap<Transition, u32> = BTreeMap::new();
    let mut times = Vec::new();
    for number in 0..count {
        let transition = ALL[dice.roll(ALL.len() as u64) as usize];
        *happened.entry(transition).or_default() += 1;
        times.push((now(), transition));
        match (transition, happen(transition, &mut world, &mut dice)) {
            (FirewallFlush, Some(span)) => flushes.push(span),
            (_, span) => open.extend(span),
        }
        dice.pause();
        if number % 50 == 49 {
            println!("{} of {count}", number + 1);
        }
    }
    let reached = wait_for("the tunnel to carry at the end", SOON, || {
        let ping = ["ping", "-n", "-q", "-c", "1", "-W", "1", WEB];
        client.attempt(ping).unwrap().ok().then_some(())
    });
    assert!(reached.is_ok(), "nothing is carried: {:?}", status(&client));
    let end = now();
    drop(talkers);
    let frames = capture.stop().unwrap();
    println!("{happened:?}");

    let within =
        |spans: &[(Duration, Duration)], time| spans.iter().any(|(from, to)| (*from..=*to).contains(&time));
    let mut leaks = BTreeMap::new();
    let mut at_flushes: BTreeMap<String, usize> = BTreeMap::new();
    for frame in frames.iter().filter(|frame| frame.time <= end && !within(&open, frame.time)) {
        for (class, _) in world.leaks(std::slice::from_ref(frame)) {
            if within(&flushes, frame.time) {
                *at_flushes.entry(class).or_default() += 1;
                continue;
            }
            let during =
                times.iter().rev().find(|(at, _)| *at <= frame.time).map(|(_, transition)| *transition);
            *leaks.entry((class, during)).or_insert(0) += 1;
        }
    }
    println!("{} frames heard; in {} flushes of the firewall: {at_flushes:?}", frames.len(), flushes.len());
    assert!(leaks.is_empty(), "seed {seed}: {leaks:?}");
    // Before the table is back the rules stand alone, and they do not bind who is bound to the card.
    let excused = |class: &String| class.starts_with("ARP for") || class.contains("port 9002");
    let unexcused: Vec<_> = at_flushes.keys().filter(|class| !excused(class)).collect();
    assert!(unexcused.is_empty(), "seed {seed}: {at_flushes:?}");

    succeed(&client, &["down"]);
    // What router advertisements left is the router's.
    client.set_sysctl("net.ipv6.conf.eth0.accept_ra", "2").unwrap();
    let after = Picture::of(&client);
    let changed = before.changed_lines(&after, |line| line.contains("\"protocol\": \"ra\""));
    assert!(changed.is_empty(), "seed {seed}: {changed:?}");
}
