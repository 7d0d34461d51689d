//! `adit peer rename`, `enable`, `disable` and `set`: changes to a peer that keep its key and lease.

use std::process::ExitCode;

use anyhow::bail;

use super::{peer_of, tell_gateways};
use crate::config::diagnostic::did_you_mean;
use crate::config::{Config, Document, KEYS, Key, Kind, Layers, PeerName};
use crate::home::Home;
use crate::state::Lock;
use crate::usage::Usage;

/// What `adit peer set` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct SetArgs {
    /// The peer
    name: PeerName,
    /// A key of [[peer]] and its value; lists have commas, and KEY= sets the default again
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

/// Keys with a verb of their own, or that are the peer itself.
const OTHERWISE: &[(&str, &str)] = &[
    ("name", "rename it with `adit peer rename OLD NEW{}`"),
    ("public_key", "a peer with another key is another peer: `adit invite NAME{}` or `adit peer add NAME{}`"),
];

/// Gives a peer another name; its sessions go on.
///
/// # Errors
/// There is no such peer, or the name is taken.
pub fn rename(home: &Home, old: &PeerName, new: &PeerName, layers: &Layers) -> anyhow::Result<ExitCode> {
    change(home, old, layers, |document, config| {
        if config.peers.iter().any(|peer| peer.name == *new) {
            bail!("there is a peer `{new}` already; nothing was changed");
        }
        document.set_peer(old, "name", new.as_str().into())
    })?;
    eprintln!("{old} is called {new} now");
    Ok(ExitCode::SUCCESS)
}

/// Lets a peer connect, or keeps it out and cuts its sessions.
///
/// # Errors
/// There is no such peer, or a running gateway may not know.
pub fn enable(home: &Home, name: &PeerName, enabled: bool, layers: &Layers) -> anyhow::Result<ExitCode> {
    change(home, name, layers, |document, _| match enabled {
        true => document.unset_peer(name, "enabled"),
        false => document.set_peer(name, "enabled", false.into()),
    })?;
    match enabled {
        true => eprintln!("{name} may connect"),
        false => eprintln!("{name} is kept out; `adit peer enable {name}{}` lets it in again", home.flag()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets keys of a peer.
///
/// # Errors
/// There is no such peer or key, or a value is wrong; nothing was changed then.
pub fn set(home: &Home, args: &SetArgs, layers: &Layers) -> anyhow::Result<ExitCode> {
    let settings: Vec<(&Key, &str)> =
        args.settings.iter().map(|text| parse(text, &home.flag())).collect::<Result<_, _>>()?;
    change(home, &args.name, layers, |document, _| {
        settings.iter().try_for_each(|(key, text)| match text.is_empty() {
            true => document.unset_peer(&args.name, key.name),
            false => document.set_peer(&args.name, key.name, value(key, text)),
        })?;
        // The line of an error would be one that was never written.
        document.check().map(drop).map_err(|report| {
            let told: Vec<String> = report
                .diagnostics()
                .iter()
                .map(|it| format!("{}; {}", it.complaint.reason, it.complaint.fix))
                .collect();
            Usage(format!("{} cannot be set so: {}; nothing was changed", args.name, told.join("; "))).into()
        })
    })?;
    eprintln!("changed {}", args.name);
    Ok(ExitCode::SUCCESS)
}

fn parse<'a>(text: &'a str, flag: &str) -> Result<(&'static Key, &'a str), Usage> {
    let wrong = |reason: String| Err(Usage(reason));
    let Some((name, value)) = text.split_once('=') else {
        return wrong(format!(
            "`{text}` sets nothing: write KEY=VALUE, for example `persistent_keepalive_secs=25`"
        ));
    };
    if let Some((_, otherwise)) = OTHERWISE.iter().find(|(key, _)| *key == name) {
        return wrong(format!("`{name}` cannot be set here: {}", otherwise.replace("{}", flag)));
    }
    let keys = || KEYS.iter().filter(|key| key.section == "peer");
    match keys().find(|key| key.name == name) {
        Some(key) if key.kind == Kind::Secret && !value.is_empty() && !is_reference(value) => wrong(format!(
            "other users of this host see what is in a command: write the secret to a file that only you can read, \
             and `{name}=file:PATH` here"
        )),
        Some(key) => Ok((key, value)),
        None => {
            let names: Vec<&str> = keys().map(|key| key.name).collect();
            match did_you_mean(name, names.iter().copied()) {
                Some(word) => wrong(format!("a peer has no key `{name}`; did you mean `{word}`?")),
                None => wrong(format!("a peer has no key `{name}`; it has {}", names.join(", "))),
            }
        }
    }
}

fn is_reference(text: &str) -> bool {
    text.starts_with("file:") || text.starts_with("env:")
}

/// The text as TOML of the right kind; whether it is right is checked where every configuration is.
fn value(key: &Key, text: &str) -> toml_edit::Value {
    match key.kind {
        Kind::Switch => text.parse::<bool>().map_or_else(|_| text.into(), Into::into),
        Kind::List => {
            let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
            toml_edit::Value::Array(words.collect())
        }
        Kind::NumberOrText => text.parse::<i64>().map_or_else(|_| text.into(), Into::into),
        Kind::Text | Kind::Secret => text.into(),
    }
}

fn change(
    home: &Home,
    name: &PeerName,
    layers: &Layers,
    change: impl FnOnce(&mut Document, &Config) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    {
        let _lock = Lock::hold(home)?;
        let config = Config::load(home, layers)?;
        peer_of(home, &config, name)?;
        let mut document = Document::open(&home.config_file())?;
        change(&mut document, &config)?;
        document.save()?;
    }
    let told = tell_gateways(home);
    told.print();
    if told.failures.is_empty() {
        return Ok(());
    }
    bail!(
        "{} is changed, but not in effect: {}; restart that gateway",
        home.config_file().display(),
        told.failures.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_keys_of_peers_and_secrets_are_never_written_out() {
        let error = |text: &str| parse(text, "").unwrap_err().to_string();
        assert_eq!(parse("persistent_keepalive_secs=25", "").unwrap().1, "25");
        assert_eq!(parse("endpoint=", "").unwrap().1, "");
        assert!(error("endpiont=x").contains("did you mean `endpoint`?"));
        assert!(error("endpoint").contains("KEY=VALUE"));
        assert!(error("name=x").contains("adit peer rename"));
        let secret = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        let refused = error(&format!("preshared_key={secret}"));
        assert!(refused.contains("file:PATH") && !refused.contains(secret), "{refused}");
        assert!(parse("preshared_key=file:/x", "").is_ok() && parse("preshared_key=", "").is_ok());
    }

    #[test]
    fn values_become_toml_of_their_kind() {
        let text = |setting: &str| {
            let (key, text) = parse(setting, "").unwrap();
            value(key, text).to_string()
        };
        assert_eq!(text("enabled=false"), "false");
        assert_eq!(text("tags=a, b"), "[\"a\", \"b\"]");
        assert_eq!(text("persistent_keepalive_secs=25"), "25");
        assert_eq!(text("persistent_keepalive_secs=off"), "\"off\"");
        assert_eq!(text("endpoint=a:1"), "\"a:1\"");
    }
}
