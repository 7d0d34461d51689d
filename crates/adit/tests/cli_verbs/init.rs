//! `adit init`: what it writes, and what it leaves alone.

use std::fs;

use super::{Gateway, good, mode};

#[test]
fn init_writes_a_private_commented_file_that_checks() {
    let gateway = Gateway::new();
    assert_eq!(mode(&gateway.file()), 0o600);
    assert_eq!(mode(&gateway.directory.path().join("state")), 0o700);
    let text = gateway.text();
    assert!(text.contains("# UDP port, on every address of this host\nlisten = \":443\"\n"), "{text}");
    assert!(text.contains("# masquerade = true\n"), "{text}");
    gateway.good("peer add laptop");
    let added = gateway.text();
    assert!(added.starts_with(&text) && added[text.len()..].starts_with("\n[[peer]]\n"), "{added}");
    let checked = gateway.good("check").stdout;
    assert!(checked.contains("ok (gateway adit0, UDP port 443, 1 peer)"), "{checked}");
}

#[test]
fn every_default_that_init_wrote_as_a_comment_stays_right_without_its_mark() {
    let gateway = Gateway::new();
    let text = gateway.text();
    let is_setting = |line: &str| {
        line.strip_prefix("# ").is_some_and(|rest| {
            rest.split_once(" = ").is_some_and(|(name, _)| {
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            })
        })
    };
    let lines: Vec<&str> = text.lines().collect();
    let commented: Vec<usize> = (0..lines.len()).filter(|&at| is_setting(lines[at])).collect();
    assert!(commented.len() > 30, "{text}");
    let without_marks = |which: &[usize]| {
        let line = |at: usize| if which.contains(&at) { &lines[at][2..] } else { lines[at] };
        (0..lines.len()).map(line).collect::<Vec<_>>().join("\n")
    };
    let shown = |text: &str| {
        fs::write(gateway.file(), text).unwrap();
        gateway.good("config show").stdout
    };
    let before = shown(&text);
    for &at in &commented {
        let after = shown(&without_marks(&[at]));
        // An example of a list is no default.
        if !lines[at].contains(" = [\"") {
            assert_eq!(after, before, "{} is what counts anyway", lines[at]);
        }
    }
    shown(&without_marks(&commented));
    fs::write(gateway.file(), text.replacen("# mtu = \"auto\"", "mtu = \"autp\"", 1)).unwrap();
    gateway.bad("check", "mtu");
}

#[test]
fn init_says_every_decision_with_its_reason_and_never_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let ran = good(&format!("init --home {} --endpoint 192.0.2.1:51820", directory.path().display()));
    let text = fs::read_to_string(directory.path().join("adit.toml")).unwrap();
    let key = text
        .lines()
        .find_map(|line| line.strip_prefix("private_key = "))
        .unwrap()
        .trim_matches('"')
        .to_owned();
    assert!(!format!("{}{}", ran.stdout, ran.stderr).contains(&key));
    for decision in
        ["endpoint   192.0.2.1:51820 ", "listen     UDP port 51820 ", "network6   fd", "interface  adit0 "]
    {
        let line = ran
            .stdout
            .lines()
            .find(|line| line.contains(decision))
            .unwrap_or_else(|| panic!("{}", ran.stdout));
        assert!(line.rsplit("  ").next().is_some_and(|reason| reason.contains(' ')), "no reason: {line}");
    }
    let network6 = text.lines().find_map(|line| line.strip_prefix("network6 = ")).unwrap();
    assert!(network6.starts_with("\"fd") && network6.ends_with("::/64\""), "{network6}");
}

#[test]
fn init_twice_changes_nothing_and_force_keeps_key_peers_and_a_backup() {
    let gateway = Gateway::new();
    gateway.good("peer add laptop");
    let before = gateway.text();
    let again = gateway.good("init --endpoint vpn.example.org:443");
    assert!(again.stdout.contains("nothing was changed"), "{}", again.stdout);
    gateway.bad(
        "init --endpoint other.example.org:443",
        "endpoint is vpn.example.org:443, not other.example.org:443",
    );
    assert_eq!(gateway.text(), before);
    gateway.bad("init --network 10.10.0.0/24 --force", "10.9.0.2 is outside the networks of the gateway");
    assert_eq!(gateway.text(), before);
    gateway.good("init --endpoint other.example.org:443 --listen 444 --force");
    assert_eq!(
        gateway.text(),
        before.replace("vpn.example.org", "other.example.org").replace("\":443\"", "\":444\"")
    );
    let backup = gateway.directory.path().join("adit.toml.bak1");
    assert_eq!((fs::read_to_string(&backup).unwrap(), mode(&backup)), (before, 0o600));
}
