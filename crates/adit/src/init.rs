//! `adit init`: the configuration of a gateway, without a question.

mod network;
mod place;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use adit_host::Surroundings;
use anyhow::{Context, bail};
use ipnet::{Ipv4Net, Ipv6Net};
use zeroize::Zeroizing;

use crate::config::name::InterfaceName;
use crate::config::{
    Config, Document, KEYS, Kind, Layers, Report, ServiceUrl, Source, parse_network, parse_network6,
};
use crate::endpoint::HostPort;
use crate::gateway::IPV6_OFF;
use crate::home::Home;
use crate::keys;
use crate::private_file;
use crate::state::Lock;

/// WireGuard's port.
const DEFAULT_PORT: u16 = 51820;

/// What `adit init` may be told. What it is not told, it decides.
#[derive(Clone, Debug, clap::Args)]
pub struct InitArgs {
    /// Where clients reach this gateway [default: this host's address, when it is a public one]
    #[arg(long, value_name = "HOST:PORT")]
    pub endpoint: Option<HostPort>,
    /// UDP port to listen on, on every address [default: the port of the endpoint]
    #[arg(long, value_name = "[ADDR]:PORT", value_parser = crate::config::parse_listen)]
    pub listen: Option<u16>,
    /// IPv4 network inside the tunnel [default: 10.86.0.0/24, or the next that is free here]
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    pub network: Option<Ipv4Net>,
    /// IPv6 network inside the tunnel [default: a random private /64]
    #[arg(long, value_name = "CIDR", value_parser = parse_network6)]
    pub network6: Option<Ipv6Net>,
    /// Name of the tunnel interface [default: adit0]
    #[arg(long, value_name = "NAME")]
    pub interface: Option<InterfaceName>,
    /// Change an existing configuration as told; key and peers stay, a backup is kept
    #[arg(long)]
    pub force: bool,
}

/// Writes `adit.toml` of `home`, or compares it with what is asked when it is there already.
///
/// # Errors
/// The file cannot be written, or exists and is wrong.
pub fn run(home: &Home, args: &InitArgs) -> anyhow::Result<ExitCode> {
    let _lock = Lock::hold(home)?;
    let path = home.config_file();
    if fs::symlink_metadata(&path).is_ok() {
        return existing(home, &path, args);
    }
    let decisions = Decisions::make(home, args)?;
    write_checked(&path, &decisions.file()?)?;
    decisions.print()?;
    let flag = home.flag();
    crate::print_line(&format!(
        "\nwrote {} (mode 0600; it holds the key of the gateway)\nnext: adit gateway{flag}           run it here, or \
         `adit service install{flag}` for good\n      adit invite laptop{flag}     a URL with which a machine joins",
        path.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// What was decided, and why.
struct Decisions {
    endpoint: (HostPort, String),
    uplink: Option<String>,
    port: (u16, String),
    network: (Ipv4Net, String),
    network6: (Option<Ipv6Net>, String),
    interface: (InterfaceName, String),
}

impl Decisions {
    fn make(home: &Home, args: &InitArgs) -> anyhow::Result<Self> {
        let given = || "as you said".to_owned();
        let around = adit_host::surroundings().unwrap_or_else(|error| {
            eprintln!("warning: {error}; networks of this host may clash with the ones chosen here");
            Surroundings::default()
        });
        let port = match (args.listen, &args.endpoint) {
            (Some(port), _) => (port, given()),
            (None, Some(endpoint)) => (endpoint.port, "the port of the endpoint".to_owned()),
            (None, None) => place::free_port(DEFAULT_PORT),
        };
        let endpoint = match &args.endpoint {
            Some(endpoint) => (endpoint.clone(), given()),
            None => {
                let found = place::find(home, port.0)?;
                (HostPort { host: found.host.to_string(), port: port.0 }, found.reason)
            }
        };
        let network = match args.network {
            Some(network) => (network, given()),
            None => network::free(&network::taken(&around))?,
        };
        let network6 = match args.network6 {
            Some(network) => (Some(network), given()),
            None if !adit_host::ipv6_enabled() => (None, format!("left out: {IPV6_OFF}")),
            None => {
                let reason = "random and private (RFC 4193), so it clashes with no other";
                (Some(network::random6(&network::taken(&around))?), reason.to_owned())
            }
        };
        let interface = match &args.interface {
            Some(name) => (name.clone(), given()),
            None => place::free_interface()?,
        };
        let uplink = around.uplinks.first().cloned();
        Ok(Self { endpoint, uplink, port, network, network6, interface })
    }

    fn value(&self, key: &str) -> Option<String> {
        match key {
            "interface" => Some(self.interface.0.to_string()),
            "listen" => Some(format!(":{}", self.port.0)),
            "endpoint" => Some(self.endpoint.0.to_string()),
            "network" => Some(self.network.0.to_string()),
            "network6" => self.network6.0.map(|network| network.to_string()),
            _ => None,
        }
    }

    /// Every key with what it is for; those that keep their default stand in comments.
    fn file(&self) -> anyhow::Result<Zeroizing<String>> {
        let key = keys::generate_private()?;
        let mut text = Zeroizing::new(String::with_capacity(4096));
        text.push_str(
            "# The configuration of an adit gateway. `adit check` checks it, `adit gateway` runs it.\n\
             # A variable such as ADIT_GATEWAY_LISTEN comes before the file, a flag before both.\n\n\
             config_version = 1\n",
        );
        let mut section = "";
        for key_info in KEYS.iter().filter(|key| key.section != "peer") {
            if key_info.section != section {
                section = key_info.section;
                write!(text, "\n[{section}]\n")?;
            }
            writeln!(text, "# {}", key_info.about)?;
            let name = key_info.name;
            match (self.value(name), key_info.default) {
                _ if name == "private_key" => {
                    writeln!(text, "private_key = \"{}\"", keys::secret_text(key.as_bytes()).as_str())?;
                }
                (Some(value), _) if section == "gateway" => writeln!(text, "{name} = \"{value}\"")?,
                (_, Some(default @ ("true" | "false"))) => writeln!(text, "# {name} = {default}")?,
                (_, Some(default)) => writeln!(text, "# {name} = \"{default}\"")?,
                (_, None) if key_info.kind == Kind::List => {
                    writeln!(text, "# {name} = [{}]", example(section, name))?;
                }
                (_, None) => writeln!(text, "# {name} = \"\"")?,
            }
        }
        text.push_str("\n# `adit peer add NAME` appends a [[peer]] section for each client.\n");
        Ok(text)
    }

    fn print(&self) -> anyhow::Result<()> {
        let uplink_reason = match &self.uplink {
            Some(_) => {
                "the way to the internet; clients go there with this host's address (masquerade)".to_owned()
            }
            None => "this host has no default route; clients reach what it reaches".to_owned(),
        };
        let lines = [
            ("endpoint", self.endpoint.0.to_string(), &self.endpoint.1),
            ("uplink", self.uplink.clone().unwrap_or_else(|| "none".to_owned()), &uplink_reason),
            ("listen", format!("UDP port {}", self.port.0), &self.port.1),
            ("network", self.network.0.to_string(), &self.network.1),
            (
                "network6",
                self.network6.0.map_or("none".to_owned(), |network| network.to_string()),
                &self.network6.1,
            ),
            ("interface", self.interface.0.to_string(), &self.interface.1),
        ];
        for (name, value, reason) in lines {
            crate::print_line(&format!("  {name:<10} {value:<28} {reason}"))?;
        }
        crate::print_line(&format!("  {:<10} {:<28} made here, never printed", "key", "a new X25519 key"))
    }
}

/// What may stand in a list that is not there by default, where an empty one would mean something else.
fn example(section: &str, name: &str) -> String {
    match (section, name) {
        ("gateway", "allow") => "\"* -> *\"".to_owned(),
        ("ip", "services") => {
            ServiceUrl::usual().iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", ")
        }
        _ => String::new(),
    }
}

/// There is a file already: leave it, or change what is asked and keep a backup.
fn existing(home: &Home, path: &Path, args: &InitArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(home, &Layers::default())
        .with_context(|| format!("{} exists and is wrong; it was left as it is", path.display()))?;
    let changes = differences(&config, args);
    if changes.is_empty() {
        crate::print_line(&format!(
            "{} exists already and says the same; nothing was changed",
            path.display()
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.force {
        let list: Vec<String> = changes
            .iter()
            .map(|change| format!("{} is {}, not {}", change.key, change.now, change.asked))
            .collect();
        bail!(
            "{} exists already and differs: {}; nothing was changed; edit the file, or add --force to change it (a \
             backup is kept)",
            path.display(),
            list.join("; ")
        );
    }
    let mut document = Document::open(path)?;
    for change in &changes {
        document.set_gateway(change.key, &change.asked)?;
    }
    document.check().context("the change would make the configuration wrong; nothing was changed")?;
    let backup = private_file::keep_backup(path, ".bak")?;
    document.save()?;
    for change in &changes {
        crate::print_line(&format!("  {:<10} {} (was {})", change.key, change.asked, change.now))?;
    }
    crate::print_line(&format!("changed {}; the old file is {}", path.display(), backup.display()))?;
    crate::print_line(
        "files of clients that were made before keep the old values: send them new ones if they need them",
    )?;
    Ok(ExitCode::SUCCESS)
}

struct Change {
    key: &'static str,
    now: String,
    asked: String,
}

fn differences(config: &Config, args: &InitArgs) -> Vec<Change> {
    let gateway = &config.gateway;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "not set".to_owned());
    let all = [
        (
            "endpoint",
            or_none(gateway.endpoint.as_ref().map(ToString::to_string)),
            args.endpoint.as_ref().map(ToString::to_string),
        ),
        ("listen", format!(":{}", gateway.listen_port), args.listen.map(|port| format!(":{port}"))),
        ("network", gateway.network.to_string(), args.network.map(|network| network.to_string())),
        (
            "network6",
            or_none(gateway.network6.map(|network| network.to_string())),
            args.network6.map(|network| network.to_string()),
        ),
        ("interface", gateway.interface.to_string(), args.interface.as_ref().map(ToString::to_string)),
    ];
    all.into_iter()
        .filter_map(|(key, now, asked)| {
            Some(Change { key, asked: asked.filter(|asked| *asked != now)?, now })
        })
        .collect()
}

fn write_checked(path: &Path, text: &str) -> anyhow::Result<()> {
    let source = Source::new(path.display().to_string(), text);
    let checked: Result<Config, Report> = Config::parse(&source, Path::new("."), &Layers::default());
    checked.context("these choices do not fit together; nothing was written")?;
    private_file::write(path, text.as_bytes())
}
