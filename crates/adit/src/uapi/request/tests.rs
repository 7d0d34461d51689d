use proptest::prelude::*;

use super::*;

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
const OTHER: &str = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376";

fn set(lines: &[&str]) -> Result<SetRequest, RequestError> {
    parse_set(format!("set=1\n{}\n\n", lines.join("\n")).as_bytes())
}

fn peer(lines: &[&str]) -> PeerUpdate {
    let public_key = format!("public_key={KEY}");
    let request = set(&[&[public_key.as_str()], lines].concat()).unwrap();
    match request.commands.into_iter().next() {
        Some(Command::SetPeer(update)) => update,
        other => panic!("no peer but {other:?}"),
    }
}

#[test]
fn a_get_is_two_lines() {
    assert!(matches!(parse(b"get=1\n\n"), Ok(Request::Get)));
    for wrong in ["get=1\n", "get=1", "get=2\n\n", "get=1\npublic_key\n\n", "", "\n\n", "set\n\n"] {
        assert_eq!(parse(wrong.as_bytes()).unwrap_err(), RequestError::Malformed, "{wrong:?}");
    }
}

#[test]
fn an_empty_set_changes_nothing() {
    let request = parse_set(b"set=1\n\n").unwrap();
    assert!(request.commands.is_empty());
    assert_eq!((request.listen_port, request.fwmark), (None, None));
}

#[test]
fn the_example_of_the_specification_parses_in_order() {
    let request = set(&[
        "private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a",
        "fwmark=0",
        "listen_port=12912",
        "replace_peers=true",
        &format!("public_key={KEY}"),
        "preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52",
        "replace_allowed_ips=true",
        "allowed_ip=192.168.4.4/32",
        "endpoint=[abcd:23::33%2]:51820",
        &format!("public_key={OTHER}"),
        "replace_allowed_ips=true",
        "allowed_ip=192.168.4.6/32",
        "persistent_keepalive_interval=111",
        "endpoint=182.122.22.19:3233",
        "public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58",
        "remove=true",
    ])
    .unwrap();
    assert_eq!((request.listen_port, request.fwmark), (Some(12912), Some(0)));
    let [
        Command::SetPrivateKey(Some(secret)),
        Command::RemoveAllPeers,
        Command::SetPeer(first),
        Command::SetPeer(second),
        Command::RemovePeer(removed),
    ] = request.commands.as_slice()
    else {
        panic!("{:?}", request.commands);
    };
    assert_eq!(secret.as_bytes()[..2], [0xe8, 0x4b]);
    let endpoint = first.endpoint.unwrap().remote;
    assert_eq!(endpoint, "[abcd:23::33%2]:51820".parse().unwrap());
    assert!(first.preshared_key.as_ref().unwrap().is_set());
    assert_eq!(first.allowed_ips, [AllowedIpChange::Add("192.168.4.4/32".parse().unwrap())]);
    assert!(first.replace_allowed_ips);
    assert_eq!(second.persistent_keepalive_secs, Some(111));
    assert_eq!(second.endpoint.unwrap().remote, "182.122.22.19:3233".parse().unwrap());
    assert_eq!(removed.0[..2], [0x66, 0x2e]);
}

#[test]
fn an_all_zero_private_key_clears_it() {
    let request = set(&[&format!("private_key={}", "0".repeat(64))]).unwrap();
    assert!(matches!(request.commands.as_slice(), [Command::SetPrivateKey(None)]));
}

#[test]
fn an_allowed_ip_with_a_minus_is_taken_away() {
    let update = peer(&["allowed_ip=10.0.0.0/8", "allowed_ip=-10.1.0.0/16", "allowed_ip=-fd00::/8"]);
    let prefix = |text: &str| text.parse().unwrap();
    assert_eq!(
        update.allowed_ips,
        [
            AllowedIpChange::Add(prefix("10.0.0.0/8")),
            AllowedIpChange::Remove(prefix("10.1.0.0/16")),
            AllowedIpChange::Remove(prefix("fd00::/8"))
        ]
    );
}

#[test]
fn a_suite_is_pinned_by_name() {
    assert_eq!(peer(&["suite=aes-256-gcm"]).suite, Some(Suite::Aes256Gcm));
    assert_eq!(peer(&["suite=chacha20-poly1305"]).suite, Some(Suite::ChaCha20Poly1305));
    assert_eq!(peer(&["update_only=true", "protocol_version=1"]).suite, None);
}

#[test]
fn an_interface_name_scopes_a_link_local_endpoint() {
    let text = format!("set=1\npublic_key={KEY}\nendpoint=[fe80::1%eth7]:1\n\n");
    let found = parse_with(text.as_bytes(), &|name| (name == "eth7").then_some(9));
    let Ok(Request::Set(request)) = found else { panic!("{found:?}") };
    let [Command::SetPeer(update)] = request.commands.as_slice() else { panic!() };
    let Some(SocketAddr::V6(address)) = update.endpoint.map(|endpoint| endpoint.remote) else { panic!() };
    assert_eq!(address.scope_id(), 9);
    assert_eq!(parse(text.as_bytes()).unwrap_err(), RequestError::Invalid { line: 3 });
}

#[test]
fn a_wrong_line_is_named_and_nothing_is_returned() {
    let good = ["listen_port=1", &format!("public_key={KEY}"), "allowed_ip=10.0.0.0/8"];
    assert!(set(&good).is_ok());
    for wrong in [
        "listen_port=2",
        "fwmark=1",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=",
        "allowed_ip",
        "endpoint=example.org:1",
        "endpoint=1.2.3.4",
        "endpoint=1.2.3.4:65536",
        "persistent_keepalive_interval=65536",
        "persistent_keepalive_interval=+1",
        "persistent_keepalive_interval=",
        "preshared_key=00",
        "protocol_version=2",
        "remove=1",
        "update_only=yes",
        "replace_allowed_ips=false",
        "suite=rot13",
        "colour=blue",
        " remove=true",
    ] {
        let lines = [&good[..], &[wrong]].concat();
        assert_eq!(set(&lines).unwrap_err(), RequestError::Invalid { line: 5 }, "{wrong:?}");
    }
    for wrong in
        ["listen_port=65536", "fwmark=4294967296", "private_key=0", "allowed_ip=10.0.0.0/8", "remove=true"]
    {
        assert_eq!(set(&[wrong]).unwrap_err(), RequestError::Invalid { line: 2 }, "{wrong:?}");
    }
}

#[test]
fn hex_that_is_no_key_is_refused() {
    for wrong in [&KEY[1..], &format!("{KEY}0"), &format!("{}g", &KEY[..63]), &format!("é{}", &KEY[2..])] {
        assert_eq!(set(&[&format!("public_key={wrong}")]).unwrap_err(), RequestError::Invalid { line: 2 });
    }
    assert!(set(&[&format!("public_key={}", KEY.to_uppercase())]).is_ok());
}

#[test]
fn no_debug_output_shows_a_secret() {
    let request = set(&[
        &format!("private_key={KEY}"),
        &format!("public_key={OTHER}"),
        &format!("preshared_key={KEY}"),
    ]);
    let shown = format!("{request:?}");
    assert!(shown.contains("hidden"), "{shown}");
    assert!(!shown.contains(&KEY[..8]), "{shown}");
    assert!(!shown.contains("184, 89, 150"), "{shown}");
}

fn arbitrary_line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(format!("public_key={KEY}")),
        Just(format!("private_key={OTHER}")),
        Just("remove=true".to_owned()),
        Just("replace_allowed_ips=true".to_owned()),
        "(listen_port|fwmark|persistent_keepalive_interval)=[0-9]{0,11}",
        "allowed_ip=-?[0-9]{1,3}\\.[0-9]{1,3}\\.0\\.0/[0-9]{1,3}",
        "endpoint=\\[?[0-9a-f:.%]{0,20}\\]?:[0-9]{0,6}",
        ".{0,20}",
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn arbitrary_lines_never_panic(lines in proptest::collection::vec(arbitrary_line(), 0..12)) {
        let text = format!("set=1\n{}\n\n", lines.join("\n"));
        let _ = parse_set(text.as_bytes());
    }

    #[test]
    fn every_key_survives_its_hex(key in any::<[u8; 32]>()) {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        prop_assert_eq!(*key_from_hex(&hex).unwrap(), key);
    }
}
