//! The verbs that need no network, as people call them.

mod check;
mod init;
mod peer;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
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
