//! `adit export PROFILE`: a profile as a plain wg-quick file, for a stock WireGuard.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use adit_proto::suite::Suite;
use anyhow::{Context, bail};
use clap::Args;

use crate::config::wgquick::{Hook, HookTime, Hooks, WgQuick};
use crate::config::{ClientSettings, KillSwitch, Layers};
use crate::home::Home;
use crate::private_file;
use crate::profile::{self, ForVerb};

/// What `adit export` is told.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// A wg-quick file, or the name of a profile [default: the only profile]
    #[arg(value_name = "FILE.conf|NAME")]
    profile: Option<PathBuf>,
    /// Put the kill switch of the wg-quick manual into the file when the profile has one
    #[arg(long)]
    kill_switch_hooks: bool,
}

/// Prints the file, alone, on stdout.
///
/// # Errors
/// A stock WireGuard could not use the profile, or there is none.
pub fn run(home: &Home, args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let path = profile::find(home, args.profile.as_deref(), ForVerb("export", ""))?;
    let file = WgQuick::load(&path, Hooks::Allowed)?;
    let settings = ClientSettings::load(home, &Layers::default(), Some(&file))?;
    let (file, notes) = plain(file, &settings, args.kill_switch_hooks)?;
    private_file::protect_stdout()?;
    io::stdout()
        .write_all(file.to_text().as_bytes())
        .and_then(|()| io::stdout().flush())
        .context("cannot write to stdout")?;
    for note in notes {
        eprintln!("note: {note}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The file without what only adit knows, and what that means for its user.
fn plain(
    mut file: WgQuick,
    settings: &ClientSettings,
    with_hooks: bool,
) -> anyhow::Result<(WgQuick, Vec<String>)> {
    for peer in &mut file.peers {
        if peer.suite != Suite::ChaCha20Poly1305 {
            let name = peer.name.as_ref().map_or("the gateway", |name| name.as_str());
            bail!(
                "{name} pins the suite {} for this key, which a stock WireGuard does not speak; on the gateway run \
                 `adit peer set NAME suite=chacha20-poly1305`, and change the line `# adit: suite` here",
                peer.suite
            );
        }
        peer.name = None;
        peer.inside_api.clear();
    }
    let mut notes = Vec::new();
    if settings.kill_switch == KillSwitch::On && with_hooks {
        file.interface.hooks.extend(kill_switch_hooks());
    } else if settings.kill_switch == KillSwitch::On {
        notes.push(
            "a stock WireGuard has no kill switch; --kill-switch-hooks writes that of the wg-quick manual"
                .to_owned(),
        );
    }
    for setting in std::mem::take(&mut file.interface.settings) {
        if setting.name != "kill_switch" {
            notes.push(format!("left out, since only adit knows it: {} = {}", setting.name, setting.value));
        }
    }
    Ok((file, notes))
}

/// As wg-quick(8) has it.
fn kill_switch_hooks() -> [Hook; 2] {
    [(HookTime::PostUp, "-I"), (HookTime::PreDown, "-D")].map(|(when, verb)| {
        let rule = format!(
            "{verb} OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -m addrtype ! --dst-type LOCAL -j REJECT"
        );
        Hook { when, command: format!("iptables {rule} && ip6tables {rule}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    const FILE: &str = "[Interface]\n# adit: kill_switch = on\n# adit: carrier = tcp\nPrivateKey = \
        yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nAddress = 10.9.0.2/32\n[Peer]\n# adit: name = home\n# adit: inside_api = \
        10.9.0.1:9585\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 0.0.0.0/0\n";

    fn exported(text: &str, with_hooks: bool) -> anyhow::Result<(String, Vec<String>)> {
        let file = WgQuick::parse(&Source::new("x.conf", text), Hooks::Allowed)?;
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        let settings = ClientSettings::load(&home, &Layers::default(), Some(&file))?;
        let (file, notes) = plain(file, &settings, with_hooks)?;
        Ok((file.to_text().to_string(), notes))
    }

    #[test]
    fn what_only_adit_knows_is_left_out_and_told() {
        let (text, notes) = exported(FILE, false).unwrap();
        assert!(!text.contains("adit") && text.contains("Address = 10.9.0.2/32"), "{text}");
        assert!(notes.iter().any(|note| note.contains("carrier = tcp")), "{notes:?}");
        assert!(notes.iter().any(|note| note.contains("no kill switch")), "{notes:?}");
    }

    #[test]
    fn the_kill_switch_goes_out_as_hooks_and_comes_in_as_a_setting_again() {
        let (text, _) = exported(FILE, true).unwrap();
        let file = WgQuick::parse(&Source::new("x.conf", &text), Hooks::Allowed).unwrap();
        assert_eq!(file.interface.hooks.len(), 2);
        assert!(text.contains("PostUp = iptables -I OUTPUT ! -o %i -m mark"), "{text}");
    }

    #[test]
    fn a_suite_that_a_stock_wireguard_lacks_is_refused() {
        let text = FILE.replace("# adit: name = home", "# adit: name = home\n# adit: suite = aes-256-gcm");
        let error = exported(&text, false).unwrap_err().to_string();
        assert!(error.contains("home pins the suite aes-256-gcm"), "{error}");
    }
}
