//! Canary secrets: a run from nothing to connected and back, with every error on the way, and then a search for the
//! secrets wherever others could read them.

mod common;

use std::collections::HashSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use adit::invite::InviteUrl;
use adit::keys;
use adit_lab::{Host, Process, wait_for};
use base64::Engine as _;
use common::internet::{Internet, adit, home, succeed};
use common::{ADIT, SOON};

/// A secret in every form in which it could be written.
struct Canary {
    what: &'static str,
    forms: Vec<Vec<u8>>,
}

impl Canary {
    fn new(what: &'static str, bytes: &[u8]) -> Self {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let standard = base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes);
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let forms = vec![bytes.to_vec(), hex.clone().into_bytes(), hex.to_uppercase().into_bytes()];
        let texts = [standard, url].map(String::into_bytes);
        Self { what, forms: forms.into_iter().chain(texts).collect() }
    }

    fn is_in(&self, haystack: &[u8]) -> bool {
        self.forms.iter().any(|form| contains(haystack, form))
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// What `/proc` shows of every process but this one: arguments, environment, name.
fn seen_in_proc(canaries: &[Canary]) -> Vec<String> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) || name == own {
            continue;
        }
        for file in ["cmdline", "environ", "comm", "stat", "wchan"] {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            for canary in canaries.iter().filter(|canary| canary.is_in(&bytes)) {
                found.push(format!("{} in /proc/{name}/{file}", canary.what));
            }
        }
    }
    found
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(files_below(&entry.path())),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

/// Ends a process as a bug would, with core dumps as large as it likes; whether there is a core now.
fn abort(process: &mut Process, directory: &Path) -> bool {
    let pid = process.id().to_string();
    adit_lab::Invocation::new(["kill", "-ABRT", &pid]).exec().unwrap();
    let status = process.wait(SOON).unwrap();
    assert_eq!(status.signal(), Some(6), "{status}");
    status.core_dumped()
        || files_below(directory)
            .iter()
            .any(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("core")))
}

/// A program that may dump core, in the directory of the host.
fn with_cores(host: &Host, words: &[&str]) -> Process {
    let line = format!("cd {} && ulimit -c unlimited && exec \"$@\"", host.directory().display());
    host.spawn([&["bash", "-c", &line, "bash"], words].concat()).unwrap()
}

#[test]
fn a_canary_key_and_token_are_where_they_belong_and_nowhere_else() {
    let net = Internet::new("secrets", 2);
    let [client, stranger] = [&net.clients[0], &net.clients[1]];
    let (gateway_home, client_home) =
        (home(&net.gateway).display().to_string(), home(client).display().to_string());
    let mut heard = String::new();
    let mut hear = |output: &adit_lab::Output, and_stdout: bool| {
        heard.push_str(&output.stderr);
        if and_stdout {
            heard.push_str(&output.stdout);
        }
    };
    hear(&succeed(&net.gateway, &["init"]), true);
    let log = net.gateway.directory().join("gateway.log").display().to_string();
    let mut gateway =
        with_cores(&net.gateway, &[ADIT, "--home", &gateway_home, "-vv", "--log-file", &log, "gateway"]);
    wait_for("the gateway", SOON, || {
        fs::read_to_string(&log).ok().filter(|text| text.contains("gateway ready"))
    })
    .unwrap();

    let made = succeed(&net.gateway, &["invite", "laptop", "--uses", "2"]);
    hear(&made, false);
    let text = made.stdout.trim().to_owned();
    let url = InviteUrl::parse(&text).unwrap();
    let config = fs::read_to_string(Path::new(&gateway_home).join("adit.toml")).unwrap();
    let private =
        config.lines().find_map(|line| line.strip_prefix("private_key = ")).unwrap().trim_matches('"');
    let private = keys::parse_private(private).unwrap();
    let invited = url.secret.keys(&url.gateway);
    let fragment = text.split_once('#').unwrap().1;
    let mut canaries = vec![
        Canary::new("the gateway's key", private.as_bytes()),
        Canary::new("the token", url.secret.as_bytes()),
        Canary { what: "the URL", forms: vec![fragment.as_bytes()[40..].to_vec()] },
        Canary::new("the key of the invited", invited.private_key.as_bytes()),
        Canary::new("the preshared key of the invited", invited.preshared_key.as_bytes()),
    ];
    // The control: this process' own arguments are not looked at, but another's are.
    let control = stranger.spawn(["bash", "-c", "sleep 20; : $0", &text]).unwrap();
    wait_for("the search to find what is there", SOON, || {
        seen_in_proc(&canaries).iter().any(|line| line.contains("cmdline")).then_some(())
    })
    .unwrap();
    drop(control);
    wait_for("the control to go", SOON, || seen_in_proc(&canaries).is_empty().then_some(())).unwrap();

    let stop = AtomicBool::new(false);
    let seen: HashSet<String> = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = HashSet::new();
            while !stop.load(SeqCst) {
                seen.extend(seen_in_proc(&canaries));
                std::thread::sleep(Duration::from_millis(3));
            }
            seen
        });
        let join = |host: &Host, url: &str| {
            let home = home(host).display().to_string();
            host.command([ADIT, "--home", &home, "-vv", "join", "-"]).input(url).attempt().unwrap()
        };
        // Errors first: cut short, changed, misplaced, and in the wrong verb.
        let half = &text[..text.len() - 20];
        for bad in [
            half,
            &text.replace("adit://", "https://"),
            &text.replace("/#", "/"),
            &text.replace(":51820", ""),
        ] {
            let output = join(client, bad);
            assert!(!output.ok());
            hear(&output, true);
        }
        let joined = join(client, &text);
        assert!(joined.ok(), "{}", joined.stderr);
        hear(&joined, true);
        let second = join(stranger, &text);
        assert!(second.ok(), "{}", second.stderr);
        hear(&join(stranger, &text), true);
        for words in [
            &["status"][..],
            &["status", "--json"],
            &["peer", "list"],
            &["peer", "show", "laptop"],
            &["invite", "list", "--json"],
            &["peer", "rename", "laptop", "lap"],
            &["check"],
            &["peer", "export", "lap", "--qr"],
        ] {
            hear(&adit(&net.gateway, words), words != ["peer", "export", "lap"]);
        }
        for words in [&["status", "--json"][..], &["up", "adit0"], &["check", "nothing.conf"], &["down"]] {
            hear(&adit(client, words), true);
        }
        stop.store(true, SeqCst);
        watching.join().unwrap()
    });
    assert_eq!(seen, HashSet::new());

    // With the URL as an argument, as people type it: gone from the list of processes once the tunnel is up.
    let url3 = succeed(&net.gateway, &["invite", "again"]).stdout.trim().to_owned();
    canaries.push(Canary { what: "a URL typed by a person", forms: vec![url3.as_bytes()[60..].to_vec()] });
    hear(&succeed(client, &["join", &url3]), true);
    assert_eq!(seen_in_proc(&canaries), Vec::<String>::new());

    let profile = Path::new(&client_home).join("profiles/adit1.conf");
    let profile = fs::read_to_string(&profile).unwrap();
    let value = |key: &str| {
        let line = profile.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        keys::parse_private(line.trim_start_matches([' ', '='])).unwrap()
    };
    canaries.push(Canary::new("the client's key", value("PrivateKey").as_bytes()));

    // A bug that aborts leaves no core; a program of others, in the same place, does.
    let directory = net.gateway.directory().to_owned();
    assert!(!abort(&mut gateway, &directory), "the gateway left a core");
    let mut other = with_cores(&net.gateway, &["sleep", "60"]);
    std::thread::sleep(Duration::from_millis(300));
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let has_core = abort(&mut other, &directory);
    assert!(has_core || pattern.starts_with('|'), "the control left no core ({pattern})");
    for file in files_below(&directory)
        .iter()
        .filter(|file| file.file_name().is_some_and(|it| it.to_string_lossy().starts_with("core")))
    {
        fs::remove_file(file).unwrap();
    }

    let own = ["adit.toml", "adit0.conf", "adit1.conf", "invites.json"];
    let mut logs = 0;
    for host in [&net.gateway, client, stranger] {
        for file in files_below(host.directory()) {
            let bytes = fs::read(&file).unwrap();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            logs += usize::from(name.ends_with(".log"));
            for canary in canaries.iter().filter(|canary| canary.is_in(&bytes)) {
                assert!(own.contains(&name.as_str()), "{} in {}", canary.what, file.display());
            }
        }
    }
    assert!(logs >= 2, "the logs were looked at");
    for canary in &canaries {
        assert!(!canary.is_in(heard.as_bytes()), "{} in what was said", canary.what);
        assert!(!canary.is_in(gateway.stderr().as_bytes()) && !canary.is_in(gateway.stdout().as_bytes()));
    }
    assert!(heard.contains("damaged or incomplete") && heard.contains("begins with adit://"), "{heard}");
    let _ = adit(client, &["down"]);
}
