//! However a tunnel ends, the host is afterwards as it was, byte for byte.

mod common;

use std::fs;

use adit_lab::{Host, wait_for};

use common::SOON;
use common::internet::{Internet, adit, admit, home, init, kill_tunnel, start_gateway, succeed};
use common::picture::Picture;

/// A way to end, and what may come next.
type End = (&'static str, fn(&Host, &str));

const ENDS: [End; 8] = [
    ("down", |host, _| {
        succeed(host, &["down"]);
    }),
    ("SIGTERM", |host, _| {
        let pid = fs::read_to_string(home(host).join("run/tun-0.pid")).unwrap();
        host.exec(["kill", "-TERM", pid.trim()]).unwrap();
        let process = format!("/proc/{}", pid.trim());
        wait_for("the process to end", SOON, || (!fs::exists(&process).unwrap()).then_some(())).unwrap();
    }),
    ("kill -9, then down", |host, _| {
        kill_tunnel(host, "tun-0");
        succeed(host, &["down"]);
    }),
    ("kill -9, then up, then down", |host, file| {
        kill_tunnel(host, "tun-0");
        succeed(host, &["up", file]);
        succeed(host, &["down"]);
    }),
    ("a crash loop, then down", |host, file| {
        for _ in 0..3 {
            kill_tunnel(host, "tun-0");
            succeed(host, &["up", file]);
        }
        succeed(host, &["down"]);
    }),
    ("a link that is taken away, then down", |host, _| {
        host.ip(["link", "del", "tun-0"]).unwrap();
        let pid = home(host).join("run/tun-0.pid");
        wait_for("the process to see it", SOON, || (!pid.exists()).then_some(())).unwrap();
        // Without a kill switch there is nothing left to take back.
        let told = adit(host, &["down"]);
        assert!(told.ok() || told.stderr.contains("nothing is up here"), "{}", told.stderr);
    }),
    ("flaps and routes of others that came and went, then down", |host, _| {
        for net in ["0.0.0.0/1", "128.0.0.0/1", "203.0.113.0/24", "203.0.113.80/32"] {
            host.add_route(&format!("{net} via 10.100.0.1 dev eth0")).unwrap();
        }
        host.ip(["route", "replace", "default", "dev", "eth0", "table", "51820"]).unwrap();
        for state in ["down", "up"] {
            host.ip(["link", "set", "tun-0", state]).unwrap();
        }
        host.exec(["nft", "delete", "table", "inet", "adit_tun-0"]).unwrap();
        for net in ["0.0.0.0/1", "128.0.0.0/1", "203.0.113.0/24", "203.0.113.80/32"] {
            host.ip(["route", "del", net, "dev", "eth0"]).unwrap();
        }
        succeed(host, &["down"]);
    }),
    ("kill -9, then restore, then down", |host, _| {
        kill_tunnel(host, "tun-0");
        let told = succeed(host, &["restore"]).stderr;
        assert!(told.contains("put back"), "{told}");
        if told.contains("kill switch stays") {
            succeed(host, &["down"]);
        }
    }),
];

/// What a reboot does to a host: the kernel forgets all, the disk nothing.
fn reboot(host: &Host, before: &str) {
    kill_tunnel(host, "tun-0");
    for table in host.exec(["nft", "list", "tables"]).unwrap().stdout.lines() {
        if table.contains("adit") {
            host.exec(["nft", "delete"].into_iter().chain(table.split(' '))).unwrap();
        }
    }
    for family in ["-4", "-6"] {
        let rules = host.ip([family, "rule"]).unwrap().stdout;
        let preferences = rules.lines().filter_map(|it| it.split(':').next());
        for preference in preferences.filter(|it| !["0", "1000", "32766", "32767"].contains(it)) {
            host.ip([family, "rule", "del", "pref", preference]).unwrap();
        }
        let _ =
            host.attempt(["ip", family, "route", "del", "unreachable", "default", "table", "51820"]).unwrap();
    }
    let now = sysctls(host);
    for line in before.lines().filter(|line| !now.lines().any(|it| it == *line)) {
        host.exec(["sysctl", "-q", "-w", &line.replace(" = ", "=")]).unwrap();
    }
    let journal = home(host).join("state/tun-0.journal");
    let text = fs::read_to_string(&journal).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    fs::write(&journal, text.replace(boot.trim(), "01234567-89ab-cdef-0123-456789abcdef")).unwrap();
}

fn sysctls(host: &Host) -> String {
    host.exec(["sysctl", "-a", "-r", "^net\\.ipv[46]\\.(conf\\.|ip_forward)"]).unwrap().stdout
}

#[test]
fn after_a_reboot_any_command_of_root_puts_back_what_the_disk_remembers() {
    let net = Internet::new("reboot", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--dns", "10.86.0.1"]);
    let _gateway = start_gateway(&net.gateway);
    let (before, sysctls_before) = (Picture::of(client), sysctls(client));
    let read = || client.exec(["cat", "/etc/resolv.conf"]).unwrap().stdout;
    for (verb, says) in [(&["restore"][..], "put back"), (&["lockdown", "off"], "put back"), (&["down"], "")]
    {
        succeed(client, &["up", &file]);
        before.assert_changed(client);
        reboot(client, &sysctls_before);
        assert!(read().contains("adit wrote this"), "the disk remembers: {}", read());
        let told = succeed(client, verb).stderr;
        assert!(told.contains(says), "{verb:?}: {told}");
        before.assert_again(client);
    }
}

#[test]
fn the_host_is_byte_for_byte_as_it_was_after_every_end() {
    let net = Internet::new("restore", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--dns", "10.86.0.1"]);
    let _gateway = start_gateway(&net.gateway);
    // What others have made of this host stays too.
    client
        .nft("table inet filter {\nchain input {\ntype filter hook input priority 0; policy accept;\n}\n}\n")
        .unwrap();
    client.ip(["rule", "add", "pref", "1000", "from", "192.0.2.77", "lookup", "77"]).unwrap();
    client.ip(["route", "add", "192.0.2.128/25", "via", "10.100.0.1", "table", "77"]).unwrap();
    let before = Picture::of(client);
    for flags in [&[][..], &["--kill-switch", "off"]] {
        for (name, end) in ENDS {
            println!("{name} {flags:?}");
            succeed(client, &[&["up"], flags, &[file.as_str()]].concat());
            before.assert_changed(client);
            end(client, &file);
            before.assert_again(client);
        }
    }
}

#[test]
fn what_others_changed_while_it_was_up_is_theirs_afterwards() {
    let net = Internet::new("meanwhile", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--dns", "10.86.0.1"]);
    let _gateway = start_gateway(&net.gateway);
    succeed(client, &["up", &file]);
    client.add_route("192.0.2.0/25 via 10.100.0.1 dev eth0").unwrap();
    client.ip(["rule", "add", "pref", "1000", "from", "192.0.2.77", "lookup", "77"]).unwrap();
    client.nft("add table inet later").unwrap();
    client.exec(["sh", "-c", "echo nameserver 192.0.2.99 > /etc/resolv.conf"]).unwrap();
    succeed(client, &["down"]);
    let route = client.ip(["route"]).unwrap().stdout;
    let rule = client.ip(["rule"]).unwrap().stdout;
    let tables = client.exec(["nft", "list", "tables"]).unwrap().stdout;
    let resolv_conf = client.exec(["cat", "/etc/resolv.conf"]).unwrap().stdout;
    assert!(route.contains("192.0.2.0/25") && rule.contains("192.0.2.77"), "{route}\n{rule}");
    assert_eq!(tables.trim(), "table inet later");
    assert_eq!(resolv_conf, "nameserver 192.0.2.99\n");
    assert!(!rule.contains("51820"), "{rule}");
}
