//! A network that lies to its clients, to see what was meant for the tunnel: each lie works on a client that has
//! routes and nothing else.

mod common;

use adit_lab::Host;

use common::dhcp::Dhcp;
use common::internet::{GATEWAY, GATEWAY6, WEB, WEB6, client_addresses, succeed};
use common::leak::{LeakWorld, ROUTER};

/// Whom the web server sees.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Tunnel,
    Beside,
}

fn way(world: &LeakWorld, family: usize) -> Way {
    let seen = world.net.seen_from(&world.client);
    match seen[family].as_str() {
        GATEWAY | GATEWAY6 => Way::Tunnel,
        other => {
            let (v4, v6) = client_addresses(0);
            assert!([v4, v6, "203.0.113.77".to_owned()].contains(&other.to_owned()), "{other}");
            Way::Beside
        }
    }
}

/// Says something to an address, and what of it the router heard outside of the tunnel.
fn heard(world: &LeakWorld, address: &str) -> Vec<String> {
    let capture = world.listen();
    let url = format!("http://{address}/");
    let _ = world.client.command(["curl", "-s", "-m", "2", &url]).attempt();
    let about = |class: &String| class.ends_with(address) || class.contains(&format!("{address} "));
    world.leaks(&capture.stop().unwrap()).into_keys().filter(about).collect()
}

fn up(world: &LeakWorld, flags: &[&str]) {
    succeed(&world.client, &[&["up"], flags, &[world.file.as_str()]].concat());
}

const NO_DEFENCE: &[&str] = &["--kill-switch", "off"];

/// CVE-2024-3661: the DHCP server of the network gives out routes (option 121), which are better than a default route.
#[test]
fn r30_tunnelvision_cve_2024_3661_a_route_from_dhcp_takes_nothing_out_of_the_tunnel() {
    let world = LeakWorld::new("tvision");
    let client = &world.client;
    let web = format!("{WEB}/32");
    let networks = [web.as_str(), "0.0.0.0/1", "128.0.0.0/1"];
    let dhcp = Dhcp::start(&world.net.router, "client-0", &client_addresses(0).0, &networks);
    up(&world, NO_DEFENCE);
    assert_eq!(way(&world, 0), Way::Tunnel);
    dhcp.lease(client);
    assert_eq!(way(&world, 0), Way::Beside, "without defence the attack works");
    assert!(!heard(&world, WEB).is_empty());
    succeed(client, &["down"]);
    client.ip(["route", "flush", "proto", "dhcp"]).unwrap();

    for flags in [&[][..], &["--allow-lan"]] {
        up(&world, flags);
        dhcp.lease(client);
        let routes = client.ip(["route"]).unwrap().stdout;
        assert!(routes.contains(WEB) && routes.contains("128.0.0.0/1"), "the routes are there: {routes}");
        assert_eq!(way(&world, 0), Way::Tunnel, "{flags:?}");
        assert_eq!(heard(&world, WEB), [""; 0], "{flags:?}");
        succeed(client, &["down"]);
        client.ip(["route", "flush", "proto", "dhcp"]).unwrap();
    }
}

/// CVE-2023-36672: the network says that its own range is the one of the server somebody wants to reach.
#[test]
fn r30_tunnelcrack_localnet_cve_2023_36672_what_a_network_calls_local_stays_in_the_tunnel() {
    let world = LeakWorld::new("localnet");
    let client = &world.client;
    // It answers for whom it pretends to have.
    world.net.router.set_sysctl("net.ipv4.conf.client-0.proxy_arp", "1").unwrap();
    let come = |client: &Host| {
        client.add_address("eth0", "203.0.113.77/24").unwrap();
        client.add_address("eth0", "2001:db8:3::77/64").unwrap();
    };
    let go = |client: &Host| {
        client.ip(["addr", "del", "203.0.113.77/24", "dev", "eth0"]).unwrap();
        client.ip(["addr", "del", "2001:db8:3::77/64", "dev", "eth0"]).unwrap();
    };
    up(&world, NO_DEFENCE);
    assert_eq!(heard(&world, WEB), [""; 0]);
    come(client);
    let told = heard(&world, WEB);
    assert!(told.contains(&format!("TCP to {WEB} port 80")), "without defence the attack works: {told:?}");
    succeed(client, &["down"]);
    go(client);

    for flags in [&[][..], &["--allow-lan"]] {
        up(&world, flags);
        come(client);
        assert_eq!((heard(&world, WEB), way(&world, 0)), (Vec::new(), Way::Tunnel), "{flags:?}");
        assert_eq!(way(&world, 1), Way::Tunnel, "{flags:?}");
        succeed(client, &["down"]);
        go(client);
    }
}

/// CVE-2023-36673: packets to the address of the VPN server go beside the tunnel, whoever sends them; and by a lie in
/// DNS that address is the one of whom somebody wants to reach.
#[test]
fn r30_tunnelcrack_serverip_cve_2023_36673_only_the_tunnel_itself_talks_to_the_gateway_outside() {
    let world = LeakWorld::new("serverip");
    let client = &world.client;
    let exception = format!("{GATEWAY}/32 via {ROUTER}");
    up(&world, NO_DEFENCE);
    // What other VPNs add so that their own packets find their way.
    client.add_route(&exception).unwrap();
    let told = heard(&world, GATEWAY);
    assert!(
        told.contains(&format!("TCP to {GATEWAY} port 80")),
        "without defence the attack works: {told:?}"
    );
    succeed(client, &["down"]);

    let routes = client.ip(["route"]).unwrap().stdout;
    assert!(routes.contains(&format!("{GATEWAY} via")), "{routes}");
    for flags in [&[][..], &["--allow-lan"]] {
        up(&world, flags);
        assert_eq!(heard(&world, GATEWAY), [""; 0], "{flags:?}");
        assert_eq!(way(&world, 0), Way::Tunnel, "the tunnel itself does, {flags:?}");
        succeed(client, &["down"]);
    }
}

/// RFC 4191 and RFC 792: a router tells of better ways.
#[test]
fn r30_neither_router_advertisements_nor_redirects_lead_out_of_the_tunnel() {
    let world = LeakWorld::new("redirect");
    let (client, router) = (&world.client, &world.net.router);
    router.add_address("client-0", "10.100.0.9/24").unwrap();
    for key in ["net.ipv4.conf.all.accept_redirects", "net.ipv4.conf.eth0.accept_redirects"] {
        client.set_sysctl(key, "1").unwrap();
    }
    // A host that forwards takes neither unless told.
    for key in ["net.ipv4.conf.all.forwarding", "net.ipv4.conf.eth0.forwarding"] {
        client.set_sysctl(key, "0").unwrap();
    }
    client.set_sysctl("net.ipv6.conf.eth0.accept_ra", "2").unwrap();
    client.set_sysctl("net.ipv6.conf.eth0.accept_ra_rt_info_max_plen", "128").unwrap();
    let lie = || {
        let (victim, _) = client_addresses(0);
        let redirect = ["icmp-redirect", "--victim", &victim, "--to", WEB, "--by", "10.100.0.9"];
        // The first makes the client look for its new neighbour.
        for _ in 0..3 {
            router.agent(redirect).exec().unwrap();
            client.attempt(["ping", "-c", "1", "-W", "1", "10.100.0.9"]).unwrap();
        }
        let advert = ["router-advert", "--device", "client-0", "--network", WEB6, "--prefix-len", "128"];
        router.agent(advert).exec().unwrap();
    };
    let told_route = |address: &str| client.ip(["route", "get", address]).unwrap().stdout;
    lie();
    assert!(told_route(WEB).contains("via 10.100.0.9"), "a redirect is believed: {}", told_route(WEB));
    client.ip(["route", "flush", "cache"]).unwrap();

    up(&world, NO_DEFENCE);
    lie();
    assert_eq!(way(&world, 1), Way::Beside, "without defence the attack works: {}", told_route(WEB6));
    succeed(client, &["down"]);
    client.ip(["-6", "route", "flush", "proto", "ra"]).unwrap();

    up(&world, &[]);
    lie();
    let routes = client.ip(["-6", "route"]).unwrap().stdout;
    assert!(routes.contains(WEB6), "the advertised route is there: {routes}");
    assert_eq!((way(&world, 0), way(&world, 1)), (Way::Tunnel, Way::Tunnel));
    assert_eq!((heard(&world, WEB), heard(&world, &format!("[{WEB6}]"))), (Vec::new(), Vec::new()));
    succeed(client, &["down"]);
}
