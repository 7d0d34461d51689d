//! Becoming a daemon needs a process with one thread, which no test harness has: this test is its own program.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use adit_io::sys::{Daemonized, daemonize, harden, process_exists};

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("child-that-starts") => child(true),
        Some("child-that-fails") => child(false),
        // A test filter of the harness that is not here.
        Some(_) | None => {
            the_launcher_succeeds_when_the_daemon_is_ready_and_fails_when_it_is_not();
            a_hardened_process_cannot_be_dumped();
            println!("daemon: 2 passed");
        }
    }
}

fn child(starts: bool) {
    match daemonize().expect("one thread") {
        Daemonized::Launcher { started } => std::process::exit(i32::from(!started)),
        Daemonized::Daemon(ready) => {
            let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
            let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned();
            let directory = std::env::current_dir().unwrap();
            eprintln!("{} {session} {}", std::process::id(), directory.display());
            if starts {
                ready.ready(false).unwrap();
                eprintln!("this goes to /dev/null");
                std::thread::sleep(Duration::from_millis(300));
            } else {
                eprintln!("the device is busy");
                drop(ready);
            }
            std::process::exit(7);
        }
    }
}

fn the_launcher_succeeds_when_the_daemon_is_ready_and_fails_when_it_is_not() {
    for (name, code) in [("child-that-starts", 0), ("child-that-fails", 1)] {
        let start = Instant::now();
        let mut launcher = Command::new(std::env::current_exe().unwrap())
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(launcher.wait().unwrap().code(), Some(code), "{name}");
        // The daemon let go of the terminal: the pipes end although it still runs.
        let (mut stdout, mut stderr) = (String::new(), String::new());
        launcher.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        launcher.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(stdout, "");
        let mut lines = stderr.lines();
        let facts: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        let [pid, session, directory] = facts[..] else { panic!("{stderr}") };
        assert_ne!(session, pid, "no session leader: it can never get a terminal again");
        assert_eq!(directory, "/");
        assert_eq!(lines.next(), (code != 0).then_some("the device is busy"));
        let pid: u32 = pid.parse().unwrap();
        if code == 0 {
            assert!(process_exists(pid), "the daemon outlives its launcher");
            assert!(start.elapsed() < Duration::from_millis(300), "the launcher did not wait for the end");
        }
        while running(pid) {
            assert!(start.elapsed() < Duration::from_secs(5), "the daemon never ends");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether a process runs; one that ended but that nobody waited for does not.
fn running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn a_hardened_process_cannot_be_dumped() {
    let limit = || std::fs::read_to_string("/proc/self/limits").unwrap();
    harden().unwrap();
    let limits = limit();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // A process that cannot be dumped has its files in /proc owned by root, for any user.
    assert_eq!(std::fs::metadata("/proc/self/environ").unwrap().uid(), 0);
}
