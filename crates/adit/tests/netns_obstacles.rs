//! What stands in a tunnel's way on a client's network is named at `up` and in `status`.

mod common;

use std::time::Duration;

use adit_lab::{End, Host, wait_for};

use common::internet::{Internet, adit, admit, init, start_gateway, stop_gateway, succeed};

/// What `status` says is in the way.
fn obstacles(client: &Host) -> Vec<String> {
    let status = adit(client, &["status", "--json"]).json().unwrap();
    let found = status["host"]["obstacles"].as_array().unwrap();
    found.iter().map(|it| it.as_str().unwrap().to_owned()).collect()
}

/// Brings a tunnel up and takes it down again; what both ways of telling said in between.
fn told(client: &Host, file: &str) -> (String, Vec<String>) {
    let up = adit(client, &["up", file]);
    assert!(up.ok(), "{up:?}");
    let found = obstacles(client);
    succeed(client, &["down"]);
    (up.stderr, found)
}

#[test]
fn overlapping_networks_a_lack_of_ipv6_and_of_a_route_are_named() {
    let net = Internet::new("obstacles", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    let (said, found) = told(client, &file);
    assert_eq!(found, [""; 0], "nothing is in the way");
    assert!(!said.contains("overlap") && !said.contains("IPv6") && !said.contains("route"), "{said}");

    let end = |host: &Host, interface: &str, last: u8| {
        End::new(host, interface).address(format!("10.86.0.{last}/24"))
    };
    let neighbour = net.lab.host("neighbour").unwrap();
    net.lab.connect(end(client, "lan0", 77), end(&neighbour, "eth0", 78)).unwrap();
    let (said, found) = told(client, &file);
    assert!(said.contains("overlapping networks: 10.86.0.0/24 by lan0"), "{said}");
    assert!(found.len() == 1 && said.contains(&found[0]), "{found:?}");
    client.ip(["link", "del", "lan0"]).unwrap();

    let text = std::fs::read_to_string(&file).unwrap();
    let own = text.lines().find(|line| line.starts_with("Address")).unwrap();
    let ipv4_only = own.split(',').find(|it| !it.contains("::")).unwrap().trim();
    std::fs::write(&file, text.replace(own, ipv4_only)).unwrap();
    let (said, found) = told(client, &file);
    assert!(said.contains("no IPv6 in the tunnel"), "{said}");
    assert!(found.len() == 1 && found[0].contains("kept in while it is up"), "{found:?}");
    let open = adit(client, &["up", "--kill-switch", "off", &file]);
    assert!(open.stderr.contains("goes beside it"), "{}", open.stderr);
    succeed(client, &["down"]);
    std::fs::write(&file, &text).unwrap();

    client.ip(["route", "del", "default"]).unwrap();
    let up = adit(client, &["up", &file]);
    assert!(up.ok() && up.stderr.contains("no default route"), "{up:?}");
    assert!(obstacles(client).iter().any(|it| it.starts_with("no route")), "{:?}", obstacles(client));
    client.add_route("default via 10.100.0.1").unwrap();
    let is_back = || !obstacles(client).iter().any(|it| it.starts_with("no route"));
    if wait_for("the route to be seen", Duration::from_secs(30), || is_back().then_some(())).is_err() {
        panic!("{:?}", obstacles(client));
    }
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn a_captive_portal_is_named_until_it_lets_through() {
    let net = Internet::new("obstportal", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    // Silence alone is no portal.
    let walled = "table inet walled {\nchain f {\ntype filter hook forward priority 0;\niifname \"client-0\" drop\n}\n}";
    net.router.nft(walled).unwrap();
    let (said, found) = told(client, &file);
    assert!(said.contains("no answer from") && !said.contains("captive portal"), "{said}");
    assert_eq!(found, [""; 0]);

    let mut page = net.router.agent(["http-server", "--listen", "0.0.0.0:8088"]).spawn().unwrap();
    page.wait_for_text("listening", common::SOON).unwrap();
    net.router
        .nft(
            "table ip portal {\nchain catch {\ntype nat hook prerouting priority dstnat;\niifname \"client-0\" tcp dport 80 \
             redirect to :8088\n}\n}",
        )
        .unwrap();
    let up = adit(client, &["up", &file]);
    assert!(up.ok() && up.stderr.contains("captive portal"), "{up:?}");
    assert!(obstacles(client).iter().any(|it| it.starts_with("captive portal")), "{:?}", obstacles(client));
    let page_for_people = adit(client, &["status"]).stdout;
    assert!(page_for_people.contains("captive portal"), "{page_for_people}");

    net.router.nft("delete table ip portal").unwrap();
    net.router.nft("delete table inet walled").unwrap();
    wait_for("the way to be clear", Duration::from_secs(60), || obstacles(client).is_empty().then_some(()))
        .unwrap();
    succeed(client, &["down"]);
    stop_gateway(gateway);
}
