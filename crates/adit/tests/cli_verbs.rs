//! The verbs that need no network, as people call them.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const ADIT: &str = env!("CARGO_BIN_EXE_adit");

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn adit<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(ADIT);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(line: &str) -> Ran {
    ran(adit(line.split_whitespace()).output().unwrap())
}

fn fed(program: &mut Command, input: &str) -> Ran {
    let mut child =
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that refuses early may close its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    ran(child.wait_with_output().unwrap())
}

fn good(line: &str) -> Ran {
    let ran = run(line);
    assert_eq!(ran.code, 0, "{line}\n{}{}", ran.stdout, ran.stderr);
    ran
}

fn bad(line: &str, code: i32, word: &str) -> Ran {
    let ran = run(line);
    assert_eq!(ran.code, code, "{line}\n{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains(word), "{line}\n{}", ran.stderr);
    ran
}

struct Gateway {
    directory: tempfile::TempDir,
}

impl Gateway {
    fn new() -> Self {
        let gateway = Self { directory: tempfile::tempdir().unwrap() };
        good(&format!(
            "init --home {} --endpoint vpn.example.org:443 --network 10.9.0.0/24 --network6 fd00:9::/64",
            gateway.home()
        ));
        gateway
    }

    fn home(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("adit.toml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    fn good(&self, line: &str) -> Ran {
        good(&format!("{line} --home {}", self.home()))
    }

    fn bad(&self, line: &str, word: &str) -> Ran {
        bad(&format!("{line} --home {}", self.home()), 1, word)
    }

    fn peers(&self) -> Vec<Value> {
        let page: Value = serde_json::from_str(&self.good("peer list --json").stdout).unwrap();
        assert_eq!(page["schema"], 1);
        page["peers"].as_array().unwrap().clone()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn value<'a>(conf: &'a str, key: &str) -> &'a str {
    let line = conf.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
    line.unwrap_or_else(|| panic!("no {key} in {conf}"))
}

#[test]
fn keys_are_those_of_the_real_wg() {
    for _ in 0..20 {
        let private = good("genkey").stdout;
        assert_eq!(private.len(), 45);
        let ours = fed(&mut adit(["pubkey"]), &private);
        let theirs = fed(Command::new("wg").arg("pubkey"), &private);
        assert_eq!((ours.code, &ours.stdout), (0, &theirs.stdout));
    }
    let private = fed(Command::new("wg").arg("genkey"), "").stdout;
    let theirs = fed(Command::new("wg").arg("pubkey"), &private).stdout;
    assert_eq!(fed(&mut adit(["pubkey"]), &private).stdout, theirs);
    let unclamped = "//////////////////////////////////////////8=\n";
    let theirs = fed(Command::new("wg").arg("pubkey"), unclamped).stdout;
    assert_eq!(fed(&mut adit(["pubkey"]), unclamped).stdout, theirs);
    assert_ne!(good("genpsk").stdout, good("genpsk").stdout);
}

#[test]
fn what_is_no_key_gives_no_public_key() {
    for input in ["", "x\n", "AAAA", "//////////////////////////////////////////9=\n", "\0\u{0}"] {
        let ran = fed(&mut adit(["pubkey"]), input);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{input:?}");
        assert!(ran.stderr.contains("stdin holds no private key"), "{}", ran.stderr);
    }
}

#[test]
fn usage_errors_exit_2_and_the_rest_explains_itself() {
    bad("", 2, "Usage: adit");
    bad("frobnicate", 2, "unrecognized subcommand");
    bad("init --endpoint host", 2, "has no port");
    bad("peer add a/b", 2, "is not allowed in the name of a peer");
    bad("peer add x --suite des", 2, "\"aes-256-gcm\"");
    bad("gateway --mtu 12", 2, "is not an MTU");
    for verb in ["init", "gateway", "peer", "up", "down", "status", "wg", "demo", "check", "man"] {
        assert!(good("--help").stdout.contains(&format!("\n  {verb} ")), "{verb}");
        good(&format!("{verb} --help"));
    }
    assert!(!good("--help").stdout.contains("lab"));
    bad("lab nonsense", 2, "no agent `nonsense`");
    assert_eq!(good("version").stdout, format!("adit {}\n", env!("CARGO_PKG_VERSION")));
    assert!(good("completions bash").stdout.contains("_adit"));
    assert!(good("man").stdout.contains(".TH adit"));
}

#[test]
fn what_cannot_be_meant_exits_2_and_changes_nothing() {
    let gateway = Gateway::new();
    gateway.good("peer add laptop");
    let before = gateway.text();
    let at =
        |line: &str, code: i32, word: &str| bad(&format!("{line} --home {}", gateway.home()), code, word);
    at("peer set laptop b", 2, "`b` sets nothing: write KEY=VALUE");
    at("peer set laptop name=", 2, "adit peer rename");
    at("peer set laptop enabld=false", 2, "did you mean `enabled`?");
    let wrong = at("peer set laptop enabled=maybe", 2, "true or false");
    assert!(
        !wrong.stderr.contains("adit.toml"),
        "no line of a file that was never written: {}",
        wrong.stderr
    );
    at("join foo --no-up", 2, "adit://");
    at("peer set nobody enabled=false", 1, "there is no peer `nobody`");
    assert_eq!(gateway.text(), before);
    gateway.good("peer set laptop enabled=false");
    assert_ne!(gateway.text(), before);
}

#[test]
fn hints_name_the_home_that_was_chosen() {
    let gateway = Gateway::new();
    let flag = format!("--home {}", gateway.home());
    for line in ["peer show nobody", "up", "export", "bench", "proxy", "down", "verify", "plan up"] {
        let said = gateway.bad(line, "adit ");
        assert!(said.stderr.contains(&flag), "{line}: {}", said.stderr);
    }
    gateway.good("peer add laptop");
    for setting in ["name=other", "public_key=other"] {
        let said = run(&format!("peer set laptop {setting} {flag}"));
        assert!(said.code == 2 && said.stderr.contains(&format!("{flag}`")), "{setting}: {}", said.stderr);
    }
    fs::remove_file(gateway.file()).unwrap();
    let said = gateway.bad("gateway", "there is no file");
    assert!(said.stderr.contains(&format!("`adit init --endpoint HOST:PORT {flag}`")), "{}", said.stderr);
}

#[test]
fn events_that_are_not_there_or_cannot_be_read_are_named_by_their_path() {
    let gateway = Gateway::new();
    let log = gateway.directory.path().join("state/events.log");
    let none = gateway.good("events");
    let path = log.display().to_string();
    assert!(none.stderr.contains(&format!("no events yet in {path}")), "{}", none.stderr);
    assert!(none.stderr.contains(&format!("`adit gateway --home {}`", gateway.home())), "{}", none.stderr);
    fs::create_dir_all(&log).unwrap();
    for line in ["events", "events --json", "events --verify"] {
        let said = gateway.bad(line, &format!("cannot read {path}"));
        assert_eq!(said.stderr.matches(&path).count(), 1, "{line}: {}", said.stderr);
    }
}

#[test]
fn a_failed_invite_leaves_none_behind() {
    let gateway = Gateway::new();
    let invites = || {
        let page: Value = serde_json::from_str(&gateway.good("invite list --json").stdout).unwrap();
        page["invites"].as_array().unwrap().len()
    };
    let text = gateway.text();
    let certificate = "stream_certificate = \"/no/such/file.pem\"\nstream_key = \"/no/such/key.pem\"";
    fs::write(gateway.file(), text.replacen("[gateway]\n", &format!("[gateway]\n{certificate}\n"), 1))
        .unwrap();
    gateway.bad("invite laptop", "/no/such/file.pem");
    assert_eq!(invites(), 0);
    gateway.bad("check", "/no/such/file.pem");
    fs::write(gateway.file(), text).unwrap();
    gateway.good("check");
    gateway.good("invite laptop");
    assert_eq!(invites(), 1);
}

#[test]
fn a_new_key_that_could_not_be_told_takes_no_others_place() {
    let gateway = Gateway::new();
    gateway.good("peer add laptop");
    let before = gateway.text();
    let words = ["peer", "export", "laptop", "--new-key", "--home", gateway.home()];
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let told = ran(adit(words).stdout(full).output().unwrap());
    assert!(told.code == 1 && told.stderr.contains("the peer keeps its key"), "{}", told.stderr);
    assert_eq!(gateway.text(), before);
    gateway.good("peer export laptop --new-key");
    assert_ne!(gateway.text(), before);
}

#[test]
fn a_file_that_is_no_configuration_is_not_to_be_closed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("notes.conf");
    for (text, word) in [("hello", "looks like a configuration"), ("[Interface]\n", "chmod 600")] {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        for verb in ["check", "import"] {
            let said =
                bad(&format!("{verb} {} --home {}", file.display(), directory.path().display()), 1, word);
            assert_eq!(said.stderr.contains("chmod"), word.contains("chmod"), "{}", said.stderr);
        }
    }
}

#[test]
fn what_a_short_verb_has_to_warn_of_is_seen() {
    let gateway = Gateway::new();
    let log = gateway.directory.path().join("state/events.log");
    fs::create_dir_all(&log).unwrap();
    let said = gateway.good("peer add laptop");
    assert!(said.stderr.contains("events are lost"), "{}", said.stderr);
    let quiet = gateway.good("peer add phone --log-format json");
    assert!(quiet.stderr.contains("events are lost"), "{}", quiet.stderr);
    fs::remove_dir(&log).unwrap();
    let said = gateway.good("peer add tablet");
    assert!(!said.stderr.contains("events are lost"), "{}", said.stderr);
}

#[test]
fn called_as_adit_wg_it_is_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("adit-wg");
    symlink(ADIT, &link).unwrap();
    let help = ran(Command::new(&link).arg("--help").output().unwrap());
    assert!(
        help.stdout.contains("userspace WireGuard device") && help.stdout.contains("IFNAME"),
        "{}",
        help.stdout
    );
    let version = ran(Command::new(&link).arg("--version").output().unwrap());
    assert_eq!(version.code, 0, "{}", version.stderr);
}

#[test]
fn without_root_one_line_says_so_and_what_to_run() {
    let gateway = Gateway::new();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("adit");
    fs::copy(ADIT, &program).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    command.args(["gateway", "--home", gateway.home()]).current_dir("/").uid(65534).gid(65534);
    let output = ran(command.output().unwrap());
    let mut command = Command::new(&program);
    let up = command.args(["up", "/etc/laptop.conf"]).current_dir("/").uid(65534).gid(65534);
    let up = ran(up.output().unwrap());
    assert!(up.code == 1 && up.stderr.contains("run `sudo adit up /etc/laptop.conf`"), "{}", up.stderr);
    let ran = output;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains(&format!("run `sudo adit gateway --home {}`", gateway.home())),
        "{}",
        ran.stderr
    );
}

#[test]
fn who_makes_or_reads_keys_leaves_no_core_dump() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("adit");
    fs::copy(ADIT, &program).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The files of a process that must not be dumped belong to root (`proc(5)`).
    let owner = |arguments: &[&str], expected: u32| {
        let mut command = Command::new(&program);
        command.args(arguments).current_dir("/").uid(65_534).gid(65_534).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let environment = PathBuf::from(format!("/proc/{}/environ", child.id()));
        let owner = || fs::metadata(&environment).unwrap().uid();
        let deadline = Instant::now() + Duration::from_secs(5);
        while owner() != expected && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        let last = owner();
        assert!(child.try_wait().unwrap().is_none(), "it still runs");
        child.kill().unwrap();
        child.wait().unwrap();
        last
    };
    assert_eq!(owner(&["pubkey"], 0), 0);
    assert_eq!(owner(&["lab", "udp-echo", "--listen", "127.0.0.1:0"], 65_534), 65_534, "no keys, no secret");
}

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

#[test]
fn a_file_that_others_may_read_is_refused_everywhere() {
    let gateway = Gateway::new();
    fs::set_permissions(gateway.file(), fs::Permissions::from_mode(0o644)).unwrap();
    let line = format!("run `chmod 600 {}`", gateway.file().display());
    for verb in ["check", "peer list", "peer add x", "init --endpoint a:1", "gateway"] {
        gateway.bad(verb, &line);
    }
    fs::set_permissions(gateway.file(), fs::Permissions::from_mode(0o600)).unwrap();
    gateway.good("check");
}

#[test]
fn below_sudo_the_file_of_who_called_it_is_taken_and_of_nobody_else() {
    let gateway = Gateway::new();
    let file = gateway.directory.path().join("laptop.conf");
    fs::write(&file, gateway.good("peer add laptop").stdout).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&file, Some(12_345), None).unwrap();
    let check = |caller: Option<&str>| {
        let mut command = adit(["check", file.to_str().unwrap()]);
        ran(command.envs(caller.map(|uid| ("SUDO_UID", uid))).output().unwrap())
    };
    let own = check(Some("12345"));
    assert_eq!(own.code, 0, "{}", own.stderr);
    for other in [None, Some("12346"), Some("root")] {
        let refused = check(other);
        assert_eq!(refused.code, 1, "{other:?}");
        assert!(refused.stderr.contains("belongs to user 12345"), "{}", refused.stderr);
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(check(Some("12345")).stderr.contains("chmod 600"), "it still has to be private");
}

#[test]
fn peer_add_prints_the_clients_file_alone_and_it_checks() {
    let gateway = Gateway::new();
    let ran = gateway.good("peer add laptop --suite aes-256-gcm --dns 1.1.1.1,2606:4700::1111");
    let conf = &ran.stdout;
    assert!(conf.starts_with("[Interface]\n# adit: tls_pin = sha256:"), "{conf}");
    assert_eq!(value(conf, "Address"), "10.9.0.2/32, fd00:9::2/128");
    assert_eq!(value(conf, "DNS"), "1.1.1.1, 2606:4700::1111");
    assert_eq!(value(conf, "# adit: suite"), "aes-256-gcm");
    assert_eq!(value(conf, "AllowedIPs"), "0.0.0.0/0, ::/0");
    assert_eq!(value(conf, "Endpoint"), "vpn.example.org:443");
    assert!(
        ran.stderr.contains("only adit speaks") && ran.stderr.contains("--suite chacha20-poly1305"),
        "{}",
        ran.stderr
    );
    let peer = &gateway.peers()[0];
    let public = fed(&mut adit(["pubkey"]), value(conf, "PrivateKey")).stdout;
    assert_eq!(peer["public_key"], public.trim());
    assert!(gateway.text().contains(&format!("preshared_key = \"{}\"", value(conf, "PresharedKey"))));
    assert!(
        !gateway.text().contains(value(conf, "PrivateKey")),
        "the gateway has no use for the client's key"
    );
    let own = gateway
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("private_key = ").map(str::to_owned))
        .unwrap();
    let own = fed(&mut adit(["pubkey"]), own.trim_matches('"')).stdout;
    assert_eq!(value(conf, "PublicKey"), own.trim());
    let file = gateway.directory.path().join("laptop.conf");
    fs::write(&file, conf).unwrap();
    bad(&format!("check {}", file.display()), 1, "chmod 600");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(good(&format!("check {}", file.display())).stdout.contains("ok (wg-quick file"));
}

#[test]
fn a_key_that_is_written_into_a_file_makes_the_file_private() {
    let gateway = Gateway::new();
    for arguments in [&["peer", "add", "a", "--home", gateway.home()][..], &["genkey"]] {
        let path = gateway.directory.path().join(format!("{}.out", arguments[0]));
        let file = fs::File::create(&path).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o644)).unwrap();
        // As a shell leaves it for `sudo adit peer add a > a.conf`.
        chown(&path, Some(12_345), None).unwrap();
        let status = adit(arguments.iter().copied()).stdout(file).stderr(Stdio::null()).status().unwrap();
        assert!(status.success());
        assert_eq!(mode(&path), 0o600);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.uid(), 12_345);
        assert!(metadata.len() > 40);
    }
}

#[test]
fn a_split_tunnel_takes_the_gateways_networks_and_those_that_are_named() {
    let gateway = Gateway::new();
    let conf =
        gateway.good("peer add a --split 192.168.1.5/24,172.16.0.0/12 --suite chacha20-poly1305").stdout;
    assert_eq!(value(&conf, "AllowedIPs"), "10.9.0.0/24, 172.16.0.0/12, 192.168.1.0/24, fd00:9::/64");
    assert!(!conf.contains("# adit: suite"), "{conf}");
    assert!(
        run("peer add b --split x").code == 2 && run("peer add b --split 10.0.0.0/8 --full-tunnel").code == 2
    );
}

#[test]
fn peers_added_at_once_never_share_an_address() {
    let gateway = Gateway::new();
    let children: Vec<_> = (0..16)
        .map(|number| {
            adit(["peer", "add", &format!("p{number}"), "--home", gateway.home()])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let peers = gateway.peers();
    let addresses: HashSet<String> = peers.iter().map(|peer| peer["addresses"].to_string()).collect();
    assert_eq!((peers.len(), addresses.len()), (16, 16));
}

#[test]
fn peers_are_listed_shown_and_removed_and_the_file_keeps_its_comments() {
    let gateway = Gateway::new();
    let before = gateway.text();
    gateway.good("peer add laptop");
    gateway.good("peer add phone --suite chacha20-poly1305");
    gateway.bad("peer add phone", "there is a peer `phone` already");
    let list = gateway.good("peer list").stdout;
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("NAME") && lines[2].starts_with("phone"), "{list}");
    let shown = gateway.good("peer show phone").stdout;
    assert!(shown.contains("preshared key  (hidden)") && shown.contains("10.9.0.3, fd00:9::3"), "{shown}");
    let json: Value = serde_json::from_str(&gateway.good("peer show phone --json").stdout).unwrap();
    assert_eq!((&json["name"], &json["has_preshared_key"]), (&"phone".into(), &true.into()));
    gateway.bad("peer show phon", "did you mean `phone`?");
    gateway.bad("peer rm nobody", "there is no peer `nobody`");
    gateway.good("peer rm phone");
    gateway.good("peer rm laptop");
    assert_eq!(gateway.text(), before);
    gateway.good("peer add tablet");
    assert_eq!(gateway.peers()[0]["addresses"][0], "10.9.0.4", "an address is not given again so soon");
}

#[test]
fn a_peer_that_could_not_be_told_is_not_kept() {
    let gateway = Gateway::new();
    let before = gateway.text();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = ran(adit(["peer", "add", "a", "--home", gateway.home()]).stdout(full).output().unwrap());
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("the peer was not added"), "{}", ran.stderr);
    assert_eq!(gateway.text(), before);
}

#[test]
fn check_shows_every_error_with_its_place_and_json_has_them_too() {
    let gateway = Gateway::new();
    let wrong = gateway.text().replace("listen = ", "listn = ").replace("10.9.0.0/24", "10.9.0.1/24");
    fs::write(gateway.file(), &wrong).unwrap();
    let ran = gateway.bad("check", "did you mean `listen`?");
    let line = 1 + wrong.lines().position(|line| line.starts_with("listn")).unwrap();
    assert!(ran.stderr.contains(&format!("adit.toml:{line}:1\n")), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("write \"10.9.0.0/24\"") && ran.stderr.contains("2 errors"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains('\x1b'));
    let json = gateway_json(&gateway, "check --json");
    assert_eq!((&json["ok"], &json["errors"][0]["line"]), (&false.into(), &line.into()));
    let colored = gateway.bad("check --color always", "did you mean");
    assert!(colored.stderr.contains("\x1b[1;31m"));
}

fn gateway_json(gateway: &Gateway, line: &str) -> Value {
    serde_json::from_str(&run(&format!("{line} --home {}", gateway.home())).stdout).unwrap()
}

#[test]
fn check_takes_wg_quick_files_and_refuses_hooks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wg0.conf");
    let key = good("genkey").stdout;
    fs::write(&path, format!("[Interface]\nPrivateKey = {key}PostUp = echo hello\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let ran = bad(&format!("check {}", path.display()), 1, "--allow-hooks");
    assert!(ran.stderr.contains("wg0.conf:3:1\n"), "{}", ran.stderr);
    good(&format!("check --allow-hooks {}", path.display()));
}

#[test]
fn the_environment_comes_before_the_file_and_is_named_when_wrong() {
    let gateway = Gateway::new();
    let check = |name: &str, value: &str| {
        ran(adit(["check", "--home", gateway.home()]).env(name, value).output().unwrap())
    };
    assert!(check("ADIT_GATEWAY_LISTEN", "1234").stdout.contains("UDP port 1234"));
    let wrong = check("ADIT_GATEWAY_LISTN", "1234");
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr.contains("did you mean ADIT_GATEWAY_LISTEN?"), "{}", wrong.stderr);
    let by_variable = ran(adit(["check"]).env("ADIT_HOME", gateway.home()).output().unwrap());
    assert_eq!(by_variable.code, 0, "{}", by_variable.stderr);
}

#[test]
fn hostile_files_are_refused_and_never_repeat_a_key() {
    let gateway = Gateway::new();
    let text = gateway.text();
    let key = text
        .lines()
        .find_map(|line| line.strip_prefix("private_key = \""))
        .unwrap()
        .trim_end_matches('"')
        .to_owned();
    let long = format!("{text}x = \"{}\"", "y".repeat(10 << 20));
    for wrong in [
        text.replace(&format!("{key}\""), &key),
        text.replace(&key, &key[1..]),
        text.clone() + "\0",
        text.clone() + "\u{202e}",
        long,
        text.replace("[gateway]", "[gateway]\nmtu = -1\nlanes = 99999999999999999999"),
    ] {
        fs::write(gateway.file(), &wrong).unwrap();
        let ran = gateway.bad("check", "error: ");
        assert!(!ran.stderr.contains(&key[5..30]) && ran.stderr.len() < 4000, "{}", ran.stderr);
    }
    fs::write(gateway.file(), [text.as_bytes(), b"\xff"].concat()).unwrap();
    gateway.bad("check", "byte 0xff is not UTF-8");
    fs::write(gateway.file(), &text).unwrap();
    gateway.good("check");
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let mut child = adit(["man"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn what_kept_a_command_from_running_is_said_before_adit_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (profile, said) = (directory.path().join("bad.conf"), directory.path().join("said"));
    fs::write(&profile, "[Interface]\nPrivateKey = nonsense\n").unwrap();
    fs::set_permissions(&profile, fs::Permissions::from_mode(0o600)).unwrap();
    for _ in 0..30 {
        // A pipe would end with the last process that holds it; a shell waits for the first alone.
        let file = fs::File::create(&said).unwrap();
        let mut command = adit(["run", profile.to_str().unwrap(), "--", "true"]);
        let status = command.stdout(Stdio::null()).stderr(file).status().unwrap();
        let text = fs::read_to_string(&said).unwrap();
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.contains("a key has 44 characters"), "it ended and has said {text:?}");
    }
}
