//! A throw-away host: an unnamed network and mount namespace that ends with the process in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use std::env;

const INSIDE: &str = "ADIT_HOST_TEST_INSIDE";
pub const RESOLV_CONF: &str = "nameserver 192.0.2.53\nsearch example.org\n";

/// Runs `body` in fresh namespaces, by running this test program once more inside them.
pub fn in_namespace(test: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some_and(|it| it == test) {
        return body();
    }
    let mut unshare = Command::new("unshare");
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["--net", "--mount", "--"]).arg(env::current_exe().unwrap());
    let output = unshare.args(["--exact", test, "--nocapture"]).env(INSIDE, test).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let ran = said.contains("1 passed");
    assert!(output.status.success() && ran, "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// This test program again, in the present namespace, running another of its tests.
pub fn again(test: &str, environment: &[(&str, &Path)]) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--include-ignored"]);
    command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// A host with an uplink and a tunnel device, an `/etc` and `/run` of its own, and a directory for the journal.
pub struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Host {
        let host = Host { directory: tempfile::tempdir().unwrap() };
        for directory in ["/etc", "/run"] {
            run("mount", &["-t", "tmpfs", "tmpfs", directory]);
        }
        fs::write("/etc/resolv.conf", RESOLV_CONF).unwrap();
        ip("link set lo up");
        for link in ["up0", "adit0"] {
            ip(&format!("tuntap add dev {link} mode tun"));
            ip(&format!("link set {link} up"));
        }
        ip("address add 192.0.2.2/24 dev up0");
        add_ipv6("2001:db8::2/64", "up0");
        ip("route add default via 192.0.2.1 dev up0");
        ip("-6 route add default via 2001:db8::1 dev up0");
        // A queueing discipline once given stays, so the tunnel has been up before.
        ip("link set adit0 down");
        ip("link set adit0 mtu 1500");
        host
    }

    pub fn journal(&self) -> PathBuf {
        self.journal_of("state")
    }

    /// The journal of another instance.
    pub fn journal_of(&self, instance: &str) -> PathBuf {
        self.directory.path().join(instance).join("journal")
    }
}

/// Everything that a plan may touch, as the system's own tools tell it.
pub fn state() -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for arguments in
        ["-j addr", "-j route show table all", "-j -6 route show table all", "-j rule", "-j -6 rule"]
    {
        state.insert(format!("ip {arguments}"), ip(arguments));
    }
    state.insert("nft".into(), run("nft", &["-j", "list", "ruleset"]));
    for family in ["ipv4", "ipv6"] {
        read_all(Path::new("/proc/sys/net").join(family).as_path(), &mut state);
    }
    let resolv_conf = Path::new("/etc/resolv.conf");
    let target = fs::read_link(resolv_conf).map(|it| it.display().to_string()).unwrap_or_default();
    let mode = fs::symlink_metadata(resolv_conf).map(|it| it.mode()).unwrap_or_default();
    let content = fs::read_to_string(resolv_conf).unwrap_or_default();
    let files = fs::read_dir("/etc").unwrap().map(|it| it.unwrap().file_name());
    let mut files: Vec<_> = files.collect();
    files.sort();
    state.insert("resolv.conf".into(), format!("{mode:o} {target:?} {content:?} {files:?}"));
    state
}

/// What differs, for a message one can read.
pub fn difference(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
    let changed = keys.filter(|key| before.get(*key) != after.get(*key));
    changed.map(|key| format!("{key}\n  - {:?}\n  + {:?}", before.get(key), after.get(key))).collect()
}

#[track_caller]
pub fn assert_same(before: &BTreeMap<String, String>) {
    let difference = difference(before, &state());
    assert!(difference.is_empty(), "{}", difference.join("\n"));
}

/// The kernel adds the local route of an IPv6 address a moment after the address.
pub fn add_ipv6(address: &str, link: &str) {
    ip(&format!("address add {address} dev {link} nodad"));
    let local = format!("local {} dev {link}", address.split('/').next().unwrap());
    while !ip("-6 route show table local").contains(&local) {
        thread::sleep(Duration::from_millis(1));
    }
}

pub fn ip(arguments: &str) -> String {
    run("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn sysctl(key: &str) -> String {
    fs::read_to_string(sysctl_path(key)).unwrap().trim_end().to_owned()
}

pub fn set_sysctl(key: &str, value: &str) {
    fs::write(sysctl_path(key), value).unwrap();
}

fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

fn read_all(directory: &Path, state: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_all(&path, state);
        } else if let Ok(value) = fs::read_to_string(&path) {
            state.insert(path.display().to_string(), value);
        }
    }
}
