//! With a full tunnel nothing leaves a client but the messages of the tunnel, whatever happens to it; and afterwards the
//! host is as it was.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use adit_lab::{Host, wait_for};

use common::SOON;
use common::internet::{WEB, adit, home, kill_tunnel, status, succeed};
use common::leak::{LeakWorld, ROUTER};
use common::picture::Picture;

/// Long enough for every class to be sent dozens of times.
const A_WHILE: Duration = Duration::from_millis(700);

/// What the listener must have heard, or it is deaf.
const CLASSES: [&str; 14] = [
    "UDP to 203.0.113.80 port 9001",
    "UDP to 203.0.113.80 port 9002",
    "UDP to 203.0.113.80 port 9003",
    "UDP to 203.0.113.80 port 53",
    "UDP to 203.0.113.80 port 853",
    "UDP to 10.100.0.1 port 9001",
    "UDP to 2001:db8:3::80 port 9002",
    "TCP to 203.0.113.80 port 9001",
    "TCP to 203.0.113.80 port 9002",
    "TCP to 203.0.113.80 port 853",
    "TCP to 203.0.113.80 port 5001",
    "TCP to 2001:db8:3::80 port 9001",
    "ICMP to 203.0.113.80",
    "ICMP to 2001:db8:3::80",
];

/// Listens and talks while `act` acts; what leaked.
fn leaks_while(world: &LeakWorld, act: impl FnOnce()) -> Vec<String> {
    let capture = world.listen();
    act();
    let leaks = world.leaks(&capture.stop().unwrap());
    leaks.into_iter().map(|(class, count)| format!("{class} ({count} times)")).collect()
}

fn assert_hears_everything(world: &LeakWorld) {
    let capture = world.listen();
    thread::sleep(A_WHILE);
    let heard = world.leaks(&capture.stop().unwrap());
    for class in CLASSES {
        assert!(heard.contains_key(class), "the listener is deaf to {class}: {heard:?}");
        if !class.contains("5001") && !class.contains("10.100") {
            let class = format!("forwarded {class}");
            assert!(heard.contains_key(&class), "the listener is deaf to {class}: {heard:?}");
        }
    }
}

fn reaches(host: &Host, address: &str) -> bool {
    host.attempt(["ping", "-n", "-q", "-c", "1", "-W", "1", address]).unwrap().ok()
}

#[test]
fn nothing_but_the_tunnel_leaves_while_it_is_up_killed_and_up_again() {
    let world = LeakWorld::new("ksup");
    let before = Picture::of(&world.client);
    let talkers = world.talk(10);
    assert_hears_everything(&world);

    succeed(&world.client, &["up", &world.file]);
    assert_eq!(leaks_while(&world, || thread::sleep(A_WHILE)), [""; 0], "while it is up");
    assert!(reaches(&world.client, WEB), "the tunnel carries");
    assert_eq!(status(&world.client)["host"]["kill_switch"], true);

    let leaks = leaks_while(&world, || {
        for _ in 0..3 {
            kill_tunnel(&world.client, "tun-0");
            thread::sleep(Duration::from_millis(200));
            succeed(&world.client, &["up", &world.file]);
        }
    });
    assert_eq!(leaks, [""; 0], "in a crash loop");

    world.gateway.terminate();
    assert_eq!(leaks_while(&world, || thread::sleep(A_WHILE)), [""; 0], "without a gateway");
    drop(talkers);
    succeed(&world.client, &["down"]);
    before.assert_again(&world.client);
    let talkers = world.talk(10);
    assert_hears_everything(&world);
    drop(talkers);
}

#[test]
fn a_killed_tunnel_stays_closed_until_down_opens_it() {
    let world = LeakWorld::new("kskill");
    let before = Picture::of(&world.client);
    succeed(&world.client, &["up", &world.file]);
    assert!(reaches(&world.client, WEB));
    kill_tunnel(&world.client, "tun-0");
    assert!(!reaches(&world.client, WEB) && !reaches(&world.client, ROUTER));

    // Another tunnel would be kept in as well, and one that fails does not open what was closed.
    let other = world.client.write("tun-1.conf", std::fs::read(&world.file).unwrap()).unwrap();
    let refused = adit(&world.client, &["up", &other.display().to_string()]);
    assert!(
        refused.stderr.contains("tun-0 was killed") && refused.stderr.contains("adit down tun-0"),
        "{refused:?}"
    );
    let text = std::fs::read_to_string(&world.file).unwrap();
    let broken = text.replace(common::internet::GATEWAY, "no-such-host.invalid");
    std::fs::write(&world.file, broken).unwrap();
    let failed = adit(&world.client, &["up", &world.file]);
    assert_eq!(failed.code(), Some(1));
    assert!(failed.stderr.contains("The kill switch stays"), "{}", failed.stderr);
    assert!(!reaches(&world.client, WEB));

    succeed(&world.client, &["down"]);
    assert!(reaches(&world.client, WEB) && reaches(&world.client, ROUTER));
    before.assert_again(&world.client);
}

#[test]
fn a_tunnel_whose_device_is_taken_away_ends_closed() {
    let world = LeakWorld::new("ksgone");
    let before = Picture::of(&world.client);
    succeed(&world.client, &["up", &world.file]);
    let talkers = world.talk(10);
    let leaks = leaks_while(&world, || {
        world.client.ip(["link", "del", "tun-0"]).unwrap();
        thread::sleep(A_WHILE);
    });
    assert_eq!(leaks, [""; 0]);
    drop(talkers);
    let status = adit(&world.client, &["status"]);
    assert!(status.stdout.contains("tun-0 was killed"), "{status:?}");
    succeed(&world.client, &["down"]);
    before.assert_again(&world.client);
}

#[test]
fn a_lan_that_is_allowed_is_reached_but_for_dns_and_nothing_else_is() {
    let world = LeakWorld::new("kslan");
    let before = Picture::of(&world.client);
    succeed(&world.client, &["up", "--allow-lan", &world.file]);
    assert!(reaches(&world.client, ROUTER) && reaches(&world.client, WEB));
    let talkers = world.talk(10);
    let leaks = leaks_while(&world, || thread::sleep(A_WHILE));
    drop(talkers);
    let is_fine = |leak: &&String| {
        let to_router = leak.contains(&format!(" to {ROUTER}"));
        let is_multicast_group = leak.contains("to ff02::16 ");
        (to_router || is_multicast_group) && !leak.contains("port 53 ") && !leak.contains("port 853 ")
    };
    let wrong: Vec<_> = leaks.iter().filter(|leak| !is_fine(leak)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(!leaks.is_empty(), "the LAN was talked to");
    succeed(&world.client, &["down"]);
    before.assert_again(&world.client);
}

#[test]
fn a_kill_switch_that_is_off_lets_out_what_the_routes_say_and_one_that_is_on_wants_a_full_tunnel() {
    let world = LeakWorld::new("ksoff");
    succeed(&world.client, &["up", "--kill-switch", "off", &world.file]);
    assert!(reaches(&world.client, ROUTER), "the LAN has a route of its own");
    assert_eq!(status(&world.client)["host"]["kill_switch"], false);
    succeed(&world.client, &["down"]);

    let text = std::fs::read_to_string(&world.file).unwrap();
    std::fs::write(&world.file, text.replace("0.0.0.0/0", "203.0.113.0/24")).unwrap();
    let refused = adit(&world.client, &["up", "--kill-switch", "on", &world.file]);
    assert!(
        refused.stderr.contains("full tunnel") && refused.stderr.contains("AllowedIPs"),
        "{}",
        refused.stderr
    );
    succeed(&world.client, &["up", &world.file]);
    assert_eq!(status(&world.client)["host"]["kill_switch"], false, "a split tunnel has none by itself");
    succeed(&world.client, &["down"]);
}

#[test]
fn what_others_change_is_made_again_and_told() {
    let world = LeakWorld::new("ksmend");
    let client = &world.client;
    let before = Picture::of(client);
    succeed(client, &["up", &world.file]);
    let shown = || {
        [
            &["nft", "-s", "list", "table", "inet", "adit_tun-0"][..],
            &["nft", "-s", "list", "table", "inet", "adit-held_tun-0"],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["ip", "route", "show", "table", "all"],
        ]
        .map(|argv| client.attempt(argv.iter().copied()).unwrap().stdout)
    };
    let up = shown();
    let told = || status(client)["host"]["repairs"].as_u64().unwrap();
    let changes: [&[&str]; 6] = [
        &["nft", "flush", "ruleset"],
        &["nft", "flush", "chain", "inet", "adit_tun-0", "output"],
        &["ip", "rule", "flush"],
        &["ip", "-6", "rule", "flush"],
        &["ip", "route", "flush", "table", "51820"],
        &["ip", "route", "replace", "default", "dev", "eth0", "table", "51820"],
    ];
    for change in changes {
        let repairs = told();
        client.exec(change.iter().copied()).unwrap();
        if change == ["ip", "rule", "flush"] {
            // It takes the rules of the system too, which are not ours to mend.
            client.ip(["rule", "add", "from", "all", "lookup", "main", "pref", "32766"]).unwrap();
            client.ip(["rule", "add", "from", "all", "lookup", "default", "pref", "32767"]).unwrap();
        }
        if change == ["ip", "-6", "rule", "flush"] {
            client.ip(["-6", "rule", "add", "from", "all", "lookup", "main", "pref", "32766"]).unwrap();
        }
        wait_for(format!("{change:?} to be mended"), SOON, || (told() > repairs).then_some(())).unwrap();
        wait_for(format!("all that {change:?} changed"), SOON, || (shown() == up).then_some(()))
            .unwrap_or_else(|_| assert_eq!(shown(), up));
    }
    assert!(reaches(client, WEB));
    let page = succeed(client, &["status"]).stdout;
    assert!(page.contains("by others") && page.contains("kill switch on"), "{page}");
    succeed(client, &["down"]);
    before.assert_again(client);
}

#[test]
fn lockdown_closes_a_host_before_a_tunnel_and_after_it() {
    let world = LeakWorld::new("kslock");
    let client = &world.client;
    let before = Picture::of(client);
    let configure = |text: &str| {
        let file = home(client).join("adit.toml");
        std::fs::create_dir_all(home(client)).unwrap();
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    configure("config_version = 1\n");
    succeed(client, &["lockdown"]);
    assert!(reaches(client, WEB), "it is off unless it is on");

    configure("config_version = 1\n[client]\nlockdown = true\n");
    succeed(client, &["lockdown"]);
    assert!(!reaches(client, WEB));
    let talkers = world.talk_without_a_connection(10);
    let leaks = leaks_while(&world, || {
        thread::sleep(A_WHILE);
        succeed(client, &["up", &world.file]);
        assert!(reaches(client, WEB));
        succeed(client, &["down"]);
        thread::sleep(A_WHILE);
        succeed(client, &["up", &world.file]);
        kill_tunnel(client, "tun-0");
        succeed(client, &["down"]);
        thread::sleep(A_WHILE);
    });
    drop(talkers);
    assert_eq!(leaks, [""; 0]);
    assert!(!reaches(client, WEB));

    succeed(client, &["lockdown", "off"]);
    assert!(reaches(client, WEB));
    configure("this is no configuration");
    let refused = adit(client, &["lockdown"]);
    assert!(refused.code() == Some(1) && refused.stderr.contains("cannot be read"), "{}", refused.stderr);
    assert!(!reaches(client, WEB), "what cannot be read closes");
    succeed(client, &["lockdown", "off"]);
    before.assert_again(client);
}
