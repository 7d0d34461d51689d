use std::path::Path;
use std::time::Instant;

use adit_proto::suite::Suite;
use proptest::prelude::*;

use super::*;

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

fn parse(text: &str) -> Result<Config, Report> {
    with(text, &Layers::default())
}

fn with(text: &str, layers: &Layers) -> Result<Config, Report> {
    Config::parse(&Source::new("adit.toml", text), Path::new("."), layers)
}

fn gateway(lines: &str) -> String {
    format!("config_version = 1\n[gateway]\nprivate_key = \"{KEY}\"\n{lines}\n")
}

fn peer(lines: &str) -> String {
    gateway(&format!("network6 = \"fd00:86::/64\"\n[[peer]]\n{lines}"))
}

/// The only error, as `line:column reason | fix`.
fn error(text: &str) -> String {
    let report = parse(text).expect_err("this configuration is wrong");
    assert_eq!(report.count(), 1, "{report}");
    summary(&report).remove(0)
}

fn summary(report: &Report) -> Vec<String> {
    let place = |place: &diagnostic::Place| match place {
        diagnostic::Place::Span(span) => {
            let (line, column) = report.source().line_column(span.start);
            format!("{line}:{column}")
        }
        diagnostic::Place::File => "file".to_owned(),
        diagnostic::Place::Outside(place) => place.clone(),
    };
    let line = |diagnostic: &diagnostic::Diagnostic| {
        let Complaint { reason, fix } = &diagnostic.complaint;
        format!("{} {reason} | {fix}", place(&diagnostic.place))
    };
    report.diagnostics().iter().map(line).collect()
}

#[test]
fn a_full_file_says_what_it_means() {
    let text = format!(
        r#"config_version = 1
[gateway]
interface = "vpn0"
listen = 443
endpoint = "vpn.example.org:443"
private_key = "{KEY}"
network = "10.9.0.0/16"
network6 = "fd00:9::/64"
mtu = 1400
fwmark = 0xca6c
masquerade = false
client_to_client = false
offload = "off"
lanes = 2
[log]
level = "debug"
format = "json"
file = "/var/log/adit.log"
rotate_mib = 2
rotate_keep = 5
events = "off"
[[peer]]
name = "laptop"
public_key = "{PUBLIC}"
preshared_key = "{KEY}"
addresses = ["10.9.0.2", "fd00:9::2"]
allowed_ips = ["192.168.7.0/24"]
suite = "aes-256-gcm"
endpoint = "[2001:db8::1]:51820"
persistent_keepalive_secs = 25
enabled = false
"#
    );
    let config = parse(&text).unwrap();
    let Gateway { interface, listen_port, endpoint, network, network6, .. } = &config.gateway;
    assert_eq!((interface.as_str(), *listen_port), ("vpn0", 443));
    assert_eq!(endpoint.as_ref().unwrap().to_string(), "vpn.example.org:443");
    assert_eq!(
        (network.to_string(), network6.unwrap().to_string()),
        ("10.9.0.0/16".into(), "fd00:9::/64".into())
    );
    assert_eq!((config.gateway.mtu, config.gateway.fwmark), (Mtu::Bytes(1400), 0xca6c));
    assert!(!config.gateway.masquerade && !config.gateway.client_to_client);
    assert_eq!(
        (config.gateway.offload, config.gateway.lanes),
        (Offload::Off, Lanes::Count(2.try_into().unwrap()))
    );
    assert_eq!(
        config.gateway.addresses(),
        ["10.9.0.1/16".parse::<IpNet>().unwrap(), "fd00:9::1/64".parse().unwrap()]
    );
    assert_eq!(
        (config.log.level, config.log.format),
        (Some(tracing::Level::DEBUG), crate::log::LogFormat::Json)
    );
    assert_eq!(config.log.to, crate::log::LogTarget::File("/var/log/adit.log".into()));
    assert_eq!((config.log.rotation.bytes_max, config.log.rotation.keep), (2 << 20, 5));
    assert_eq!(config.log.events, crate::events::EventLevel::Off);
    let peer = &config.peers[0];
    assert_eq!((peer.name.as_str(), peer.suite, peer.enabled), ("laptop", Suite::Aes256Gcm, false));
    assert!(peer.preshared_key.is_some());
    let allowed: Vec<String> = peer.allowed_ips().map(|network| network.to_string()).collect();
    assert_eq!(allowed, ["10.9.0.2/32", "fd00:9::2/128", "192.168.7.0/24"]);
    assert_eq!(peer.persistent_keepalive_secs, 25);
}

#[test]
fn what_is_not_said_has_a_default() {
    let config = parse(&gateway("")).unwrap();
    assert_eq!((config.gateway.interface.as_str(), config.gateway.listen_port), ("adit0", 51820));
    assert_eq!(config.gateway.network.to_string(), "10.86.0.0/24");
    assert!(
        config.gateway.endpoint.is_none() && config.gateway.network6.is_none() && config.peers.is_empty()
    );
    assert!(config.gateway.masquerade && config.gateway.client_to_client);
    assert_eq!(
        (config.gateway.mtu, config.gateway.lanes, config.gateway.fwmark),
        (Mtu::Auto, Lanes::Auto, 0)
    );
    let peer =
        parse(&peer(&format!("name = \"a\"\npublic_key = \"{PUBLIC}\"\naddresses = \"10.86.0.2\""))).unwrap();
    assert_eq!((peer.peers[0].suite, peer.peers[0].enabled), (Suite::ChaCha20Poly1305, true));
}

#[test]
fn an_unknown_key_is_pointed_at_and_the_near_one_is_named() {
    assert_eq!(error(&gateway("listn = 1")), "4:1 unknown key `listn` in [gateway] | did you mean `listen`?");
    assert_eq!(error(&gateway("[gatewy]")), "4:2 unknown key `gatewy` | did you mean `[gateway]`?");
    assert_eq!(
        error(&gateway("suite = \"x\"")),
        "4:1 unknown key `suite` in [gateway] | move it below `[peer]`"
    );
    assert_eq!(
        error(&gateway("level = \"info\"")),
        "4:1 unknown key `level` in [gateway] | move it below `[log]`"
    );
    assert!(error(&gateway("colour = 1")).contains("remove it; the keys here are interface, listen"));
}

#[test]
fn every_error_is_found_in_one_go() {
    let text = gateway("listen = 70000\nnetwork = \"10.0.0.1/24\"\nmtu = true\nlistn = 1\nlanes = -1");
    let report = parse(&text).unwrap_err();
    let lines: Vec<String> =
        summary(&report).iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(lines, ["4:10", "5:11", "6:7", "7:1", "8:9"], "{report}");
    assert!(report.render(false).contains("write \"10.0.0.0/24\""), "{report}");
}

#[test]
fn the_version_is_asked_for_and_compared() {
    assert!(error(&gateway("").replace("config_version = 1\n", "")).contains("`config_version` is missing"));
    assert!(error(&gateway("").replace("= 1\n", "= 2\n")).contains("of another version"));
    assert!(error(&gateway("").replace("= 1\n", "= \"1\"\n")).contains("write a number"));
}

#[test]
fn types_are_strict_in_the_file() {
    assert!(error(&gateway("masquerade = \"true\"")).contains("write true or false, without quotes"));
    assert!(error(&gateway("interface = 5")).contains("write a string"));
    assert!(error(&gateway("mtu = 1.5")).contains("write a number or a string"));
    assert!(error("config_version = 1\ngateway = 1\n").contains("`gateway` is a section"));
}

#[test]
fn toml_that_cannot_be_read_is_pointed_at() {
    for text in
        ["config_version = 1\n[gateway\n", "x = \"\nconfig_version = 1", "config_version = 1\na = = 2"]
    {
        assert!(!parse(text).unwrap_err().is_empty(), "{text}");
    }
    let twice = parse(&gateway("mtu = 1400\nmtu = 1500")).unwrap_err();
    assert!(summary(&twice)[0].starts_with("5:1 duplicate key"), "{twice}");
}

#[test]
fn a_wrong_key_is_explained_without_being_shown() {
    let text = gateway("").replace(KEY, &KEY[1..]);
    let report = parse(&text).unwrap_err();
    assert!(report.render(false).contains("a key has 44 characters, this has 43"), "{report}");
    assert!(!report.render(false).contains(&KEY[5..20]), "{report}");
    assert!(error("config_version = 1\n[gateway]\n").contains("the gateway has no key"));
}

#[test]
fn leases_lie_in_the_network_and_are_nobody_elses() {
    let lease = |address: &str| {
        peer(&format!("name = \"a\"\npublic_key = \"{PUBLIC}\"\naddresses = [\"{address}\"]"))
    };
    assert!(parse(&lease("10.86.0.2")).is_ok() && parse(&lease("fd00:86::ffff")).is_ok());
    for (address, reason) in [
        ("10.86.0.1", "10.86.0.1 is the address of the gateway itself"),
        ("fd00:86::1", "fd00:86::1 is the address of the gateway itself"),
        ("10.86.0.0", "10.86.0.0 is the address of the network"),
        ("10.86.0.255", "10.86.0.255 is the address of broadcasts"),
        (
            "10.87.0.2",
            "10.87.0.2 is outside the networks of the gateway | choose a free address in 10.86.0.0/24",
        ),
        ("10.86.0.2/32", "`10.86.0.2/32` is not an address"),
        ("-10.86.0.2", "`-10.86.0.2` is not an address"),
    ] {
        let error = error(&lease(address));
        assert!(error.starts_with("8:14 ") && error.contains(reason), "{error}");
    }
}

#[test]
fn names_keys_and_networks_belong_to_one_peer() {
    let two = |second: &str| {
        let first = format!(
            "name = \"a\"\npublic_key = \"{PUBLIC}\"\naddresses = [\"10.86.0.2\"]\nallowed_ips = [\"192.0.2.0/24\"]"
        );
        peer(&format!("{first}\n[[peer]]\n{second}"))
    };
    let good = format!(
        "name = \"b\"\npublic_key = \"{OTHER}\"\naddresses = [\"10.86.0.3\"]\nallowed_ips = [\"192.0.2.0/25\"]"
    );
    assert_eq!(parse(&two(&good)).unwrap().peers.len(), 2);
    for (from, to, reason) in [
        ("\"b\"", "\"a\"", "this name belongs to peer `a` already"),
        (OTHER, PUBLIC, "this key belongs to peer `a` already"),
        ("10.86.0.3", "10.86.0.2", "10.86.0.2/32 belongs to peer `a` already"),
        ("192.0.2.0/25", "192.0.2.0/24", "192.0.2.0/24 belongs to peer `a` already"),
    ] {
        let error = error(&two(&good.replace(from, to)));
        assert!(error.contains(reason), "{error}");
    }
    let own = crate::keys::parse_private(KEY).unwrap().public_key();
    let own = good.replace(OTHER, &crate::keys::public_text(&own));
    assert!(error(&two(&own)).contains("this key belongs to the gateway itself already"));
    assert!(
        error(&peer(&format!("name = \"a\"\npublic_key = \"{PUBLIC}\""))).contains("peer `a` has no address")
    );
    assert!(
        error(&peer("name = \"a\"\naddresses = \"10.86.0.2\"")).contains("this peer has no `public_key`")
    );
}

#[test]
fn ipv6_needs_its_smallest_mtu() {
    assert!(error(&gateway("mtu = 1279\nnetwork6 = \"fd00::/64\"")).starts_with("4:7 IPv6 needs an MTU"));
    assert!(parse(&gateway("mtu = 1280\nnetwork6 = \"fd00::/64\"")).is_ok());
    assert!(parse(&gateway("mtu = 1279")).is_ok());
}

#[test]
fn networks_have_a_size_and_are_not_reserved() {
    for bad in
        ["127.0.0.0/8", "224.0.0.0/8", "169.254.0.0/16", "0.0.0.0/8", "10.0.0.0/7", "10.0.0.0/31", "10.0.0.0"]
    {
        assert!(parse(&gateway(&format!("network = \"{bad}\""))).is_err(), "{bad}");
    }
    for bad in ["fe80::/64", "ff00::/64", "::/64", "fd00::/127", "fd00::/31"] {
        assert!(parse(&gateway(&format!("network6 = \"{bad}\""))).is_err(), "{bad}");
    }
    assert!(parse(&gateway("network = \"172.16.0.0/30\"\nnetwork6 = \"fd00::/126\"")).is_ok());
}

#[test]
fn flags_come_before_the_environment_before_the_file_before_the_default() {
    let origin = |config: &Config, key: &str| {
        config.settings.iter().find(|setting| setting.key == key).unwrap().origin.clone()
    };
    let text = gateway("mtu = 1400\nlanes = 2");
    let mut layers = Layers::default();
    layers.environment.push(("ADIT_GATEWAY_MTU".into(), "1300".into()));
    layers.environment.push(("ADIT_GATEWAY_LANES".into(), "3".into()));
    layers.flag("gateway.lanes", "--lanes", 4);
    let config = with(&text, &layers).unwrap();
    assert_eq!(
        (config.gateway.mtu, config.gateway.lanes),
        (Mtu::Bytes(1300), Lanes::Count(4.try_into().unwrap()))
    );
    assert_eq!(origin(&config, "gateway.lanes"), Origin::Flag("--lanes".into()));
    assert_eq!(origin(&config, "gateway.mtu"), Origin::Environment("ADIT_GATEWAY_MTU".into()));
    assert_eq!(origin(&config, "gateway.private_key"), Origin::File(3));
    assert_eq!(origin(&config, "gateway.offload"), Origin::Default);
    assert!(config.settings.iter().all(|setting| !setting.value.contains(KEY)));
    assert_eq!(config.settings.len(), KEYS.iter().filter(|key| key.section != "peer").count());
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    let mut layers = Layers::default();
    layers.environment.push(("ADIT_GATEWAY_MTU".into(), "big".into()));
    layers.environment.push(("ADIT_GATEWAY_LISTN".into(), "1".into()));
    layers.flag("gateway.lanes", "--lanes", "many");
    let report = with(&gateway(""), &layers).unwrap_err();
    let all = summary(&report).join("\n");
    assert_eq!(report.count(), 3, "{all}");
    assert!(all.contains("environment variable ADIT_GATEWAY_MTU `big` is not an MTU"), "{all}");
    assert!(all.contains(
        "ADIT_GATEWAY_LISTN no key has this environment variable | did you mean ADIT_GATEWAY_LISTEN?"
    ));
    assert!(all.contains("flag --lanes `many`"), "{all}");
}

#[test]
fn every_key_of_the_gateway_has_its_variable() {
    let variables: Vec<String> = KEYS.iter().filter_map(Key::variable).collect();
    assert!(variables.contains(&"ADIT_GATEWAY_CLIENT_TO_CLIENT".to_owned()));
    assert_eq!(variables.len(), KEYS.iter().filter(|key| key.section != "peer").count());
}

#[test]
fn logging_without_a_file_heeds_only_its_own_layers() {
    let mut layers = Layers::default();
    layers.environment.push(("ADIT_LOG_LEVEL".into(), "debug".into()));
    layers.environment.push(("ADIT_GATEWAY_MTU".into(), "big".into()));
    layers.flag("log.format", "--log-format", "json");
    let log = Config::log_without_file(&layers).unwrap();
    assert_eq!((log.level, log.format), (Some(tracing::Level::DEBUG), crate::log::LogFormat::Json));
}

#[test]
fn a_key_may_stand_in_a_private_file_beside_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.key");
    private_file::write(&file, format!("{KEY}\n").as_bytes()).unwrap();
    let text = gateway("").replace(KEY, "file:gateway.key");
    let read = || Config::parse(&Source::new("a", text.as_str()), directory.path(), &Layers::default());
    assert_eq!(read().unwrap().gateway.private_key, crate::keys::parse_private(KEY).unwrap());
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(read().unwrap_err().render(false).contains("chmod 600"));
    let unset = gateway("").replace(KEY, "env:ADIT_TEST_THAT_NOBODY_SETS");
    assert!(error(&unset).contains("the environment variable ADIT_TEST_THAT_NOBODY_SETS is not set"));
}

#[test]
fn a_large_file_is_read_in_a_moment() {
    let networks: Vec<String> =
        (0..130_000u32).map(|n| format!("\"{}/32\"", std::net::Ipv4Addr::from(n + (11 << 24)))).collect();
    let many_networks = format!(
        "name = \"p0\"\npublic_key = \"{PUBLIC}\"\naddresses = [\"10.0.0.2\"]\nallowed_ips = [{}]\n",
        networks.join(", ")
    );
    let mut text = gateway(&format!("network = \"10.0.0.0/8\"\n[[peer]]\n{many_networks}"));
    for number in 1..10_000u32 {
        let mut key = [1; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let key = crate::keys::public_text(&PublicKey(key));
        let address = std::net::Ipv4Addr::from((10 << 24) + 2 + number);
        text +=
            &format!("[[peer]]\nname = \"p{number}\"\npublic_key = \"{key}\"\naddresses = [\"{address}\"]\n");
    }
    let started = Instant::now();
    let config = parse(&text).unwrap();
    assert_eq!((config.peers.len(), config.peers[0].extra_allowed_ips.len()), (10_000, 130_000));
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn peers_are_added_and_removed_with_every_comment_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("adit.toml");
    let text = gateway("# first\nmtu = 1400 # why\n\n# the old one\n[[peer]]\nname = \"old\"\npublic_key = ")
        .trim_end()
        .to_owned()
        + &format!("\"{OTHER}\" # his\naddresses = \"10.86.0.9\"\n# end\n");
    private_file::write(&path, text.as_bytes()).unwrap();
    let peer = Peer {
        name: "new".parse().unwrap(),
        public_key: crate::keys::parse_public(PUBLIC).unwrap(),
        preshared_key: Some(crate::keys::parse_preshared(KEY).unwrap()),
        addresses: vec!["10.86.0.2".parse().unwrap()],
        extra_allowed_ips: vec!["192.168.0.0/24".parse().unwrap()],
        suite: Suite::Aes256Gcm,
        endpoint: Some("host:1".parse().unwrap()),
        persistent_keepalive_secs: 7,
        enabled: false,
        tags: vec!["a".to_owned(), "b.c".to_owned()],
        limits: Default::default(),
    };
    let mut document = Document::open(&path).unwrap();
    document.add_peer(&peer).unwrap();
    let config = document.save().unwrap();
    assert_eq!(format!("{:?}", config.peers[1]), format!("{peer:?}"));
    let after = std::fs::read_to_string(&path).unwrap();
    assert!(
        after.contains("# first\nmtu = 1400 # why\n\n# the old one\n") && after.contains("# his"),
        "{after}"
    );
    assert!(document.remove_peer(&"new".parse().unwrap()) && !document.remove_peer(&"new".parse().unwrap()));
    document.save().unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    document.add_peer(&peer).unwrap();
    document.add_peer(&peer).unwrap();
    assert!(document.save().is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

proptest! {
    #[test]
    fn any_text_gives_a_configuration_or_a_report(text in "\\PC*") {
        let _ = parse(&text).map_err(|report| report.render(true));
    }

    #[test]
    fn any_damage_to_a_good_file_gives_a_configuration_or_a_report(at in 0usize..400, byte: u8, cut in any::<bool>()) {
        let good = peer(&format!("name = \"a\"\npublic_key = \"{PUBLIC}\"\naddresses = [\"10.86.0.2\"]\n"));
        let mut bytes = good.into_bytes();
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let parsed = Source::from_bytes("a", zeroize::Zeroizing::new(bytes))
            .and_then(|source| Config::parse(&source, Path::new("/nonexistent"), &Layers::default()));
        if let Err(report) = parsed {
            prop_assert!(!report.is_empty());
            prop_assert!(!report.render(false).contains(&KEY[10..30]));
        }
    }
}

#[test]
fn the_inside_api_has_a_port_of_its_own_or_is_off() {
    let inside = |lines: &str| {
        parse(&gateway(lines))
            .unwrap()
            .gateway
            .inside_api()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(inside(""), ["10.86.0.1:9585"]);
    assert_eq!(
        inside("network6 = \"fd00:86::/64\"\ninside_api = 443"),
        ["10.86.0.1:443", "[fd00:86::1]:443"]
    );
    assert_eq!(inside("inside_api = \"off\""), [""; 0]);
    for bad in ["0", "65536", "\"on\"", "\"10.86.0.1:9585\"", "-1"] {
        assert!(
            error(&gateway(&format!("inside_api = {bad}"))).contains("not a port for the inside API"),
            "{bad}"
        );
    }
    let taken = error(&gateway("listen = 9585"));
    assert!(taken.contains("peers are listened to there") && taken.contains("inside_api"), "{taken}");
    assert!(parse(&gateway("listen = 9585\ninside_api = 9586")).is_ok());
}

#[test]
fn the_services_that_tell_an_address_may_be_named() {
    let services = |text: &str, layers: &Layers| {
        with(text, layers)
            .map(|config| config.ip_services.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let none = Layers::default();
    assert_eq!(services(&gateway(""), &none).unwrap().len(), ServiceUrl::usual().len());
    let text = gateway("[ip]\nservices = [\"https://a.example/\", \"http://192.0.2.1:81/x\"]");
    assert_eq!(services(&text, &none).unwrap(), ["https://a.example/", "http://192.0.2.1:81/x"]);
    let environment =
        vec![("ADIT_IP_SERVICES".to_owned(), "https://b.example/ https://c.example/".to_owned())];
    let layers = Layers { environment, ..Layers::default() };
    assert_eq!(services(&text, &layers).unwrap(), ["https://b.example/", "https://c.example/"]);
    assert!(error(&gateway("[ip]\nservices = []")).contains("name 1 to 16"));
    assert!(error(&gateway("[ip]\nservices = [\"a.example\"]")).contains("https://"));
    assert!(error(&gateway("[ip]\nservice = []")).contains("did you mean `services`?"));
}

#[test]
fn rules_lists_and_exposed_ports_are_understood_or_pointed_at() {
    let config = parse(&minimal(
        "lan = [\"192.168.7.0/24\"]\nallow = [\"a -> *\", \"b -> a:443, b -> a:80\"]\n\
                                 expose = [\"443 -> a\"]\n",
    ))
    .unwrap();
    let reach = &config.gateway.reach;
    assert_eq!((reach.lan.len(), reach.allow.as_ref().map(Vec::len), reach.expose.len()), (1, Some(3), 1));
    assert!(config.gateway.pass_firewalls);
    assert_eq!(parse(&minimal("")).unwrap().gateway.reach, reach::Reach::default());
    assert_eq!(
        parse(&minimal("allow = []\n")).unwrap().gateway.reach.allow,
        Some(Vec::new()),
        "nothing at all"
    );
    for wrong in ["allow = [\"a\"]", "lan = [\"192.168.7.1/24\"]", "expose = [\"51820/udp -> a\"]"] {
        assert!(parse(&minimal(&format!("{wrong}\n"))).is_err(), "{wrong}");
    }
}

fn minimal(lines: &str) -> String {
    format!("config_version = 1\n[gateway]\nprivate_key = \"{KEY}\"\n{lines}")
}

#[test]
fn a_file_for_adit_ip_needs_no_gateway_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let home = Home::new(Some(directory.path())).unwrap();
    let read = || Config::ip_services(&home, &Layers::default());
    assert_eq!(read().unwrap(), ServiceUrl::usual(), "without a file");
    private_file::write(
        &home.config_file(),
        b"config_version = 1\n[ip]\nservices = [\"http://a.example/\"]\n",
    )
    .unwrap();
    assert_eq!(read().unwrap(), ["http://a.example/".parse().unwrap()]);
    private_file::write(&home.config_file(), b"[ip]\nservices = \"x\"\n").unwrap();
    assert_eq!(read().unwrap_err().count(), 1);
}
