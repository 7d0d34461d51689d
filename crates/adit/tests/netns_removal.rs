//! `peer rm` and `peer disable` cut a live session at once.

mod common;

use std::thread;
use std::time::Duration;

use adit_lab::{Host, Process, wait_for};
use common::SOON;
use common::internet::{GATEWAY, INSIDE, Internet, WEB, adit, start_gateway, stop_gateway, succeed};

/// How many echo requests have reached a host over IPv4.
fn echo_requests(host: &Host) -> u64 {
    let counters = host.exec(["cat", "/proc/net/snmp"]).unwrap().stdout;
    let lines: Vec<&str> = counters.lines().filter(|line| line.starts_with("Icmp:")).collect();
    let at = lines[0].split_whitespace().position(|name| name == "InEchos").unwrap();
    lines[1].split_whitespace().nth(at).unwrap().parse().unwrap()
}

/// Echo requests, a thousand a second, whether they are answered or not.
fn stream(host: &Host, to: &str) -> Process {
    host.spawn(["ping", "-n", "-q", "-i", "0.001", to]).unwrap()
}

fn flows(host: &Host) {
    let before = echo_requests(host);
    wait_for("packets to flow", SOON, || (echo_requests(host) > before + 50).then_some(())).unwrap();
}

fn is_still(host: &Host, what: &str) {
    let before = echo_requests(host);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(echo_requests(host) - before, 0, "{what}");
}

#[test]
fn not_one_packet_passes_in_either_direction_once_a_peer_is_removed_or_disabled() {
    let net = Internet::new("removal", 2);
    let [client, other] = [&net.clients[0], &net.clients[1]];
    succeed(&net.gateway, &["init"]);
    let gateway = start_gateway(&net.gateway);
    for (host, name) in [(client, "laptop"), (other, "other")] {
        let url = succeed(&net.gateway, &["invite", name]).stdout;
        succeed(host, &["join", url.trim()]);
    }
    // Outbound through the gateway, towards another client, and from the gateway in.
    let _streams = [stream(client, WEB), stream(client, "10.86.0.3"), stream(&net.gateway, "10.86.0.2")];
    for round in ["disable", "enable", "rm"] {
        if round == "enable" {
            succeed(&net.gateway, &["peer", "enable", "laptop"]);
            // The client notices by itself within seconds that its session is gone.
            wait_for("the client to be back", Duration::from_secs(60), || {
                (client.ping(INSIDE, 1).unwrap_or(0) == 1).then_some(())
            })
            .unwrap();
            continue;
        }
        [&net.web, other, client].into_iter().for_each(flows);
        succeed(&net.gateway, &["peer", round, "laptop"]);
        is_still(&net.web, "from the removed peer to the internet");
        is_still(other, "from the removed peer to another");
        is_still(client, "to the removed peer");
        assert_eq!(other.ping(INSIDE, 1).unwrap(), 1, "the others stay");
        assert_eq!(net.seen_from(other)[0], GATEWAY);
    }
    let again = adit(&net.gateway, &["peer", "rm", "laptop"]);
    assert!(!again.ok() && again.stderr.contains("there is no peer `laptop`"), "{}", again.stderr);
    stop_gateway(gateway);
}
