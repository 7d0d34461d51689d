//! `adit up FILE.conf` and `adit down`: a tunnel as a wg-quick file describes it.
//!
//! ```text
//!   resolve names ─► device ─► keys, peers ─► plan (addresses, routes, rules, DNS) ─► first handshake
//!   down, SIGTERM, or a failure half-way: the same backwards; after SIGKILL: from the journal
//! ```

mod beside;
mod block;
mod down;
mod forwarding;
mod hook;
mod mark;
mod obstacle;
mod plan;
mod reached;
mod reload;
pub mod split;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use adit_host::{Guard, Plan};
use adit_io::tun::{Tun, TunConfig};
use adit_proto::endpoint::Endpoint;
use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use anyhow::{Context, anyhow, bail};
use ipnet::IpNet;

pub use self::down::down;
use self::obstacle::{Obstacle, PortalWatch};
use self::plan::plan;
pub(crate) use self::reached::{Reached, resolve_peers};
use self::reload::Sources;
use self::split::Split;
use crate::config::wgquick::{HookTime, Hooks, PeerSection, WgQuick};
use crate::config::{CarrierChoice, ClientSettings, InterfaceName, Layers, Offload, Origin};
use crate::control;
use crate::daemon::{self, PidFile, Readiness, Start, Watchdog};
use crate::device;
use crate::dial;
use crate::driver::{self, DriverConfig};
use crate::events::EventLog;
use crate::forwarder::{Forwarder, Upstream, servers_of_host};
use crate::gateway::{IPV6_OFF, prefix_of, start_metrics};
use crate::grant::Grant;
use crate::heard::{Heard, HeardFile};
use crate::home::Home;
use crate::instance::{Instance, Wake};
use crate::log::{LogOptions, LogTarget};
use crate::metrics::Metrics;
use crate::socket::PrivateSocket;
use crate::status::Role;
use crate::{lockdown, privilege};

/// What `adit up` was asked.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// A wg-quick file; its name without `.conf` names the interface.
    pub file: PathBuf,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Run the hooks of the file, as root.
    pub allow_hooks: bool,
    /// The flags and variables for the settings of the client.
    pub layers: Layers,
    /// The log. In the background and without a file it goes to `IFNAME.log` in the state directory.
    pub log: LogOptions,
}

/// Brings a tunnel up; in the background this returns when it is in effect.
///
/// # Errors
/// The file is wrong, a name does not resolve, or the host refuses; nothing is left behind then.
pub fn up(home: &Home, options: &UpOptions) -> anyhow::Result<ExitCode> {
    privilege::require_root("up")?;
    let interface = interface_of(&options.file)?;
    let hooks = if options.allow_hooks { Hooks::Allowed } else { Hooks::Refused };
    let file = WgQuick::load(&options.file, hooks)?;
    let settings = ClientSettings::load(home, &options.layers, Some(&file))?;
    home.create()?;
    // A daemon lives in `/`.
    let path = std::path::absolute(&options.file).unwrap_or_else(|_| options.file.clone());
    let sources = Sources { home: home.clone(), file: path, hooks, layers: options.layers.clone() };
    let mut log = options.log.clone().rooted();
    if !options.foreground && log.to == LogTarget::Stderr {
        log.to = LogTarget::File(home.state_dir.join(format!("{interface}.log")));
    }
    match daemon::start(options.foreground)? {
        Start::Launched(code) => Ok(code),
        Start::Run(readiness) => {
            crate::log::start(&log)?;
            daemon::raise_descriptor_limit();
            let events = EventLog::new(home, log.events);
            serve(sources, interface.as_str(), file, settings, events, readiness)
        }
    }
}

fn serve(
    sources: Sources,
    interface: &str,
    file: WgQuick,
    settings: ClientSettings,
    events: EventLog,
    readiness: Readiness,
) -> anyhow::Result<ExitCode> {
    let home = &sources.home.clone();
    let mut client = Client::open(sources, interface, file, settings.clone(), &readiness)
        .map_err(|error| block::say_if_closed(error, home, interface))?;
    client.instance.write_events_to(events);
    let mut how = Ending::NeverUp;
    let outcome = match client.wait_for_an_answer(&readiness) {
        Ok(true) => {
            readiness.ready()?;
            tracing::info!(interface, "tunnel ready");
            let outcome = client.run_until_asked();
            how = if outcome.is_ok() { Ending::Asked } else { Ending::Unasked };
            outcome
        }
        // Whoever waits for the tunnel gets none; to a service manager it is the end that it asked for.
        Ok(false) if readiness.is_awaited() => Err(anyhow!("asked to end before the tunnel was up")),
        Ok(false) => {
            tracing::info!(interface, "asked to end before the tunnel was up");
            Ok(())
        }
        Err(error) => Err(error),
    };
    if how == Ending::Asked {
        lockdown::follow(home, &settings)?;
    }
    let closed = client.close(how);
    if how == Ending::Asked && closed.is_ok() {
        lockdown::forget(home, interface);
    }
    let outcome = outcome.map_err(|error| block::say_if_closed(error, home, interface));
    outcome.and(closed).map(|()| ExitCode::SUCCESS)
}

/// How a tunnel ends, which decides whether its kill switch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// By a user or a service manager: the host is as it was.
    Asked,
    /// By itself: what must not leave stays in.
    Unasked,
    /// Before it was up: the host is as open or closed as it was.
    NeverUp,
}

/// What [`up`] would make of this host, without making it.
///
/// # Errors
/// The file is wrong, a name does not resolve, or the tunnel is up already.
pub fn plan_of(home: &Home, path: &Path, layers: &Layers) -> anyhow::Result<(String, Plan)> {
    let interface = interface_of(path)?.to_string();
    let file = WgQuick::load(path, Hooks::Allowed)?;
    let settings = ClientSettings::load(home, layers, Some(&file))?;
    let block = block::asked_for(&file, &settings, lockdown::reason(home, &settings), home)?;
    let split = Split::of(&settings);
    if let Some(pid) = PidFile::holder(&control::pid_path(home, &interface)) {
        bail!("{interface} is up already (process {pid}); `adit status{}` tells how it is", home.flag());
    }
    let reached = resolve_peers(&file.peers, &settings)?;
    let ipv6 = adit_host::ipv6_enabled();
    let (mut plan, fwmark) = plan(&interface, &file, &reached, ipv6, block, &split)?;
    split.add_to(&mut plan, &interface, &file, ipv6, fwmark)?;
    forwarding::add_to(&mut plan, &interface);
    Ok((interface, plan))
}

/// The interface that a file is named after.
fn interface_of(file: &Path) -> anyhow::Result<InterfaceName> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(".conf").with_context(|| {
        format!(
            "{} does not end with .conf; name the file after the interface, for example adit0.conf",
            file.display()
        )
    })?;
    stem.parse().map_err(|complaint| anyhow!("{} cannot name the interface: {complaint}", file.display()))
}

// The order of the fields is the order in which they go when opening fails half-way.
struct Client {
    sources: Sources,
    settings: ClientSettings,
    resolver: Option<Forwarder>,
    metrics: Option<Metrics>,
    obstacles: Vec<Obstacle>,
    portal: PortalWatch,
    plan: Plan,
    guard: Guard,
    socket: PrivateSocket,
    instance: Instance,
    file: WgQuick,
    heard: HeardFile,
    unsaved: bool,
    pid_file: PidFile,
}

const FIRST_ANSWER: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(5);
/// A gateway by name may move: whether it answers is looked at more often.
const IDLE_BY_NAME: Duration = Duration::from_secs(2);

impl Client {
    fn open(
        sources: Sources,
        interface: &str,
        file: WgQuick,
        settings: ClientSettings,
        readiness: &Readiness,
    ) -> anyhow::Result<Self> {
        let home = &sources.home;
        let signals = daemon::signals()?;
        let pid_file = PidFile::lock_of(home, interface)?;
        let journal = control::journal_path(home, interface);
        let block = block::asked_for(&file, &settings, lockdown::reason(home, &settings), home)?;
        block::refuse_behind_another(home, interface)?;
        device::clean_up_behind_block(&journal)?;
        device::refuse_existing(interface)?;
        if let Some(block) = block {
            block::warnings(&file, &settings, block).iter().for_each(|text| readiness.warn(text));
        }
        if file.interface.save_config {
            readiness.warn("SaveConfig is passed over: adit never writes to the file");
        }
        let ipv6 = adit_host::ipv6_enabled();
        if !ipv6 && networks_of(&file).any(|net| net.addr().is_ipv6()) {
            readiness.warn(&format!("{IPV6_OFF}; the tunnel carries IPv4 only"));
        }
        let reached = resolve_peers(&file.peers, &settings)?;
        hook::run(&file.interface.hooks, HookTime::PreUp, interface)?;
        let split = Split::of(&settings);
        // Asked before the plan makes the tunnel's servers those of the host.
        let servers_beside = servers_of_host();

        let mut targets = dial::targets(&file, &reached, &settings)?;
        let (mut plan, fwmark) = plan(interface, &file, &reached, ipv6, block, &split)?;
        let beside = Upstream { servers: servers_beside.clone(), fwmark };
        targets.iter_mut().for_each(|target| target.go_beside(&beside));
        let resolver_at = split.add_to(&mut plan, interface, &file, ipv6, fwmark)?;
        let offload = settings.offload == Offload::Auto;
        forwarding::add_to(&mut plan, interface);
        let obstacles = obstacle::look_around(&file, interface, &reached, block.is_some());
        obstacles.iter().for_each(|it| readiness.warn(&it.to_string()));
        let tun = Tun::create(&TunConfig {
            name: Some(interface.to_owned()),
            queues: driver::lanes_auto(),
            offload,
        })?;
        let listen_port = file.interface.listen_port;
        let driver = device::start(DriverConfig { tun, listen_port, fwmark, offload })?;
        let (heard, before) = HeardFile::load(home.state_dir.join(format!("{interface}.endpoints.json")));
        block::open_port(&mut plan, driver.snapshot().listen_port);
        let (socket, questions) = control::open(home, interface)?;
        let mut instance = Instance::new(Role::Client, interface.to_owned(), driver, signals, questions);
        describe(&mut instance, &file, &plan, &reached);
        for said in settings.settings.iter().filter(|said| said.origin != Origin::Default) {
            tracing::debug!("{} is {} ({})", said.key, said.value, said.origin);
        }
        let apis: Vec<_> = file.peers.iter().flat_map(|peer| &peer.inside_api).copied().collect();
        if !apis.is_empty() {
            let memory = home.state_dir.join(format!("{interface}.grant.json"));
            instance.grant = Some(Grant::start(interface, apis, memory)?);
        }
        let mut guard = adit_host::apply(&plan, &journal)?;
        instance.upkeep.facts.kill_switch = block.is_some();
        instance.upkeep.facts.allow_lan = block.is_some_and(|it| it.allow_lan);
        instance.upkeep.facts.split = split.facts(resolver_at);
        instance.upkeep.watch(&mut guard);
        lockdown::give_way(home, interface, &settings, &mut guard)?;
        // Not before: the firewall takes an answer only to what it has seen leave.
        instance.driver.apply(introduction(&file, dial::by_datagrams(&settings, &reached), &before));
        let resolver = match resolver_at {
            Some(at) => {
                Some(split.start_resolver(interface, at, &file, &reached, &servers_beside, fwmark)?)
            }
            None => None,
        };
        instance.endpoints.ask_beside(beside);
        hook::run(&file.interface.hooks, HookTime::PostUp, interface)?;
        instance.dial = dial::begin(&instance.driver, &settings, &reached, targets)?;
        instance.follow_ways();
        let metrics = start_metrics(&instance, settings.metrics)?;
        Ok(Self {
            sources,
            settings,
            metrics,
            resolver,
            obstacles,
            portal: PortalWatch::default(),
            plan,
            guard,
            socket,
            instance,
            file,
            heard,
            unsaved: true,
            pid_file,
        })
    }

    /// Whether to go on; a tunnel without an answer so far stays up, as with wg-quick.
    fn wait_for_an_answer(&mut self, readiness: &Readiness) -> anyhow::Result<bool> {
        let Some(peer) = self.file.peers.iter().find(|peer| peer.endpoint.is_some()) else { return Ok(true) };
        let advice = no_answer(peer, &self.settings);
        let deadline = Instant::now() + FIRST_ANSWER;
        loop {
            match self.instance.wait(deadline.saturating_duration_since(Instant::now())) {
                Wake::Heard => {
                    self.way_is_clear();
                    self.ask_for_grant();
                    return Ok(true);
                }
                Wake::Tick => {
                    readiness.warn(&advice);
                    self.look_for_portal(readiness);
                    return Ok(true);
                }
                Wake::Stop => return Ok(false),
                Wake::Failed(reason) => bail!("the tunnel ends: {reason}"),
                Wake::Reload(asked) => self.reload(asked),
                Wake::Exclude(asked) => self.exclude(asked),
                Wake::Host(noticed) => {
                    self.instance.upkeep.tend(&mut self.guard, &noticed);
                }
            }
        }
    }

    fn run_until_asked(&mut self) -> anyhow::Result<()> {
        let mut watchdog = Watchdog::from_environment();
        loop {
            let idle = if self.instance.endpoints.is_empty() { IDLE } else { IDLE_BY_NAME };
            let wake = self.instance.wait(watchdog.patience(idle));
            watchdog.pat(|| self.instance.driver.try_snapshot().is_some());
            match wake {
                Wake::Stop => return Ok(()),
                Wake::Failed(reason) => bail!("the tunnel ends: {reason}"),
                Wake::Tick => {
                    self.instance.endpoints.ask_for_missing();
                    self.instance.follow_ways();
                    self.look_at_silence();
                    self.instance.upkeep.look(&mut self.guard);
                    self.tend_forwarding();
                }
                Wake::Heard => {
                    self.unsaved = true;
                    self.way_is_clear();
                    self.ask_for_grant();
                }
                Wake::Reload(asked) => self.reload(asked),
                Wake::Exclude(asked) => self.exclude(asked),
                Wake::Host(noticed) => {
                    self.instance.upkeep.tend(&mut self.guard, &noticed);
                }
            }
            if self.unsaved {
                self.unsaved = !self.heard.save(&self.instance.driver.snapshot().peers, false);
            }
        }
    }

    fn ask_for_grant(&self) {
        if let Some(grant) = &self.instance.grant {
            grant.ask();
        }
    }

    fn close(self, how: Ending) -> anyhow::Result<()> {
        let Self { sources, metrics, resolver, guard, socket, instance, file, mut heard, pid_file, .. } =
            self;
        heard.save(&instance.driver.snapshot().peers, true);
        let hooks = &file.interface.hooks;
        warn_about(hook::run(hooks, HookTime::PreDown, &instance.interface));
        drop((socket, metrics, resolver));
        let undone = match how {
            Ending::Asked => guard.undo(),
            Ending::Unasked => guard.undo_but_blocks(),
            Ending::NeverUp => guard.roll_back(),
        };
        let interface = instance.interface.clone();
        instance.ends();
        instance.driver.stop();
        warn_about(hook::run(hooks, HookTime::PostDown, &interface));
        tracing::info!(interface, "tunnel down");
        drop(pid_file);
        undone.map(drop).with_context(|| {
            let flag = sources.home.flag();
            format!("the host could not be put back completely; `adit down {interface}{flag}` tries again")
        })
    }
}

fn warn_about(outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!("{error:#}");
    }
}

/// What to tell about a peer that stays silent.
pub(crate) fn no_answer(peer: &PeerSection, settings: &ClientSettings) -> String {
    let choice = dial::choice_of(settings);
    let by_streams = settings.stream_endpoint.as_ref().filter(|_| choice != CarrierChoice::Udp);
    let place = match choice {
        CarrierChoice::Auto | CarrierChoice::Udp => peer.endpoint.as_ref(),
        _ => by_streams.or(peer.endpoint.as_ref()),
    };
    let port = place.map_or(0, |place| place.port);
    let open = match (choice, by_streams) {
        (CarrierChoice::Udp, _) => format!("UDP port {port}"),
        (CarrierChoice::Auto, None) => format!("port {port}, UDP or TCP,"),
        (CarrierChoice::Auto, Some(other)) => format!("UDP port {port} or TCP port {}", other.port),
        _ => format!("TCP port {port}"),
    };
    let place = place.map(ToString::to_string).unwrap_or_default();
    format!(
        "no answer from {place} in {} s; the tunnel stays up and keeps trying. Check that the gateway runs, \
         that {open} is open on the way to it, that each side has the public key (and preshared key) \
         of the other, and that both pin the suite {}",
        FIRST_ANSWER.as_secs(),
        peer.suite
    )
}

fn networks_of(file: &WgQuick) -> impl Iterator<Item = &IpNet> {
    file.interface.addresses.iter().chain(file.peers.iter().flat_map(|peer| &peer.allowed_ips))
}

/// What tells the engine about a file.
pub(crate) fn introduction(file: &WgQuick, reached: &[Reached], before: &[Heard]) -> Vec<Command> {
    let mut commands = vec![Command::SetPrivateKey(Some(file.interface.private_key.clone()))];
    for peer in &file.peers {
        let mut update = PeerUpdate::new(peer.public_key);
        update.suite = Some(peer.suite);
        update.preshared_key.clone_from(&peer.preshared_key);
        update.endpoint =
            reached.iter().find(|it| it.peer == peer.public_key).map(|it| Endpoint::udp(it.current));
        update.persistent_keepalive_secs = Some(peer.persistent_keepalive_secs);
        if let Some(heard) = before.iter().find(|heard| heard.peer == peer.public_key) {
            update.timestamps = heard.timestamps;
        }
        update.replace_allowed_ips = true;
        update.allowed_ips =
            peer.allowed_ips.iter().filter_map(prefix_of).map(AllowedIpChange::Add).collect();
        commands.push(Command::SetPeer(update));
    }
    commands
}

fn describe(instance: &mut Instance, file: &WgQuick, plan: &Plan, reached: &[Reached]) {
    instance.followed = reached.iter().map(|it| it.peer).collect();
    instance.mtu_bytes = plan.links.iter().find_map(|link| link.mtu_bytes).unwrap_or_default();
    instance.addresses = plan.addresses.iter().map(|it| it.address.to_string()).collect();
    let names = file.peers.iter().map(|peer| (peer.public_key, peer.name.as_ref().map(ToString::to_string)));
    instance.name_peers(names);
    instance.inside_apis = file.peers.iter().map(|peer| (peer.public_key, peer.inside_api.clone())).collect();
    for peer in &file.peers {
        let Some(name) = peer.endpoint.clone().filter(|name| name.address().is_none()) else { continue };
        if let Some(it) = reached.iter().find(|it| it.peer == peer.public_key && !it.by_proxy) {
            instance.endpoints.watch(it.peer, name, it.known.clone(), Some(it.current));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_its_interface() {
        assert_eq!(interface_of(Path::new("/etc/x/home.conf")).unwrap().as_str(), "home");
        for bad in ["home", "a b.conf", ".conf", "sixteen-letters-x.conf", "x/..conf"] {
            assert!(interface_of(Path::new(bad)).is_err(), "{bad}");
        }
    }

    fn file(peer_settings: &str) -> WgQuick {
        let text = format!(
            "[Interface]\nPrivateKey = eEBhN6cK2cF1bkjZlMVY4XlZ5LkVbPYMa1xgKPYo1Fk=\n[Peer]\n\
             PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n{peer_settings}\n"
        );
        WgQuick::parse(&crate::config::Source::new("x.conf", &text), Hooks::Refused).unwrap()
    }

    #[test]
    fn a_silent_gateway_is_explained() {
        let file = file("Endpoint = vpn.example.org:4500");
        let mut settings = ClientSettings::of_profile(&Layers::default(), &file).unwrap();
        for (carrier, elsewhere, parts) in [
            (
                CarrierChoice::Auto,
                None,
                ["vpn.example.org:4500", "port 4500, UDP or TCP", "chacha20-poly1305"],
            ),
            (CarrierChoice::Auto, Some("web.example.org:443"), ["vpn.example.org", "4500", "TCP port 443"]),
            (
                CarrierChoice::Udp,
                Some("web.example.org:443"),
                ["vpn.example.org", "UDP port 4500 is", "suite"],
            ),
            (CarrierChoice::Tls, None, ["vpn.example.org:4500", "TCP port 4500", "suite"]),
            (
                CarrierChoice::Wss,
                Some("web.example.org:443"),
                ["web.example.org:443", "TCP port 443", "suite"],
            ),
        ] {
            settings.carrier = carrier;
            settings.stream_endpoint = elsewhere.map(|it| it.parse().unwrap());
            let advice = no_answer(&file.peers[0], &settings);
            assert!(parts.iter().all(|part| advice.contains(part)), "{parts:?} in {advice}");
        }
    }
}
