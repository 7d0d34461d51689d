//! `adit join URL`: this machine becomes a peer of the gateway that invited it.
//!
//! ```text
//!   URL ─► keys of the invited ─► tunnel without root ─► inside API: our own key for a lease ─► profile ─► adit up
//! ```
//!
//! Our key is made here and its private half never leaves. It is on the disk before the gateway hears of it, so that
//! whoever is interrupted runs the same command again and gets the same lease.

mod asking;
mod pending;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, anyhow, bail};
use zeroize::Zeroizing;

pub use self::asking::{AskError, ask, file_of_the_invited};
use self::pending::Pending;
use crate::config::InterfaceName;
use crate::home::Home;
use crate::invite::{InviteUrl, URL_BYTES_MAX};
use crate::lease::Lease;
use crate::private_file;
use crate::privilege::{self, quote_path};
use crate::profile;
use crate::usage::Usage;

/// What `adit join` is told.
#[derive(Clone, clap::Args)]
pub struct JoinArgs {
    /// What `adit invite` printed on the gateway, or where it is: `-` for stdin, file:PATH or env:NAME
    #[arg(value_name = "URL")]
    url: String,
    /// Name of the profile and of its interface [default: adit0, or the next that is free]
    #[arg(long, value_name = "NAME")]
    name: Option<InterfaceName>,
    /// Store the profile and do not bring the tunnel up; needs no root
    #[arg(long)]
    no_up: bool,
    /// Stay in the foreground once the tunnel is up
    #[arg(short, long, conflicts_with = "no_up")]
    foreground: bool,
}

impl std::fmt::Debug for JoinArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinArgs").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Joins, stores the profile and brings the tunnel up.
///
/// # Errors
/// The invite is wrong, over, or unknown, or the gateway does not answer; nothing is left behind then.
pub fn run(home: &Home, args: &JoinArgs, global: &[OsString]) -> anyhow::Result<ExitCode> {
    if !args.no_up && !privilege::may_configure_network() {
        bail!(
            "`adit join` makes a network interface and routes, which only root may do; run it with sudo, or add \
             --no-up and use the tunnel with `adit run` and `adit proxy`, which need no root"
        );
    }
    let text = read_url(&args.url)?;
    let is_written_out =
        args.url != "-" && !["file:", "env:"].iter().any(|place| args.url.starts_with(place));
    let url = match InviteUrl::parse(&text) {
        Err(error) if is_written_out => return Err(Usage(error.to_string()).into()),
        parsed => parsed?,
    };
    if is_written_out {
        hide(args, &text, home, global);
    }
    drop(text);
    let (name, lease) = join(home, args.name.as_ref(), &url)?;
    let addresses: Vec<String> = lease.addresses.iter().map(ToString::to_string).collect();
    eprintln!(
        "joined the gateway {} as {}, with {} and {}",
        url.endpoint,
        lease.name,
        addresses.join(" and "),
        lease.suite
    );
    eprintln!("stored the profile {}", profile::path(home, &name).display());
    if args.no_up {
        let flag = home.flag();
        eprintln!("next: `sudo adit up {name}{flag}`, or `adit run {name}{flag} -- CMD` without root");
        return Ok(ExitCode::SUCCESS);
    }
    bring_up(home, &name, args, global)
}

fn join(
    home: &Home,
    wanted: Option<&InterfaceName>,
    url: &InviteUrl,
) -> anyhow::Result<(InterfaceName, Lease)> {
    profile::create_directory(home)?;
    // Two at a time would choose the same name.
    let _lock = private_file::lock(&profile::directory(home).join(".lock"))?;
    let name = match wanted {
        Some(name) => name.clone(),
        None => profile::free_name(home)?,
    };
    let path = profile::path(home, &name);
    if path.symlink_metadata().is_ok() {
        bail!(
            "there is a profile {} already; choose another name with --name NAME, or remove that file",
            path.display()
        );
    }
    let pending = Pending::start(home, url)?;
    let lease = match ask(url, pending.private_key()) {
        Ok(lease) => lease,
        Err(AskError::Lost(reason)) => {
            pending.keep();
            bail!(
                "the gateway may have taken this machine in, but its answer did not arrive ({reason}); run the same \
                 command again, which goes on from here"
            );
        }
        Err(AskError::NoAnswer(reason)) => {
            pending.give_up();
            let up = crate::control::held(home).unwrap_or_default();
            if !up.is_empty() {
                bail!(
                    "{reason}. Also, {} is up here: if it is a full tunnel it takes this question too, or keeps it in; \
                     `adit down{}` ends it",
                    up.join(" and "),
                    home.flag()
                );
            }
            return Err(anyhow!(reason));
        }
        Err(AskError::NotNow(reason)) => {
            pending.give_up();
            bail!(
                "{} says: {reason}; nothing was changed there or here: run the same command again once that is mended",
                url.endpoint
            );
        }
        Err(AskError::Refused(reason)) => {
            pending.end()?;
            bail!("{} says: {reason}", url.endpoint);
        }
    };
    if lease.gateway != url.gateway {
        bail!("the gateway gave a lease for another gateway; nothing was stored");
    }
    let file = lease.client_file(pending.private_key().clone())?;
    let stored = profile::store(home, &name, &file);
    if let Err(error) = stored {
        pending.keep();
        return Err(error).context(
            "this machine has joined, but its profile cannot be stored; run the same command again once it can",
        );
    }
    pending.end()?;
    Ok((name, lease))
}

/// The URL itself, or the text where it is.
fn read_url(named: &str) -> anyhow::Result<Zeroizing<String>> {
    if named == "-" {
        let mut text = Zeroizing::new(String::with_capacity(URL_BYTES_MAX + 1));
        io::stdin()
            .take(URL_BYTES_MAX as u64 + 1)
            .read_to_string(&mut text)
            .context("cannot read an invite from stdin")?;
        return Ok(text);
    }
    if let Some(path) = named.strip_prefix("file:") {
        let bytes = private_file::read(Path::new(path)).map_err(|error| {
            let fix = error.fix();
            anyhow!("{error}; {fix}")
        })?;
        let text = std::str::from_utf8(&bytes).map_err(|_| anyhow!("{path} holds no invite"))?;
        return Ok(Zeroizing::new(text.to_owned()));
    }
    if let Some(name) = named.strip_prefix("env:") {
        let value = std::env::var(name)
            .map_err(|_| anyhow!("the environment variable {name} is not set; set it to the invite"))?;
        return Ok(Zeroizing::new(value));
    }
    Ok(Zeroizing::new(named.to_owned()))
}

/// Starts this program over with the URL in a pipe: every user of this host sees the arguments of a process. When that
/// does not work it goes on as it is, because the URL was seen already.
fn hide(args: &JoinArgs, text: &str, home: &Home, global: &[OsString]) {
    let Ok(program) = std::env::current_exe() else { return };
    let Ok((reader, mut writer)) = io::pipe() else { return };
    // A pipe holds more than a URL can have, so this does not wait.
    if text.len() > URL_BYTES_MAX || writer.write_all(text.as_bytes()).is_err() {
        return;
    }
    drop(writer);
    let mut again = Command::new(program);
    again.args(home.arguments()).args(global).args(["join", "-"]).stdin(Stdio::from(reader));
    if let Some(name) = &args.name {
        again.args(["--name", name.as_str()]);
    }
    again.args(args.no_up.then_some("--no-up")).args(args.foreground.then_some("--foreground"));
    let error = again.exec();
    tracing::debug!(%error, "cannot start over");
}

/// `adit up NAME`, in a process whose arguments hold no secret.
fn bring_up(
    home: &Home,
    name: &InterfaceName,
    args: &JoinArgs,
    global: &[OsString],
) -> anyhow::Result<ExitCode> {
    let flag = home.flag();
    let program = std::env::current_exe().context("cannot find this program to bring the tunnel up")?;
    let mut up = Command::new(&program);
    up.args(home.arguments()).args(global).arg("up").arg(profile::path(home, name));
    if let Some(variable) = args.url.strip_prefix("env:") {
        // It holds the URL, and the tunnel lives long.
        up.env_remove(variable);
    }
    if args.foreground {
        let error = up.arg("--foreground").exec();
        bail!("cannot run {}: {error}; run `adit up {name}{flag}`", quote_path(&program));
    }
    let status = up.status().with_context(|| format!("cannot run {}", quote_path(&program)))?;
    if status.success() {
        eprintln!("the tunnel {name} is up; `adit status{flag}` shows it, `adit down{flag}` ends it");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("this machine has joined all the same: `adit up {name}{flag}` tries again");
    Ok(ExitCode::FAILURE)
}

impl Home {
    /// The arguments with which another process of this program uses the same home.
    pub fn arguments(&self) -> Vec<OsString> {
        self.chosen().map(|directory| vec!["--home".into(), directory.into()]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_from_where_it_is() {
        assert_eq!(read_url("adit://x").unwrap().as_str(), "adit://x");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "adit://from-a-file\n").unwrap();
        let named = format!("file:{}", file.path().display());
        assert_eq!(read_url(&named).unwrap().as_str(), "adit://from-a-file\n");
        assert!(read_url("file:/no/such/file").unwrap_err().to_string().contains("there is no file"));
        assert!(read_url("env:ADIT_TEST_NO_SUCH_VARIABLE").unwrap_err().to_string().contains("is not set"));
    }

    #[test]
    fn the_arguments_never_show_the_url() {
        let args = JoinArgs { url: "adit://canary".to_owned(), name: None, no_up: false, foreground: false };
        assert!(!format!("{args:?}").contains("canary"));
    }
}
