//! `adit verify`: it finds what leaks, says that nothing does where nothing does, and has no result without a control.

mod common;

use std::time::Duration;

use adit_lab::{Host, Process, wait_for};
use serde_json::Value;

use common::internet::{GATEWAY, Internet, adit, admit, home, init, start_gateway, stop_gateway, succeed};
use common::{ADIT, SOON};

fn verify(client: &Host) -> (Option<i32>, Value) {
    let output = adit(client, &["verify", "--json"]);
    let page = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{}", output.stderr));
    (output.code(), page)
}

fn situation<'a>(page: &'a Value, part: &str) -> &'a Value {
    let mut situations = page["situations"].as_array().unwrap().iter();
    situations.find(|it| it["situation"].as_str().unwrap().contains(part)).unwrap()
}

#[test]
fn under_the_kill_switch_nothing_leaks_and_without_it_a_planted_leak_is_found() {
    let net = Internet::new("verifykill", 1);
    let client = &net.clients[0];
    // As a host of containers has it, so that there is something to forward.
    client.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    succeed(client, &["up", &file]);
    let (code, page) = verify(client);
    assert_eq!((code, &page["tight"], &page["kill_switch"]), (Some(0), &true.into(), &true.into()), "{page}");
    assert_eq!(page["not_tested"], 0, "{page}");
    let situations = page["situations"].as_array().unwrap();
    assert_eq!(situations.len(), 4, "{page}");
    for situation in situations {
        assert!(situation["skipped"].is_null() && situation["leaks"] == serde_json::json!([]), "{situation}");
        let traffic = situation["traffic"].as_object().unwrap();
        assert_eq!(traffic.len(), 12, "every class of traffic: {situation}");
        for (class, fate) in traffic {
            assert!(["kept in", "refused"].contains(&fate.as_str().unwrap()), "{class}: {situation}");
        }
    }
    let told = adit(client, &["verify", "--no-cuts"]);
    assert!(told.ok() && told.stdout.contains("Nothing leaks."), "{told:?}");
    succeed(client, &["down"]);

    // A route of the host for the first class of traffic, which is of no attack but would go unnoticed.
    client.add_route("192.0.2.200/32 via 10.100.0.1").unwrap();
    succeed(client, &["up", "--kill-switch", "off", &file]);
    let (code, page) = verify(client);
    assert_eq!(
        (code, &page["tight"], &page["kill_switch"]),
        (Some(1), &false.into(), &false.into()),
        "{page}"
    );
    let up = situation(&page, "is up");
    assert_eq!(up["traffic"]["udp over ipv4"], "leaked", "{page}");
    assert_eq!(up["traffic"]["tcp over ipv4"], "kept in", "what has no such route: {page}");
    assert!(up["leaks"].to_string().contains("192.0.2.200"), "{page}");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn what_this_host_cannot_send_is_not_tested_and_is_said_so() {
    let net = Internet::new("verifysome", 1);
    let client = &net.clients[0];
    client.set_sysctl("net.ipv6.conf.all.disable_ipv6", "1").unwrap();
    let (gateway, _) = tunnel(&net);
    let (code, page) = verify(client);
    assert_eq!((code, &page["tight"], &page["not_tested"]), (Some(0), &true.into(), &4.into()), "{page}");
    let missing = ["udp over ipv6", "tcp over ipv6", "ping over ipv6", "forwarded for others"];
    for situation in page["situations"].as_array().unwrap() {
        for (class, fate) in situation["traffic"].as_object().unwrap() {
            let fate = fate.as_str().unwrap();
            let is_tested = ["kept in", "refused"].contains(&fate);
            let is_missing = missing.contains(&class.as_str());
            assert_eq!(
                (is_tested, fate.starts_with("not tested: ")),
                (!is_missing, is_missing),
                "{situation}"
            );
        }
    }
    let told = adit(client, &["verify", "--no-cuts"]);
    let last = "Nothing leaks. Not tested: 4 of 12 kinds of traffic.";
    assert!(told.ok() && told.stdout.trim_end().ends_with(last), "{told:?}");
    let why = "tcp over ipv6, udp over ipv6: not tested: ";
    assert!(told.stdout.contains(why), "{told:?}");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

/// What a kill switch does, written by hand, so that the test depends on no other part of adit.
const CLOSED: &str = "table inet closed {
    chain output {
        type filter hook output priority 10; policy drop;
        oifname { \"lo\", \"tun-0\" } accept
        meta mark 0xca6c accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report } accept
    }
}";

#[test]
fn a_leak_is_found_and_where_none_is_none_is_told() {
    let net = Internet::new("verify", 1);
    let client = &net.clients[0];
    let none = adit(client, &["verify"]);
    assert!(none.code() == Some(1) && none.stderr.contains("no tunnel is up"), "{}", none.stderr);
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    succeed(client, &["up", "--kill-switch", "off", &file]);

    let (code, page) = verify(client);
    assert_eq!((code, &page["tight"], &page["schema"]), (Some(1), &false.into(), &1.into()), "{page}");
    assert_eq!(page["control"]["saw_the_tunnel"], true);
    let up = situation(&page, "is up");
    assert_eq!(up["traffic"]["bound to the interface"], "leaked", "{page}");
    assert_eq!(up["traffic"]["udp over ipv4"], "kept in", "{page}");
    assert_eq!(situation(&page, "TunnelVision")["traffic"]["udp over ipv4"], "leaked", "{page}");
    let told = adit(client, &["verify", "--no-cuts"]).stdout;
    assert!(told.contains("LEAKED") && told.contains("bound to the interface"), "{told}");

    client.nft(CLOSED).unwrap();
    let (code, page) = verify(client);
    assert_eq!((code, &page["tight"]), (Some(0), &true.into()), "{page}");
    assert_eq!(page["situations"].as_array().unwrap().len(), 4);

    // A test that cannot see has no result.
    client.nft("insert rule inet closed output meta mark 0xca6c drop").unwrap();
    let blind = adit(client, &["verify"]);
    assert!(blind.code() == Some(1) && blind.stderr.contains("the control failed"), "{}", blind.stderr);
    client.nft("delete table inet closed").unwrap();

    assert_eq!(net.seen_from(client)[0], GATEWAY, "the tunnel is as before");
    succeed(client, &["down"]);
    assert!(!client.exec(["nft", "list", "ruleset"]).unwrap().stdout.contains("adit"));
    stop_gateway(gateway);
}

/// A tunnel under a kill switch, and the process that carries it.
fn tunnel(net: &Internet) -> (Process, String) {
    let client = &net.clients[0];
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    succeed(client, &["up", &file]);
    let pid = std::fs::read_to_string(home(client).join("run/tun-0.pid")).unwrap().trim().to_owned();
    (gateway, pid)
}

fn stands_still(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
}

#[test]
fn a_test_that_is_ended_early_in_any_way_lets_the_tunnel_go_on() {
    let net = Internet::new("verifyend", 1);
    let client = &net.clients[0];
    let (gateway, pid) = tunnel(&net);
    let home_flag = home(client).display().to_string();
    for signal in ["-INT", "-TERM", "-KILL"] {
        let mut test = client.spawn([ADIT, "--home", &home_flag, "verify"]).unwrap();
        wait_for("the tunnel to be frozen", Duration::from_secs(30), || stands_still(&pid).then_some(()))
            .unwrap();
        client.exec(["kill", signal, &test.id().to_string()]).unwrap();
        assert_ne!(test.wait(SOON).unwrap().code(), Some(0));
        wait_for(format!("the tunnel to go on after {signal}"), SOON, || (!stands_still(&pid)).then_some(()))
            .unwrap();
        assert_eq!(net.seen_from(client)[0], GATEWAY);
    }
    let has_outage = || client.exec(["nft", "list", "tables"]).unwrap().stdout.contains("adit_verify");
    for signal in ["-INT", "-KILL"] {
        let mut test = client.spawn([ADIT, "--home", &home_flag, "verify"]).unwrap();
        wait_for("the outage", Duration::from_secs(30), || has_outage().then_some(())).unwrap();
        client.exec(["kill", signal, &test.id().to_string()]).unwrap();
        test.wait(SOON).unwrap();
        assert_eq!(has_outage(), signal == "-KILL", "{signal}: nobody can help a process that is killed");
    }
    let (code, page) = verify(client);
    assert_eq!(code, Some(0), "the next test mends what was left: {page}");
    assert!(!has_outage());

    // Whoever else stops the process is told of.
    client.exec(["kill", "-STOP", &pid]).unwrap();
    for arguments in [&["status"][..], &["down"]] {
        let told = adit(client, arguments);
        let text = format!("{}{}", told.stdout, told.stderr);
        assert!(text.contains("stands still") && text.contains(&format!("kill -CONT {pid}")), "{text}");
    }
    client.exec(["kill", "-CONT", &pid]).unwrap();
    succeed(client, &["down"]);
    assert!(!client.exec(["nft", "list", "ruleset"]).unwrap().stdout.contains("adit"));
    stop_gateway(gateway);
}

#[test]
fn a_test_reads_nothing_that_others_may_have_written() {
    let net = Internet::new("verifytmp", 1);
    let client = &net.clients[0];
    client.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    let (gateway, _) = tunnel(&net);
    // Whatever lies where everybody may write: a pipe there would make whoever reads it wait for ever.
    let mut test =
        client.spawn([ADIT, "--home", &home(client).display().to_string(), "verify", "--no-cuts"]).unwrap();
    let planted = std::env::temp_dir().join(format!("adit-verify-{}.journal", test.id()));
    client.exec(["mkfifo", "-m", "666", &planted.display().to_string()]).unwrap();
    let output = test.wait(Duration::from_secs(60));
    std::fs::remove_file(&planted).unwrap();
    assert_eq!(output.unwrap().code(), Some(0), "{}", test.stderr());

    // And a journal where ours are is believed only if we wrote it.
    let path = home(client).join("state/adit_verify.device");
    std::fs::write(&path, "").unwrap();
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    let refused = adit(client, &["verify"]);
    assert!(
        refused.code() == Some(1)
            && refused.stderr.contains("is not ours")
            && refused.stderr.contains("65534"),
        "{refused:?}"
    );
    std::fs::remove_file(&path).unwrap();
    succeed(client, &["down"]);
    stop_gateway(gateway);
}
