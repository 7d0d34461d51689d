//! The package of Debian, installed and at work in a clean root.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use adit_lab::{Host, Invocation, Process, wait_for};
use tempfile::TempDir;

use common::internet::{GATEWAY, Internet, succeed};
use common::{ADIT, SOON};

const SUITE: &str = "bookworm";

/// A Debian of its own, with what the package depends on and nothing of this machine.
struct Root {
    directory: TempDir,
}

impl Root {
    /// Made once by debootstrap and kept beside what cargo builds; each test works in a copy.
    fn new() -> Self {
        let target = Path::new(ADIT).parent().and_then(Path::parent).unwrap();
        let kept = target.join("debootstrap").join(format!("{SUITE}.tar"));
        if !kept.exists() {
            fs::create_dir_all(kept.parent().unwrap()).unwrap();
            let fresh = tempfile::tempdir_in(kept.parent().unwrap()).unwrap();
            let tree = fresh.path().join("root");
            let tree = tree.to_str().unwrap();
            let include = "--include=nftables,libgcc-s1,man-db,zsh,fish";
            run(&["debootstrap", "--variant=minbase", include, SUITE, tree], Duration::from_secs(220));
            let new = kept.with_extension("new");
            run(&["tar", "-C", tree, "-cf", new.to_str().unwrap(), "."], Duration::from_secs(60));
            fs::rename(new, &kept).unwrap();
        }
        let root = Self { directory: tempfile::tempdir().unwrap() };
        let at = root.path();
        run(&["tar", "-C", at.to_str().unwrap(), "-xf", kept.to_str().unwrap()], Duration::from_secs(60));
        root
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A command in the root, with `/proc`, `/sys` and `/dev` that go with it.
    fn words(&self, command: &str) -> Vec<String> {
        let root = self.path().display();
        let script = format!(
            "mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && mount -t sysfs sysfs {root}/sys && \
             exec chroot {root} sh -c '{command}'"
        );
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script].map(str::to_owned).to_vec()
    }

    fn attempt(&self, command: &str) -> adit_lab::Output {
        Invocation::new(self.words(command)).deadline(Duration::from_secs(60)).attempt().unwrap()
    }

    fn succeed(&self, command: &str) -> String {
        let output = self.attempt(command);
        assert!(output.ok(), "{command}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    fn succeed_on(&self, host: &Host, command: &str) -> String {
        let output = host.command(self.words(command)).deadline(Duration::from_secs(60)).attempt().unwrap();
        assert!(output.ok(), "{command}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    fn spawn_on(&self, host: &Host, command: &str) -> Process {
        host.spawn(self.words(command)).unwrap()
    }
}

fn run(argv: &[&str], deadline: Duration) {
    Invocation::new(argv.iter().copied()).deadline(deadline).exec().unwrap();
}

/// The packages of the program under test, in a directory.
fn packages() -> (TempDir, PathBuf) {
    let xtask = Path::new(ADIT).with_file_name("xtask");
    let out = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    if !xtask.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo).args(["build", "--locked", "-p", "xtask"]).current_dir(root).status();
        assert!(built.unwrap().success());
    }
    let mut dist = Command::new(xtask);
    dist.args(["dist", "--binary", ADIT, "--out"]).arg(out.path()).current_dir(root);
    let output = dist.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let is_deb = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let deb = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path()).find(is_deb).unwrap();
    (out, deb)
}

#[test]
fn the_package_is_installed_run_and_removed_in_a_clean_root() {
    let (out, deb) = packages();
    let sums = Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(out.path()).output().unwrap();
    assert!(sums.status.success(), "{}", String::from_utf8_lossy(&sums.stdout));
    let root = Root::new();
    fs::copy(&deb, root.path().join("adit.deb")).unwrap();
    assert!(!root.attempt("adit --version").ok(), "the root has none of this machine's");
    let before = files(root.path());
    root.succeed("dpkg -i /adit.deb");
    assert!(root.succeed("adit --version").starts_with("adit "));
    assert_eq!(root.succeed("readlink /usr/bin/adit-wg").trim(), "adit");
    assert_eq!(root.succeed("dpkg --verify adit"), "", "every file is as the package has it");
    assert!(root.succeed("man -P cat adit").contains("NAME"));
    for (shell, file) in [
        ("bash -n", "/usr/share/bash-completion/completions/adit"),
        ("zsh -n", "/usr/share/zsh/vendor-completions/_adit"),
        ("fish --no-execute", "/usr/share/fish/vendor_completions.d/adit.fish"),
    ] {
        root.succeed(&format!("{shell} {file}"));
    }
    let unit = fs::read_to_string(root.path().join("lib/systemd/system/adit.service")).unwrap();
    assert!(unit.contains("Type=notify") && unit.contains("ExecStart=/usr/bin/adit "), "{unit}");
    assert!(!unit.contains(out.path().to_str().unwrap()) && !unit.contains("target/"), "{unit}");
    let restore = root.path().join("lib/systemd/system/adit-restore-at-every-boot.service");
    let restore = fs::read_to_string(restore).unwrap();
    assert!(restore.contains("ExecStart=/usr/bin/adit restore\n"), "{restore}");

    let net = Internet::new("package", 1);
    root.succeed_on(&net.gateway, &format!("adit init --endpoint {GATEWAY}:51820"));
    let file = root.succeed_on(&net.gateway, "adit peer add laptop");
    let mut gateway = root.spawn_on(&net.gateway, "exec adit gateway");
    gateway.wait_for_text("gateway ready", SOON).unwrap();
    let client = &net.clients[0];
    let file = client.write("laptop.conf", file).unwrap().display().to_string();
    succeed(client, &["up", &file]);
    let inside = root.succeed_on(&net.gateway, "adit status");
    assert!(inside.contains("laptop"), "{inside}");
    wait_for("an answer through the tunnel", SOON, || {
        client.ping("10.86.0.1", 1).ok().filter(|answers| *answers == 1)
    })
    .unwrap();
    gateway.terminate();
    assert_eq!(gateway.wait(SOON).unwrap().code(), Some(0), "{}", gateway.stderr());

    root.succeed("dpkg --purge adit");
    let left: Vec<_> = files(root.path()).into_iter().filter(|file| !before.contains(file)).collect();
    let ours = |file: &&String| {
        file.contains("adit") && !file.starts_with("etc/adit") && !file.starts_with("var/lib/adit")
    };
    let left: Vec<_> = left.iter().filter(ours).filter(|file| !is_others(file)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert!(root.path().join("etc/adit/adit.toml").exists(), "the keys are the administrator's");
}

#[test]
fn the_tarball_is_installed_by_the_commands_it_brings() {
    let (out, deb) = packages();
    let is_tarball = |path: &PathBuf| path.to_string_lossy().ends_with(".tar.gz");
    let mut entries = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path());
    let tarball = entries.find(is_tarball).unwrap_or_else(|| panic!("no tarball beside {}", deb.display()));
    let root = Root::new();
    run(
        &["tar", "-C", root.path().to_str().unwrap(), "-xzf", tarball.to_str().unwrap()],
        Duration::from_secs(60),
    );
    let directory = tarball.file_name().unwrap().to_str().unwrap().trim_end_matches(".tar.gz").to_owned();
    let papers = fs::read_to_string(root.path().join(&directory).join("INSTALL")).unwrap();
    let commands: Vec<_> = papers.lines().filter_map(|line| line.trim().strip_prefix("sudo ")).collect();
    assert!(commands.len() >= 5, "{papers}");
    for command in commands {
        root.succeed(&format!("cd /{directory} && {command}"));
    }
    assert!(root.succeed("adit --version").starts_with("adit "));
    assert!(root.succeed("man -P cat adit").contains("NAME"));
    root.succeed("fish --no-execute /usr/share/fish/vendor_completions.d/adit.fish");
    let unit = fs::read_to_string(root.path().join(&directory).join("adit.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/adit "), "{unit}");
}

/// What dpkg and man write about every package and page.
fn is_others(file: &str) -> bool {
    ["var/log/", "var/cache/"].iter().any(|place| file.starts_with(place))
}

/// Every file below `root`.
fn files(root: &Path) -> Vec<String> {
    let output = Command::new("find").args([".", "-xdev", "-type", "f"]).current_dir(root).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.trim_start_matches("./").to_owned()).collect()
}
