//! The unit of `adit service`: what systemd thinks of it, and the gateway under its rules.

mod common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use adit_lab::{Invocation, wait_for};
use common::internet::{GATEWAY, Internet, admit, home, succeed};
use common::{ADIT, SOON};

/// Exposure of `systemd-analyze security`, in tenths: a program that makes interfaces and routes cannot come lower.
const EXPOSURE_MOST: u32 = 30;

fn unit(words: &[&str]) -> String {
    Invocation::new([&[ADIT, "service", "install"], words, &["--print"]].concat()).exec().unwrap().stdout
}

fn analyze(words: &[&str], file: &Path) -> adit_lab::Output {
    let file = file.display().to_string();
    Invocation::new([&["systemd-analyze"], words, &[&file]].concat()).attempt().unwrap()
}

#[test]
fn systemd_finds_the_unit_right_and_closed() {
    let directory = tempfile::tempdir().unwrap();
    for (words, name) in [
        (&[][..], "adit.service"),
        (&["work"], "adit-work.service"),
        (&["--restore"], "adit-restore-at-every-boot.service"),
    ] {
        let path = directory.path().join(name);
        let text = unit(words);
        fs::write(&path, &text).unwrap();
        let verified = analyze(&["verify", "--man=no"], &path);
        assert!(verified.ok() && verified.stderr.trim().is_empty(), "{}", verified.stderr);
        let security = analyze(&["security", "--offline=yes", "--no-pager"], &path);
        let line = security.stdout.lines().find(|line| line.contains("Overall exposure level")).unwrap();
        let level = line.rsplit_once(": ").unwrap().1.split_whitespace().next().unwrap();
        let tenths: u32 = level.replace('.', "").parse().unwrap();
        assert!(tenths <= EXPOSURE_MOST, "{line}");
        // The control: the same without its rules.
        let is_rule = |line: &&str| !line.starts_with("Protect") && !line.starts_with("Capability");
        fs::write(&path, text.lines().filter(is_rule).collect::<Vec<_>>().join("\n")).unwrap();
        let open = analyze(&["security", "--offline=yes", "--no-pager"], &path).stdout;
        assert!(!open.contains(line), "{open}");
        fs::write(&path, text.replace("TimeoutStartSec", "TimeoutStartSecs")).unwrap();
        assert!(analyze(&["verify", "--man=no"], &path).stderr.contains("TimeoutStartSecs"));
    }
}

#[test]
fn the_gateway_runs_with_the_capabilities_of_its_unit_and_tells_that_it_is_ready_and_well() {
    let net = Internet::new("unit", 1);
    let client = &net.clients[0];
    succeed(&net.gateway, &["init"]);
    let text = unit(&[]);
    let line = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let set: String =
        line.split(' ').map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
    let set = format!("-all{set}");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let hear = || {
        let mut buffer = [0; 256];
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    let home = home(&net.gateway).display().to_string();
    let words = ["setpriv", "--bounding-set", &set, "--inh-caps=-all", "--no-new-privs"];
    let mut gateway = net
        .gateway
        .command(words.iter().chain(&[ADIT, "--home", &home, "gateway"]).copied())
        .env("NOTIFY_SOCKET", path.display().to_string())
        .env("WATCHDOG_USEC", "900000")
        .spawn()
        .unwrap();
    assert_eq!(hear(), "READY=1");
    let started = Instant::now();
    let pats = 6;
    for _ in 0..pats {
        assert_eq!(hear(), "WATCHDOG=1");
    }
    // Not more often than there is a point in.
    assert!(started.elapsed() > Duration::from_millis(100 * pats), "{:?}", started.elapsed());

    let status = fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let url = succeed(&net.gateway, &["invite", "laptop"]).stdout;
    succeed(client, &["join", url.trim()]);
    assert_eq!(net.seen_from(client)[0], GATEWAY);
    gateway.terminate();
    loop {
        match hear().as_str() {
            "WATCHDOG=1" => {}
            said => break assert_eq!(said, "STOPPING=1"),
        }
    }
    assert_eq!(gateway.wait(SOON).unwrap().code(), Some(0), "{}", gateway.stderr());
}

#[test]
fn a_tunnel_that_is_stopped_before_it_is_up_ends_well_as_a_service_and_not_for_who_waits_for_it() {
    let net = Internet::new("unitstop", 1);
    let client = &net.clients[0];
    succeed(&net.gateway, &["init"]);
    // Nobody answers, as no gateway runs: until then it waits for seconds.
    let file = admit(&net.gateway, "tun-0", client, &[]);
    let home = home(client).display().to_string();
    let is_listening = || Path::new(&home).join("run/tun-0.sock").exists();

    let mut service = client.spawn([ADIT, "--home", &home, "up", "--foreground", &file]).unwrap();
    wait_for("the tunnel to be there", SOON, || is_listening().then_some(())).unwrap();
    service.terminate();
    let ended = service.wait(SOON).unwrap();
    assert!(service.stderr().contains("asked to end before the tunnel was up"), "{}", service.stderr());
    assert_eq!(ended.code(), Some(0), "{}", service.stderr());

    let mut launcher = client.spawn([ADIT, "--home", &home, "up", &file]).unwrap();
    wait_for("the tunnel to be there", SOON, || is_listening().then_some(())).unwrap();
    succeed(client, &["down"]);
    assert_eq!(launcher.wait(SOON).unwrap().code(), Some(1), "{}", launcher.stderr());
    assert!(launcher.stderr().contains("asked to end before the tunnel was up"), "{}", launcher.stderr());
    assert!(!client.has_interface("tun-0"));
}
