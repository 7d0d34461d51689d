//! The command line: what can be said, and who does it.

mod global;
mod print;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::global::Color;
use self::global::{Global, asked_color, clap_color};
use self::print::{completions, man, version};
use crate::client::{self, UpOptions};
use crate::config::diagnostic::escape;
use crate::config::name::{InterfaceName, PeerName};
use crate::config::{self, ClientFlags, Complaint, Config, Layers, Report};
use crate::events::{self, EventsArgs};
use crate::export::ExportArgs;
use crate::home::Home;
use crate::import::ImportArgs;
use crate::log::LogOptions;
use crate::profile::{self, ForVerb};
use crate::settings::ConfigVerb;
use crate::status::Asking;
use crate::usage::Usage;
use crate::{
    bench, check, demo, exclude, export, gateway, import, init, invite, ip, join, keys, lockdown, peer, plan,
    proxy, reload, restore, run, service, settings, status, verify, wg,
};

/// The name under which the program is a userspace WireGuard device, as wg-quick calls one.
const DEVICE_NAME: &str = "adit-wg";

const EXAMPLES: &str = "\
First run, on the gateway:
  adit init
  adit gateway
  adit invite laptop

On the laptop, with the URL that the last one printed:
  adit join 'URL'
  adit status
  adit down

To see everything on one machine, without touching its network:
  adit demo

Called as adit-wg (ln -s adit adit-wg) it is a device for wg-quick:
  WG_QUICK_USERSPACE_IMPLEMENTATION=adit-wg wg-quick up wg0";

/// A self-hosted VPN in one program: gateway, client and userspace WireGuard device.
#[derive(Debug, Parser)]
#[command(name = "adit", version, about, after_help = EXAMPLES, propagate_version = true)]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write the configuration of a gateway
    Init(init::InitArgs),
    /// Run the gateway until it is told to stop
    Gateway(GatewayArgs),
    /// Invite a machine to the gateway: one URL for `adit join`
    Invite(invite::InviteArgs),
    /// Manage the peers of the gateway
    #[command(subcommand)]
    Peer(PeerVerb),
    /// Become a peer of the gateway that made an invite, and bring the tunnel up
    Join(join::JoinArgs),
    /// Bring a tunnel up from a profile or a wg-quick file
    Up {
        /// A wg-quick file, or the name of a profile [default: the only profile]
        #[arg(value_name = "FILE.conf|NAME")]
        file: Option<PathBuf>,
        /// Stay in the foreground
        #[arg(short, long)]
        foreground: bool,
        /// Run PreUp, PostUp, PreDown and PostDown of the file, as root
        #[arg(long)]
        allow_hooks: bool,
        #[command(flatten)]
        settings: ClientFlags<true>,
    },
    /// Run one command whose only network is the tunnel; needs no root
    Run {
        /// A wg-quick file, or the name of a profile [default: the only profile]
        #[arg(value_name = "FILE.conf|NAME")]
        file: Option<PathBuf>,
        #[command(flatten)]
        settings: ClientFlags<false>,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Run one command beside a tunnel that is up, also past its kill switch
    Exclude {
        /// The tunnel [default: the only one]
        #[arg(value_name = "IFNAME")]
        interface: Option<String>,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Show what `up` or `gateway` would change on this host, and change nothing
    #[command(subcommand)]
    Plan(plan::PlanVerb),
    /// Close this host while no tunnel is up, as `[client]` says or as told; for boot
    Lockdown {
        /// Whatever is configured
        order: Option<lockdown::Order>,
    },
    /// Bring a tunnel down and put the host back as it was
    Down {
        /// The interface or its file [default: the only one]
        name: Option<String>,
    },
    /// Put back what tunnels and gateways that were killed, or cut off by a reboot, left; for boot
    Restore,
    /// Run the gateway or a tunnel as a service of systemd
    #[command(subcommand)]
    Service(service::ServiceVerb),
    /// Serve SOCKS5, HTTP and single ports through a tunnel, without root
    Proxy(proxy::ProxyArgs),
    /// Show what runs here and how it is
    Status {
        /// Only this interface
        interface: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show it again every SECONDS, until Ctrl-C
        #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
        #[arg(default_missing_value = "2", value_parser = clap::value_parser!(u16).range(1..=3600))]
        watch: Option<u16>,
    },
    /// Show who connected, left, was enrolled or refused
    Events(EventsArgs),
    /// Let what runs here read its configuration again, without dropping a session
    Reload {
        /// Only this interface
        interface: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show or migrate the configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Take a wg-quick file over, with its iptables commands as settings
    Import(ImportArgs),
    /// Print a profile as a wg-quick file for a stock WireGuard
    Export(ExportArgs),
    /// Test whether anything leaves this host beside its tunnel
    Verify(verify::VerifyArgs),
    /// Measure the tunnel to the gateway, and what limits it
    Bench(bench::BenchArgs),
    /// Show the address the world sees, and whether it is your own
    Ip(ip::IpArgs),
    /// Be a userspace WireGuard device, for wg and wg-quick
    Wg {
        /// The device to make
        #[arg(value_name = "IFNAME")]
        interface: String,
        /// Stay in the foreground
        #[arg(short, long)]
        foreground: bool,
    },
    /// Show everything at work on this machine alone
    Demo(demo::DemoArgs),
    /// Check a configuration file without touching anything
    Check {
        /// An adit.toml or a wg-quick .conf file [default: adit.toml of the home]
        file: Option<PathBuf>,
        /// Accept PreUp, PostUp, PreDown and PostDown
        #[arg(long)]
        allow_hooks: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a new private key
    Genkey,
    /// Print the public key of the private key on stdin
    Pubkey,
    /// Print a new pre-shared key
    Genpsk,
    /// Print the version
    Version {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man {
        /// Write a page for every verb into DIR
        #[arg(long, value_name = "DIR")]
        all: Option<PathBuf>,
    },
    /// Be a server or client of the laboratory
    #[command(hide = true)]
    Lab {
        /// The agent and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Settings of `[gateway]` for one run.
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// Name of the tunnel interface
    #[arg(long, value_name = "NAME", value_parser = checked(str::parse::<InterfaceName>))]
    interface: Option<String>,
    /// UDP port, on every address
    #[arg(long, value_name = "[ADDR]:PORT", value_parser = checked(config::parse_listen))]
    listen: Option<String>,
    /// MTU of the tunnel interface
    #[arg(long, value_name = "auto|BYTES", value_parser = checked(config::parse_mtu))]
    mtu: Option<String>,
    /// Mark on outside packets
    #[arg(long, value_name = "off|MARK", value_parser = checked(config::parse_fwmark))]
    fwmark: Option<String>,
    /// Give clients the internet with this host's address
    #[arg(long, value_name = "true|false", value_parser = checked(config::parse_switch))]
    masquerade: Option<String>,
    /// Let clients reach each other
    #[arg(long, value_name = "true|false", value_parser = checked(config::parse_switch))]
    client_to_client: Option<String>,
    /// Offloads of the kernel
    #[arg(long, value_name = "auto|off", value_parser = checked(config::parse_offload))]
    offload: Option<String>,
    /// Threads that carry packets
    #[arg(long, value_name = "auto|N", value_parser = checked(config::parse_lanes))]
    lanes: Option<String>,
}

#[derive(Debug, Subcommand)]
enum PeerVerb {
    /// Make a peer and print its wg-quick file
    Add(peer::AddArgs),
    /// List the peers
    #[command(visible_alias = "ls")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a peer, without its secrets
    Show {
        /// The peer
        name: PeerName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a peer
    #[command(visible_alias = "remove")]
    Rm {
        /// The peer
        name: PeerName,
    },
    /// Give a peer another name
    #[command(visible_alias = "mv")]
    Rename {
        /// The peer
        old: PeerName,
        /// Its new name
        new: PeerName,
    },
    /// Keep a peer out, and cut its sessions
    Disable {
        /// The peer
        name: PeerName,
    },
    /// Let a peer in again
    Enable {
        /// The peer
        name: PeerName,
    },
    /// Change settings of a peer
    Set(peer::SetArgs),
    /// Print the wg-quick file of a peer once more
    Export(peer::ExportArgs),
}

/// Runs the program; the exit code is 0 for done, 1 for failed, 2 for a command that cannot be meant.
pub fn main() -> ExitCode {
    let arguments = as_device(std::env::args_os().collect());
    let color = asked_color(&arguments);
    let parsed = command().color(clap_color(color)).try_get_matches_from(arguments);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(mut error) => {
            hide_password(&mut error);
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let color = cli.global.color;
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            explain(&error, color);
            if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// The whole command line, for completions, manual pages and tests.
pub fn command() -> clap::Command {
    Cli::command()
}

impl Cli {
    fn run(self) -> anyhow::Result<ExitCode> {
        let home = Home::new(self.global.home.as_deref())?;
        let layers = self.global.layers();
        crate::wall_clock::heed(&home);
        if self.verb.holds_keys() {
            crate::daemon::forbid_core_dumps();
        }
        if !self.verb.logs_itself() {
            // What is wrong in the environment is told by whoever needs it.
            let level = Config::log_without_file(&layers).map_or(Some(tracing::Level::WARN), |log| log.level);
            crate::log::start_for_a_moment(level, self.global.is_loud());
        }
        if !matches!(self.verb, Verb::Restore | Verb::Down { .. } | Verb::Lab { .. }) {
            restore::after_boot(&home);
        }
        match self.verb {
            Verb::Init(args) => init::run(&home, &args),
            Verb::Gateway(args) => gateway::run(&home, &args.over(layers)),
            Verb::Peer(PeerVerb::Add(args)) => peer::add(&home, &args, &layers),
            Verb::Peer(PeerVerb::List { json }) => peer::list(&home, json, &layers),
            Verb::Peer(PeerVerb::Show { name, json }) => peer::show(&home, &name, json, &layers),
            Verb::Peer(PeerVerb::Rm { name }) => peer::remove(&home, &name, &layers),
            Verb::Peer(PeerVerb::Rename { old, new }) => peer::rename(&home, &old, &new, &layers),
            Verb::Peer(PeerVerb::Disable { name }) => peer::enable(&home, &name, false, &layers),
            Verb::Peer(PeerVerb::Enable { name }) => peer::enable(&home, &name, true, &layers),
            Verb::Peer(PeerVerb::Set(args)) => peer::set(&home, &args, &layers),
            Verb::Peer(PeerVerb::Export(args)) => peer::export(&home, &args, &layers),
            Verb::Invite(args) => invite::run(&home, &args, &layers),
            Verb::Service(verb) => service::run(&home, &verb, &layers),
            Verb::Join(args) => join::run(&home.of_user(), &args, &self.global.arguments()),
            Verb::Up { file, foreground, allow_hooks, settings } => {
                let log = Config::log(&home, &layers)?;
                let file = profile::find(&home, file.as_deref(), ForVerb("up", ""))?;
                let layers = settings.over(layers);
                client::up(&home, &UpOptions { file, foreground, allow_hooks, layers, log })
            }
            Verb::Proxy(args) => {
                let home = home.of_user();
                let log = Config::log(&home, &layers)?;
                proxy::run(&home, &args, &log, layers)
            }
            Verb::Run { file, settings, command } => {
                let home = home.of_user();
                let file = profile::find(&home, file.as_deref(), ForVerb("run", " -- CMD"))?;
                // The command has the terminal: the tunnel speaks only when something is wrong, or when asked.
                let quiet = LogOptions { level: Some(tracing::Level::WARN), ..LogOptions::default() };
                let asked = layers.speak_of_log();
                let log = if asked { Config::log_without_file(&layers)?.rooted() } else { quiet };
                run::run(&run::RunOptions { file, command, log, home, layers: settings.over(layers) })
            }
            Verb::Exclude { interface, command } => {
                exclude::run(&home, &exclude::ExcludeOptions { interface, command })
            }
            Verb::Plan(verb) => plan::run(&home, verb, layers),
            Verb::Lockdown { order } => lockdown::run(&home, order, &layers),
            Verb::Verify(args) => verify::run(&home, &args),
            Verb::Restore => restore::run(&home),
            Verb::Down { name } => client::down(&home, name.as_deref()),
            Verb::Status { interface, json, watch } => {
                let watch = watch.map(|secs| Duration::from_secs(secs.into()));
                status::run(&home, &Asking { interface, json, watch, color: self.global.color })
            }
            Verb::Events(args) => events::run(&home, &args),
            Verb::Reload { interface, json } => reload::run(&home, interface.as_deref(), json),
            Verb::Config(verb) => settings::run(&home.of_user(), &verb, &layers),
            Verb::Import(args) => import::run(&home.of_user(), &args),
            Verb::Export(args) => export::run(&home.of_user(), &args),
            Verb::Bench(args) => bench::run(&home, &args),
            Verb::Ip(args) => ip::run(&home, &args, layers),
            Verb::Wg { interface, foreground } => {
                let mut options = wg::Options::from_environment(&interface, foreground)?;
                if layers.speak_of_log() {
                    options.log = Config::log_without_file(&layers)?;
                }
                wg::run(&options)
            }
            Verb::Demo(args) => demo::run(args, self.global.color),
            Verb::Check { file, allow_hooks, json } => {
                check::run(&home, file.as_deref(), allow_hooks, json, &layers)
            }
            Verb::Genkey => keys::genkey(),
            Verb::Pubkey => keys::pubkey(),
            Verb::Genpsk => keys::genpsk(),
            Verb::Version { json } => version(json),
            Verb::Completions { shell } => completions(shell),
            Verb::Man { all } => man(all.as_deref()),
            Verb::Lab { arguments } => {
                let agent = arguments.first().cloned().unwrap_or_default();
                Ok(adit_lab::agent_main(arguments).unwrap_or_else(|| {
                    eprintln!("the laboratory has no agent `{}`; `adit lab help` lists them", escape(&agent));
                    ExitCode::from(2)
                }))
            }
        }
    }
}

impl Verb {
    /// Whether it stays, and begins its log when it knows where that goes.
    fn logs_itself(&self) -> bool {
        matches!(
            self,
            Self::Gateway(_)
                | Self::Up { .. }
                | Self::Run { .. }
                | Self::Proxy(_)
                | Self::Wg { .. }
                | Self::Demo(_)
                | Self::Lab { .. }
        )
    }

    /// Whether a core dump of the process could show a key. `check` does not count: for who is not root, a
    /// process without core dumps cannot open its own `/dev/stdin`.
    fn holds_keys(&self) -> bool {
        match self {
            Self::Init(_) | Self::Gateway(_) | Self::Peer(_) | Self::Up { .. } | Self::Wg { .. } => true,
            Self::Genkey | Self::Pubkey | Self::Genpsk | Self::Proxy(_) => true,
            Self::Invite(_) | Self::Join(_) | Self::Service(_) => true,
            // The file that names the services may be a gateway's.
            Self::Ip(_) => true,
            // The process becomes the command, which may dump core; the one that reads the keys sees to itself.
            Self::Run { .. } | Self::Exclude { .. } | Self::Verify(_) => false,
            Self::Config(_) | Self::Import(_) | Self::Export(_) => true,
            Self::Reload { .. } => false,
            Self::Plan(_) => true,
            Self::Down { .. }
            | Self::Lockdown { .. }
            | Self::Restore
            | Self::Status { .. }
            | Self::Events(_)
            | Self::Bench(_)
            | Self::Demo(_)
            | Self::Check { .. } => false,
            Self::Version { .. } | Self::Completions { .. } | Self::Man { .. } | Self::Lab { .. } => false,
        }
    }
}

impl GatewayArgs {
    /// Puts the flags over `layers`.
    #[must_use]
    pub fn over(self, mut layers: Layers) -> Layers {
        let given = [
            ("gateway.interface", "--interface", self.interface),
            ("gateway.listen", "--listen", self.listen),
            ("gateway.mtu", "--mtu", self.mtu),
            ("gateway.fwmark", "--fwmark", self.fwmark),
            ("gateway.masquerade", "--masquerade", self.masquerade),
            ("gateway.client_to_client", "--client-to-client", self.client_to_client),
            ("gateway.offload", "--offload", self.offload),
            ("gateway.lanes", "--lanes", self.lanes),
        ];
        for (key, flag, value) in given {
            if let Some(value) = value {
                layers.flag(key, flag, value);
            }
        }
        layers
    }
}

/// `adit-wg wg0` means `adit wg wg0`.
fn as_device(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    if called == Some(OsStr::new(DEVICE_NAME)) {
        arguments.insert(1, "wg".into());
    }
    arguments
}

/// A text that `parse` accepts; it is parsed for good where it meets the other layers.
fn checked<T>(
    parse: impl Fn(&str) -> Result<T, Complaint> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<String, Complaint> + Clone + Send + Sync + 'static {
    move |text| parse(text).map(|_| text.to_owned())
}

/// What was said about a proxy may have a password in it, and what this prints ends up in logs.
fn hide_password(error: &mut clap::Error) {
    let about = error.get(ContextKind::InvalidArg);
    if matches!(about, Some(ContextValue::String(about)) if about.starts_with("--via ")) {
        error.insert(ContextKind::InvalidValue, ContextValue::String("...".to_owned()));
    }
}

fn explain(error: &anyhow::Error, color: Color) {
    let mut stderr = io::stderr().lock();
    let color = color.wanted(&stderr);
    // Stderr is the last resort: when it is closed there is nobody to tell.
    let _ = match error.downcast_ref::<Report>() {
        Some(report) => {
            let first = error.to_string();
            let context = if error.is::<Report>() && first != report.to_string() {
                format!("adit: {}\n\n", escape(&first))
            } else {
                String::new()
            };
            write!(stderr, "{context}{}", report.render(color))
        }
        None => {
            let lines: Vec<String> = format!("{error:#}").lines().map(escape).collect();
            writeln!(stderr, "adit: {}", lines.join("\n"))
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        command().debug_assert();
    }

    #[test]
    fn a_password_that_should_not_be_there_is_not_repeated() {
        let parse = |words: &[&str]| command().try_get_matches_from(words).unwrap_err();
        let mut error = parse(&["adit", "up", "x.conf", "--via", "http://me:hunter2@proxy:3128"]);
        hide_password(&mut error);
        let text = error.to_string();
        assert!(!text.contains("hunter2") && text.contains("--via") && text.contains("password"), "{text}");
        let mut error = parse(&["adit", "up", "x.conf", "--sni", "hunter 2"]);
        hide_password(&mut error);
        assert!(error.to_string().contains("hunter 2"), "{error}");
    }

    #[test]
    fn the_device_name_chooses_the_device_verb() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(as_device(words(&["/usr/bin/adit-wg", "wg0"])), words(&["/usr/bin/adit-wg", "wg", "wg0"]));
        assert_eq!(as_device(words(&["adit", "up"])), words(&["adit", "up"]));
        assert_eq!(as_device(words(&[])), words(&[]));
    }
}
