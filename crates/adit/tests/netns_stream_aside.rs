//! The connection beside the first: what goes by it, and what happens when it goes.

mod common;

use std::time::Duration;

use adit_lab::{Content, Host, wait_for};
use common::SOON;
use common::carried::{up, wait_for_carrier};
use common::internet::{
    INSIDE, Internet, admit, finish_download, init, start_gateway, stop_gateway, succeed,
};

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
    let count = ECHOES.to_string();
    let size = ECHO_BYTES.to_string();
    let ping = ["ping", "-n", "-q", "-i", "0.05", "-c", &count, "-s", &size, "-W", "2", INSIDE];
    let said = client.exec(ping).unwrap().stdout;
    assert!(said.contains(" 0% packet loss"), "{said}");
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
