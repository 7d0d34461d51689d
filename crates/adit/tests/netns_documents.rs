//! Every block of commands in the documents: run here as it stands, or named with the reason why not.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_lab::{Host, Process};

use common::internet::{Internet, home, status, succeed};
use common::{ADIT, SOON};

/// What becomes of a block.
#[derive(Clone, Copy, Debug)]
enum How {
    /// Each line is run on the server.
    Server,
    /// The same, once this line of the document stands below `[gateway]`.
    ServerWith(&'static str),
    /// Each line is run on the laptop.
    Laptop,
    /// The same, while the tunnel is up.
    Connected,
    /// Tests do what each line says; the block itself names places or does things that a lab has not.
    Elsewhere(&'static [Shown], &'static str),
    /// It cannot be run by a test.
    Never(&'static str),
}

/// Where a line is shown: how it begins, the file and the function of the test, and words of the line that are in both.
type Shown = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// Every block by its document and how its first line begins, in the order in which they are run.
const BLOCKS: &[(&str, &str, How)] = &[
    (
        "README.md",
        "cargo xtask demo",
        How::Elsewhere(
            &[
                (
                    "cargo xtask demo",
                    "netns_demo.rs",
                    "the_demonstration_passes_every_check_and_leaves_nothing",
                    &["demo"],
                ),
                (
                    "cargo xtask ci",
                    "netns_documents.rs",
                    "the_commands_of_the_documents_work_as_they_stand",
                    &["cargo xtask ci"],
                ),
            ],
            "the first is a program of its own, and the second is the run that runs this test",
        ),
    ),
    (
        "README.md",
        "cargo build --release",
        How::Never("it installs for everybody on the machine that runs the test"),
    ),
    ("README.md", "sudo adit init", How::Server),
    ("README.md", "sudo adit join", How::Laptop),
    (
        "README.md",
        "sudo ln -s adit",
        How::Elsewhere(
            &[
                (
                    "sudo ln -s adit",
                    "netns_wg_tools.rs",
                    "wg_quick_brings_a_full_tunnel_up_and_down_against_wireguard_go",
                    &["adit-wg"],
                ),
                (
                    "sudo WG_QUICK_USERSPACE",
                    "netns_wg_tools.rs",
                    "wg_quick_brings_a_full_tunnel_up_and_down_against_wireguard_go",
                    &["WG_QUICK_USERSPACE_IMPLEMENTATION", "wg-quick", "up"],
                ),
                ("sudo wg show", "netns_wg_tools.rs", "what_wg_set_says_wg_show_shows", &["show"]),
            ],
            "the link would be made for everybody",
        ),
    ),
    (
        "README.md",
        "sudo adit lockdown on",
        How::Elsewhere(
            &[
                (
                    "sudo adit lockdown on",
                    "netns_kill_switch.rs",
                    "lockdown_closes_a_host_before_a_tunnel_and_after_it",
                    &["lockdown", "on"],
                ),
                (
                    "sudo adit service install",
                    "netns_systemd.rs",
                    "a_service_is_installed_started_watched_stopped_and_taken_away_by_a_real_systemd",
                    &["service", "install"],
                ),
            ],
            "systemd is process 1 of a machine, and a lab's host has none",
        ),
    ),
    ("README.md", "sudo adit reload", How::ServerWith("lan = [\"192.168.7.0/24\"]")),
    ("README.md", "sudo adit peer add phone --qr", How::Server),
    (
        "README.md",
        "sudo adit up --carrier wss",
        How::Elsewhere(
            &[(
                "sudo adit up --carrier wss",
                "netns_recipes.rs",
                "the_tunnel_passes_through_nginx_as_the_recipe_says",
                &["up", "wss", "/tunnel"],
            )],
            "it needs nginx with a certificate",
        ),
    ),
    (
        "README.md",
        "adit join --no-up",
        How::Elsewhere(
            &[
                (
                    "adit join --no-up",
                    "netns_operating.rs",
                    "a_canary_key_and_a_canary_invite_are_told_nowhere",
                    &["join", "--no-up"],
                ),
                (
                    "adit run -- curl",
                    "netns_run.rs",
                    "the_web_server_sees_the_gateway_and_a_plain_command_is_seen_as_itself",
                    &["run", "--", "curl"],
                ),
                (
                    "adit run -- bash",
                    "netns_run.rs",
                    "the_terminal_is_the_commands_and_its_interrupt_key_ends_it",
                    &["run", "--", "sh"],
                ),
            ],
            "it asks a server of the real internet",
        ),
    ),
    (
        "README.md",
        "adit proxy --socks5",
        How::Elsewhere(
            &[
                (
                    "adit proxy --socks5",
                    "netns_proxy_hostile.rs",
                    "a_listener_beyond_loopback_needs_a_password_and_others_need_to_know_it",
                    &["proxy", "--socks5", "--http"],
                ),
                (
                    "curl --socks5-hostname",
                    "netns_proxy.rs",
                    "curl_reaches_the_web_as_nobody_and_the_server_sees_the_gateway",
                    &["curl", "--socks5-hostname"],
                ),
                ("adit proxy -L", "netns_proxy.rs", "ports_lead_both_ways", &["proxy", "-L"]),
                ("adit proxy -R", "netns_proxy.rs", "ports_lead_both_ways", &["proxy", "-R"]),
            ],
            "it asks a server of the real internet",
        ),
    ),
    (
        "README.md",
        "sudo adit ip",
        How::Elsewhere(
            &[
                (
                    "sudo adit ip  ",
                    "netns_ip.rs",
                    "the_world_sees_the_gateway_through_the_tunnel_and_the_client_without_it",
                    &["ip"],
                ),
                (
                    "sudo adit ip --outside",
                    "netns_ip.rs",
                    "services_that_are_dead_or_hang_or_talk_nonsense_are_passed_over_in_every_format",
                    &["ip", "--outside"],
                ),
                (
                    "sudo adit bench",
                    "netns_inside.rs",
                    "the_bench_measures_both_ways_and_says_what_limits_them",
                    &["bench"],
                ),
            ],
            "it asks services of the real internet",
        ),
    ),
    ("docs/inside-api.md", "curl http://10.86.0.1", How::Connected),
    (
        "docs/split-tunnel.md",
        "sudo adit up --exclude",
        How::Elsewhere(
            &[
                (
                    "sudo adit up --exclude",
                    "netns_split.rs",
                    "networks_are_excluded_from_the_tunnel_or_are_the_only_ones_in_it",
                    &["up", "--exclude"],
                ),
                (
                    "sudo adit up --include",
                    "netns_split.rs",
                    "networks_are_excluded_from_the_tunnel_or_are_the_only_ones_in_it",
                    &["up", "--include"],
                ),
                (
                    "sudo adit exclude --",
                    "netns_split.rs",
                    "a_command_goes_beside_the_tunnel_past_its_kill_switch_and_the_others_do_not",
                    &["exclude", "--"],
                ),
                (
                    "adit run laptop --",
                    "netns_run.rs",
                    "the_web_server_sees_the_gateway_and_a_plain_command_is_seen_as_itself",
                    &["run", "--", "curl"],
                ),
            ],
            "it names networks and servers that a lab has not",
        ),
    ),
    (
        "docs/split-tunnel.md",
        "sudo adit verify",
        How::Elsewhere(
            &[(
                "sudo adit verify",
                "netns_verify.rs",
                "a_leak_is_found_and_where_none_is_none_is_told",
                &["verify"],
            )],
            "it looks for leaks of the laptop, which takes half a minute",
        ),
    ),
    (
        "docs/performance.md",
        "sudo cargo xtask bench",
        How::Never("it needs the machine to itself for minutes"),
    ),
    (
        "docs/performance.md",
        "dpkg-deb -x wireguard-go",
        How::Never("it needs the machine to itself for minutes"),
    ),
];

/// Commands that stay, and what they say when they are ready.
const STAYING: &[(&str, &str)] = &[("sudo adit gateway", "gateway ready")];

struct Block {
    document: String,
    line: usize,
    commands: Vec<String>,
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn documents(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// Every fenced block that says it is for a shell.
fn blocks() -> Vec<Block> {
    let root = checkout();
    let mut paths: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md"].map(|name| root.join(name)).into();
    documents(&root.join("docs"), &mut paths);
    let mut blocks = Vec::new();
    for path in paths {
        let document = path.strip_prefix(&root).unwrap().display().to_string();
        let mut open: Option<Block> = None;
        for (number, text) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            match (&mut open, text) {
                (None, "```sh" | "```bash" | "```shell" | "```console") => {
                    open = Some(Block { document: document.clone(), line: number + 1, commands: Vec::new() });
                }
                (Some(_), "```") => blocks.extend(open.take()),
                (Some(block), command) => block.commands.push(command.to_owned()),
                (None, _) => {}
            }
        }
        assert!(open.is_none(), "{document}: a block has no end");
    }
    blocks
}

fn is_block(block: &Block, (document, start, _): &(&str, &str, How)) -> bool {
    block.document == *document && block.commands.first().is_some_and(|first| first.starts_with(start))
}

#[test]
fn every_block_of_commands_is_run_or_has_a_reason_why_not() {
    let blocks = blocks();
    for block in &blocks {
        let known = BLOCKS.iter().filter(|row| is_block(block, row)).count();
        assert_eq!(
            known, 1,
            "{}:{}: say in this test how it is run: {:?}",
            block.document, block.line, block.commands
        );
    }
    for row in BLOCKS {
        assert_eq!(
            blocks.iter().filter(|block| is_block(block, row)).count(),
            1,
            "{row:?} is in no document"
        );
        if let How::Elsewhere(shown, _) = row.2 {
            let block = blocks.iter().find(|block| is_block(block, row)).unwrap();
            every_line_is_shown(block, shown);
        }
        if let How::Elsewhere(_, why) | How::Never(why) = row.2 {
            assert!(why.len() > 10, "{row:?}");
        }
    }
}

/// Each line by one test that is there and says the words of it.
fn every_line_is_shown(block: &Block, shown: &[Shown]) {
    let place = format!("{}:{}", block.document, block.line);
    assert_eq!(block.commands.len(), shown.len(), "{place}: a test for each line");
    for command in &block.commands {
        let of_it: Vec<&Shown> = shown.iter().filter(|it| command.starts_with(it.0)).collect();
        let [(_, file, function, words)] = of_it.as_slice() else {
            panic!("{place}: which test is for `{command}`?")
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{place}: {file}: {error}"));
        assert!(
            source.contains(&format!("#[test]\nfn {function}(")),
            "{place}: {file} has no test {function}"
        );
        assert!(!words.is_empty(), "{place}: `{command}`");
        for word in *words {
            assert!(command.contains(word), "{place}: `{word}` is not in `{command}`");
            assert!(source.contains(word), "{place}: {file} never says `{word}`");
        }
    }
}

#[test]
fn a_line_that_no_test_shows_is_noticed() {
    let block = |command: &str| Block { document: "x".into(), line: 1, commands: vec![command.to_owned()] };
    let noticed = |command: &'static str, shown: &'static [Shown]| {
        std::panic::catch_unwind(move || every_line_is_shown(&block(command), shown)).is_err()
    };
    const DEMO: &str = "the_demonstration_passes_every_check_and_leaves_nothing";
    assert!(!noticed("adit demo", &[("adit demo", "netns_demo.rs", DEMO, &["demo"])]));
    assert!(noticed("adit demo --frobnicate", &[("adit demo", "netns_demo.rs", DEMO, &["--frobnicate"])]));
    assert!(noticed("adit demo", &[("adit demo", "netns_demo.rs", "no_such_test", &["demo"])]));
    assert!(noticed("adit demo", &[("adit demo", "no_such_file.rs", DEMO, &["demo"])]));
    assert!(noticed("adit other", &[("adit demo", "netns_demo.rs", DEMO, &["demo"])]));
}

#[test]
fn every_question_is_titled_by_a_message_that_adit_prints() {
    let root = checkout();
    let mut sources = Vec::new();
    rust_files(&root.join("crates/adit/src"), &mut sources);
    // A message may go over the end of a line of the source.
    let joined = |text: String| {
        text.split('\n').map(|line| line.trim()).collect::<Vec<_>>().join(" ").replace("\\ ", "")
    };
    let sources: String = sources.iter().map(|path| joined(fs::read_to_string(path).unwrap())).collect();
    let faq = fs::read_to_string(root.join("docs/faq.md")).unwrap();
    let titles: Vec<_> =
        faq.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    assert!(titles.len() >= 8, "{titles:?}");
    for title in titles.iter().filter(|title| **title != "Packet filtered") {
        assert!(sources.contains(title), "adit never says `{title}`");
    }
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// A place where people type commands: `sudo` does nothing there, as they are root, and `adit` is the one under test.
struct Desk {
    host: Host,
    path: String,
}

impl Desk {
    fn new(host: &Host) -> Self {
        let bin = host.directory().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let adit = format!("#!/bin/sh\nexec {ADIT} --home {} \"$@\"\n", home(host).display());
        for (name, script) in [("adit", adit.as_str()), ("sudo", "#!/bin/sh\nexec \"$@\"\n")] {
            fs::write(bin.join(name), script).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
        Self { host: host.clone(), path }
    }

    fn run(&self, command: &str) -> String {
        let invocation = self.host.command(["sh", "-c", command]).env("PATH", &self.path);
        let output = invocation.deadline(Duration::from_secs(60)).attempt().unwrap();
        assert!(output.ok(), "{command}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    fn start(&self, command: &str, ready: &str) -> Process {
        let script = format!("exec {}", command.trim_start_matches("sudo "));
        let mut process = self.host.command(["sh", "-c", &script]).env("PATH", &self.path).spawn().unwrap();
        process.wait_for_text(ready, SOON).unwrap_or_else(|error| panic!("{command}: {error}"));
        process
    }
}

#[test]
fn the_commands_of_the_documents_work_as_they_stand() {
    let net = Internet::new("docs", 1);
    let (server, laptop) = (Desk::new(&net.gateway), Desk::new(&net.clients[0]));
    let mut staying = Vec::new();
    let mut invitation = String::new();
    let mut run = 0;
    let blocks = blocks();
    for row in BLOCKS {
        let block = blocks.iter().find(|block| is_block(block, row)).unwrap();
        let desk = match row.2 {
            How::Server => &server,
            How::ServerWith(line) => {
                let document = fs::read_to_string(checkout().join(row.0)).unwrap();
                assert!(document.lines().any(|it| it == line), "{line}");
                let path = home(&net.gateway).join("adit.toml");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(&path, text.replacen("[gateway]\n", &format!("[gateway]\n{line}\n"), 1)).unwrap();
                &server
            }
            How::Laptop => &laptop,
            How::Connected => {
                succeed(&net.clients[0], &["up"]);
                &laptop
            }
            How::Elsewhere(..) | How::Never(_) => continue,
        };
        for written in &block.commands {
            let mut command = written.replace("adit://...", &invitation);
            if matches!(row.2, How::Connected) {
                // The network is picked anew by each gateway.
                let api = status(&net.clients[0])["peers"][0]["inside_api"][0].as_str().unwrap().to_owned();
                command = command.replace("10.86.0.1:9585", &api);
            }
            let bare = command.split(" #").next().unwrap().trim();
            if let Some((_, ready)) = STAYING.iter().find(|(start, _)| bare.starts_with(start)) {
                staying.push(desk.start(bare, ready));
            } else {
                let output = desk.run(&command);
                if output.starts_with("adit://") {
                    invitation = output.trim().to_owned();
                }
            }
            run += 1;
        }
    }
    assert!(run >= 7 && !invitation.is_empty(), "{run} commands were run");
    assert_eq!(staying.len(), 1);
    let peers = server.run("adit peer list");
    assert!(peers.contains("laptop"), "{peers}");
}
