//! The lab, checked against the machine itself. Needs root; a second or two each.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use adit_lab::{Capture, Content, End, Host, Lab, NatTimeouts, SequenceReport, wait_for};

const SOON: Duration = Duration::from_secs(5);

fn lab(prefix: &str) -> Lab {
    Lab::with_agent(prefix, [env!("CARGO_BIN_EXE_adit-lab")]).unwrap()
}

fn pair(lab: &Lab) -> (Host, Host) {
    let (left, right) = (lab.host("left").unwrap(), lab.host("right").unwrap());
    let link = lab.connect(
        End::new(&left, "eth0").address("10.9.0.1/24").address("fd09::1/64"),
        End::new(&right, "eth0").address("10.9.0.2/24").address("fd09::2/64"),
    );
    link.unwrap();
    (left, right)
}

#[test]
fn two_hosts_reach_each_other_at_once_in_both_families() {
    let lab = lab("pair");
    let (left, right) = pair(&lab);
    assert_eq!(left.ping("10.9.0.2", 1).unwrap(), 1);
    assert_eq!(right.ping("fd09::1", 1).unwrap(), 1);
    assert_eq!(left.addresses("eth0").unwrap(), ["10.9.0.1/24", "fd09::1/64"]);
    assert_eq!(left.mac("eth0").unwrap().len(), 17);
    assert!(left.has_interface("eth0") && !left.has_interface("eth1"));
    assert_eq!(right.ping("10.9.0.77", 1).unwrap(), 0);
}

#[test]
fn a_switch_joins_its_hosts_and_a_pulled_plug_parts_them() {
    let lab = lab("switch");
    let hosts = ["a", "b", "c"].map(|name| lab.host(name).unwrap());
    let ends = hosts
        .iter()
        .zip(1..)
        .map(|(host, n)| End::new(host, "lan").address(format!("10.8.0.{n}/24")).mtu(1400));
    let link = lab.switch("lan", ends.collect()).unwrap();
    assert_eq!(hosts[0].ping("10.8.0.3", 1).unwrap(), 1);
    assert_eq!(hosts[2].ping("10.8.0.2", 1).unwrap(), 1);
    link.set_offloads(false).unwrap();
    link.set_mtu(1300).unwrap();
    assert_eq!(hosts[1].ip_json(["link", "show", "lan"]).unwrap()[0]["mtu"], 1300);
    link.down().unwrap();
    assert!(hosts[0].attempt(["ping", "-c", "1", "-W", "1", "10.8.0.3"]).unwrap().code() != Some(0));
    link.up().unwrap();
    assert_eq!(hosts[0].ping("10.8.0.3", 2).unwrap(), 2);
}

#[test]
fn a_dropped_lab_leaves_no_namespace_process_or_file() {
    let lab = lab("gone");
    let (left, _right) = pair(&lab);
    left.set_resolv_conf("nameserver 10.9.0.2\n").unwrap();
    assert_eq!(left.exec(["cat", "/etc/resolv.conf"]).unwrap().stdout, "nameserver 10.9.0.2\n");
    // A daemon nobody holds a guard for.
    left.exec(["sh", "-c", "sleep 600 >/dev/null 2>&1 &"]).unwrap();
    let daemons = lab.processes();
    assert_eq!(daemons.len(), 1);
    let (name, directory) = (lab.name().to_owned(), lab.directory().to_owned());
    assert_eq!(Lab::remains(&name).len(), 4, "{:?}", Lab::remains(&name));
    drop(lab);
    assert_eq!(Lab::remains(&name), [""; 0]);
    assert!(!directory.exists());
    // One that has ended may wait for its parent a little longer; then it has no command line any more.
    let command_line = std::fs::read(format!("/proc/{}/cmdline", daemons[0])).unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&command_line), "");
}

#[test]
fn a_panic_removes_the_lab_too() {
    let outcome = std::panic::catch_unwind(|| {
        let lab = lab("panic");
        lab.host("left").unwrap();
        let name = lab.name().to_owned();
        assert_eq!(Lab::remains(&name).len(), 2);
        std::panic::resume_unwind(Box::new(name));
    });
    let name = *outcome.unwrap_err().downcast::<String>().unwrap();
    assert_eq!(Lab::remains(&name), [""; 0]);
}

#[test]
fn a_lab_of_a_dead_process_is_swept_and_a_kept_or_living_one_is_not() {
    let namespaces = || {
        let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
        String::from_utf8(listed.stdout).unwrap()
    };
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let add =
        |name: &str| assert!(Command::new("ip").args(["netns", "add", name]).status().unwrap().success());
    let living = lab("alive");
    living.host("host").unwrap();
    let stale = format!("adit-stale-{}-0", dead.id());
    let kept = format!("adit-stale-{}-1", dead.id());
    for name in [&stale, &kept] {
        add(&format!("{name}-host"));
    }
    let directory = Path::new("/run/adit-lab").join(&kept);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("kept"), "").unwrap();
    drop(lab("sweeper"));
    let left = namespaces();
    Lab::remove(&kept).unwrap();
    assert!(!left.contains(&stale), "{left}");
    assert!(left.contains(&kept) && left.contains(living.name()), "{left}");
    assert_eq!(Lab::remains(&kept), [""; 0]);
}

#[test]
fn a_kept_lab_stays_until_it_is_removed_by_name() {
    let lab = lab("kept");
    lab.host("host").unwrap();
    let name = lab.name().to_owned();
    lab.keep().unwrap();
    drop(lab);
    let remains = Lab::remains(&name);
    let removed = Command::new(env!("CARGO_BIN_EXE_adit-lab")).args(["remove", &name]).status().unwrap();
    assert_eq!(remains.len(), 2, "{remains:?}");
    assert!(removed.success());
    assert_eq!(Lab::remains(&name), [""; 0]);
}

#[test]
fn only_labs_can_be_removed() {
    assert!(Lab::remove("somebody-elses-namespace").is_err());
    assert!(Lab::with_agent("Bad-Prefix", ["x"]).is_err());
}

#[test]
fn a_download_arrives_as_its_seed_says_and_the_server_sees_who_asked() {
    let lab = lab("http");
    let (left, right) = pair(&lab);
    let mut server = right.agent(["http-server", "--listen", "[::]:80"]).spawn().unwrap();
    server.wait_for_text("listening on", SOON).unwrap();
    let get = |url: &str| left.agent(["http-get", "--sha256", url]).exec().unwrap().json().unwrap();
    assert_eq!(get("http://10.9.0.2/")["text"], "10.9.0.1\n");
    assert_eq!(get("http://[fd09::2]/")["text"], "fd09::1\n");
    let file = get("http://10.9.0.2/file?bytes=3000001&seed=5");
    assert_eq!(file["sha256"], Content { seed: 5, bytes: 3_000_001 }.sha256());
    assert_ne!(file["sha256"], Content { seed: 6, bytes: 3_000_001 }.sha256());
    assert!(
        server.stdout().contains(r#""peer":"10.9.0.1","status":200,"target":"/file?bytes=3000001&seed=5""#)
    );
    let missing = left.agent(["http-get", "http://10.9.0.2/nothing"]).attempt().unwrap();
    assert_eq!(missing.code(), Some(1), "{}", missing.stderr);
}

#[test]
fn a_download_resumes_after_its_server_died() {
    let lab = lab("resume");
    let (left, right) = pair(&lab);
    let serve = || {
        let mut server = right.agent(["http-server", "--listen", "10.9.0.2:80"]).spawn().unwrap();
        server.wait_for_text("listening on", SOON).unwrap();
        server
    };
    let mut first = serve();
    let url = "http://10.9.0.2/file?bytes=1000000&seed=1&kbps=500";
    let mut get = left.agent(["http-get", url, "--sha256", "--resume-seconds", "10"]).spawn().unwrap();
    wait_for("the request to arrive", SOON, || first.stdout().contains("kbps").then_some(())).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    first.crash();
    let _second = serve();
    let report: serde_json::Value = serde_json::from_str(&get.finish(SOON).unwrap()).unwrap();
    assert_eq!(report["sha256"], Content { seed: 1, bytes: 1_000_000 }.sha256());
    assert!(report["resumed"].as_u64().unwrap() >= 1, "{report}");
}

#[test]
fn tcp_throughput_is_counted_where_it_arrives_and_a_slow_link_shows() {
    let lab = lab("tcp");
    let (left, right) = (lab.host("left").unwrap(), lab.host("right").unwrap());
    let ends = [(&left, "10.9.1.1/24"), (&right, "10.9.1.2/24")]
        .map(|(host, it)| End::new(host, "eth0").address(it));
    let [here, there] = ends;
    let link = lab.connect(here, there).unwrap();
    let mut sink = right.agent(["tcp-sink", "--listen", "10.9.1.2:5001"]).spawn().unwrap();
    sink.wait_for_text("listening on", SOON).unwrap();
    let rate = || {
        let argv = ["tcp-source", "10.9.1.2:5001", "--seconds", "0.5", "--streams", "2"];
        left.agent(argv).exec().unwrap().json().unwrap()["mbits_per_second"].as_f64().unwrap()
    };
    let fast = rate();
    link.limit_rate(50).unwrap();
    let slow = rate();
    assert!(fast > 200.0, "{fast}");
    assert!((5.0..80.0).contains(&slow), "{slow}");
}

#[test]
fn the_probe_counts_what_a_lossy_or_narrow_path_loses() {
    let lab = lab("probe");
    let (left, right) = pair(&lab);
    let mut echo = right.agent(["udp-echo", "--listen", "[::]:7"]).spawn().unwrap();
    echo.wait_for_text("listening on", SOON).unwrap();
    let probe = |bytes: &str| -> SequenceReport {
        let argv = ["udp-probe", "10.9.0.2:7", "--count", "200", "--interval-ms", "1", "--wait-ms", "200"];
        let output = left.agent(argv).arg("--bytes").arg(bytes).exec().unwrap();
        serde_json::from_str(&output.stdout).unwrap()
    };
    let clean = probe("100");
    assert_eq!((clean.sent, clean.received, clean.lost, clean.duplicated), (200, 200, 0, 0));
    assert!(clean.rtt_median_ms > 0.0);
    right.drop_udp_probability(0.5).unwrap();
    let lossy = probe("100");
    assert!((20..180).contains(&lossy.lost), "{lossy:?}");
    right.drop_nothing().unwrap();
    right.drop_udp_larger_than(500).unwrap();
    assert_eq!(probe("472").lost, 0);
    assert_eq!(probe("473").lost, 200);
    right.drop_nothing().unwrap();
    right.drop_udp().unwrap();
    assert_eq!(probe("100").lost, 200);
    right.drop_nothing().unwrap();
    assert_eq!(probe("473").lost, 0);
}

#[test]
fn one_way_datagrams_are_counted_by_the_sink() {
    let lab = lab("oneway");
    let (left, right) = pair(&lab);
    let mut sink = right.agent(["udp-sink", "--listen", "[::]:9", "--count", "50"]).spawn().unwrap();
    sink.wait_for_text("listening on", SOON).unwrap();
    left.agent(["udp-send", "[fd09::2]:9", "50", "--interval-us", "200"]).exec().unwrap();
    let output = sink.finish(SOON).unwrap();
    let report: SequenceReport = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!((report.received, report.lost, report.reordered), (50, 0, 0));
}

#[test]
fn a_router_hides_its_clients_and_lets_nobody_in() {
    let lab = lab("nat");
    let [inside, router, outside] = ["inside", "router", "outside"].map(|name| lab.host(name).unwrap());
    let lan = End::new(&router, "lan").address("10.7.0.1/24");
    lab.connect(End::new(&inside, "eth0").address("10.7.0.2/24"), lan).unwrap();
    let wan = End::new(&router, "wan").address("192.0.2.1/24");
    lab.connect(wan, End::new(&outside, "eth0").address("192.0.2.2/24")).unwrap();
    inside.add_route("default via 10.7.0.1").unwrap();
    outside.add_route("10.7.0.0/24 via 192.0.2.1").unwrap();
    let mut server = outside.agent(["http-server", "--listen", "192.0.2.2:80"]).spawn().unwrap();
    server.wait_for_text("listening on", SOON).unwrap();
    let seen =
        || inside.agent(["http-get", "http://192.0.2.2/"]).exec().unwrap().json().unwrap()["text"].take();
    router.enable_forwarding().unwrap();
    assert_eq!(seen(), "10.7.0.2\n");
    assert_eq!(outside.ping("10.7.0.2", 1).unwrap(), 1);
    let timeouts = NatTimeouts { udp: Duration::from_secs(3), udp_stream: Duration::from_secs(7) };
    router.masquerade("wan", Some(timeouts)).unwrap();
    assert_eq!(seen(), "192.0.2.1\n");
    assert_eq!(outside.ping("10.7.0.2", 1).unwrap(), 0);
    assert_eq!(router.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream").unwrap(), "7");
}

#[test]
fn a_capture_has_the_frames_of_its_interface_and_of_no_other() {
    let lab = lab("capture");
    let (left, right) = pair(&lab);
    let third = lab.host("third").unwrap();
    let here = End::new(&left, "eth1").address("10.9.5.1/24");
    lab.connect(here, End::new(&third, "eth0").address("10.9.5.2/24")).unwrap();
    let capture = Capture::start(&left, "eth0").unwrap();
    let say = |pattern: &str, to: &str| left.exec(["ping", "-c", "1", "-p", pattern, to]).unwrap();
    say("feedc0ffee15900d", "10.9.0.2");
    say("0123456789abcdef", "10.9.5.2");
    let path = capture.path().to_owned();
    let frames = capture.stop().unwrap();
    let count = |needle: &[u8]| frames.iter().filter(|frame| frame.contains(needle)).count();
    assert_eq!(count(&[0xfe, 0xed, 0xc0, 0xff, 0xee, 0x15, 0x90, 0x0d]), 2, "the request and its reply");
    assert_eq!(count(&[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]), 0);
    assert!(frames.iter().all(|frame| frame.time > Duration::from_secs(1_600_000_000)));
    assert!(path.exists());
    drop(right);
}

#[test]
fn a_capture_of_nothing_says_so() {
    let lab = lab("nocapture");
    let host = lab.host("host").unwrap();
    let error = Capture::start(&host, "eth7").err().unwrap().to_string();
    assert!(error.contains("there is no interface eth7"), "{error}");
}

#[test]
fn a_process_is_readable_while_it_runs_and_gone_when_dropped() {
    let lab = lab("process");
    let host = lab.host("host").unwrap();
    host.set_env("GREETING", "good morning");
    let mut process = host.spawn(["sh", "-c", "echo $GREETING; exec sleep 600"]).unwrap();
    process.wait_for_text("good morning", SOON).unwrap();
    assert_eq!(lab.processes(), [process.id()]);
    drop(process);
    assert_eq!(lab.processes(), [0; 0]);
    let mut early = host.spawn(["sh", "-c", "echo oh dear >&2; exit 3"]).unwrap();
    let started = Instant::now();
    let error = early.wait_for_text("never said", SOON).unwrap_err().to_string();
    assert!(error.contains("exit code 3") && error.contains("oh dear"), "{error}");
    assert!(started.elapsed() < SOON);
}
