//! What a client is told beside its wg-quick file: one struct, filled from one table.
//!
//! ```text
//!   flags of `up` ► ADIT_CLIENT_<KEY> ► `# adit: key = value` of the profile ► [client] of adit.toml ► default
//! ```
//!
//! A new key is a line in [`KEYS`](super::KEYS) (section `client`) and a line in the struct below: its name, its type,
//! how it is read (`setting`: it has a default, `optional`: it may be absent, `words`: a list) and what parses its text.
//! Flag, variable, comment of a profile, `check`, `config show` and the errors of all of them follow from the two lines.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;

use clap::builder::{NonEmptyStringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use zeroize::Zeroizing;

use super::destination::{Destination, parse_destination};
use super::diagnostic::{Complaint, Place, Report, Source};
use super::raw::{KEYS, Key, Kind, Layers, Origin, Raw, RawConfig};
use super::reader::Reader;
use super::stream::{
    TlsVerify, Via, parse_sni, parse_stream_path, parse_tls_pin, parse_tls_verify, parse_via,
    parse_via_password,
};
use super::value::{Offload, choice, parse_metrics, parse_offload, parse_switch};
use super::wgquick::WgQuick;
use super::{Setting, read_source};
use crate::endpoint::HostPort;
use crate::home::Home;

macro_rules! client_settings {
    ($($(#[$about:meta])* $name:ident: $type:ty = $how:ident $parse:path,)*) => {
        /// How a client behaves, as flags, variables, its profile and `[client]` say.
        #[derive(Clone, Debug)]
        pub struct ClientSettings {
            $($(#[$about])* pub $name: $type,)*
            /// Every key with its value and who decided it.
            pub settings: Vec<Setting>,
        }

        /// Takes every key, so that every error is in the report.
        pub(super) fn take(reader: &mut Reader) -> Option<ClientSettings> {
            $(let $name = reader.$how(concat!("client.", stringify!($name)), $parse);)*
            Some(ClientSettings { $($name: $name?,)* settings: Vec::new() })
        }

        /// Whether `text` may be the value of the client's key `name`.
        pub(super) fn accept(name: &str, text: &str) -> Result<(), Complaint> {
            match name {
                $(stringify!($name) => $parse(text).map(drop),)*
                _ => Ok(()),
            }
        }
    };
}

client_settings! {
    /// Whether what belongs into the tunnel may leave beside it while the tunnel is down.
    kill_switch: KillSwitch = setting parse_kill_switch,
    /// Whether the networks around this machine stay within reach beside a full tunnel.
    allow_lan: bool = setting parse_switch,
    /// Only these go through the tunnel; none is everything the profile allows.
    include: Vec<Destination> = words parse_destination,
    /// These go beside the tunnel.
    exclude: Vec<Destination> = words parse_destination,
    /// Whether nothing may leave beside the tunnel from boot on, tunnel or not.
    lockdown: bool = setting parse_switch,
    /// What carries the messages to the gateway.
    carrier: CarrierChoice = setting parse_carrier,
    /// Whether segmentation and checksum offloads of the kernel are used.
    offload: Offload = setting parse_offload,
    /// Where metrics are told.
    metrics: Option<SocketAddr> = setting parse_metrics,
    /// Whether that may be an address that others reach.
    metrics_beyond_loopback: bool = setting parse_switch,
    /// A proxy on the way to the gateway.
    via: Option<Via> = optional parse_via,
    /// What proves us to the proxy.
    via_password: Option<Zeroizing<String>> = optional parse_via_password,
    /// The host name that TLS asks for.
    sni: Option<String> = optional parse_sni,
    /// How TLS knows the gateway.
    tls_verify: TlsVerify = setting parse_tls_verify,
    /// The pin of the gateway's certificate.
    tls_pin: Option<String> = optional parse_tls_pin,
    /// Where connections go, when not to the endpoint of the profile.
    stream_endpoint: Option<HostPort> = optional parse_host_port,
    /// Where the WebSocket is.
    stream_path: Option<String> = optional parse_stream_path,
}

/// Keys of `up` alone: they change the host, or are for a service.
const OF_THE_HOST: &[&str] = &[
    "kill_switch",
    "allow_lan",
    "lockdown",
    "metrics",
    "metrics_beyond_loopback",
    "include",
    "exclude",
    "offload",
];

/// Whether what belongs into the tunnel may leave beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KillSwitch {
    /// Never with a full tunnel, else as the routes say.
    #[default]
    Auto,
    /// Never.
    On,
    /// As the routes say.
    Off,
}

/// What carries the messages to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CarrierChoice {
    /// Whatever gets through, UDP first.
    #[default]
    Auto,
    /// UDP datagrams.
    Udp,
    /// A TCP connection.
    Tcp,
    /// A TLS connection.
    Tls,
    /// A WebSocket over TLS.
    Wss,
}

/// "auto", "on" or "off".
///
/// # Errors
/// Anything else.
pub fn parse_kill_switch(text: &str) -> Result<KillSwitch, Complaint> {
    choice(text, &[("auto", KillSwitch::Auto), ("on", KillSwitch::On), ("off", KillSwitch::Off)])
}

/// A host and a port.
///
/// # Errors
/// Anything else.
fn parse_host_port(text: &str) -> Result<HostPort, Complaint> {
    text.parse()
}

/// "auto" or the name of a carrier.
///
/// # Errors
/// Anything else.
pub fn parse_carrier(text: &str) -> Result<CarrierChoice, Complaint> {
    choice(
        text,
        &[
            ("auto", CarrierChoice::Auto),
            ("udp", CarrierChoice::Udp),
            ("tcp", CarrierChoice::Tcp),
            ("tls", CarrierChoice::Tls),
            ("wss", CarrierChoice::Wss),
        ],
    )
}

impl ClientSettings {
    /// What `layers`, then `profile` say, where there is no `adit.toml`.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn of_profile(layers: &Layers, profile: &WgQuick) -> Result<Self, Report> {
        let source = Source::new("client settings", "");
        let mut raw = RawConfig::read(&source, Path::new("."), &layers.of_section("client"));
        raw.put_profile(&profile.interface.settings);
        let mut reader = Reader::new(raw);
        let taken = take(&mut reader);
        let (report, settings) = reader.finish();
        report.into_result(taken.map(|taken| Self { settings, ..taken }))
    }

    /// What `layers`, then `profile`, then `[client]` of the `adit.toml` of `home` (where there is one) say. The file
    /// needs no gateway in it.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn load(home: &Home, layers: &Layers, profile: Option<&WgQuick>) -> Result<Self, Report> {
        Self::load_file(&home.config_file(), layers, profile)
    }

    /// The same for the file at `path`.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn load_file(path: &Path, layers: &Layers, profile: Option<&WgQuick>) -> Result<Self, Report> {
        let is_there = path.try_exists().unwrap_or(false);
        let source = if is_there { read_source(path)? } else { Source::new("client settings", "") };
        let mut raw = RawConfig::read(&source, Path::new("."), &layers.of_section("client"));
        if let Some(file) = profile {
            raw.put_profile(&file.interface.settings);
        }
        let mut reader = Reader::new(raw);
        if is_there {
            reader.version();
        }
        let place = reader.place("client.metrics");
        let taken = take(&mut reader);
        if let Some(taken) = &taken {
            reader.check_metrics(taken.metrics, taken.metrics_beyond_loopback, place);
        }
        let (report, settings) = reader.finish();
        let mut settings: Vec<Setting> = settings;
        settings.retain(|setting| setting.key.starts_with("client."));
        report.into_result(taken.map(|taken| Self { settings, ..taken }))
    }
}

/// A `# adit: key = value` below `[Interface]` of a profile; the value is known to be right.
#[derive(Clone, Debug)]
pub struct ProfileSetting {
    /// The name of the key.
    pub name: &'static str,
    /// The value as it was written.
    pub value: String,
    /// The file and the line in it.
    pub place: (String, usize),
}

impl ProfileSetting {
    /// What this program says itself, in a profile that it makes.
    pub fn new(name: &'static str, value: &str) -> Self {
        Self { name, value: value.to_owned(), place: (String::new(), 0) }
    }
}

/// Where it was said is no part of what was said.
impl PartialEq for ProfileSetting {
    fn eq(&self, other: &Self) -> bool {
        (self.name, &self.value) == (other.name, &other.value)
    }
}

impl Eq for ProfileSetting {}

impl RawConfig {
    /// Puts what a profile says over the file, and below flags and environment.
    fn put_profile(&mut self, settings: &[ProfileSetting]) {
        for setting in settings {
            let key = format!("client.{}", setting.name);
            let (file, line) = &setting.place;
            let place = Place::Outside(format!("{file}:{line}"));
            let raw = Raw::new(setting.value.clone(), place, Origin::Profile(*line));
            match self.settings.get_mut(&key) {
                Some(said) if matches!(said.origin, Origin::Flag(_) | Origin::Environment(_)) => {}
                // A list goes on.
                Some(said) if matches!(said.origin, Origin::Profile(_)) => {
                    said.items.get_or_insert_default().extend(raw.items.into_iter().flatten());
                }
                _ => {
                    self.settings.insert(key, raw);
                }
            }
        }
    }
}

/// The keys of a client.
pub fn client_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.section == "client")
}

/// A flag for every key of a client; with `HOST` also for those that change the host.
#[derive(Clone, Debug, Default)]
pub struct ClientFlags<const HOST: bool> {
    said: Vec<(String, String, String)>,
}

impl<const HOST: bool> ClientFlags<HOST> {
    /// Puts the flags over `layers`.
    #[must_use]
    pub fn over(self, mut layers: Layers) -> Layers {
        layers.flags.extend(self.said);
        layers
    }

    fn keys() -> impl Iterator<Item = &'static (Key, String)> {
        static NAMED: LazyLock<Vec<(Key, String)>> =
            LazyLock::new(|| client_keys().map(|key| (*key, key.name.replace('_', "-"))).collect());
        NAMED.iter().filter(|(key, _)| HOST || !OF_THE_HOST.contains(&key.name))
    }
}

impl<const HOST: bool> Args for ClientFlags<HOST> {
    fn augment_args(command: Command) -> Command {
        Self::keys().fold(command, |command, (key, flag)| command.arg(argument(key, flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const HOST: bool> FromArgMatches for ClientFlags<HOST> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (key, flag) in Self::keys() {
            let values: Vec<&str> =
                matches.get_many::<String>(flag).into_iter().flatten().map(String::as_str).collect();
            if !values.is_empty() {
                self.said.push((key.path(), format!("--{flag}"), values.join(",")));
            }
        }
        Ok(())
    }
}

fn argument(key: &'static Key, flag: &'static str) -> Arg {
    let checked = NonEmptyStringValueParser::new().try_map(|text| {
        let words = || text.split([',', ' ']).filter(|word| !word.is_empty());
        let outcome = match key.kind {
            Kind::List => words().try_for_each(|word| accept(key.name, word)),
            _ => accept(key.name, &text),
        };
        outcome.map(|()| text)
    });
    let argument = Arg::new(flag).long(flag).help(key.about).value_parser(checked);
    let argument =
        argument.help_heading("Settings (also ADIT_CLIENT_..., the profile and [client] of adit.toml)");
    match key.kind {
        Kind::Switch => {
            let argument = argument.num_args(0..=1).require_equals(true).default_missing_value("true");
            argument.value_name("true|false").action(ArgAction::Set)
        }
        Kind::List => argument.value_name("LIST").action(ArgAction::Append),
        _ => argument.value_name("VALUE").action(ArgAction::Set),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::wgquick::Hooks;

    const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

    struct World {
        directory: tempfile::TempDir,
        layers: Layers,
    }

    impl World {
        fn new(client: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let text = format!("config_version = 1\n[client]\n{client}\n");
            crate::private_file::write(&directory.path().join("adit.toml"), text.as_bytes()).unwrap();
            Self { directory, layers: Layers::default() }
        }

        fn load(&self, profile: &str) -> Result<ClientSettings, Report> {
            let home = Home::new(Some(self.directory.path())).unwrap();
            let file = profile_of(profile)?;
            ClientSettings::load(&home, &self.layers, Some(&file))
        }
    }

    fn profile_of(lines: &str) -> Result<WgQuick, Report> {
        let text = format!("[Interface]\nPrivateKey = {KEY}\n{lines}\n");
        WgQuick::parse(&Source::new("home.conf", text), Hooks::Refused)
    }

    fn origin(settings: &ClientSettings, key: &str) -> String {
        settings.settings.iter().find(|setting| setting.key == key).unwrap().origin.to_string()
    }

    #[test]
    fn flags_come_before_the_environment_the_profile_the_file_and_the_default() {
        let mut world =
            World::new("kill_switch = \"off\"\nallow_lan = true\nlockdown = true\ncarrier = \"udp\"");
        let settings = world.load("").unwrap();
        assert_eq!((settings.kill_switch, settings.carrier), (KillSwitch::Off, CarrierChoice::Udp));
        assert_eq!(origin(&settings, "client.kill_switch"), "file, line 3");

        let profile = "# adit: carrier = tcp\n# adit: kill_switch = on\n# adit: allow_lan = false";
        let settings = world.load(profile).unwrap();
        assert_eq!((settings.kill_switch, settings.carrier), (KillSwitch::On, CarrierChoice::Tcp));
        assert!(!settings.allow_lan && settings.lockdown);
        assert_eq!(origin(&settings, "client.carrier"), "profile, line 3");

        world.layers.environment.push(("ADIT_CLIENT_CARRIER".into(), "tls".into()));
        world.layers.environment.push(("ADIT_CLIENT_KILL_SWITCH".into(), "auto".into()));
        world.layers.flag("client.carrier", "--carrier", "wss");
        let settings = world.load(profile).unwrap();
        assert_eq!((settings.kill_switch, settings.carrier), (KillSwitch::Auto, CarrierChoice::Wss));
        assert_eq!(origin(&settings, "client.kill_switch"), "environment variable ADIT_CLIENT_KILL_SWITCH");
        assert_eq!(origin(&settings, "client.carrier"), "flag --carrier");
        let defaults = World::new("").load("").unwrap();
        assert_eq!(origin(&defaults, "client.carrier"), "default");
    }

    #[test]
    fn every_key_of_the_table_is_a_field_and_every_field_is_in_the_table() {
        let settings = World::new("").load("").unwrap().settings;
        let named: Vec<String> = settings.iter().map(|setting| setting.key.clone()).collect();
        let mut table: Vec<String> = client_keys().map(Key::path).collect();
        assert!(table.len() >= 4);
        table.sort();
        let mut sorted = named;
        sorted.sort();
        assert_eq!(sorted, table);
        assert!(OF_THE_HOST.iter().all(|name| client_keys().any(|key| key.name == *name)));
    }

    #[test]
    fn a_wrong_setting_of_a_profile_is_placed_in_it() {
        for (line, at, words) in [
            ("# adit: kill_switch = maybe", "3:23", "\"auto\" or \"on\" or \"off\""),
            ("# adit: carier = tcp", "3:9", "did you mean `carrier`?"),
            ("# adit: allow_lan = yes", "3:21", "\"true\" or \"false\""),
            ("# adit: lockdown = true\n# adit: lockdown = true", "4:9", "keep one"),
            ("# adit: carrier =", "3:", "\"udp\""),
            ("[Peer]\n# adit: carrier = udp", "4:9", "below [Interface]"),
        ] {
            let report = profile_of(line).unwrap_err().render(false);
            assert!(report.contains(&format!("home.conf:{at}")) && report.contains(words), "{report}");
        }
        assert!(profile_of("# adit: kill_switch = on\n# adit: carrier = tcp").is_ok());
    }

    #[test]
    fn a_wrong_setting_of_the_file_or_a_variable_is_named() {
        let mut world = World::new("kill_swich = \"on\"\ncarrier = \"smoke\"");
        world.layers.environment.push(("ADIT_CLIENT_LOCKDOWN".into(), "perhaps".into()));
        let report = world.load("").unwrap_err().render(false);
        for part in ["adit.toml:3:1", "did you mean `kill_switch`?", "adit.toml:4:11", "ADIT_CLIENT_LOCKDOWN"]
        {
            assert!(report.contains(part), "{part}\n{report}");
        }
    }
}
