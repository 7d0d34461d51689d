//! The connection beside the first: what goes by it, and what happens when it goes.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use adit_io::sys::NetNamespace;
use adit_lab::{Content, Host, wait_for};
use common::SOON;
use common::carried::{up, wait_for_carrier};
use common::internet::{
    INSIDE, Internet, admit, client_addresses, finish_download, init, start_gateway, status, stop_gateway,
    succeed,
};
use common::slow_way::{SlowWay, device};

const FILE: Content = Content { seed: 0xa51d, bytes: 4 << 20 };

/// A connection as the gateway sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    port: u16,
    sent_bytes: u64,
}

fn seen(gateway: &Host) -> Vec<Seen> {
    let of_port = ["ss", "-HtniO", "state", "established", "sport = :51820"];
    let open = gateway.exec(of_port).unwrap().stdout;
    let one = |line: &str| {
        let other_end = line.split_whitespace().nth(3)?;
        let (_, sent) = line.split_once("bytes_sent:")?;
        Some(Seen {
            port: other_end.rsplit_once(':')?.1.parse().ok()?,
            sent_bytes: sent.split_whitespace().next()?.parse().ok()?,
        })
    };
    open.lines().filter_map(one).collect()
}

fn two_connections(gateway: &Host) -> [Seen; 2] {
    wait_for("a connection beside the first", 2 * SOON, || seen(gateway).try_into().ok()).unwrap()
}

fn sent(gateway: &Host, port: u16) -> u64 {
    seen(gateway).iter().find(|it| it.port == port).map_or(0, |it| it.sent_bytes)
}

/// Larger than what else goes: probes, keepalives.
const ECHOES: u64 = 20;
const ECHO_BYTES: u64 = 1_000;

fn echo(client: &Host) {
    let said = echo_once(client);
    assert!(said.contains(" 0% packet loss"), "{said}");
}

/// None of them comes twice.
fn echo_once(client: &Host) -> String {
    let count = ECHOES.to_string();
    let size = ECHO_BYTES.to_string();
    let ping = ["ping", "-n", "-q", "-i", "0.05", "-c", &count, "-s", &size, "-W", "2", INSIDE];
    let said = client.attempt(ping).unwrap().stdout;
    assert!(!said.contains("duplicates"), "{said}");
    said
}

#[test]
fn flows_that_send_little_go_beside_a_download_and_by_the_first_connection_when_the_other_is_gone() {
    let internet = Internet::new("aside", 1);
    let (client, gateway) = (&internet.clients[0], &internet.gateway);
    init(gateway);
    let running = start_gateway(gateway);
    let file = admit(gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    for kind in ["tcp", "tls", "wss"] {
        up(client, &file, &["--carrier", kind]);
        wait_for_carrier(client, &[kind], SOON);
        let mut both = two_connections(gateway);
        // Used only once the client has an answer by it.
        wait_for("echoes beside the first", SOON, || {
            let before = two_connections(gateway);
            echo(client);
            let grown = |it: &Seen| sent(gateway, it.port) - it.sent_bytes > ECHOES * ECHO_BYTES;
            let by: Vec<bool> = before.iter().map(grown).collect();
            both = before;
            (by.iter().filter(|it| **it).count() == 1).then_some(())
        })
        .unwrap();

        let before = two_connections(gateway);
        finish_download(internet.start_download(client, FILE, 100_000), FILE);
        both.sort_by_key(|it| sent(gateway, it.port));
        let [aside, first] = both;
        let grown = |port: u16| {
            let before = before.iter().find(|it| it.port == port).unwrap();
            sent(gateway, port) - before.sent_bytes
        };
        assert!(grown(first.port) > FILE.bytes, "{kind}: {:?}", seen(gateway));
        assert!(grown(aside.port) < FILE.bytes / 10, "{kind}: {:?}", seen(gateway));

        let before = (sent(gateway, first.port), sent(gateway, aside.port));
        echo(client);
        let after = (sent(gateway, first.port), sent(gateway, aside.port));
        assert!(after.1 - before.1 > ECHOES * ECHO_BYTES, "{kind}: {before:?} {after:?}");
        assert!(after.0 - before.0 < ECHOES * ECHO_BYTES, "{kind}: {before:?} {after:?}");

        // Something on the way ends it.
        let rules = format!(
            "table ip cut {{\nchain forward {{\ntype filter hook forward priority 0;\n\
             tcp sport {0} reject with tcp reset\ntcp dport {0} reject with tcp reset\n}}\n}}\n",
            aside.port
        );
        let rules = internet.router.write("cut.nft", rules).unwrap().display().to_string();
        internet.router.exec(["nft", "-f", &rules]).unwrap();
        wait_for("the connection to end", SOON, || {
            client.attempt(["ping", "-n", "-q", "-c", "1", "-W", "1", INSIDE]).unwrap();
            seen(gateway).iter().all(|it| it.port != aside.port).then_some(())
        })
        .unwrap();
        echo(client);
        let again = two_connections(gateway);
        assert!(again.iter().any(|it| it.port == first.port), "{kind}: {again:?} {first:?}");
        internet.router.exec(["nft", "delete", "table", "ip", "cut"]).unwrap();
        succeed(client, &["down"]);
        wait_for("both to end", Duration::from_secs(30), || seen(gateway).is_empty().then_some(())).unwrap();
    }
    stop_gateway(running);
}

/// The router's interfaces to the client and to the gateway.
const FAR_ENDS: [&str; 2] = ["client-0", "gateway"];

/// Leads what the router forwards through a slow way; ended when dropped.
struct Detour {
    router: Host,
    over: Arc<AtomicBool>,
    carrying: Option<thread::JoinHandle<()>>,
}

impl Detour {
    fn new(router: &Host, way: SlowWay) -> Self {
        let namespace = NetNamespace::open(format!("/run/netns/{}", router.namespace()).as_ref()).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let carrying = thread::spawn(move || {
            namespace.enter().unwrap();
            let mut tun = device("slow0").unwrap();
            way.carry(&mut tun, || until.load(Ordering::Relaxed)).unwrap();
        });
        wait_for("the device", SOON, || router.has_interface("slow0").then_some(())).unwrap();
        router.ip(["link", "set", "slow0", "up"]).unwrap();
        router.lead_through("slow0", &FAR_ENDS).unwrap();
        Self { router: router.clone(), over, carrying: Some(carrying) }
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        for interface in FAR_ENDS {
            let _ = self.router.ip(["rule", "del", "iif", interface, "lookup", "100"]);
        }
        self.over.store(true, Ordering::Relaxed);
        let _ = self.carrying.take().map(thread::JoinHandle::join);
    }
}

/// Messages that had come by the other connection already, at either end.
fn copies(hosts: [&Host; 2]) -> u64 {
    hosts.into_iter().map(|host| status(host)["drops"]["stream_copy"].as_u64().unwrap_or(0)).sum()
}

#[test]
fn what_sends_little_goes_by_two_connections_while_the_way_loses_and_comes_once() {
    let internet = Internet::new("both", 1);
    let (client, gateway) = (&internet.clients[0], &internet.gateway);
    init(gateway);
    let running = start_gateway(gateway);
    let file = admit(gateway, "phone", client, &[]);
    let mut copied = 0;
    // The second time only towards the client, which does not see that by what it sends.
    let towards_it = client_addresses(0).0.parse().ok();
    for (kind, lost_only_to) in [("tcp", None), ("tls", towards_it)] {
        let delay = Duration::from_millis(5);
        let of = |lost_of_10_000| SlowWay { delay, lost_of_10_000, lost_only_to, seed: 7 };
        let mut slow = Some(Detour::new(&internet.router, of(0)));
        up(client, &file, &["--carrier", kind]);
        wait_for_carrier(client, &[kind], SOON);
        two_connections(gateway);
        // Over how many connections the answers come; ping waits for the last no longer than twice the slowest before.
        let carrying = || {
            let before = seen(gateway);
            let said = echo_once(client);
            if !said.contains(" 0% packet loss") {
                return None;
            }
            let grown = |it: &&Seen| {
                sent(gateway, it.port).saturating_sub(it.sent_bytes) > ECHOES * ECHO_BYTES * 9 / 10
            };
            Some(before.iter().filter(grown).count())
        };
        // The connection beside the first is used only once the client has an answer by it.
        wait_for("echoes by one connection", SOON, || (carrying() == Some(1)).then_some(())).unwrap();
        for _ in 0..4 {
            assert_eq!(carrying().or_else(carrying), Some(1), "{kind}");
        }
        assert_eq!(copies([client, gateway]), copied, "{kind}");

        drop(slow.take());
        slow = Some(Detour::new(&internet.router, of(1_000)));
        wait_for("echoes by two connections", 3 * SOON, || (carrying() == Some(2)).then_some(())).unwrap();
        assert_eq!(seen(gateway).len(), 3, "{kind}: {:?}", seen(gateway));
        // `echo` has seen that each came, and once.
        let before = std::mem::replace(&mut copied, copies([client, gateway]));
        assert!(copied - before > ECHOES / 2, "{kind}: {before} {copied}");

        if kind == "tcp" {
            drop(slow.take());
            slow = Some(Detour::new(&internet.router, of(0)));
            wait_for("echoes by one again", 4 * SOON, || (carrying() == Some(1)).then_some(())).unwrap();
        }
        succeed(client, &["down"]);
        wait_for("all to end", Duration::from_secs(30), || seen(gateway).is_empty().then_some(())).unwrap();
        drop(slow);
        // The client counts anew.
        copied = status(gateway)["drops"]["stream_copy"].as_u64().unwrap_or(0);
    }
    stop_gateway(running);
}
