//! Network namespaces for tests: every test has its own, and the host's is never touched.
#![allow(dead_code)]

use std::process::Command;
use std::time::{Duration, Instant};

use adit_io::sys::NetNamespace;

/// Runs `test` on a thread in a network namespace of its own.
pub fn in_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        NetNamespace::unshare().expect("these tests need root: run them with sudo or as root in a container");
        run("ip link set lo up");
        test()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs a command in the namespace of the calling thread.
pub fn run(command: &str) {
    let output = execute(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether a command, run in the namespace of the calling thread, succeeds.
pub fn succeeds(command: &str) -> bool {
    execute(command).status.success()
}

/// What a command, run in the namespace of the calling thread, prints.
pub fn output(command: &str) -> String {
    String::from_utf8(execute(command).stdout).expect("text")
}

fn execute(command: &str) -> std::process::Output {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output();
    output.unwrap_or_else(|error| panic!("{program}, which these tests need, does not run: {error}"))
}

/// Gives a device that is up an address, and waits until the host answers to it (for IPv6 the kernel takes its time).
pub fn add_address(address: &str, device: &str) {
    let (ip, family, nodad) = match address.split_once('/').expect("with prefix length").0 {
        ip if ip.contains(':') => (ip, "-6", "nodad"),
        ip => (ip, "-4", ""),
    };
    run(&format!("ip {family} address add {address} dev {device} {nodad}"));
    let local = format!("local {ip} dev {device} ");
    eventually("the address", || {
        output(&format!("ip {family} route show table local")).contains(&local).then_some(())
    });
}

/// Calls `poll` until it yields something; panics after five seconds.
pub fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
