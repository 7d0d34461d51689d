//! `adit config`: what is set, by whom, and in which version of the file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::config::diagnostic::escape;
use crate::config::wgquick::{Hooks, WgQuick};
use crate::config::{CONFIG_VERSION, ClientSettings, Config, Document, Layers, Setting};
use crate::home::Home;
use crate::private_file;
use crate::profile::{self, ForVerb};
use crate::state::Lock;

/// What `adit config` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigVerb {
    /// Show every setting of the gateway, or of a client with PROFILE
    Show(ShowArgs),
    /// Bring adit.toml to the version of this program; a backup is kept
    Migrate,
}

/// What `adit config show` is told.
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// A profile or wg-quick file: the settings of `adit up` with it
    #[arg(value_name = "FILE.conf|NAME")]
    profile: Option<PathBuf>,
    /// Tell for each value whether a flag, a variable, a file or nobody set it
    #[arg(long)]
    origin: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
/// The configuration is wrong.
pub fn run(home: &Home, verb: &ConfigVerb, layers: &Layers) -> anyhow::Result<ExitCode> {
    match verb {
        ConfigVerb::Show(args) => show(home, args, layers),
        ConfigVerb::Migrate => migrate(home),
    }
}

fn show(home: &Home, args: &ShowArgs, layers: &Layers) -> anyhow::Result<ExitCode> {
    let settings = match &args.profile {
        Some(named) => {
            let path = profile::find(home, Some(named), ForVerb("config show", ""))?;
            let file = WgQuick::load(&path, Hooks::Allowed)?;
            ClientSettings::load(home, layers, Some(&file))?.settings
        }
        None if Document::open(&home.config_file()).is_ok_and(|it| it.has("gateway") || it.has("peer")) => {
            Config::load(home, layers)?.settings
        }
        // A client has no file of its own unless it wants one.
        None => ClientSettings::load(home, layers, None)?.settings,
    };
    let page = if args.json { as_json(&settings)? } else { as_page(&settings, args.origin) };
    crate::print_line(page.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(settings: &[Setting]) -> anyhow::Result<String> {
    let list: Vec<_> = settings
        .iter()
        .map(|setting| {
            json!({"key": setting.key, "value": setting.value, "origin": setting.origin.to_string()})
        })
        .collect();
    Ok(serde_json::to_string(&json!({"schema": 1, "settings": list}))?)
}

fn as_page(settings: &[Setting], origin: bool) -> String {
    let width = |of: fn(&Setting) -> usize| settings.iter().map(of).max().unwrap_or_default();
    let keys = width(|setting| setting.key.len());
    let values = width(|setting| setting.value.chars().count()).min(40);
    let mut page = String::new();
    for Setting { key, value, origin: by } in settings {
        let value = escape(value);
        let line = match origin {
            true => format!("{key:<keys$}  {value:<values$}  {}", escape(&by.to_string())),
            false => format!("{key:<keys$}  {value}"),
        };
        page.push_str(line.trim_end());
        page.push('\n');
    }
    page
}

/// What changes between two versions of the file. Version 1 is the first: a file without a version is from before it.
fn migrate(home: &Home) -> anyhow::Result<ExitCode> {
    let path = home.config_file();
    let _lock = Lock::hold(home)?;
    let mut document = Document::open(&path)?;
    let name = path.display();
    match document.version() {
        Some(version) if version == i64::from(CONFIG_VERSION) => {
            document.check()?;
            crate::print_line(&format!(
                "{name} is of version {CONFIG_VERSION}, the newest; nothing was changed"
            ))?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(version) if version > i64::from(CONFIG_VERSION) => bail!(
            "{name} is of version {version}, and this adit knows {CONFIG_VERSION} at most; use the adit it was made for"
        ),
        Some(version) => {
            bail!("{name} claims to be of version {version}, which never was; nothing was changed")
        }
        None => document.set_version(CONFIG_VERSION),
    }
    document.check()?;
    let backup = private_file::keep_backup(&path, ".before-migration")
        .context("cannot keep a backup, so nothing was changed")?;
    document.save()?;
    crate::print_line(&format!(
        "{name} is of version {CONFIG_VERSION} now; as it was before it is kept as {}",
        backup.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    const BODY: &str = "# mine\n[gateway]\nprivate_key = \"eEBhN6cK2cF1bkjZlMVY4XlZ5LkVbPYMa1xgKPYo1Fk=\"\n";

    fn home(text: &str) -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        private_file::write(&home.config_file(), text.as_bytes()).unwrap();
        (directory, home)
    }

    fn backup_of(home: &Home, number: u32) -> PathBuf {
        home.config_dir.join(format!("adit.toml.before-migration{number}"))
    }

    fn text(home: &Home) -> String {
        std::fs::read_to_string(home.config_file()).unwrap()
    }

    #[test]
    fn a_file_without_a_version_gets_one_and_the_one_before_is_kept() {
        let (_directory, home) = home(BODY);
        assert!(Config::load(&home, &Layers::default()).is_err());
        migrate(&home).unwrap();
        Config::load(&home, &Layers::default()).unwrap();
        assert!(
            text(&home).starts_with("config_version = 1\n") && text(&home).contains("# mine"),
            "{}",
            text(&home)
        );
        assert_eq!(std::fs::read_to_string(backup_of(&home, 1)).unwrap(), BODY);
        let now = text(&home);
        migrate(&home).unwrap();
        assert_eq!(text(&home), now, "once is enough");

        let other = BODY.replace("# mine", "# another");
        private_file::write(&home.config_file(), other.as_bytes()).unwrap();
        migrate(&home).unwrap();
        let kept = [1, 2].map(|number| std::fs::read_to_string(backup_of(&home, number)).unwrap());
        assert_eq!(kept, [BODY.to_owned(), other], "each as it was before");
    }

    #[test]
    fn a_file_of_the_future_or_a_wrong_one_stays_as_it_is() {
        for wrong in [
            format!("config_version = 2\n{BODY}"),
            format!("config_version = 0\n{BODY}"),
            BODY.replace("eE", "!"),
        ] {
            let (_directory, home) = home(&wrong);
            assert!(migrate(&home).is_err());
            assert_eq!(text(&home), wrong);
            assert!(!backup_of(&home, 1).exists());
        }
    }

    #[test]
    fn settings_are_shown_with_who_set_them() {
        let setting =
            |key: &str, value: &str, origin| Setting { key: key.into(), value: value.into(), origin };
        let settings = [
            setting("gateway.mtu", "1400", Origin::Environment("ADIT_GATEWAY_MTU".into())),
            setting("gateway.listen", ":51820", Origin::Default),
        ];
        assert_eq!(as_page(&settings, false), "gateway.mtu     1400\ngateway.listen  :51820\n");
        assert_eq!(
            as_page(&settings, true),
            "gateway.mtu     1400    environment variable ADIT_GATEWAY_MTU\ngateway.listen  :51820  default\n"
        );
        assert!(as_json(&settings).unwrap().contains("\"origin\":\"default\""));
    }
}
