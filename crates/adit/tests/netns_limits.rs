//! What a peer may use: rates, quota, term and hours, and how a peer hears of them.

mod common;

use std::fs;
use std::time::{Duration, SystemTime};

use adit_lab::{Host, Process, wait_for};
use serde_json::Value;

use common::SOON;
use common::internet::{
    INSIDE, INSIDE6, Internet, WEB, WEB6, adit, admit, home, init, peer_status, start_gateway, status,
    stop_gateway, succeed,
};

struct World {
    gateway: Process,
    net: Internet,
}

/// A gateway and clients that are up.
fn world(prefix: &str, clients: usize) -> World {
    let net = Internet::new(prefix, clients);
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    for (number, client) in net.clients.iter().enumerate() {
        let file = admit(&net.gateway, &format!("tun-{number}"), client, &[]);
        succeed(client, &["up", &file]);
    }
    World { gateway, net }
}

/// Writes these lines into the section of `tun-0`, in place of those of the time before.
fn write_limits(net: &Internet, lines: &str) {
    let path = home(&net.gateway).join("adit.toml");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("name = \"tun-0\"").unwrap();
    let rest = rest.split_once("# end of limits").map_or(rest, |(_, rest)| rest);
    fs::write(path, format!("{before}name = \"tun-0\"\n{lines}\n# end of limits{rest}")).unwrap();
}

impl World {
    /// Limits `tun-0` by a reload.
    fn limit(&self, lines: &str) {
        write_limits(&self.net, lines);
        let reloads = || self.gateway.stderr().matches("configuration read again").count();
        let before = reloads();
        self.net.gateway.exec(["kill", "-HUP", &self.gateway.id().to_string()]).unwrap();
        wait_for("the reload", SOON, || (reloads() > before).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {}", self.gateway.stderr()));
    }

    fn limits(&self) -> Value {
        peer_status(&self.net.gateway, "tun-0")["limits"].clone()
    }

    /// What iperf3 measures between `client` and the web server, in bits a second.
    fn speed(&self, client: &Host, direction: &[&str]) -> f64 {
        let mut server = self.net.web.spawn(["iperf3", "-s", "-1", "--forceflush"]).unwrap();
        server.wait_for_text("listening", SOON).unwrap();
        let report = client.exec([&["iperf3", "-c", WEB, "-t", "4", "-J"], direction].concat()).unwrap();
        let bits = report.json().unwrap()["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
        server.wait(SOON).unwrap();
        bits
    }
}

fn page_from_web(client: &Host, bytes: u64) -> bool {
    let url = format!("http://{WEB}/file?bytes={bytes}&seed=1");
    let get = client.agent(["http-get", &url, "--sha256", "--patience-seconds", "4"]);
    get.deadline(Duration::from_secs(60)).attempt().unwrap().ok()
}

fn ping(client: &Host, to: &str) -> String {
    let argv = ["ping", "-n", "-c", "5", "-i", "0.2", "-W", "2", to];
    client.command(argv).deadline(Duration::from_secs(30)).attempt().unwrap().stdout
}

fn unix_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// A moment as the configuration takes it.
fn moment(unix_secs: u64) -> String {
    let (hour, minute, second) = (unix_secs / 3600 % 24, unix_secs / 60 % 60, unix_secs % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}", adit::civil::Date::of(unix_secs))
}

#[test]
fn a_rate_holds_both_ways_and_a_peer_without_one_is_not_touched() {
    let world = world("limrate", 2);
    let (limited, free) = (&world.net.clients[0], &world.net.clients[1]);
    world.limit("rate = \"8M\"");
    // Four seconds and a full bucket: at most 9.1 Mbit/s on average. The lower bound only says that it is no wall.
    for direction in [&[][..], &["-R"]] {
        let speed = world.speed(limited, direction);
        assert!((500_000.0..11_000_000.0).contains(&speed), "{direction:?}: {speed}");
    }
    let refused = world.limits()["refused"]["over_rate"].as_u64().unwrap();
    assert!(refused > 0);
    for direction in [&[][..], &["-R"]] {
        let speed = world.speed(free, direction);
        assert!(speed > 22_000_000.0, "{direction:?}: {speed}");
    }
    assert_eq!(peer_status(&world.net.gateway, "tun-1")["limits"], Value::Null);

    world.limit("rate_down = \"8M\"");
    assert!(world.speed(limited, &["-R"]) < 11_000_000.0);
    assert!(world.speed(limited, &[]) > 22_000_000.0, "only the way down is limited");
    world.limit("");
    assert!(world.speed(limited, &["-R"]) > 22_000_000.0, "the limit is gone, and no session was cut");
    assert_eq!(world.gateway.stderr().matches("session established").count(), 2);
}

#[test]
fn a_peer_over_its_rate_is_told_by_icmp_from_the_gateway_but_its_tcp_is_not() {
    let world = world("limicmp", 1);
    let client = &world.net.clients[0];
    let mut capture = client.spawn(["tcpdump", "-l", "-n", "-i", "tun-0", "icmp or icmp6"]).unwrap();
    capture.wait_for_text("listening on", SOON).unwrap();
    world.limit("rate = \"64k\"");
    for (to, own) in [(WEB, INSIDE), (WEB6, INSIDE6)] {
        // 131,072 bytes are in the bucket at first.
        let argv = ["ping", "-n", "-f", "-c", "400", "-s", "1000", "-W", "2", to];
        client.command(argv).deadline(Duration::from_secs(60)).attempt().unwrap();
        let prohibited = format!("IP{} {own} >", if own == INSIDE { "" } else { "6" });
        wait_for(format!("word from {own}"), SOON, || {
            let seen = capture.stdout();
            seen.lines()
                .any(|line| {
                    line.contains(&prohibited)
                        && (line.contains("admin prohibited") || line.contains("unreachable prohibited"))
                })
                .then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {}", capture.stdout()));
    }
    let told = |text: &str| text.matches("prohibited").count();
    let before = told(&capture.stdout());
    assert!(before < 300, "hundreds of packets were refused, and it was told {before} times");
    let refused = || world.limits()["refused"]["over_rate"].as_u64().unwrap();
    let refused_before = refused();
    assert!(page_from_web(client, 20_000), "slow, but it comes");
    page_from_web(client, 200_000);
    assert!(refused() > refused_before, "TCP was too fast too");
    let ping = ping(client, INSIDE);
    assert!(ping.contains("5 packets transmitted"), "{ping}");
}

#[test]
fn a_spent_quota_stops_all_but_the_inside_api_and_is_remembered() {
    let World { gateway, net } = world("limquota", 2);
    let mut world = World { gateway, net };
    world.limit("quota = \"1MB\"");
    let client = world.net.clients[0].clone();
    assert!(page_from_web(&client, 100_000));
    assert_eq!(world.limits()["state"], "within");
    assert!(!page_from_web(&client, 3_000_000), "more than there is");
    let limits = world.limits();
    assert_eq!(
        (&limits["state"], &limits["quota_bytes"]),
        (&"over_quota".into(), &1_000_000.into()),
        "{limits}"
    );
    assert!(limits["used_bytes"].as_u64().unwrap() >= 1_000_000);
    for (to, words) in
        [(WEB, "From 10.86.0.1 icmp_seq=1 Packet filtered"), (WEB6, "Administratively prohibited")]
    {
        let told = ping(&client, to);
        assert!(told.contains(words), "{told}");
        assert!(told.contains(" 0 received"), "{told}");
    }
    let neighbour = ping(&world.net.clients[1], "10.86.0.2");
    assert!(
        neighbour.contains("From 10.86.0.2 icmp_seq=1 Packet filtered"),
        "who writes to it is told: {neighbour}"
    );
    assert_eq!(world.net.clients[1].ping(WEB, 2).unwrap(), 2, "the others go on");

    let own = status(&client)["granted"].clone();
    assert_eq!((&own["state"], &own["quota_bytes"]), (&"over_quota".into(), &1_000_000.into()), "{own}");
    let page = succeed(&client, &["status"]).stdout;
    assert!(page.contains("allowed     OVER ITS QUOTA until "), "{page}");
    let page = succeed(&world.net.gateway, &["status"]).stdout;
    assert!(page.contains("over quota") && page.contains("tun-0: OVER ITS QUOTA until "), "{page}");

    stop_gateway(world.gateway);
    world.gateway = start_gateway(&world.net.gateway);
    wait_for("the session", Duration::from_secs(30), || {
        peer_status(&world.net.gateway, "tun-0")["has_session"].as_bool().filter(|yes| *yes)
    })
    .unwrap();
    assert_eq!(world.limits()["state"], "over_quota", "a restart gives nothing back");
    assert!(!page_from_web(&client, 1_000));

    world.limit("quota = \"1GB\"");
    assert!(page_from_web(&client, 3_000_000));
    let limits = world.limits();
    assert!(limits["used_bytes"].as_u64().unwrap() > 4_000_000, "what was used counts: {limits}");
    assert_eq!(status(&client)["granted"]["state"], "within");
}

#[test]
fn access_that_expires_ends_at_that_second_and_both_sides_say_so() {
    let world = world("limterm", 2);
    let client = &world.net.clients[0];
    let expires = unix_secs() + 15;
    world.limit(&format!("expires = \"{}\"", moment(expires)));
    let own = status(client)["granted"].clone();
    assert_eq!((&own["state"], &own["expires_unix_secs"]), (&"within".into(), &expires.into()), "{own}");
    assert_eq!(client.ping(INSIDE, 1).unwrap(), 1);
    wait_for("the end of access", Duration::from_secs(40), || {
        (world.limits()["state"] == "access_expired").then_some(())
    })
    .unwrap();
    assert!(unix_secs() >= expires);
    let peer = peer_status(&world.net.gateway, "tun-0");
    assert_eq!(peer["has_session"], false, "its keys are erased");
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 0);
    wait_for("a handshake to be refused", Duration::from_secs(40), || {
        status(&world.net.gateway)["drops"]["access_expired"].as_u64().filter(|count| *count > 0)
    })
    .unwrap();
    let page = succeed(client, &["status"]).stdout;
    assert!(page.contains("allowed     ACCESS EXPIRED; on "), "{page}");
    let page = succeed(&world.net.gateway, &["status"]).stdout;
    assert!(page.contains("  tun-0  expired "), "{page}");
    assert!(world.gateway.stderr().contains("access has expired"), "{}", world.gateway.stderr());
    assert_eq!(world.net.clients[1].ping(WEB, 2).unwrap(), 2, "the others go on");
    let neighbour = ping(&world.net.clients[1], "10.86.0.2");
    assert!(neighbour.contains("Packet filtered"), "{neighbour}");

    succeed(client, &["down"]);
    let file = client.directory().join("tun-0.conf").display().to_string();
    let up = adit(client, &["up", &file]);
    assert!(up.stderr.contains("no answer"), "{}", up.stderr);
    let page = succeed(client, &["status"]).stdout;
    assert!(page.contains("allowed     ACCESS EXPIRED; on "), "remembered: {page}");
    world.limit("expires = \"2099-01-01\"");
    wait_for("the session", Duration::from_secs(30), || {
        client.ping(INSIDE, 1).ok().filter(|answers| *answers == 1)
    })
    .unwrap();
}

#[test]
fn outside_of_its_hours_a_peer_is_refused_and_within_them_it_comes_back() {
    let world = world("limhours", 1);
    let client = &world.net.clients[0];
    let hour = |hours: u64| (unix_secs() / 3600 + hours) % 24;
    world.limit(&format!("schedule = \"{:02}:00-{:02}:00\"", hour(0), hour(2)));
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 2, "it is the hour");
    world.limit(&format!("schedule = \"{:02}:00-{:02}:00\"", hour(6), hour(8)));
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 0, "it is another hour");
    assert_eq!(world.limits()["state"], "outside_schedule");
    let page = succeed(&world.net.gateway, &["status"]).stdout;
    assert!(page.contains("not now") && page.contains("OUTSIDE OF ITS HOURS"), "{page}");
    world.limit("schedule = \"daily 00:00-24:00\"");
    wait_for("the session", Duration::from_secs(30), || {
        client.ping(INSIDE, 1).ok().filter(|answers| *answers == 1)
    })
    .unwrap();
}

#[test]
fn limits_that_make_no_sense_are_errors_with_their_line() {
    let net = Internet::new("limbad", 1);
    init(&net.gateway);
    admit(&net.gateway, "tun-0", &net.clients[0], &[]);
    for (line, says) in [
        ("rate = \"fast\"", "`fast` is not a rate"),
        ("quota = \"50\"", "`50` is not an amount of data"),
        ("expires = \"tomorrow\"", "`tomorrow` is not a point in time"),
        ("schedule = \"Mo 8-18\"", "`Mo 8-18` is not a schedule"),
        ("rate_upp = \"1M\"", "did you mean `rate_up`?"),
    ] {
        write_limits(&net, line);
        let output = adit(&net.gateway, &["check"]);
        assert!(
            !output.ok() && (output.stderr.clone() + &output.stdout).contains(says),
            "{line}: {}",
            output.stderr
        );
    }
    write_limits(
        &net,
        "rate = \"20M\"\nquota = \"50GB\"\nexpires = \"2099-12-31\"\nschedule = \"Mon-Fri 08:00-18:00\"",
    );
    succeed(&net.gateway, &["check"]);
}
