//! Why a system does not let us make namespaces, and the command that changes it.

use std::fs;
use std::io;

use anyhow::anyhow;

const NO_ENTRY: i32 = 2;
const NOT_PERMITTED: i32 = 1;
const ACCESS_DENIED: i32 = 13;
const INVALID: i32 = 22;
const NO_SPACE: i32 = 28;
const TOO_MANY_USERS: i32 = 87;

/// The limits of namespaces per user, each 0 where an administrator turned the kind off.
const LIMITS: [(&str, &str); 3] = [
    ("user.max_user_namespaces", "user namespaces"),
    ("user.max_net_namespaces", "network namespaces"),
    ("user.max_mnt_namespaces", "mount namespaces"),
];
/// What kernels set for a machine of little memory.
const LIMIT: &str = "15000";

/// Explains why namespaces could not be made.
pub fn of_namespaces(error: &io::Error) -> anyhow::Error {
    anyhow!("{}", explain(error, sysctl))
}

fn sysctl(key: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    fs::read_to_string(path).ok().map(|value| value.trim().to_owned())
}

fn explain(error: &io::Error, sysctl: impl Fn(&str) -> Option<String>) -> String {
    const NEEDS: &str = "`adit run` needs namespaces of its own, and this system does not let you make them";
    let is = |key: &str, value: &str| sysctl(key).as_deref() == Some(value);
    let allow = |key: &str, was: &str, value: &str| {
        format!("{NEEDS} ({key} is {was}); allow it with `sudo sysctl {key}={value}`, or use `sudo adit run`")
    };
    for (key, _) in LIMITS {
        if is(key, "0") {
            return allow(key, "0", LIMIT);
        }
    }
    let refused = error.kind() == io::ErrorKind::PermissionDenied;
    if refused && is("kernel.unprivileged_userns_clone", "0") {
        return allow("kernel.unprivileged_userns_clone", "0", "1");
    }
    if refused && is("kernel.apparmor_restrict_unprivileged_userns", "1") {
        return allow("kernel.apparmor_restrict_unprivileged_userns", "1", "0");
    }
    match error.raw_os_error() {
        Some(NO_SPACE | TOO_MANY_USERS) => {
            let limits = LIMITS.map(|(key, kind)| {
                format!("{kind}: at most {} by {key}", sysctl(key).as_deref().unwrap_or("?"))
            });
            format!(
                "{NEEDS}: there are as many as it allows ({}); end programs that hold some",
                limits.join("; ")
            )
        }
        Some(INVALID) => format!("{NEEDS}: its kernel is built without user namespaces; use `sudo adit run`"),
        _ if refused => format!(
            "{NEEDS}: {error}. In a container, its seccomp profile or missing capabilities forbid it: \
             allow `unshare` there (Docker: --security-opt seccomp=unconfined), or use `adit proxy`"
        ),
        _ => format!("{NEEDS}: {error}"),
    }
}

/// Explains why there is no TUN device, in a namespace in which we may make one.
pub fn of_tun(error: &io::Error) -> anyhow::Error {
    const PATH: &str = "/dev/net/tun";
    let opened = fs::OpenOptions::new().read(true).write(true).open(PATH);
    match opened.as_ref().map_err(io::Error::raw_os_error) {
        Err(Some(NO_ENTRY)) => anyhow!(
            "there is no {PATH}: load the driver with `sudo modprobe tun`, or give the container the device \
             (Docker: --device {PATH})"
        ),
        Err(Some(ACCESS_DENIED | NOT_PERMITTED)) => {
            anyhow!(
                "you may not open {PATH}; allow everybody with `sudo chmod 666 {PATH}`, or use `sudo adit run`"
            )
        }
        // A security module lets us have the namespace and nothing in it.
        _ if error.kind() == io::ErrorKind::PermissionDenied => of_namespaces(error),
        _ => anyhow!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: i32, settings: &[(&str, &str)]) -> String {
        let find =
            |key: &str| settings.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned());
        explain(&io::Error::from_raw_os_error(code), find)
    }

    #[test]
    fn each_switch_that_forbids_namespaces_is_named_with_its_command() {
        let cases = [
            (NO_SPACE, "user.max_user_namespaces", "0", "15000"),
            (NO_SPACE, "user.max_net_namespaces", "0", "15000"),
            (NO_SPACE, "user.max_mnt_namespaces", "0", "15000"),
            (NOT_PERMITTED, "kernel.unprivileged_userns_clone", "0", "1"),
            (ACCESS_DENIED, "kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ];
        for (code, key, bad, good) in cases {
            let text = said(code, &[(key, bad)]);
            assert!(text.contains(&format!("{key} is {bad}")), "{text}");
            assert!(text.contains(&format!("`sudo sysctl {key}={good}`")), "{text}");
            assert!(
                !said(code, &[(key, good)]).contains("sysctl "),
                "{key} is no obstacle when it is {good}"
            );
        }
    }

    #[test]
    fn without_a_switch_to_blame_the_cause_is_still_told() {
        assert!(said(NOT_PERMITTED, &[]).contains("container"));
        assert!(said(INVALID, &[]).contains("built without"));
        assert!(said(NO_SPACE, &[("user.max_net_namespaces", "7")]).contains("at most 7"));
    }
}
