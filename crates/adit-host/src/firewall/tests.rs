use super::*;

fn gateway(listeners: &[(Transport, u16)]) -> GatewayFirewall {
    GatewayFirewall {
        link: "adit0".into(),
        inside: vec!["10.9.0.0/24".parse().unwrap(), "fd00:9::/64".parse().unwrap()],
        listeners: listeners
            .iter()
            .map(|(transport, port)| Listener { transport: *transport, port: *port })
            .collect(),
        services: vec![],
        invited: vec![],
        masquerade: true,
        client_to_client: false,
        denied: vec![],
        neighbours: vec![],
        addresses: vec!["10.9.0.1/24".parse().unwrap(), "fd00:9::1/64".parse().unwrap()],
        mtu_bytes: 1420,
        reach: Reach::default(),
    }
}

fn objects(firewall: &Firewall) -> Vec<Value> {
    firewall.ruleset()["nftables"].as_array().unwrap().clone()
}

/// Compares with a file of one object per line; the failure prints what the file should be.
fn assert_is(firewall: &Firewall, snapshot: &str) {
    let expected: Vec<Value> = snapshot.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found = objects(firewall);
    let lines: Vec<String> = found.iter().map(Value::to_string).collect();
    assert!(found == expected, "the ruleset is now\n{}", lines.join("\n"));
}

#[test]
fn no_masqueraded_connection_can_get_a_port_we_listen_on() {
    let ports = |listeners: &[(Transport, u16)]| gateway(listeners).masquerade_ports();
    assert_eq!(ports(&[]), (32768, 60999));
    assert_eq!(ports(&[(Transport::Tcp, 443), (Transport::Udp, 443)]), (32768, 60999));
    assert_eq!(ports(&[(Transport::Udp, 51820)]), (32768, 51819));
    assert_eq!(ports(&[(Transport::Udp, 40000), (Transport::Tcp, 40000)]), (40001, 60999));
    assert_eq!(ports(&[(Transport::Udp, 32768)]), (32769, 60999));
    assert_eq!(ports(&[(Transport::Udp, 60999)]), (32768, 60998));
    assert_eq!(ports(&[(Transport::Udp, 51820), (Transport::Udp, 42000)]), (42001, 51819));
}

#[test]
fn the_table_is_named_after_the_link_and_only_with_plain_characters() {
    let named = |link: &str| Firewall::Gateway(GatewayFirewall { link: link.into(), ..gateway(&[]) }).table();
    assert_eq!(named("adit0"), "adit_adit0");
    assert_eq!(named("vpn-1.x"), "adit_vpn-1.x");
    assert_eq!(named("vpn 1;{"), "adit_vpn/20/1/3b//7b/");
}

/// The tables that a tunnel may have, each for another purpose.
fn tables_of(link: &str) -> Vec<String> {
    let clamp = ClampFirewall { link: link.into(), mtu_bytes: 1420 };
    let group = GroupFirewall {
        link: link.into(),
        addresses: vec![],
        group: crate::group::Group { path: "some".into() },
        mark: 1,
        name_servers: vec![],
    };
    let held = named("adit-held_", link);
    let of_link = Firewall::Gateway(GatewayFirewall { link: link.into(), ..gateway(&[]) });
    let others = [Firewall::Clamp(clamp), Firewall::Group(group)].map(|it| it.table());
    [vec![of_link.table(), split_table(link), held], others.to_vec()].concat()
}

#[test]
fn no_two_links_have_a_table_of_the_same_name_whatever_they_are_called() {
    let links = "x split_x beside_x mss_x held_x link_x verify split_ split_split_x split_= lockdown a=b a+b a_b -x = 3d _3d_";
    let links: Vec<&str> = links.split(' ').collect();
    let mut tables: Vec<String> = links.iter().flat_map(|link| tables_of(link)).collect();
    let lockdown = Firewall::Lockdown(Lockdown { fwmark: 1, allow_lan: false });
    let outage = Firewall::Outage(OutageFirewall { fwmark: 1 });
    tables.extend([lockdown.table(), outage.table()]);
    let different: std::collections::BTreeSet<&String> = tables.iter().collect();
    assert_eq!(different.len(), links.len() * 5 + 2, "{tables:?}");
    // Those of ordinary links are called as ever.
    let usual = ["adit_x", "adit_split_x", "adit-held_x", "adit_mss_x", "adit_beside_x"];
    assert_eq!(tables_of("x"), usual);
}

#[test]
fn the_gateway_ruleset_is_this() {
    let firewall = gateway(&[(Transport::Udp, 51820), (Transport::Tcp, 443)]);
    let firewall =
        Firewall::Gateway(GatewayFirewall { denied: vec!["10.0.0.0/8".parse().unwrap()], ..firewall });
    assert_is(&firewall, include_str!("gateway.jsonl"));
}

#[test]
fn a_service_inside_is_closed_to_all_but_the_tunnel_for_tcp_and_udp() {
    let rules = |services: &[&str]| {
        let services = services.iter().map(|it| it.parse().unwrap()).collect();
        objects(&Firewall::Gateway(GatewayFirewall { services, ..gateway(&[]) }))
    };
    let without = rules(&[]);
    let with: Vec<Value> = rules(&["10.9.0.1:9585", "[fd00:9::1]:9585"])
        .into_iter()
        .filter(|it| !without.contains(it))
        .collect();
    assert_eq!(with.len(), 4);
    let of = |rule: &Value, index: usize, path: &str| {
        rule["add"]["rule"]["expr"][index].pointer(path).unwrap().clone()
    };
    for (rule, (address, protocol)) in with
        .iter()
        .zip(["10.9.0.1", "fd00:9::1"].into_iter().flat_map(|address| ["tcp", "udp"].map(|it| (address, it))))
    {
        assert_eq!(of(rule, 0, "/match/op"), "!=", "{rule}");
        assert_eq!(of(rule, 0, "/match/right"), "adit0");
        assert_eq!(of(rule, 1, "/match/right"), address);
        assert_eq!(of(rule, 2, "/match/left/payload/protocol"), protocol);
        assert_eq!(of(rule, 2, "/match/right"), 9585);
        assert_eq!(rule["add"]["rule"]["expr"][3], serde_json::json!({"drop": null}));
    }
}

#[test]
fn the_client_ruleset_is_this() {
    let firewall = Firewall::Client(ClientFirewall {
        link: "adit0".into(),
        addresses: vec!["10.9.0.2".parse().unwrap(), "fd00:9::2".parse().unwrap()],
        fwmark: 51820,
        kill_switch: None,
    });
    assert_is(&firewall, include_str!("client.jsonl"));
}

#[test]
fn what_others_forward_is_theirs() {
    let firewall = GatewayFirewall { masquerade: false, ..gateway(&[]) };
    let last = objects(&Firewall::Gateway(firewall)).pop().unwrap()["add"]["rule"]["expr"].clone();
    assert_eq!(last.as_array().unwrap().len(), 2, "what goes into the tunnel is dropped: {last}");
    assert_eq!(last[0]["match"]["left"]["meta"]["key"], "oifname", "{last}");
}

#[test]
fn the_invited_reach_the_services_over_tcp_and_nothing_else() {
    let rules = |invited: &[&str], services: &[&str]| {
        let services = services.iter().map(|it| it.parse().unwrap()).collect();
        let invited = invited.iter().map(|it| it.parse().unwrap()).collect();
        objects(&Firewall::Gateway(GatewayFirewall { services, invited, ..gateway(&[]) }))
    };
    let services = ["10.9.0.1:9585", "[fd00:9::1]:9585"];
    let without = rules(&[], &services);
    let added = |invited: &[&str], services: &[&str]| -> Vec<String> {
        rules(invited, services)
            .iter()
            .filter(|it| !without.contains(it))
            .map(|it| it["add"]["rule"]["expr"].to_string())
            .collect()
    };
    let with = added(&["10.9.0.254", "10.9.0.253"], &services);
    assert_eq!(with.len(), 4, "not TCP, another address, another port, and towards them: {with:?}");
    assert!(
        with.iter().all(|it| it.contains("\"10.9.0.254\",\"10.9.0.253\"") && it.contains("drop")),
        "{with:?}"
    );
    assert!(with[0].contains("l4proto") && with[0].contains("!="), "{}", with[0]);
    assert!(with[1].contains("daddr") && with[1].contains("10.9.0.1"), "{}", with[1]);
    assert!(with[2].contains("dport") && with[2].contains("9585"), "{}", with[2]);
    assert!(with[3].contains("oifname") && with[3].contains("daddr"), "{}", with[3]);
    let closed = added(&["10.9.0.254"], &[]);
    assert_eq!(closed.len(), 3, "without a service nothing at all: {closed:?}");
}
