//! Lockdown goes only when the kernel has the kill switch of a tunnel, or when it is ordered off; whatever else happens,
//! the host stays closed.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use adit_lab::Host;

use common::internet::{GATEWAY, WEB, adit, home, kill_tunnel, succeed};
use common::leak::{LeakWorld, ROUTER};
use common::picture::Picture;

fn configure(client: &Host, text: &str) {
    fs::create_dir_all(home(client)).unwrap();
    let file = home(client).join("adit.toml");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

const LOCKDOWN: &str = "config_version = 1\n[client]\nlockdown = true\n";

fn pings(host: &Host, where_to: &[&str]) -> bool {
    host.attempt([&["ping", "-n", "-q", "-c", "1", "-W", "1"], where_to].concat()).unwrap().ok()
}

/// By whatever route, and past all routes.
fn reaches(host: &Host) -> bool {
    pings(host, &[WEB]) || !is_closed_beside_the_tunnel(host)
}

/// A socket that is bound to the network card is led by no rule and no route.
fn is_closed_beside_the_tunnel(host: &Host) -> bool {
    !pings(host, &["-I", "eth0", ROUTER])
}

fn refused(client: &Host, arguments: &[&str], parts: &[&str]) {
    let output = adit(client, arguments);
    assert_eq!(output.code(), Some(1), "{arguments:?}: {output:?}");
    for part in parts {
        assert!(output.stderr.contains(part), "{part} in {}", output.stderr);
    }
}

/// A profile beside `file` that differs in one place.
fn profile(world: &LeakWorld, name: &str, from: &str, to: &str) -> String {
    let text = fs::read_to_string(&world.file).unwrap();
    assert!(text.contains(from), "{text}");
    world.client.write(&format!("{name}.conf"), text.replace(from, to)).unwrap().display().to_string()
}

#[test]
fn lockdown_stays_through_every_up_without_a_kill_switch() {
    let world = LeakWorld::new("lockup");
    let client = &world.client;
    let before = Picture::of(client);
    let split = profile(&world, "split", "0.0.0.0/0", "10.86.0.0/24");
    assert!(reaches(client));
    succeed(client, &["up", &split]);
    assert!(reaches(client), "that alone closes nothing");
    succeed(client, &["down"]);

    succeed(client, &["lockdown", "on"]);
    assert!(!reaches(client));
    refused(client, &["up", &split], &["adit lockdown on", "full tunnel", "adit lockdown off"]);
    assert!(!reaches(client));
    refused(client, &["up", "--include", "10.9.0.0/24", &world.file], &["adit lockdown on", "include"]);
    assert!(!reaches(client));
    // Lockdown is the stronger word.
    let up = succeed(client, &["up", "--kill-switch", "off", &world.file]);
    assert!(up.stderr.contains("kill switch is on although"), "{}", up.stderr);
    assert!(is_closed_beside_the_tunnel(client) && reaches(client), "closed, and the tunnel carries");

    // And it is remembered.
    succeed(client, &["down"]);
    assert!(!reaches(client));
    succeed(client, &["lockdown"]);
    assert!(!reaches(client), "adit.toml says nothing, but somebody did");
    succeed(client, &["lockdown", "off"]);
    assert!(reaches(client));

    configure(client, LOCKDOWN);
    succeed(client, &["lockdown"]);
    refused(client, &["up", "--include", "10.9.0.0/24", &world.file], &["lockdown = true", "include"]);
    assert!(!reaches(client));
    configure(client, "config_version = 1\n");
    refused(
        client,
        &["up", "--kill-switch", "on", "--include", "10.9.0.0/24", &world.file],
        &["kill_switch = on"],
    );
    succeed(client, &["lockdown", "off"]);
    assert!(reaches(client));
    before.assert_again(client);
}

#[test]
fn lockdown_ordered_while_a_tunnel_is_up_follows_it() {
    let world = LeakWorld::new("lockfollow");
    let client = &world.client;
    let before = Picture::of(client);
    succeed(client, &["up", &world.file]);
    succeed(client, &["down"]);
    assert!(reaches(client), "without an order nothing follows");

    succeed(client, &["up", &world.file]);
    let told = succeed(client, &["lockdown", "on"]).stderr;
    assert!(told.contains("tun-0") && told.contains("follows"), "{told}");
    assert!(reaches(client), "the tunnel still carries");
    succeed(client, &["down"]);
    assert!(!reaches(client));
    succeed(client, &["up", &world.file]);
    kill_tunnel(client, "tun-0");
    succeed(client, &["down"]);
    assert!(!reaches(client), "after a kill too");
    let told = succeed(client, &["lockdown", "off"]).stderr;
    assert!(told.contains("this host is open"), "{told}");
    assert!(reaches(client));
    before.assert_again(client);
}

#[test]
fn lockdown_closes_although_journals_lie_or_cannot_be_read() {
    let world = LeakWorld::new("lockjournal");
    let client = &world.client;
    succeed(client, &["up", &world.file]);
    kill_tunnel(client, "tun-0");
    assert!(!reaches(client));
    client.nft("flush ruleset").unwrap();
    assert!(!is_closed_beside_the_tunnel(client), "only the rules hold, and a bound socket goes past them");
    let told = succeed(client, &["lockdown", "on"]).stderr;
    assert!(told.contains("lockdown is on"), "{told}");
    assert!(is_closed_beside_the_tunnel(client) && !reaches(client));
    succeed(client, &["lockdown", "off"]);
    assert!(!is_closed_beside_the_tunnel(client));

    // Half written, when the power went.
    let journal = home(client).join("state/tun-0.journal");
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, format!("{{\"li\n{text}")).unwrap();
    succeed(client, &["lockdown", "on"]);
    assert!(is_closed_beside_the_tunnel(client));
    succeed(client, &["lockdown", "off"]);
    assert!(!is_closed_beside_the_tunnel(client));
    let record = home(client).join("state/lockdown.block");
    fs::write(&record, "rubbish\nand more\n").unwrap();
    succeed(client, &["lockdown", "on"]);
    assert!(is_closed_beside_the_tunnel(client), "its own record too");
    fs::write(&record, "rubbish\nand more\n").unwrap();
    succeed(client, &["lockdown", "off"]);
    assert!(!is_closed_beside_the_tunnel(client));

    fs::write(&journal, text).unwrap();
    succeed(client, &["down"]);
    assert!(reaches(client));
}

#[test]
fn an_up_after_a_kill_and_a_flush_opens_nothing_before_it_has_closed_the_host() {
    let world = LeakWorld::new("lockwindow");
    let client = &world.client;
    let before = Picture::of(client);
    let killed_and_flushed = || {
        kill_tunnel(client, "tun-0");
        client.nft("flush ruleset").unwrap();
    };
    succeed(client, &["up", &world.file]);
    killed_and_flushed();
    assert!(!is_closed_beside_the_tunnel(client), "the flush took what kept a bound socket in");
    // One that fails closes the host again, although it has no other way to know what was there.
    let text = fs::read_to_string(&world.file).unwrap();
    fs::write(&world.file, text.replace(GATEWAY, "no-such-host.invalid")).unwrap();
    refused(client, &["up", &world.file], &["The kill switch stays"]);
    assert!(!reaches(client));
    fs::write(&world.file, &text).unwrap();

    // Rules and routes hold what is not bound; they may not go before the table is back.
    succeed(client, &["up", &world.file]);
    for _ in 0..3 {
        killed_and_flushed();
        assert!(!pings(client, &[WEB]));
        let capture = world.listen();
        let talker = client.spawn(["ping", "-n", "-i", "0.005", WEB]).unwrap();
        succeed(client, &["up", &world.file]);
        drop(talker);
        assert_eq!(world.leaks(&capture.stop().unwrap()).into_keys().collect::<Vec<_>>(), [""; 0]);
        assert!(pings(client, &[WEB]), "the tunnel carries");
    }
    succeed(client, &["down"]);
    let capture = world.listen();
    assert!(pings(client, &[WEB]));
    assert!(!world.leaks(&capture.stop().unwrap()).is_empty(), "the listener hears what leaves");
    assert!(reaches(client));
    before.assert_again(client);
}

#[test]
fn an_up_that_fails_after_lockdown_gave_way_leaves_the_host_closed() {
    let world = LeakWorld::new("lockfail");
    let client = &world.client;
    let before = Picture::of(client);
    let failing = profile(&world, "hooked", "[Peer]", "PostUp = false\n[Peer]");
    refused(client, &["up", "--allow-hooks", &failing], &["PostUp"]);
    assert!(reaches(client), "what was open is open");
    succeed(client, &["lockdown", "on"]);
    refused(client, &["up", "--allow-hooks", &failing], &["PostUp", "The kill switch stays"]);
    assert!(!reaches(client));
    let told = succeed(client, &["lockdown", "off"]).stderr;
    assert!(told.contains("adit down hooked"), "{told}");
    assert!(!reaches(client));
    succeed(client, &["down", "hooked"]);
    assert!(reaches(client));
    before.assert_again(client);
}

#[test]
fn what_a_killed_tunnel_ran_under_counts_when_its_settings_cannot_be_read() {
    let world = LeakWorld::new("lockkilled");
    let client = &world.client;
    let before = Picture::of(client);
    let up_and_killed = |file: &str, name: &str| {
        succeed(client, &["up", file]);
        kill_tunnel(client, name);
    };
    // The profile alone asks for it; `down` reads no profile.
    let locked = profile(&world, "locked", "[Peer]", "# adit: lockdown = true\n[Peer]");
    up_and_killed(&locked, "locked");
    succeed(client, &["down"]);
    assert!(!reaches(client));
    succeed(client, &["lockdown", "off"]);
    assert!(reaches(client));

    configure(client, LOCKDOWN);
    up_and_killed(&world.file, "tun-0");
    configure(client, "this is no configuration");
    succeed(client, &["down"]);
    assert!(!reaches(client));
    succeed(client, &["lockdown", "off"]);
    assert!(reaches(client));

    // Where nobody asked for it and everything can be read, a killed tunnel is put away and the host is open.
    configure(client, "config_version = 1\n");
    up_and_killed(&world.file, "tun-0");
    succeed(client, &["down"]);
    assert!(reaches(client));
    up_and_killed(&world.file, "tun-0");
    configure(client, "this is no configuration");
    let told = succeed(client, &["down"]).stderr;
    assert!(told.contains("cannot be read") && told.contains("adit lockdown off"), "{told}");
    assert!(!reaches(client), "what cannot be read closes");
    succeed(client, &["lockdown", "off"]);
    assert!(reaches(client));
    fs::remove_file(home(client).join("adit.toml")).unwrap();
    before.assert_again(client);
}
