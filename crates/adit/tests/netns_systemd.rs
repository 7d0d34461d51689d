//! `adit service` with a real systemd: process 1 of namespaces of its own, over a copy of this machine's files.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use adit_lab::{Host, Lab, Output, Process, wait_for};

use common::ADIT;

/// A machine boots meanwhile.
const PATIENCE: Duration = Duration::from_secs(90);
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// What of a usual boot would touch the machine below, or is of no use in a lab.
const MASKED: &str = "systemd-modules-load systemd-udevd systemd-udev-trigger systemd-tmpfiles-setup-dev systemd-binfmt \
    systemd-sysctl systemd-firstboot systemd-machine-id-commit systemd-hwdb-update systemd-random-seed \
    systemd-timesyncd systemd-pstore systemd-remount-fs systemd-update-utmp systemd-networkd systemd-resolved";

/// `$T` is an empty directory; what is mounted goes with the namespace.
const BOOT: &str = r#"
set -e
mount -t tmpfs tmpfs $T
mkdir $T/up $T/work $T/root
mount -t overlay overlay -o lowerdir=/,upperdir=$T/up,workdir=$T/work $T/root
R=$T/root
mount -t proc proc $R/proc
mount -t sysfs sysfs $R/sys
mount -t cgroup2 cgroup2 $R/sys/fs/cgroup
for d in run dev etc/systemd/system etc/adit var/lib var/log; do mkdir -p $R/$d; mount -t tmpfs -o mode=755 tmpfs $R/$d; done
mount -t tmpfs tmpfs $R/tmp
for d in null zero full random urandom tty; do touch $R/dev/$d; mount --bind /dev/$d $R/dev/$d; done
mkdir $R/dev/net $R/dev/shm $R/dev/pts
touch $R/dev/net/tun; mount --bind /dev/net/tun $R/dev/net/tun
mkdir -p $R/opt; mount -t tmpfs -o mode=755 tmpfs $R/opt; cp $PROGRAM $R/opt/adit
U=$R/etc/systemd/system
printf '[Unit]\nRequires=sysinit.target systemd-journald.service\nAfter=sysinit.target\n' > $U/lab.target
ln -s lab.target $U/default.target
for unit in $MASKED; do ln -s /dev/null $U/$unit.service; done
tr -d - < /proc/sys/kernel/random/uuid > $R/etc/machine-id
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot $R /usr/lib/systemd/systemd --system
"#;

struct Machine {
    host: Host,
    root: PathBuf,
    manager: Process,
}

impl Machine {
    fn boot(host: &Host) -> Self {
        let place = host.directory().join("machine");
        std::fs::create_dir(&place).unwrap();
        let words =
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--propagation", "private", "--cgroup"];
        let manager = host
            .command(words.iter().chain(&["--ipc", "--uts", "sh", "-c", BOOT]).copied())
            .env("T", place.display().to_string())
            .env("PROGRAM", ADIT)
            .env("MASKED", MASKED)
            .spawn()
            .unwrap();
        let machine = Self { host: host.clone(), root: place.join("root"), manager };
        wait_for("systemd to be up", PATIENCE, || {
            let state = machine.attempt(&["systemctl", "is-system-running"])?.stdout;
            ["running", "degraded"].contains(&state.trim()).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {}", machine.manager.stderr()));
        machine
    }

    /// The process 1 of the machine, by its id here: the child of `unshare`.
    fn first(&self) -> Option<String> {
        let path = format!("/proc/{0}/task/{0}/children", self.manager.id());
        let first = std::fs::read_to_string(path).ok()?.split_whitespace().next()?.to_owned();
        let program = std::fs::read_to_string(format!("/proc/{first}/comm")).ok()?;
        (program.trim() == "systemd").then_some(first)
    }

    fn attempt(&self, words: &[&str]) -> Option<Output> {
        let (first, root) = (self.first()?, self.root.display().to_string());
        let enter = ["nsenter", "-t", &first, "-p", "-m", "-i", "-u", "-C", "chroot", &root];
        let words = enter.iter().chain(words).copied();
        Some(self.host.command(words).deadline(PATIENCE).attempt().unwrap())
    }

    fn run(&self, words: &[&str]) -> String {
        let output = self.attempt(words).expect("systemd runs");
        assert!(output.ok(), "{words:?}: {}{}", output.stdout, output.stderr);
        output.stdout + &output.stderr
    }

    /// Properties of the service.
    fn shows(&self, properties: &str) -> String {
        self.run(&["systemctl", "show", "adit.service", "-p", properties])
    }

    /// The service has ended as it was asked to.
    #[track_caller]
    fn assert_stopped(&self) {
        let shown = self.shows("ActiveState,SubState,Result,ExecMainCode,ExecMainStatus");
        let is_stopped = ["ActiveState=inactive", "Result=success"].iter().all(|line| shown.contains(line));
        assert!(is_stopped, "{shown}{}", self.run(&["journalctl", "-u", "adit", "--no-pager", "-n", "40"]));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With process 1 goes all else in its namespace.
        self.manager.crash();
    }
}

#[test]
fn a_service_is_installed_started_watched_stopped_and_taken_away_by_a_real_systemd() {
    assert!(PathBuf::from(SYSTEMD).exists(), "install the package systemd");
    let lab = Lab::new("systemd").unwrap();
    let host = lab.host("machine").unwrap();
    let machine = Machine::boot(&host);
    let adit = "/opt/adit";
    let missing = machine.attempt(&[adit, "service", "start"]).unwrap();
    assert!(!missing.ok() && missing.stderr.contains("adit service install"), "{}", missing.stderr);
    machine.run(&[adit, "init", "--endpoint", "192.0.2.1:51820"]);
    let said = machine.run(&[adit, "service", "install"]);
    assert!(said.contains("wrote /etc/systemd/system/adit.service"), "{said}");
    assert!(machine.shows("UnitFileState,Type").contains("UnitFileState=enabled"));
    assert!(machine.shows("ActiveState").contains("inactive"));

    let said = machine.run(&[adit, "service", "start"]);
    assert!(said.contains("adit.service runs"), "{said}");
    let shown = machine.shows("ActiveState,SubState,Type,WatchdogUSec,NotifyAccess,NRestarts");
    for line in ["ActiveState=active", "SubState=running", "Type=notify", "WatchdogUSec=30s", "NRestarts=0"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let page = machine.run(&[adit, "status"]);
    assert!(page.contains("adit0  gateway"), "{page}");
    assert!(machine.run(&["ip", "link", "show", "adit0"]).contains("adit0"));
    let log = machine.run(&["journalctl", "-u", "adit", "--no-pager"]);
    assert!(log.contains("gateway ready"), "{log}");
    let fields = machine.run(&["journalctl", "-u", "adit", "--no-pager", "-o", "json"]);
    assert!(fields.contains("\"PRIORITY\":\"6\""), "levels of its own protocol: {fields}");

    // A reload keeps the process.
    let pid = machine.shows("MainPID");
    machine.run(&["systemctl", "reload", "adit"]);
    assert_eq!(machine.shows("MainPID"), pid);
    wait_for("the reload in the journal", PATIENCE, || {
        let log = machine.run(&["journalctl", "-u", "adit", "--no-pager"]);
        log.contains("configuration read again").then_some(())
    })
    .unwrap();

    // Killed, it is started anew; stopped in its tracks, the watchdog ends it.
    machine.run(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "adit"]);
    wait_for("another process", PATIENCE, || {
        let shown = machine.shows("MainPID,ActiveState,NRestarts");
        (shown.contains("ActiveState=active") && shown.contains("NRestarts=1") && !shown.contains(pid.trim()))
            .then_some(())
    })
    .unwrap();
    machine.run(&["systemctl", "kill", "--kill-whom=main", "--signal=STOP", "adit"]);
    wait_for("the watchdog", PATIENCE, || {
        let log = machine.run(&["journalctl", "-u", "adit", "--no-pager"]);
        log.contains("Watchdog timeout").then_some(())
    })
    .unwrap();
    wait_for("a third process", PATIENCE, || {
        let shown = machine.shows("ActiveState,NRestarts");
        (shown.contains("ActiveState=active") && shown.contains("NRestarts=2")).then_some(())
    })
    .unwrap();

    let said = machine.run(&[adit, "service", "stop"]);
    assert!(said.contains("adit.service is stopped"), "{said}");
    machine.assert_stopped();
    assert!(!machine.attempt(&["ip", "link", "show", "adit0"]).unwrap().ok(), "the host is as it was");
    let said = machine.run(&[adit, "service", "uninstall"]);
    assert!(said.contains("removed /etc/systemd/system/adit.service"), "{said}");
    assert!(machine.shows("LoadState").contains("LoadState=not-found"));
    assert!(machine.run(&[adit, "check"]).contains("ok"), "configuration and keys stay");
}

/// In the place of `nft`: it waits as many seconds as are written beside it before it loads anything.
const SLOW_NFT: &str = r#"
set -e
nft=$(command -v nft)
mv $nft $nft.real
cat > $nft <<END
#!/bin/sh
case "\$*" in *-f*) sleep \$(cat /opt/seconds) ;; esac
exec $nft.real "\$@"
END
chmod 755 $nft
"#;

/// A start, and a stop while the start runs `nft`, which takes some seconds.
fn stop_while_nft_runs(machine: &Machine, seconds: u32) {
    machine.run(&["sh", "-c", &format!("echo {seconds} > /opt/seconds")]);
    machine.run(&["systemctl", "start", "--no-block", "adit"]);
    wait_for("nft to run", PATIENCE, || {
        let group = "/sys/fs/cgroup/system.slice/adit.service/cgroup.procs";
        let names =
            machine.attempt(&["sh", "-c", &format!("for p in $(cat {group}); do cat /proc/$p/comm; done")]);
        names?.stdout.lines().any(|name| name == "sleep").then_some(())
    })
    .unwrap();
    assert!(machine.shows("ActiveState").contains("activating"));
    machine.run(&["/opt/adit", "service", "stop"]);
}

#[test]
fn a_stop_while_nft_runs_is_no_failure_and_puts_the_host_back() {
    let lab = Lab::new("systemdstop").unwrap();
    let host = lab.host("machine").unwrap();
    let machine = Machine::boot(&host);
    machine.run(&["/opt/adit", "init", "--endpoint", "192.0.2.1:51820"]);
    machine.run(&["/opt/adit", "service", "install"]);
    machine.run(&["sh", "-c", SLOW_NFT]);
    let forwards = || machine.run(&["cat", "/proc/sys/net/ipv4/ip_forward"]);
    let before = forwards();

    stop_while_nft_runs(&machine, 2);
    machine.assert_stopped();
    assert!(!machine.run(&["nft", "list", "tables"]).contains("adit"), "the host is as it was");
    assert_eq!(forwards(), before, "the host is as it was");

    // The control: as every process of the service is told to stop, nft is as well, and the start fails by that.
    let unit = "/etc/systemd/system/adit.service";
    machine.run(&["sed", "-i", "s/^KillMode=mixed$/KillMode=control-group/", unit]);
    machine.run(&["systemctl", "daemon-reload"]);
    stop_while_nft_runs(&machine, 60);
    let shown = machine.shows("ActiveState,Result");
    assert!(shown.contains("ActiveState=failed"), "{shown}");
}
