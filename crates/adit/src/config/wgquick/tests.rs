use proptest::prelude::*;

use super::*;
use crate::config::diagnostic::Place;

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

fn parse(text: &str) -> Result<WgQuick, Report> {
    WgQuick::parse(&Source::new("wg0.conf", text), Hooks::Refused)
}

fn interface(lines: &str) -> String {
    format!("[Interface]\nPrivateKey = {KEY}\n{lines}\n")
}

fn peer(lines: &str) -> String {
    interface(&format!("[Peer]\nPublicKey = {PUBLIC}\n{lines}"))
}

/// The only error, as `line:column reason | fix`.
fn error(text: &str) -> String {
    let report = parse(text).expect_err("this file is wrong");
    assert_eq!(report.count(), 1, "{report}");
    let diagnostic = &report.diagnostics()[0];
    let place = match &diagnostic.place {
        Place::Span(span) => {
            let (line, column) = report.source().line_column(span.start);
            format!("{line}:{column}")
        }
        _ => "file".to_owned(),
    };
    format!("{place} {} | {}", diagnostic.complaint.reason, diagnostic.complaint.fix)
}

#[test]
fn the_file_of_the_manual_is_read() {
    let text = format!(
        "[Interface]\nAddress = 10.192.122.1/24, fd00::1/64\nAddress = 10.10.0.1\nSaveConfig = true\n\
         PrivateKey = {KEY}\nListenPort = 51820 # the usual\nDNS = 1.1.1.1, 2606:4700::1111, corp.example\n\
         MTU = 1420\nTable = off\nFwMark = 0xCA6C\n\n[Peer]\nPublicKey = {PUBLIC}\nPresharedKey = {KEY}\n\
         AllowedIPs = 10.192.122.3/32, 10.192.124.1/24\nAllowedIPs = 10.1.1.1\nEndpoint = [2607:5300::1]:51820\n\
         PersistentKeepalive = 25\n\n[Peer]\n# adit: suite = aes-256-gcm\n# adit: name = home\nPublicKey={OTHER}\nAllowedIPs=\n"
    );
    let file = parse(&text).unwrap();
    let addresses: Vec<String> = file.interface.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.192.122.1/24", "fd00::1/64", "10.10.0.1/32"]);
    assert_eq!(
        (file.interface.dns.len(), file.interface.search_domains.as_slice()),
        (2, &["corp.example".to_owned()][..])
    );
    assert_eq!((file.interface.mtu, file.interface.table), (Mtu::Bytes(1420), Table::Off));
    assert_eq!((file.interface.fwmark, file.interface.listen_port), (Some(0xca6c), 51820));
    assert!(file.interface.save_config);
    let allowed: Vec<String> = file.peers[0].allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.192.122.3/32", "10.192.124.0/24", "10.1.1.1/32"]);
    assert_eq!(file.peers[0].endpoint.as_ref().unwrap().to_string(), "[2607:5300::1]:51820");
    assert_eq!((file.peers[0].persistent_keepalive_secs, file.peers[0].suite), (25, Suite::ChaCha20Poly1305));
    assert_eq!(
        (file.peers[1].suite, file.peers[1].name.as_ref().unwrap().as_str()),
        (Suite::Aes256Gcm, "home")
    );
    assert!(file.peers[1].allowed_ips.is_empty() && file.peers[1].preshared_key.is_none());
}

#[test]
fn keys_and_sections_have_no_case_and_lines_may_end_like_windows_lines() {
    let text = format!(
        "[INTERFACE]\r\nprivatekey={KEY}\r\nADDRESS=10.0.0.1/24\r\n[peer]\r\nPUBLICKEY = {PUBLIC}\r\n"
    );
    let file = parse(&text).unwrap();
    assert_eq!((file.interface.addresses.len(), file.peers.len()), (1, 1));
    assert_eq!(
        (file.interface.table, file.interface.fwmark, file.interface.mtu),
        (Table::Auto, None, Mtu::Auto)
    );
}

#[test]
fn words_for_off_and_auto_are_known() {
    let file = parse(&interface("Table = auto\nFwMark = off")).unwrap();
    assert_eq!((file.interface.table, file.interface.fwmark), (Table::Auto, Some(0)));
    assert_eq!(parse(&interface("Table = 1234")).unwrap().interface.table, Table::Number(1234));
    for (name, number) in [("default", 253), ("main", 254), ("local", 255)] {
        let file = parse(&interface(&format!("Table = {name}"))).unwrap();
        assert_eq!(file.interface.table, Table::Number(number));
    }
    assert_eq!(parse(&interface("FwMark = 51820")).unwrap().interface.fwmark, Some(51820));
    assert_eq!(parse(&peer("PersistentKeepalive = off")).unwrap().peers[0].persistent_keepalive_secs, 0);
}

#[test]
fn each_error_has_its_place_and_its_fix() {
    for (text, expected) in [
        (interface("Adress = 10.0.0.1"), "3:1 unknown key `Adress` in [Interface] | did you mean `Address`?"),
        (
            interface("Endpoint = a:1"),
            "3:1 unknown key `Endpoint` in [Interface] | move `Endpoint` below [Peer]",
        ),
        (interface("Address = 10.0.0.1, 10.0.0.300/24"), "3:21 `10.0.0.300/24` is not a network"),
        (interface("Address = 10.0.0.1,,10.0.0.2"), "3:20 `` is not a network"),
        (interface("DNS = 1.1.1.1 8.8.8.8"), "3:7 `1.1.1.1 8.8.8.8` is neither an address nor a domain"),
        (interface("MTU = 1"), "3:7 `1` is not an MTU"),
        (interface("Table = mine"), "3:9 `mine` is not a routing table"),
        (interface("ListenPort = 65536"), "3:14 `65536` is not a port"),
        (interface("ListenPort = -1"), "3:14 `-1` is not a port"),
        (interface("MTU = 1400\nmtu = 1400"), "4:1 `MTU` is there twice"),
        (interface("hello"), "3:1 this is neither a section nor a key"),
        (interface("[Pear]\nX = 1"), "3:1 unknown section | did you mean `[Peer]`?"),
        (interface("[Interface]"), "3:1 there is a second [Interface] section"),
        (interface("# adit: suite = aes-256-gcm"), "3:9 `suite` belongs to a peer"),
        (peer("# adit: suit = aes-256-gcm"), "5:9 unknown setting `suit` | did you mean `suite`?"),
        (peer("# adit: suite = aes"), "5:17 `aes` is not a choice here"),
        (peer("#adit: hello"), "5:2 a comment that begins with `adit:` is a setting"),
        (
            peer("Endpoint = 2001:db8::1:51820"),
            "5:12 `2001:db8::1:51820` looks like an IPv6 address without brackets",
        ),
        (peer("PresharedKey = x"), "5:16 a key has 44 characters, this has 1"),
        (peer(&format!("[Peer]\nPublicKey = {PUBLIC}")), "6:13 this key belongs to a peer above already"),
        (
            peer(&format!(
                "AllowedIPs = 10.0.0.0/8\n[Peer]\nPublicKey = {OTHER}\nAllowedIPs = ::/0, 10.0.0.0/8"
            )),
            "8:20 10.0.0.0/8 belongs to a peer above already",
        ),
        (interface("[Peer]"), "3:1 this peer has no key"),
        ("[Interface]\n".to_owned(), "1:1 this interface has no key"),
        (String::new(), "file there is no [Interface] section"),
        (format!("MTU = 1\n{}", interface("")), "1:1 this key stands before any section"),
        (interface("DNS = \0"), "3:7 there is a NUL byte in the file"),
    ] {
        let error = error(&text);
        assert!(error.starts_with(expected), "{error}\n  expected {expected}");
    }
}

#[test]
fn hooks_are_refused_unless_allowed() {
    let text = interface("PostUp = iptables -A FORWARD -i %i -j ACCEPT; echo = 1\nPREDOWN = x");
    let report = parse(&text).unwrap_err();
    assert_eq!(report.count(), 2);
    assert!(
        report.render(false).contains("`PostUp` runs a command as root")
            && report.render(false).contains("--allow-hooks")
    );
    let file = WgQuick::parse(&Source::new("wg0.conf", text), Hooks::Allowed).unwrap();
    assert_eq!(
        file.interface.hooks,
        [
            Hook { when: HookTime::PostUp, command: "iptables -A FORWARD -i %i -j ACCEPT; echo = 1".into() },
            Hook { when: HookTime::PreDown, command: "x".into() }
        ]
    );
}

#[test]
fn a_key_without_its_equals_sign_is_no_name_to_show() {
    for damage in [" \u{1} ", " ", ": ", " \u{2003}"] {
        let text = format!("[Interface]\nPrivateKey{damage}{KEY}\n");
        let report = WgQuick::parse(&Source::new("x", text), Hooks::Refused).unwrap_err();
        assert!(!report.render(false).contains(&KEY[10..30]), "{}", report.render(false));
        assert!(!report.to_string().contains(&KEY[10..30]), "{report}");
    }
}

#[test]
fn every_error_is_found_and_no_secret_is_shown() {
    let text =
        interface("MTU = 1\nTable = x").replace(KEY, &format!("{KEY}x")) + "[Peer]\nPublicKey = short\n";
    let report = parse(&text).unwrap_err();
    assert_eq!(report.count(), 4, "{report}");
    assert!(!report.render(false).contains(&KEY[5..20]));
}

#[test]
fn a_line_of_ten_megabytes_is_read_in_a_moment() {
    let networks: Vec<String> =
        (0..130_000u32).map(|n| format!("{}/32", std::net::Ipv4Addr::from(n))).collect();
    let started = std::time::Instant::now();
    assert_eq!(
        parse(&peer(&format!("AllowedIPs = {}", networks.join(",")))).unwrap().peers[0].allowed_ips.len(),
        130_000
    );
    for text in [interface(&"x".repeat(10 << 20)), interface(&format!("DNS = {}", "a,".repeat(5 << 20)))] {
        let _ = parse(&text).map_err(|report| assert!(report.render(false).len() < 100_000));
    }
    assert!(parse(&interface(&format!("#{}", "adit".repeat(2 << 20)))).is_ok());
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn the_real_wg_reads_what_we_write() {
    let file = parse(&peer("# adit: suite = aes-256-gcm\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.1:51820\nPersistentKeepalive = 25")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wg0.conf");
    crate::private_file::write(&path, file.to_text().as_bytes()).unwrap();
    let Ok(stripped) = std::process::Command::new("wg-quick").arg("strip").arg(&path).output() else {
        eprintln!("skipped: wg-quick is not installed");
        return;
    };
    let text = String::from_utf8(stripped.stdout).unwrap();
    assert!(stripped.status.success(), "{}", String::from_utf8_lossy(&stripped.stderr));
    for line in [KEY, PUBLIC, "AllowedIPs = 0.0.0.0/0, ::/0", "Endpoint = 192.0.2.1:51820"] {
        assert!(text.contains(line), "{text}");
    }
}

fn network() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(ip, len)| IpNet::new(IpAddr::V4(ip.into()), len).unwrap()),
        (any::<u128>(), 0u8..=128).prop_map(|(ip, len)| IpNet::new(IpAddr::V6(ip.into()), len).unwrap()),
    ]
}

fn endpoint() -> impl Strategy<Value = HostPort> {
    let host = prop_oneof![
        any::<u32>().prop_map(|ip| std::net::Ipv4Addr::from(ip).to_string()),
        any::<u128>().prop_map(|ip| std::net::Ipv6Addr::from(ip).to_string()),
        "[a-z][a-z0-9_-]{0,20}(\\.[a-z][a-z0-9-]{0,20}){0,3}",
    ];
    (host, 1u16..).prop_map(|(host, port)| HostPort { host, port })
}

fn an_interface() -> impl Strategy<Value = Interface> {
    let table = prop_oneof![Just(Table::Auto), Just(Table::Off), (1u32..).prop_map(Table::Number)];
    let mtu = prop_oneof![Just(Mtu::Auto), (576u16..).prop_map(Mtu::Bytes)];
    let hook = (prop::sample::select(&HookTime::ALL[..]), "[!-~&&[^#]]([ -~&&[^#]]{0,30}[!-~&&[^#]])?")
        .prop_map(|(when, command)| Hook { when, command });
    (
        any::<[u8; 32]>(),
        prop::collection::vec(network(), 0..4),
        prop::collection::vec(any::<IpAddr>(), 0..3),
        prop::collection::vec("[a-z][a-z0-9-]{0,10}(\\.[a-z]{2,5})?", 0..3),
        (mtu, table, any::<Option<u32>>(), any::<u16>(), any::<bool>()),
        (prop::collection::vec(hook, 0..4), a_profile_s_settings()),
    )
        .prop_map(
            |(
                key,
                addresses,
                dns,
                search_domains,
                (mtu, table, fwmark, listen_port, save_config),
                (hooks, settings),
            )| {
                let private_key = StaticSecret::from_bytes(key);
                Interface {
                    private_key,
                    addresses,
                    dns,
                    search_domains,
                    mtu,
                    table,
                    fwmark,
                    listen_port,
                    hooks,
                    save_config,
                    settings,
                }
            },
        )
}

fn a_profile_s_settings() -> impl Strategy<Value = Vec<ProfileSetting>> {
    let carrier = prop::sample::select(vec!["auto", "udp", "tcp", "tls", "wss"]);
    proptest::option::of(carrier).prop_map(|carrier| {
        let setting = |value: &str| ProfileSetting {
            name: "carrier",
            value: value.to_owned(),
            place: ("wg0.conf".to_owned(), 2),
        };
        carrier.map(setting).into_iter().collect()
    })
}

#[test]
fn a_peer_says_where_its_inside_api_is() {
    let inside = |line: &str| {
        let source = Source::new("wg0.conf", peer(line));
        WgQuick::parse(&source, Hooks::Refused).map(|file| file.peers[0].inside_api.clone())
    };
    let both = ["10.86.0.1:9585".parse().unwrap(), "[fd86::1]:9585".parse().unwrap()];
    assert_eq!(inside("# adit: inside_api = 10.86.0.1:9585, [fd86::1]:9585").unwrap(), both);
    assert_eq!(inside("").unwrap(), []);
    for bad in ["10.86.0.1", "gateway:9585", "10.86.0.1:0", "fd86::1:9585"] {
        assert!(inside(&format!("# adit: inside_api = {bad}")).is_err(), "{bad}");
    }
}

/// Flow labels and scopes are not written.
fn plain(address: std::net::SocketAddr) -> std::net::SocketAddr {
    (address.ip(), address.port()).into()
}

fn a_peer() -> impl Strategy<Value = PeerSection> {
    let public_key =
        any::<[u8; 32]>().prop_filter("all zeros is refused", |key| key != &[0; 32]).prop_map(PublicKey);
    let preshared = any::<Option<[u8; 32]>>()
        .prop_map(|key| key.map(PresharedKey::from_bytes).filter(PresharedKey::is_set));
    let name = proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
        .prop_map(|name| name.map(|name| name.parse().unwrap()));
    (
        name,
        prop::sample::select(&Suite::ALL[..]),
        public_key,
        preshared,
        prop::collection::vec(network().prop_map(|network| network.trunc()), 0..5),
        proptest::option::of(endpoint()),
        any::<u16>(),
        prop::collection::vec(any::<std::net::SocketAddr>().prop_map(plain), 0..3),
    )
        .prop_map(
            |(
                name,
                suite,
                public_key,
                preshared_key,
                allowed_ips,
                endpoint,
                persistent_keepalive_secs,
                inside_api,
            )| {
                PeerSection {
                    name,
                    suite,
                    public_key,
                    preshared_key,
                    allowed_ips,
                    endpoint,
                    persistent_keepalive_secs,
                    inside_api,
                }
            },
        )
}

fn a_file() -> impl Strategy<Value = WgQuick> {
    (an_interface(), prop::collection::vec(a_peer(), 0..4)).prop_map(|(interface, mut peers)| {
        let mut seen = std::collections::HashSet::new();
        peers.iter_mut().for_each(|peer| peer.allowed_ips.retain(|network| seen.insert(*network)));
        WgQuick { interface, peers }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_the_same(file in a_file()) {
        let text = file.to_text();
        let capacity = text.capacity();
        let source = Source::new("wg0.conf", text.as_str());
        let read = WgQuick::parse(&source, Hooks::Allowed).map_err(|report| TestCaseError::fail(report.render(false)))?;
        prop_assert_eq!(read, file);
        prop_assert!(text.len() <= capacity);
    }

    #[test]
    fn any_bytes_give_a_file_or_a_report(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = zeroize::Zeroizing::new(bytes);
        let _ = Source::from_bytes("x", bytes)
            .and_then(|source| WgQuick::parse(&source, Hooks::Refused))
            .map_err(|report| report.render(true));
    }

    #[test]
    fn any_damage_to_a_good_file_gives_a_file_or_a_report(at in 0usize..1000, byte: u8, cut in any::<bool>()) {
        let mut bytes = peer("# adit: suite = aes-256-gcm\nAllowedIPs = 0.0.0.0/0\nEndpoint = a:1").into_bytes();
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let parsed = Source::from_bytes("x", zeroize::Zeroizing::new(bytes))
            .and_then(|source| WgQuick::parse(&source, Hooks::Refused));
        if let Err(report) = parsed {
            prop_assert!(!report.is_empty());
            prop_assert!(!report.render(false).contains(&KEY[10..30]));
        }
    }
}
