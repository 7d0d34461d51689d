//! The text of a unit (`systemd.service(5)`, `systemd.exec(5)`), closed as far as the work allows.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::config::InterfaceName;
use crate::home::Home;

/// A unit of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    name: String,
    text: String,
}

/// What a unit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role<'a> {
    Gateway,
    Tunnel(&'a InterfaceName),
    /// Once at boot: what a run before it left.
    Restore,
}

const ORDER: &str = "\
Wants=network-online.target
After=network-online.target nss-lookup.target
";
/// Only the process itself is asked to stop (`KillMode=mixed`): an `nft` that it runs at that moment has to finish, or
/// the host is not as it was.
const KIND: &str = "\
Type=notify
NotifyAccess=main
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
Restart=on-failure
RestartSec=2
WatchdogSec=30
TimeoutStartSec=90
TimeoutStopSec=30
";
/// NetworkManager has to be there to be told, and names are asked for by whatever needs the network.
const RESTORE_ORDER: &str = "\
After=local-fs.target dbus.socket NetworkManager.service
Before=network-online.target nss-lookup.target
";
const RESTORE_KIND: &str = "\
Type=oneshot
RemainAfterExit=yes
KillMode=mixed
TimeoutStartSec=30
";

/// The first line of every unit that `adit service` may replace or remove.
const MARK: &str = "# Written by `adit service install`";

/// What both roles need and nothing more; the gateway and a tunnel differ in the files they change.
const SANDBOX: &str = "\
UMask=0077
LimitCORE=0
LimitNOFILE=65536
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
MemoryDenyWriteExecute=yes
LockPersonality=yes
KeyringMode=private
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectHome=HOMES
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectProc=invisible
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
";

impl Unit {
    /// The unit of `home` for a role.
    ///
    /// # Errors
    /// A path cannot stand in a unit.
    pub(super) fn new(
        home: &Home,
        role: Role<'_>,
        program: &Path,
        log_file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let name = name_of(home, role);
        let mut command = vec![quoted(program)?];
        if let Some(directory) = home.chosen() {
            command.extend(["--home".to_owned(), quoted(directory)?]);
        }
        let (what, verb) = match role {
            Role::Gateway => ("adit VPN gateway".to_owned(), "gateway".to_owned()),
            Role::Tunnel(name) => (format!("adit VPN tunnel {name}"), format!("up --foreground {name}")),
            Role::Restore => ("Put back what adit left at shutdown".to_owned(), "restore".to_owned()),
        };
        let command = command.join(" ");
        let (order, kind) = match role {
            Role::Restore => (RESTORE_ORDER, RESTORE_KIND),
            Role::Gateway | Role::Tunnel(_) => (ORDER, KIND),
        };
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{MARK}; `adit service uninstall` removes it.\n\
             # To change something, use `systemctl edit {name}`.\n\n\
             [Unit]\n\
             Description={what}\n\
             Documentation=man:adit(1)\n\
             {order}\n\
             [Service]\n\
             ExecStart={command} {verb}\n\
             {kind}"
        );
        files(&mut text, home, role != Role::Gateway, log_file)?;
        let homes =
            if under_home(home, program) || log_file.is_some_and(lives_there) { "read-only" } else { "yes" };
        text.push_str(&SANDBOX.replace("HOMES", homes));
        text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
        Ok(Self { name, text })
    }

    /// The name of the file.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What is in the file.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the unit that is there already is this one, perhaps as an older adit wrote it.
    pub(super) fn replaces(&self, there: &str) -> bool {
        let command = |text: &str| {
            let line = text.lines().find(|line| line.starts_with("ExecStart="))?;
            // The program may have moved.
            line.split_once(' ').map(|(_, rest)| rest.to_owned())
        };
        there.starts_with(MARK) && command(there) == command(&self.text)
    }
}

/// What the service may write.
fn files(text: &mut String, home: &Home, is_tunnel: bool, log_file: Option<&Path>) -> anyhow::Result<()> {
    if is_tunnel {
        text.push_str(
            "# A tunnel's servers stand in /etc/resolv.conf, so /etc stays open.\nProtectSystem=yes\n",
        );
    } else {
        text.push_str("# The gateway turns on forwarding, so /proc/sys stays open.\nProtectSystem=strict\n");
    }
    match home.chosen() {
        Some(directory) => {
            let _ = writeln!(text, "ReadWritePaths={}", quoted(directory)?);
        }
        None => text.push_str(
            "ConfigurationDirectory=adit\nConfigurationDirectoryMode=0700\n\
             StateDirectory=adit\nStateDirectoryMode=0700\n\
             RuntimeDirectory=adit\nRuntimeDirectoryMode=0700\nRuntimeDirectoryPreserve=yes\n\
             ReadWritePaths=/etc/adit\n",
        ),
    }
    // The directory of the log, because a full file is renamed.
    if let Some(directory) = log_file.and_then(Path::parent) {
        let _ = writeln!(text, "ReadWritePaths={}", quoted(directory)?);
    }
    Ok(())
}

/// `/home`, `/root` and `/run/user` cannot be closed to a service that lives there.
fn under_home(home: &Home, program: &Path) -> bool {
    lives_there(program) || home.chosen().is_some_and(lives_there)
}

fn lives_there(path: &Path) -> bool {
    ["/home", "/root", "/run/user"].iter().any(|it| path.starts_with(it))
}

fn name_of(home: &Home, role: Role<'_>) -> String {
    let plain = |char: char| if char.is_ascii_alphanumeric() || "_.-".contains(char) { char } else { '_' };
    let of_home = home.chosen().and_then(Path::file_name).map(PathBuf::from);
    let of_role = match role {
        Role::Gateway => None,
        Role::Tunnel(name) => Some(name.to_string()),
        // Longer than the name of an interface can be.
        Role::Restore => Some("restore-at-every-boot".to_owned()),
    };
    let words = [of_home.map(|it| it.to_string_lossy().into_owned()), of_role];
    let mut name = "adit".to_owned();
    for word in words.into_iter().flatten() {
        name.push('-');
        name.extend(word.chars().map(plain));
    }
    name + ".service"
}

/// A path as a word of a unit: quoted, with specifiers and variables made harmless.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let Some(text) = path.to_str().filter(|text| !text.chars().any(char::is_control)) else {
        bail!("{} cannot stand in a unit; rename it", path.display());
    };
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(format!("\"{escaped}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(home: Option<&str>, profile: Option<&str>) -> Unit {
        let home = Home::new(home.map(Path::new)).unwrap();
        let profile: Option<InterfaceName> = profile.map(|name| name.parse().unwrap());
        let role = profile.as_ref().map_or(Role::Gateway, Role::Tunnel);
        Unit::new(&home, role, Path::new("/usr/local/bin/adit"), None).unwrap()
    }

    #[test]
    fn the_gateway_is_told_apart_from_tunnels_and_other_homes() {
        let start = |unit: &Unit| {
            let line = unit.text.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
            (unit.name.clone(), line.to_owned())
        };
        let expect = |unit: &Unit, name: &str, line: &str| {
            assert_eq!(start(unit), (name.to_owned(), format!("ExecStart=\"/usr/local/bin/adit\" {line}")));
        };
        expect(&unit(None, None), "adit.service", "gateway");
        expect(&unit(None, Some("work")), "adit-work.service", "up --foreground work");
        expect(&unit(Some("/srv/a b"), None), "adit-a_b.service", "--home \"/srv/a b\" gateway");
        assert!(unit(None, None).replaces(unit(None, None).text()));
        assert!(!unit(None, None).replaces(unit(None, Some("work")).text()));
        assert!(
            !unit(Some("/srv/a"), None).replaces(unit(Some("/opt/a"), None).text()),
            "same name, other home"
        );
        assert!(!unit(None, None).replaces("[Service]\nExecStart=\"/usr/local/bin/adit\" gateway\n"));
    }

    #[test]
    fn only_the_process_itself_is_asked_to_stop() {
        let home = Home::new(None).unwrap();
        let restore = Unit::new(&home, Role::Restore, Path::new("/usr/bin/adit"), None).unwrap();
        for unit in [unit(None, None), unit(None, Some("work")), restore] {
            assert!(unit.text.contains("\nKillMode=mixed\n"), "{}", unit.text);
        }
    }

    #[test]
    fn the_directory_of_a_log_file_may_be_written() {
        let home = Home::new(None).unwrap();
        let of = |log: Option<&str>| {
            Unit::new(&home, Role::Gateway, Path::new("/usr/bin/adit"), log.map(Path::new)).unwrap().text
        };
        assert!(of(Some("/var/log/adit/log")).contains("\nReadWritePaths=\"/var/log/adit\"\n"));
        assert!(!of(None).contains("/var/log"));
        assert!(of(Some("/run/user/7/log")).contains("ProtectHome=read-only"));
    }

    #[test]
    fn what_systemd_would_expand_is_escaped() {
        assert_eq!(quoted(Path::new("/a b/100%$x\"y\\z")).unwrap(), "\"/a b/100%%$$x\\\"y\\\\z\"");
        assert!(quoted(Path::new("/a\nExecStart=/bin/sh")).is_err());
    }

    #[test]
    fn a_program_in_a_home_directory_can_still_be_run() {
        let home = Home::new(None).unwrap();
        let of = |program: &str| Unit::new(&home, Role::Gateway, Path::new(program), None).unwrap().text;
        assert!(of("/usr/bin/adit").contains("ProtectHome=yes"));
        assert!(of("/run/user/7/adit").contains("ProtectHome=read-only"));
    }
}
