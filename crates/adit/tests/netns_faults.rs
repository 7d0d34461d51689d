//! What goes wrong on a client's host is said, and nothing is opened or broken by it.

mod common;

use std::fs;

use adit_lab::Host;

use common::internet::{Internet, WEB, adit, admit, home, init, kill_tunnel, start_gateway, succeed};
use common::picture::Picture;

fn reaches(host: &Host) -> bool {
    host.attempt(["ping", "-n", "-q", "-c", "1", "-W", "1", WEB]).unwrap().ok()
}

#[test]
fn a_journal_that_cannot_be_read_keeps_the_host_closed_and_one_cut_short_does_not() {
    let net = Internet::new("journal", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    let _gateway = start_gateway(&net.gateway);
    let before = Picture::of(client);
    succeed(client, &["up", &file]);
    kill_tunnel(client, "tun-0");
    let journal = home(client).join("state/tun-0.journal");
    let good = fs::read_to_string(&journal).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    assert!(lines.len() > 3, "{good}");

    let broken = [&lines[..1], &["{\"line\":\"cha"], &lines[2..]].concat().join("\n") + "\n";
    fs::write(&journal, &broken).unwrap();
    for verb in [&["up", file.as_str()][..], &["down"]] {
        let refused = adit(client, verb);
        assert_eq!(refused.code(), Some(1), "{verb:?}: {refused:?}");
        for part in ["cannot be read", "line 2", "To recover", "nft delete table"] {
            assert!(refused.stderr.contains(part), "{verb:?}: {}", refused.stderr);
        }
        assert!(!reaches(client), "it stays closed after {verb:?}");
        assert_eq!(fs::read_to_string(&journal).unwrap(), broken, "nothing of it is lost");
    }

    fs::write(&journal, format!("{good}{{\"line\":\"change\",\"seq\":99,\"wh")).unwrap();
    succeed(client, &["down"]);
    assert!(reaches(client));
    before.assert_again(client);
}

#[test]
fn a_second_instance_refuses_and_the_first_goes_on() {
    let net = Internet::new("second", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    let _gateway = start_gateway(&net.gateway);
    succeed(client, &["up", &file]);
    let up = Picture::of(client);
    let refused = adit(client, &["up", &file]);
    assert_eq!(refused.code(), Some(1));
    assert!(refused.stderr.contains("already running (process "), "{}", refused.stderr);
    up.assert_again(client);
    assert!(reaches(client));
    succeed(client, &["down"]);
}

#[test]
fn a_foreign_interface_of_the_same_name_is_not_touched() {
    let net = Internet::new("samename", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    let _gateway = start_gateway(&net.gateway);
    client.ip(["link", "add", "tun-0", "type", "bridge"]).unwrap();
    client.add_address("tun-0", "192.0.2.200/24").unwrap();
    client.ip(["link", "set", "tun-0", "up"]).unwrap();
    let before = Picture::of(client);
    for verb in [&["up", file.as_str()][..], &["down"]] {
        let refused = adit(client, verb);
        assert_eq!(refused.code(), Some(1), "{refused:?}");
        let says = if verb[0] == "up" { "it is not ours" } else { "nothing is up here" };
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
        before.assert_again(client);
    }
    client.ip(["link", "del", "tun-0"]).unwrap();
    succeed(client, &["up", &file]);
    assert!(reaches(client));
    succeed(client, &["down"]);
}
