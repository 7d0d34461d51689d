//! The tunnel where UDP does not work: a client, a gateway, and what a network does to them.

mod common;

use std::time::Duration;

use adit_lab::{Content, Host, wait_for};
use common::SOON;
use common::internet::{
    INSIDE, Internet, admit, finish_download, init, start_gateway, status, stop_gateway, succeed,
};

const FILE: Content = Content { seed: 0xad17, bytes: 4 << 20 };

/// What carries the messages of the client on `host`.
fn carrier(host: &Host) -> String {
    status(host)["peers"][0]["carrier"].as_str().unwrap_or_default().to_owned()
}

fn wait_for_carrier(host: &Host, wanted: &str, within: Duration) {
    let waited =
        wait_for(format!("the carrier {wanted}"), within, || (carrier(host) == wanted).then_some(()));
    waited.unwrap_or_else(|error| panic!("{error}; it is {}", status(host)));
}

fn up(client: &Host, file: &str, settings: &[&str]) {
    succeed(client, &[&["up", file], settings].concat());
}

#[test]
fn a_tunnel_over_any_stream_carries_a_download_byte_for_byte() {
    let internet = Internet::new("stream", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    for kind in ["tcp", "tls", "wss"] {
        up(client, &file, &["--carrier", kind]);
        wait_for_carrier(client, kind, SOON);
        assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
        finish_download(internet.start_download(client, FILE, 100_000), FILE);
        assert_eq!(status(&internet.gateway)["peers"][0]["carrier"], kind);
        succeed(client, &["down"]);
    }
    stop_gateway(gateway);
}
