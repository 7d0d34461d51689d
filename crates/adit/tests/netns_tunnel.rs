//! The library: a tunnel inside a program.

mod common;

#[path = "../examples/fetch.rs"]
mod fetch;

use std::future::Future;
use std::time::Duration;

use adit::Tunnel;
use adit::tunnel::TunnelError;
use adit_lab::Host;

use common::internet::{GATEWAY, WEB};
use common::on;
use common::proxied::World;

/// Runs in the network of `host`, as does everything that it starts.
fn run<T: Send>(host: &Host, future: impl Future<Output = T> + Send) -> T {
    on(host, || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future))
}

/// The profile, where the user of this test may read it.
fn profile(world: &World, change: impl FnOnce(String) -> String) -> String {
    let text = std::fs::read_to_string(world.profile()).unwrap();
    world.client.write("library.conf", change(text)).unwrap().display().to_string()
}

#[test]
fn the_example_gets_a_page_by_name_and_the_server_sees_the_gateway() {
    let world = World::new("example");
    let profile = profile(&world, |text| text);
    let page = run(&world.client, fetch::fetch(&profile, "web.example", "/")).unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.trim_end().ends_with(GATEWAY), "{page}");
}

#[test]
fn names_addresses_datagrams_and_refusals_come_through_the_tunnel() {
    let world = World::new("library");
    let profile = profile(&world, |text| text);
    run(&world.client, async {
        let tunnel = Tunnel::connect(&profile).await.unwrap();
        let addresses = tunnel.resolve("web.example").await.unwrap();
        assert!(addresses.contains(&WEB.parse().unwrap()) && addresses.len() == 2, "{addresses:?}");
        let unknown = tunnel.tcp_connect("nowhere.example", 80).await.unwrap_err();
        assert!(matches!(unknown, TunnelError::Name(_)), "{unknown}");
        let refused = tunnel.tcp_connect(WEB, 81).await.unwrap_err();
        assert!(refused.to_string().contains("refused"), "{refused}");
        let socket = tunnel.udp_bind(WEB.parse().unwrap()).unwrap();
        assert!(socket.send_to(&[0; 65_000], (WEB.parse::<std::net::IpAddr>().unwrap(), 53).into()).is_err());
        assert!(tunnel.tcp_connect(WEB, 80).await.is_ok());
    });
}

#[test]
fn without_an_answer_or_a_dns_server_the_error_says_what_to_do() {
    let mut world = World::new("libraryerr");
    let without_dns = profile(&world, |text| {
        text.lines().filter(|it| !it.starts_with("DNS")).map(|it| it.to_owned() + "\n").collect()
    });
    let error = run(&world.client, async {
        let tunnel = Tunnel::connect(&without_dns).await.unwrap();
        assert!(tunnel.tcp_connect(WEB, 80).await.is_ok());
        tunnel.tcp_connect("web.example", 80).await.unwrap_err().to_string()
    });
    assert!(error.contains("DNS = ADDRESS"), "{error}");
    world.stop_gateway();
    let started = std::time::Instant::now();
    let error = run(&world.client, Tunnel::connect(&without_dns)).unwrap_err();
    assert!(matches!(&error, TunnelError::NoAnswer { gateway } if gateway.starts_with(GATEWAY)), "{error}");
    assert!(started.elapsed() < Duration::from_secs(8));
}
