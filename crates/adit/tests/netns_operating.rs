//! Operating a gateway and a client: what they tell, what they write down, and how they take a changed file.

mod common;
#[path = "common/corpus.rs"]
mod corpus;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_lab::{Host, Output, wait_for};
use common::internet::{
    GATEWAY, INSIDE, Internet, adit, admit, home, init, kill_tunnel, start_gateway, status, stop_gateway,
    succeed,
};
use common::terminal::Terminal;
use common::{ADIT, SOON};
use corpus::{Case, Kind};
use serde_json::Value;

/// The machine may be slow when others use it.
const PATIENCE: Duration = Duration::from_secs(60);

fn change(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn config(host: &Host) -> PathBuf {
    home(host).join("adit.toml")
}

fn events(host: &Host) -> Vec<Value> {
    let lines = succeed(host, &["events", "--json"]).stdout;
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kinds(host: &Host) -> Vec<String> {
    events(host).iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
}

fn metrics(host: &Host) -> Output {
    host.attempt(["curl", "-sS", "--max-time", "20", "http://127.0.0.1:9586/metrics"]).unwrap()
}

/// The value of a sample, by part of its line.
fn sample(page: &str, name: &str, label: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    let line = line.unwrap_or_else(|| panic!("no {name} {label} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn gateway_and_client_tell_metrics_on_loopback_only() {
    let net = Internet::new("opmet", 1);
    init(&net.gateway);
    change(&config(&net.gateway), "# metrics = \"off\"", "metrics = \"127.0.0.1:9586\"");
    let file = admit(&net.gateway, "laptop", &net.clients[0], &[]);
    let gateway = start_gateway(&net.gateway);
    let client = &net.clients[0];
    succeed(client, &["up", &file, "--metrics", "127.0.0.1:9586"]);
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
    for (host, peer) in [(&net.gateway, "peer=\"laptop\""), (client, "peer=\"gateway\"")] {
        let page = wait_for("the metrics", PATIENCE, || {
            let page = metrics(host).stdout;
            page.ends_with("# EOF\n").then_some(page)
        })
        .unwrap();
        assert_eq!(sample(&page, "adit_peer_connected", peer), 1.0);
        assert!(sample(&page, "adit_peer_received_bytes_total", peer) > 300.0);
        assert!(sample(&page, "adit_peer_sent_packets_total", peer) >= 3.0);
        assert!(sample(&page, "adit_peer_handshake_age_seconds", peer) < 60.0);
        assert_eq!(sample(&page, "adit_queue_length", "queue=\"notices\""), 0.0);
        let parsed = host
            .command([
                "/usr/bin/python3",
                "-c",
                "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as f; \
                 print(sum(len(x.samples) for x in f(sys.stdin.read())))",
            ])
            .input(page)
            .exec()
            .unwrap();
        assert!(parsed.stdout.trim().parse::<u32>().unwrap() > 40, "{parsed:?}");
    }
    // Nobody else can ask: neither from outside nor from inside the tunnel.
    for address in [GATEWAY, INSIDE] {
        let output =
            client.attempt(["curl", "-sS", "--max-time", "5", &format!("http://{address}:9586/metrics")]);
        assert!(!output.unwrap().ok(), "{address}");
    }
    // A reload moves them, and the session stays.
    let before = status(&net.gateway)["peers"][0]["last_handshake_secs_ago"].as_u64().unwrap();
    change(&config(&net.gateway), "metrics = \"127.0.0.1:9586\"", "metrics = \"off\"");
    succeed(&net.gateway, &["reload"]);
    assert!(!metrics(&net.gateway).ok());
    assert!(status(&net.gateway)["peers"][0]["last_handshake_secs_ago"].as_u64().unwrap() >= before);
    let refused = adit(client, &["up", &file, "--metrics", "0.0.0.0:9586"]);
    assert!(!refused.ok() && refused.stderr.contains("metrics_beyond_loopback"), "{}", refused.stderr);
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn comings_goings_and_refusals_are_written_down_and_survive_kill_9() {
    let net = Internet::new("opev", 2);
    init(&net.gateway);
    let file = admit(&net.gateway, "laptop", &net.clients[0], &["--suite", "chacha20-poly1305"]);
    let gone = admit(&net.gateway, "former", &net.clients[1], &["--suite", "chacha20-poly1305"]);
    let mut gateway = start_gateway(&net.gateway);
    succeed(&net.clients[0], &["up", &file]);
    let log = home(&net.gateway).join("state/events.log");
    wait_for("the connect", PATIENCE, || kinds(&net.gateway).contains(&"connected".to_owned()).then_some(()))
        .unwrap();
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);

    succeed(&net.gateway, &["peer", "rm", "former"]);
    succeed(&net.clients[1], &["up", &gone]);
    wait_for("the refusal", PATIENCE, || kinds(&net.gateway).contains(&"refused".to_owned()).then_some(()))
        .unwrap();
    let all = events(&net.gateway);
    let of = |kind: &str| {
        all.iter().find(|event| event["kind"] == kind).unwrap_or_else(|| panic!("{kind}: {all:?}"))
    };
    assert_eq!((&of("connected")["peer"], &of("connected")["carrier"]), (&"laptop".into(), &"udp".into()));
    assert!(of("connected")["endpoint"].as_str().unwrap().starts_with("10.100.0.2:"));
    assert_eq!(of("removed")["peer"], "former");
    assert_eq!(
        (&of("refused")["reason"], &of("enrolled")["by"]),
        (&"unknown_peer".into(), &"peer add".into())
    );
    assert!(all.iter().all(|event| event["schema"] == 1));

    // Half a line at the end, as a machine without power leaves it, and a killed process.
    gateway.crash();
    gateway.wait(SOON).unwrap();
    let whole = fs::read_to_string(&log).unwrap();
    fs::write(&log, format!("{whole}{{\"schema\":1,\"seq\":9")).unwrap();
    let torn = succeed(&net.gateway, &["events", "--verify"]);
    assert!(torn.stdout.contains("not finished (19 bytes)"), "{}", torn.stdout);
    let gateway = start_gateway(&net.gateway);
    let verified = succeed(&net.gateway, &["events", "--verify"]).stdout;
    assert!(verified.contains("every event is as it was written"), "{verified}");
    let page = succeed(&net.gateway, &["events"]).stdout;
    assert!(page.contains("19 bytes of an event that was not finished were cut off"), "{page}");
    wait_for("the next connect", PATIENCE, || {
        (kinds(&net.gateway).iter().filter(|kind| *kind == "connected").count() >= 2).then_some(())
    })
    .unwrap();
    succeed(&net.gateway, &["peer", "rm", "laptop"]);
    let left = wait_for("the removal", PATIENCE, || {
        events(&net.gateway).into_iter().find(|event| event["kind"] == "disconnected")
    })
    .unwrap();
    assert_eq!((&left["peer"], &left["why"]), (&"laptop".into(), &"removed".into()));

    change(&log, "\"peer\":\"laptop\"", "\"peer\":\"mallory\"");
    let changed = adit(&net.gateway, &["events", "--verify"]);
    assert!(!changed.ok() && changed.stdout.contains("was changed"), "{}", changed.stdout);
    stop_gateway(gateway);
    for client in &net.clients {
        succeed(client, &["down"]);
    }
}

/// Whether people are told where it is, and what.
fn is_placed(case: &Case, told: &str) -> bool {
    let place = case.place.map_or(String::new(), |(line, column)| format!(":{line}:{column}"));
    told.contains(&place) && told.contains(&case.words)
}

#[test]
fn none_of_the_malformed_configurations_is_half_applied() {
    let net = Internet::new("opbad", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "laptop", client, &[]);
    let good = fs::read_to_string(config(&net.gateway)).unwrap();
    let gateway = start_gateway(&net.gateway);
    succeed(client, &["up", &file]);
    let picture = |host: &Host| {
        ["ip -o addr", "ip route show table all", "ip rule", "nft list ruleset"]
            .map(|line| host.attempt(line.split(' ')).unwrap().stdout)
    };
    let facts = |host: &Host| {
        let status = status(host);
        let peers: Vec<Value> =
            status["peers"].as_array().unwrap().iter().map(|it| it["public_key"].clone()).collect();
        (status["pid"].clone(), status["listen_port"].clone(), status["addresses"].clone(), peers)
    };
    let before = (picture(&net.gateway), facts(&net.gateway));
    let (mut reloads, mut ups) = (0, 0);
    for case in corpus::cases() {
        match case.kind {
            Kind::Toml => {
                fs::write(config(&net.gateway), &case.text).unwrap();
                let output = adit(&net.gateway, &["reload"]);
                assert_eq!(output.code(), Some(1), "{}\n{output:?}", case.text);
                assert!(is_placed(&case, &output.stderr), "{case:?}\n{}", output.stderr);
                reloads += 1;
            }
            Kind::Conf => {
                let path = client.write("other.conf", &case.text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                let output = adit(client, &["up", &path.display().to_string()]);
                assert_eq!(output.code(), Some(1), "{}\n{output:?}", case.text);
                assert!(!client.has_interface("other"), "{}", case.text);
                assert!(is_placed(&case, &output.stderr), "{case:?}\n{}", output.stderr);
                ups += 1;
            }
            Kind::Env | Kind::Flag => {}
        }
    }
    assert!(reloads > 100 && ups > 50, "{reloads} {ups}");
    assert_eq!((picture(&net.gateway), facts(&net.gateway)), before);
    assert!(!home(client).join("state/other.journal").exists());
    // The good one is taken, and the session is as it was.
    fs::write(config(&net.gateway), good).unwrap();
    assert!(succeed(&net.gateway, &["reload"]).stdout.contains("nothing changed"));
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn a_profile_is_read_again_without_dropping_the_session() {
    let net = Internet::new("oprel", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "laptop", client, &[]);
    let gateway = start_gateway(&net.gateway);
    succeed(client, &["up", &file]);
    let connected = || status(client)["peers"][0]["connected_since_unix_secs"].clone();
    let since = connected();
    assert!(succeed(client, &["reload"]).stdout.contains("nothing changed"));
    let path = Path::new(&file);
    change(path, "PersistentKeepalive = 25", "PersistentKeepalive = 7");
    change(
        path,
        "[Interface]\n",
        "[Interface]\n# adit: metrics = 127.0.0.1:9586\n# adit: carrier = udp\nMTU = 1300\n",
    );
    let told = succeed(client, &["reload"]).stdout;
    assert!(told.contains("changed: gateway"), "{told}");
    assert!(told.contains("after a restart only: MTU, client.carrier"), "{told}");
    assert_eq!(status(client)["peers"][0]["persistent_keepalive_secs"], 7);
    wait_for("the metrics", PATIENCE, || metrics(client).ok().then_some(())).unwrap();
    change(path, "PersistentKeepalive = 7", "PersistentKeepalive = often");
    let wrong = adit(client, &["reload"]);
    assert!(!wrong.ok() && wrong.stderr.contains("`often` is not a keepalive"), "{}", wrong.stderr);
    assert_eq!(status(client)["peers"][0]["persistent_keepalive_secs"], 7, "as it was");
    assert_eq!(connected(), since);
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn a_watched_status_follows_what_happens_on_the_screen_until_ctrl_c() {
    let net = Internet::new("opwat", 1);
    init(&net.gateway);
    let file = admit(&net.gateway, "laptop", &net.clients[0], &[]);
    let gateway = start_gateway(&net.gateway);
    let directory = Path::new(ADIT).parent().unwrap().display().to_string();
    let path = format!("{directory}:{}", std::env::var("PATH").unwrap_or_default());
    let place = home(&net.gateway).display().to_string();
    let terminal = Terminal::open(&net.gateway, "watch", &[("PATH", &path), ("ADIT_HOME", &place)]);
    terminal.type_line("adit status --watch=1");
    let before = terminal.wait_for("laptop", PATIENCE);
    assert!(before.contains("0 of 1 peer connected"), "{before}");
    succeed(&net.clients[0], &["up", &file]);
    assert_eq!(net.clients[0].ping(INSIDE, 1).unwrap(), 1);
    let during = terminal.wait_for("1 of 1 peer connected", PATIENCE);
    assert_eq!(during.matches("peer connected").count(), 1, "drawn over, not below: {during}");
    terminal.press("C-c");
    terminal.wait_for_prompt(PATIENCE);
    let once = terminal.run("adit status; echo code $?", PATIENCE);
    assert!(
        once.contains("1 of 1 peer connected") && once.contains("code 0"),
        "the terminal is as before: {once}"
    );
    stop_gateway(gateway);
}

#[test]
fn a_log_file_is_begun_anew_when_it_was_moved_and_sighup_came() {
    let net = Internet::new("oplog", 0);
    init(&net.gateway);
    let log = net.gateway.directory().join("adit.log");
    let words =
        [ADIT, "--home", &home(&net.gateway).display().to_string(), "--log-format", "json", "--log-file"]
            .map(str::to_owned);
    let mut gateway = net
        .gateway
        .spawn(words.into_iter().chain([log.display().to_string(), "gateway".to_owned()]))
        .unwrap();
    let written = |path: &Path, text: &str| {
        wait_for(text, PATIENCE, || fs::read_to_string(path).ok().filter(|log| log.contains(text))).unwrap()
    };
    written(&log, "gateway ready");
    let moved = net.gateway.directory().join("adit.log.old");
    fs::rename(&log, &moved).unwrap();
    let pid = status(&net.gateway)["pid"].to_string();
    net.gateway.exec(["kill", "-HUP", &pid]).unwrap();
    let text = written(&log, "configuration read again");
    assert!(fs::read_to_string(&moved).unwrap().contains("gateway ready"));
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["fields"]["message"].is_string(), "{line}");
    }
    gateway.terminate();
    assert_eq!(gateway.wait(SOON).unwrap().code(), Some(0));
}

#[test]
fn a_canary_key_and_a_canary_invite_are_told_nowhere() {
    let net = Internet::new("opcan", 2);
    let client = &net.clients[0];
    init(&net.gateway);
    change(&config(&net.gateway), "# metrics = \"off\"", "metrics = \"127.0.0.1:9586\"");
    let file = admit(&net.gateway, "laptop", client, &[]);
    let logs = [net.gateway.directory().join("trace.log"), client.directory().join("trace.log")];
    let start = |host: &Host, log: &Path, verb: &[&str]| {
        let home = home(host).display().to_string();
        let log = log.display().to_string();
        host.spawn([&[ADIT, "--home", &home, "-vv", "--log-file", &log], verb].concat()).unwrap()
    };
    let mut gateway = start(&net.gateway, &logs[0], &["gateway"]);
    wait_for("the gateway", PATIENCE, || adit(&net.gateway, &["status"]).ok().then_some(())).unwrap();
    let url = succeed(&net.gateway, &["invite", "phone"]).stdout.trim().to_owned();
    let mut tunnel = start(client, &logs[1], &["up", "--foreground", &file, "--metrics", "127.0.0.1:9586"]);
    wait_for("the tunnel", PATIENCE, || (client.ping(INSIDE, 1).unwrap_or(0) == 1).then_some(())).unwrap();

    // What is secret: every private and preshared key, the invite, and what is derived from its secret.
    let mut secrets: Vec<String> = Vec::new();
    let toml = fs::read_to_string(config(&net.gateway)).unwrap();
    let conf = fs::read_to_string(&file).unwrap();
    for line in toml.lines().chain(conf.lines()) {
        let Some((name, value)) = line.split_once('=') else { continue };
        if matches!(name.trim(), "private_key" | "preshared_key" | "PrivateKey" | "PresharedKey") {
            secrets.push(value.trim().trim_matches('"').to_owned());
        }
    }
    assert!(secrets.len() >= 4, "{}", secrets.len());
    secrets.push(url.split_once('#').unwrap().1.to_owned());

    let mut told: Vec<(String, String)> = Vec::new();
    let mut tell = |name: &str, output: Output| told.push((name.to_owned(), output.stdout + &output.stderr));
    let joined = adit(&net.clients[1], &["join", &url, "--no-up"]);
    assert!(joined.ok(), "{}", joined.stderr);
    tell("join", joined);
    tell("join again", adit(&net.clients[1], &["join", &url, "--no-up", "--name", "again"]));
    for host in [&net.gateway, client] {
        for words in [
            &["status"][..],
            &["status", "--json"],
            &["events"],
            &["events", "--json"],
            &["config", "show", "--origin"],
            &["config", "show", "--json"],
            &["reload"],
            &["check"],
        ] {
            tell(&words.join(" "), adit(host, words));
        }
        tell("metrics", metrics(host));
    }
    for words in [
        &["peer", "list", "--json"][..],
        &["peer", "show", "laptop", "--json"],
        &["invite", "list", "--json"],
    ] {
        tell(&words.join(" "), adit(&net.gateway, words));
    }
    // Errors that quote the line of the key.
    let broken = client.write("broken.conf", conf.replace("PrivateKey = ", "PrivateKey = =")).unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o600)).unwrap();
    for verb in ["up", "check", "import"] {
        let output = adit(client, &[verb, &broken.display().to_string()]);
        assert!(!output.ok(), "{verb}");
        tell(verb, output);
    }
    fs::write(config(&net.gateway), toml.replace("private_key = \"", "private_key = \"x")).unwrap();
    tell("reload of a broken key", adit(&net.gateway, &["reload"]));
    fs::write(config(&net.gateway), &toml).unwrap();

    tunnel.terminate();
    tunnel.wait(SOON).unwrap();
    gateway.terminate();
    gateway.wait(SOON).unwrap();
    for path in logs.iter().map(PathBuf::as_path) {
        let log = fs::read_to_string(path).unwrap();
        assert!(log.contains("DEBUG") || log.contains("TRACE"), "the log says all it can: {log}");
        told.push((path.display().to_string(), log));
    }
    for host in [&net.gateway, client] {
        let state = home(host).join("state");
        for entry in fs::read_dir(&state).unwrap().flatten() {
            // The book of invites holds what a gateway needs to know them by.
            if entry.path().is_file() && entry.file_name() != "invites.json" {
                told.push((
                    entry.path().display().to_string(),
                    fs::read_to_string(entry.path()).unwrap_or_default(),
                ));
            }
        }
    }
    told.push(("stderr of the gateway".to_owned(), gateway.stderr() + &gateway.stdout()));
    told.push(("stderr of the tunnel".to_owned(), tunnel.stderr() + &tunnel.stdout()));
    let holds = |text: &str| secrets.iter().position(|secret| text.contains(secret.as_str()));
    assert!(holds(&toml).is_some(), "the search finds what is there");
    for (name, text) in &told {
        assert_eq!(holds(text), None, "{name} tells a secret");
    }
    assert!(told.len() > 30);
}

#[test]
fn an_exported_profile_runs_in_wg_quick_and_comes_back_by_import() {
    let net = Internet::new("opexp", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "laptop", client, &["--suite", "chacha20-poly1305"]);
    let gateway = start_gateway(&net.gateway);
    succeed(client, &["import", &file, "--name", "work"]);
    let exported = succeed(client, &["export", "work"]).stdout;
    assert!(!exported.contains("adit"), "{exported}");
    let plain = client.write("plain.conf", &exported).unwrap();
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o600)).unwrap();
    let plain = plain.display().to_string();
    let quick = |verb: &str| {
        client
            .command(["wg-quick", verb, &plain])
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go")
            .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
            .attempt()
            .unwrap()
    };
    let up = quick("up");
    assert!(up.ok(), "{up:?}");
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3, "through wireguard-go");
    assert!(quick("down").ok());

    let hooks = "PostUp = iptables -I OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -m addrtype ! --dst-type LOCAL -j \
                 REJECT";
    let text = exported.replacen("[Interface]\n", &format!("[Interface]\n{hooks}\n"), 1);
    let back = client.write("back.conf", text).unwrap();
    fs::set_permissions(&back, fs::Permissions::from_mode(0o600)).unwrap();
    let told = succeed(client, &["import", &back.display().to_string()]);
    assert!(told.stderr.contains("kill_switch = on"), "{}", told.stderr);
    succeed(client, &["up", "back"]);
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3, "through adit");
    kill_tunnel(client, "back");
    succeed(client, &["down", "back"]);
    stop_gateway(gateway);
}
