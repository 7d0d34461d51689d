//! The tunnel where UDP does not work: a client, a gateway, and what a network does to them.

mod common;

use std::time::{Duration, Instant};

use adit_lab::{Content, wait_for};
use common::SOON;
use common::carried::{peer, up, wait_for_carrier};
use common::internet::{
    INSIDE, Internet, admit, finish_download, init, start_gateway, stop_gateway, succeed,
};

const FILE: Content = Content { seed: 0xad17, bytes: 4 << 20 };

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
        wait_for_carrier(client, &[kind], SOON);
        assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
        finish_download(internet.start_download(client, FILE, 100_000), FILE);
        assert_eq!(peer(&internet.gateway)["carrier"], kind);
        succeed(client, &["down"]);
    }
    stop_gateway(gateway);
}

#[test]
fn a_client_finds_its_way_where_udp_is_dropped_and_comes_back_to_it() {
    let internet = Internet::new("auto", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    up(client, &file, &[]);
    wait_for_carrier(client, &["tcp", "tls", "wss"], SOON);
    finish_download(internet.start_download(client, FILE, 100_000), FILE);
    let handshakes = peer(client)["last_handshake_secs_ago"].as_u64().unwrap();

    // A download goes on while the carrier changes below it.
    let download = internet.start_download(client, FILE, 300);
    internet.router.drop_nothing().unwrap();
    wait_for_carrier(client, &["udp"], Duration::from_secs(60));
    finish_download(download, FILE);
    assert!(peer(client)["last_handshake_secs_ago"].as_u64().unwrap() >= handshakes, "the session goes on");
    assert_eq!(peer(&internet.gateway)["carrier"], "udp");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn a_download_survives_that_udp_dies_below_it() {
    let internet = Internet::new("midway", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    up(client, &file, &[]);
    wait_for_carrier(client, &["udp"], SOON);
    let download = internet.start_download(client, FILE, 300);
    std::thread::sleep(Duration::from_secs(2));
    let before = peer(client)["last_handshake_secs_ago"].as_u64().unwrap();
    internet.router.drop_udp().unwrap();
    let started = Instant::now();
    wait_for_carrier(client, &["tcp", "tls", "wss"], Duration::from_secs(20));
    let took = started.elapsed();
    println!("moved {} ms after UDP was dropped", took.as_millis());
    finish_download(download, FILE);
    assert!(peer(client)["last_handshake_secs_ago"].as_u64().unwrap() >= before, "the session goes on");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn udp_alone_is_what_whoever_asks_for_it_gets() {
    let internet = Internet::new("udponly", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    up(client, &file, &["--carrier", "udp"]);
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 0);
    internet.router.drop_nothing().unwrap();
    wait_for("an answer over UDP", Duration::from_secs(30), || {
        (client.ping(INSIDE, 1).ok()? == 1).then_some(())
    })
    .unwrap();
    succeed(client, &["down"]);
    stop_gateway(gateway);
}
