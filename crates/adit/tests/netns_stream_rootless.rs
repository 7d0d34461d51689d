//! `adit proxy` and `adit run` of somebody without rights, in a network without UDP.

mod common;

use std::fs;

use common::SOON;
use common::carried::wait_for_carrier;
use common::internet::{GATEWAY, Internet, WEB, admit, init, start_gateway, stop_gateway};
use common::proxied::{HTTP, SOCKS, World};
use common::rootless::Nobody;

#[test]
fn the_proxy_finds_its_way_where_udp_is_dropped() {
    let world = World::new("streamproxy");
    world.internet.router.drop_udp().unwrap();
    let page = format!("http://{WEB}/");
    for carrier in ["auto", "tls"] {
        let mut proxy = world.proxy(&["--carrier", carrier]);
        for proxy in [["--socks5-hostname", SOCKS], ["--proxy", HTTP]] {
            assert_eq!(world.curl(&[proxy[0], proxy[1], &page]), GATEWAY);
        }
        proxy.terminate();
        assert_eq!(proxy.wait(SOON).unwrap().code(), Some(0), "{}", proxy.stderr());
    }
    world.assert_only_the_gateway_came();
}

#[test]
fn a_command_runs_in_the_tunnel_where_udp_is_dropped() {
    let internet = Internet::new("streamrun", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let path = admit(&internet.gateway, "run", client, &[]);
    let gateway = start_gateway(&internet.gateway);
    internet.router.drop_udp().unwrap();
    let nobody = Nobody::on(client);
    let file = nobody.write("run.conf", fs::read(path).unwrap()).display().to_string();
    let page = format!("http://{WEB}/");
    let adit = nobody.adit();
    let run = |settings: &[&str]| {
        let words = [&[&adit, "run", &file], settings, &["--", "curl", "-sS", "-m", "10", &page]].concat();
        nobody.command(words).attempt().unwrap()
    };
    for carrier in ["auto", "tcp", "wss"] {
        let seen = run(&["--carrier", carrier]);
        assert!(seen.ok() && seen.stdout.trim() == GATEWAY, "{carrier}: {seen:?}");
        wait_for_carrier(&internet.gateway, &["tcp", "tls", "wss"], SOON);
    }
    let alone = run(&["--carrier", "udp"]);
    assert!(!alone.ok() && alone.stderr.contains("UDP port 51820"), "{alone:?}");
    stop_gateway(gateway);
}
