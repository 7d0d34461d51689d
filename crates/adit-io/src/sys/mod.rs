//! System calls without a safe form in `std`, behind safe functions.

mod companion;
mod descriptor;
mod link;
mod namespace;
mod process;
mod resource;
mod room;
pub(crate) mod socket;
mod terminal;
mod unix;

use std::io;

pub use companion::{Beside, Companion, start_companion};
pub use descriptor::{DESCRIPTORS_MAX, receive_descriptors, send_descriptors};
pub use link::{LinkEvent, LinkMonitor};
pub use namespace::NetNamespace;
pub use process::{Daemonized, Ready, daemonize, effective_user, end_group, freeze, harden, process_exists};
pub use resource::{keep_large_blocks_apart, raise_descriptor_limit};
pub use room::{Owner, bind_file, cover, enter_room, give_up_capabilities, uncover};
pub use terminal::terminal_columns;
pub use unix::bind_private;

/// Nanoseconds since boot, counting suspend (`CLOCK_BOOTTIME`).
pub fn boottime_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the duration of the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

/// The version of the running kernel: major, minor, patch. Parts that do not parse are 0.
pub fn kernel_version() -> (u32, u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    parse_kernel_version(&release)
}

fn parse_kernel_version(release: &str) -> (u32, u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    (part(), part(), part())
}

/// The result of a system call that returns -1 and sets `errno` on failure.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boottime_moves_forward() {
        let before = boottime_nanos();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let passed = boottime_nanos() - before;
        assert!(passed >= 2_000_000, "only {passed} ns passed in 2 ms");
    }

    #[test]
    fn kernel_versions_of_distributions_parse() {
        assert_eq!(parse_kernel_version("6.1.0-18-amd64\n"), (6, 1, 0));
        assert_eq!(parse_kernel_version("7.1.4+deb"), (7, 1, 4));
        assert_eq!(parse_kernel_version("5.15-rc1"), (5, 15, 0));
        assert_eq!(parse_kernel_version(""), (0, 0, 0));
        assert_ne!(kernel_version(), (0, 0, 0));
    }
}
