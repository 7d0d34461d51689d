//! `adit gateway`: the side that peers connect to, and through which they reach each other and the network.
//!
//! ```text
//!   adit.toml ─► Config ─┬─► Driver: keys, peers                        (packets)
//!                        └─► Plan ─► Guard ─► journal  (addresses, forwarding, firewall)
//!
//!   reload: the difference goes to the driver, the new plan to the guard; other sessions stay
//! ```

mod desired;
mod dns;
mod invited;
mod neighbours;
mod passages;
mod peers;
mod reach;
mod streams;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use adit_host::{Guard, Passage, Plan};
use adit_io::tun::{Tun, TunConfig};
use adit_proto::endpoint::Endpoint;
use adit_proto::event::Command;
use adit_proto::key::PublicKey;
use anyhow::{Context, anyhow, bail};
use crossbeam_channel::Receiver;
use ipnet::IpNet;

use crate::config::{Config, Lanes, Layers, Offload, Peer};
use crate::control::{self, Changes};
use crate::daemon::{self, PidFile, Signal, Start, Watchdog};
use crate::device;
use crate::driver::{self, DriverConfig};
use crate::enrol::Office;
use crate::events::EventLog;
use crate::forwarder::Forwarder;
use crate::heard::{Heard, HeardFile, SESSION_SECS};
use crate::home::Home;
use crate::inside::InsideApi;
use crate::instance::{Instance, Wake, unix_secs};
use crate::metrics::Metrics;
use crate::privilege;
use crate::quota::QuotaFile;
use crate::reload;
use crate::socket::PrivateSocket;
use crate::status::Role;
use crate::stream::Door;
use crate::wall_clock::WallClock;

use self::desired::{callers_and_doors, carried, mtu_of, plan};
use self::invited::Invited;
use self::passages::{passages, warn_of_foreign_drops};
use self::streams::door_plan;

pub use peers::prefix_of;
pub use streams::{stream_offer, stream_recognition, stream_warning};

/// Runs the gateway of `home` in the foreground until SIGTERM, SIGINT or `adit down`.
///
/// # Errors
/// The configuration is wrong, another one runs, or the host refuses; nothing is left behind then.
pub fn run(home: &Home, layers: &Layers) -> anyhow::Result<ExitCode> {
    privilege::require_root("gateway")?;
    let config = Config::load(home, layers)?;
    home.create()?;
    let Start::Run(readiness) = daemon::start(true)? else { return Ok(ExitCode::SUCCESS) };
    crate::log::start(&config.log)?;
    daemon::raise_descriptor_limit();
    let signals = daemon::signals()?;
    let interface = config.gateway.interface.to_string();
    // What the journal lists belongs to who holds the lock, so a second gateway ends here.
    let pid_file = PidFile::lock_of(home, &interface)?;
    let journal = control::journal_path(home, &interface);
    let mut gateway = Gateway::open(home, layers, config, signals).inspect_err(|_| {
        if let Err(error) = device::clean_up_after(&journal) {
            tracing::error!("{error:#}");
        }
    })?;
    readiness.ready()?;
    tracing::info!(interface = gateway.instance.interface, "gateway ready");
    let outcome = gateway.run_until_asked();
    daemon::notify_service_manager("STOPPING=1");
    let closed = gateway.close();
    drop(pid_file);
    outcome.and(closed).map(|()| ExitCode::SUCCESS)
}

/// What [`run`] would make of this host, without making it.
///
/// # Errors
/// The configuration is wrong.
pub fn plan_of(home: &Home, layers: &Layers) -> anyhow::Result<(String, Plan)> {
    let config = Config::load(home, layers)?;
    let plan = plan(&config, &Invited::load(home, &config), config.gateway.listen_port, mtu_of(&config)?);
    Ok((config.gateway.interface.to_string(), plan))
}

// The order of the fields is the order in which they go when opening fails half-way: the host is put
// back while the device is there.
struct Gateway {
    door: Option<Door>,
    inside_api: InsideApi,
    resolver: Option<Forwarder>,
    metrics: Option<Metrics>,
    guard: Guard,
    /// The chains of others that were let pass last.
    passages: Vec<Passage>,
    /// The networks around that were closed last.
    neighbours: Vec<IpNet>,
    socket: PrivateSocket,
    instance: Instance,
    home: Home,
    layers: Layers,
    config: Config,
    invited: Invited,
    invites_read: Instant,
    heard: HeardFile,
    quota: QuotaFile,
    clock: WallClock,
    counted_at: Instant,
    unsaved: bool,
    to_greet: Vec<PublicKey>,
}

const IDLE: Duration = Duration::from_secs(5);
const INVITES_AGAIN: Duration = Duration::from_secs(60);
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
/// From the moment that an invite is used until its answer has arrived.
const USE_TAKES: Duration = Duration::from_secs(4);

/// Fifty handshakes a second: a restarted gateway with thousands of peers neither floods nor stalls.
const GREETINGS_AT_ONCE: usize = 5;
const GREETING_PAUSE: Duration = Duration::from_millis(100);

/// Settings that a reload puts in effect; the others need a restart.
const LIVE: &[&str] = &[
    "gateway.listen",
    "gateway.endpoint",
    "gateway.private_key",
    "gateway.network",
    "gateway.network6",
    "gateway.mtu",
    "gateway.fwmark",
    "gateway.masquerade",
    "gateway.client_to_client",
    "gateway.dns",
    "gateway.lan",
    "gateway.allow",
    "gateway.expose",
    "gateway.pass_firewalls",
    "gateway.inside_api",
    "gateway.metrics",
    "gateway.metrics_beyond_loopback",
    "gateway.stream",
    "gateway.stream_certificate",
    "gateway.stream_key",
    "gateway.stream_web",
    "gateway.stream_path",
    "ip.services",
    "log.level",
];

/// What `[client]` says is for clients of this home.
fn is_live(key: &str) -> bool {
    LIVE.contains(&key) || key.starts_with("client.")
}

impl Gateway {
    fn open(home: &Home, layers: &Layers, config: Config, signals: Receiver<Signal>) -> anyhow::Result<Self> {
        let interface = config.gateway.interface.to_string();
        let journal = control::journal_path(home, &interface);
        let mut clock = WallClock::open(home);
        clock.read();
        // What a killed gateway left is taken over by `adit_host::apply`, so that connections through it live on.
        device::refuse_existing(&interface)?;

        let offload = config.gateway.offload == Offload::Auto;
        let queues = match config.gateway.lanes {
            Lanes::Auto => driver::lanes_auto(),
            Lanes::Count(count) => usize::from(count.get()),
        };
        let tun = Tun::create(&TunConfig { name: Some(interface.clone()), queues, offload })?;
        let listen_port = config.gateway.listen_port;
        let driver =
            device::start(DriverConfig { tun, listen_port, fwmark: config.gateway.fwmark, offload })?;

        if config.gateway.network6.is_some() && !adit_host::ipv6_enabled() {
            tracing::warn!("{IPV6_OFF}; the gateway carries IPv4 only");
        }
        let (heard, before) = HeardFile::load(home.state_dir.join("endpoints.json"));
        let (socket, questions) = control::open(home, &interface)?;
        let mut instance = Instance::new(Role::Gateway, interface, driver, signals, questions);
        let mtu_bytes = mtu_of(&config)?;
        let port = instance.driver.snapshot().listen_port;
        let invited = Invited::load(home, &config);
        let mut guard = adit_host::apply(&plan(&config, &invited, port, mtu_bytes), &journal)?;
        instance.upkeep.watch(&mut guard);
        warn_of_foreign_drops(&config);
        warn_of_unknown_names(&config);
        warn_of_default_routes(&config.peers, &[]);
        let quota = QuotaFile::load(home.state_dir.join("quota.json"), clock.read());
        let to_greet = introduce_peers(&instance, &config, &before, &quota);
        instance.driver.apply(invited.introduction(&Invited::default()));
        instance.hidden = invited.keys();
        describe(&mut instance, &config, mtu_bytes);
        instance.write_events_to(EventLog::new(home, config.log.events));
        let office = Office::new(home.clone(), layers.clone(), instance.interface.clone());
        let wanted = callers_and_doors(&config, &invited);
        let inside_api = InsideApi::start(&instance.driver.forwarding(), wanted, Some(office))
            .context("cannot start the inside API")?;
        let metrics = start_metrics(&instance, config.gateway.metrics)?;
        let door = match door_plan(home, &config, port) {
            Some(plan) => Some(Door::open(plan, instance.driver.forwarding(), instance.driver.streams())?),
            None => None,
        };
        Ok(Self {
            door,
            inside_api,
            resolver: dns::start(&config),
            metrics,
            passages: passages(&config),
            neighbours: neighbours::around(&config),
            guard,
            socket,
            instance,
            home: home.clone(),
            layers: layers.clone(),
            config,
            invited,
            invites_read: Instant::now(),
            heard,
            quota,
            clock,
            counted_at: Instant::now(),
            unsaved: false,
            to_greet,
        })
    }

    fn run_until_asked(&mut self) -> anyhow::Result<()> {
        let mut watchdog = Watchdog::from_environment();
        loop {
            let patience = if self.to_greet.is_empty() { IDLE } else { GREETING_PAUSE };
            let wake = self.instance.wait(watchdog.patience(patience));
            watchdog.pat(|| self.instance.driver.try_snapshot().is_some());
            match wake {
                Wake::Stop => return Ok(()),
                Wake::Failed(reason) => bail!("the gateway ends: {reason}"),
                Wake::Tick => {
                    self.greet_some();
                    self.instance.upkeep.look(&mut self.guard);
                    self.instance.endpoints.ask_for_missing();
                    self.instance.follow_ways();
                }
                Wake::Heard => self.unsaved = true,
                Wake::Exclude(_) => {}
                Wake::Host(noticed) => {
                    let others = self.instance.upkeep.tend(&mut self.guard, &noticed);
                    if others.firewall {
                        self.follow_firewalls();
                    }
                    if others.networks {
                        self.follow_neighbours();
                    }
                }
                Wake::Reload(asked) => {
                    let outcome = self.reload();
                    reload::tell(asked, outcome);
                }
            }
            if self.counted_at.elapsed() >= COUNT_INTERVAL {
                self.count_quotas();
                self.quota.save(false);
            }
            self.tend_invites();
            if self.unsaved {
                self.unsaved = !self.heard.save(&self.instance.driver.snapshot().peers, false);
            }
        }
    }

    /// Peers that had a session a moment ago still send under its keys: a handshake from here spares
    /// them the 15 seconds after which they would notice.
    fn greet_some(&mut self) {
        let count = self.to_greet.len().min(GREETINGS_AT_ONCE);
        let some: Vec<_> = self.to_greet.drain(..count).map(Command::Initiate).collect();
        if !some.is_empty() {
            self.instance.driver.apply(some);
        }
    }

    /// Those that have been over for a day are no peers any more; and who joins next need not have a clock that is
    /// ahead of the one before, whose key it uses.
    fn tend_invites(&mut self) {
        if let Some(after) = self.invited.after_uses(USE_TAKES) {
            self.instance.driver.apply(after);
        }
        if self.invited.is_empty() || self.invites_read.elapsed() < INVITES_AGAIN {
            return;
        }
        self.invites_read = Instant::now();
        if Invited::load(&self.home, &self.config).keys() != self.invited.keys()
            && let Err(error) = self.reload()
        {
            tracing::error!("invites that are over stay for now: {error:#}");
        }
    }

    /// Adds up what peers with a quota use; each gets its whole quota when a month begins.
    fn count_quotas(&mut self) {
        self.counted_at = Instant::now();
        let settled_unix_secs = self.clock.look();
        let with_quota =
            || self.config.peers.iter().filter(|peer| peer.enabled && peer.limits.quota.is_some());
        let keys: std::collections::HashSet<_> = with_quota().map(|peer| peer.public_key).collect();
        if keys.is_empty() {
            return;
        }
        let peers = self.instance.driver.snapshot().peers;
        if self.quota.count(&peers, |peer| keys.contains(peer), settled_unix_secs) {
            tracing::info!("a month begins: every peer has its whole quota again");
            self.instance
                .driver
                .apply(with_quota().map(|peer| Command::SetPeer(peers::limit(peer, 0))).collect());
        }
    }

    fn reload(&mut self) -> anyhow::Result<Changes> {
        let new = Config::load(&self.home, &self.layers)?;
        if new.gateway.interface != self.config.gateway.interface {
            bail!("the name of the interface changed; restart the gateway for that");
        }
        let needs_restart = changed_settings(&self.config, &new).filter(|key| !is_live(key)).collect();
        let mtu_bytes = mtu_of(&new)?;
        if let Err(error) = self.change_socket(&new) {
            self.socket_back();
            return Err(error);
        }
        let port = self.instance.driver.snapshot().listen_port;
        let invited = Invited::load(&self.home, &new);
        // Nobody has an address for a moment that the firewall no longer confines.
        self.instance.driver.apply(self.invited.removal(&invited));
        if let Err(error) = self.guard.change_to(&plan(&new, &invited, port, mtu_bytes)) {
            self.instance.driver.apply(self.invited.introduction(&Invited::default()));
            return Err(self.back_after(error.into()));
        }

        let mut commands = Vec::new();
        if new.gateway.private_key != self.config.gateway.private_key {
            commands.push(Command::SetPrivateKey(Some(new.gateway.private_key.clone())));
        }
        self.count_quotas();
        let (differing, changes) =
            peers::difference(&self.config.peers, &new.peers, |peer| self.quota.used(peer));
        commands.extend(differing);
        commands.extend(invited.introduction(&self.invited));
        let invited = invited.following(&self.invited);
        self.instance.driver.apply(commands);
        self.instance.hidden = invited.keys();
        describe(&mut self.instance, &new, mtu_bytes);
        crate::log::set_level(new.log.level);
        if (&new.gateway.dns, new.gateway.fwmark) != (&self.config.gateway.dns, self.config.gateway.fwmark)
            || new.gateway.addresses() != self.config.gateway.addresses()
        {
            // The old one leaves its place first.
            self.resolver = None;
            self.resolver = dns::start(&new);
        }
        self.inside_api.change(callers_and_doors(&new, &invited));
        self.invited = invited;
        if new.gateway.metrics != self.config.gateway.metrics {
            // The old one has to let go of its address first.
            self.metrics = None;
            match start_metrics(&self.instance, new.gateway.metrics) {
                Ok(metrics) => self.metrics = metrics,
                Err(error) => tracing::error!("{error:#}"),
            }
        }
        self.change_door(&new, port)?;
        warn_of_default_routes(&new.peers, &self.config.peers);
        warn_of_unknown_names(&new);
        self.config = new;
        Ok(Changes { needs_restart, ..changes })
    }

    fn change_door(&mut self, new: &Config, port: u16) -> anyhow::Result<()> {
        match (door_plan(&self.home, new, port), &self.door) {
            (Some(plan), Some(door)) => door.change(plan),
            (Some(plan), None) => {
                let driver = &self.instance.driver;
                self.door = Some(Door::open(plan, driver.forwarding(), driver.streams())?);
            }
            (None, _) => self.door = None,
        }
        Ok(())
    }

    fn change_socket(&self, new: &Config) -> anyhow::Result<()> {
        let (old, new) = (&self.config.gateway, &new.gateway);
        if new.listen_port != old.listen_port {
            self.instance.driver.set_listen_port(new.listen_port).map_err(|error| match error.kind() {
                std::io::ErrorKind::AddrInUse => anyhow!(device::port_taken(new.listen_port)),
                _ => anyhow!("cannot listen on UDP port {}: {error}", new.listen_port),
            })?;
        }
        if new.fwmark != old.fwmark {
            self.instance.driver.set_fwmark(new.fwmark).context("cannot mark outside packets")?;
        }
        Ok(())
    }

    fn socket_back(&self) {
        let old = &self.config.gateway;
        let back = [
            self.instance.driver.set_listen_port(old.listen_port),
            self.instance.driver.set_fwmark(old.fwmark),
        ];
        for error in back.into_iter().filter_map(Result::err) {
            tracing::error!("the socket could not be put back: {error}");
        }
    }

    /// What is around this host has changed: the plan that the configuration in effect makes of it.
    fn plan_anew(&mut self) -> anyhow::Result<()> {
        let port = self.instance.driver.snapshot().listen_port;
        self.guard.change_to(&plan(&self.config, &self.invited, port, mtu_of(&self.config)?))?;
        Ok(())
    }

    /// The host refused the new plan: the socket and the host go back to the configuration in effect.
    fn back_after(&mut self, error: anyhow::Error) -> anyhow::Error {
        self.socket_back();
        let port = self.instance.driver.snapshot().listen_port;
        match self.guard.change_to(&plan(&self.config, &self.invited, port, self.instance.mtu_bytes)) {
            Ok(_) => error,
            Err(worse) => error.context(format!("and the former plan could not be put back: {worse}")),
        }
    }

    fn close(mut self) -> anyhow::Result<()> {
        self.count_quotas();
        self.quota.save(true);
        let Self { door, inside_api, resolver, metrics, guard, socket, instance, mut heard, .. } = self;
        drop(socket);
        drop((door, resolver, inside_api, metrics));
        heard.save(&instance.driver.snapshot().peers, true);
        let undone = guard.undo();
        instance.ends();
        instance.driver.stop();
        tracing::info!("gateway stopped");
        undone.map(drop).context("the host could not be put back completely")
    }
}

pub(crate) fn start_metrics(instance: &Instance, at: Option<SocketAddr>) -> anyhow::Result<Option<Metrics>> {
    at.map(|at| Metrics::start(at, instance.asker())).transpose().context("cannot start to tell metrics")
}

/// Gives every peer to the driver; returns those that had a session a moment ago.
fn introduce_peers(
    instance: &Instance,
    config: &Config,
    before: &[Heard],
    quota: &QuotaFile,
) -> Vec<PublicKey> {
    let now = unix_secs(SystemTime::now());
    let mut commands = vec![Command::SetPrivateKey(Some(config.gateway.private_key.clone()))];
    let mut to_greet = Vec::new();
    for peer in config.peers.iter().filter(|peer| peer.enabled) {
        let mut update = peers::introduce(peer, quota.used(&peer.public_key));
        if let Some(heard) = before.iter().find(|heard| heard.peer == peer.public_key) {
            update.timestamps = heard.timestamps;
            if now.saturating_sub(heard.at_unix_secs) <= SESSION_SECS {
                update.endpoint = Some(Endpoint::udp(heard.endpoint));
                to_greet.push(peer.public_key);
            }
        }
        commands.push(Command::SetPeer(update));
    }
    instance.driver.apply(commands);
    to_greet
}

/// What `status` tells, and which names are resolved.
fn describe(instance: &mut Instance, config: &Config, mtu_bytes: u32) {
    instance.mtu_bytes = mtu_bytes;
    instance.addresses = carried(config.gateway.addresses()).iter().map(ToString::to_string).collect();
    let enabled = || config.peers.iter().filter(|peer| peer.enabled);
    instance.limits = enabled().map(|peer| (peer.public_key, peer.limits.clone())).collect();
    let own = config.gateway.addresses().iter().map(|net| net.addr()).collect();
    instance.driver.forwarding().set_own_addresses(own);
    instance.followed =
        enabled().filter(|peer| peer.endpoint.is_some()).map(|peer| peer.public_key).collect();
    instance.name_peers(enabled().map(|peer| (peer.public_key, Some(peer.name.to_string()))));
    let named: std::collections::HashMap<_, _> = enabled()
        .filter_map(|peer| {
            Some((peer.public_key, peer.endpoint.clone().filter(|it| it.address().is_none())?))
        })
        .collect();
    instance.endpoints.retain(|peer, name| named.get(peer) == Some(name));
    for (peer, name) in named {
        if !instance.endpoints.watches(&peer) {
            instance.endpoints.watch(peer, name, Vec::new(), None);
        }
    }
    instance.endpoints.ask_for_missing();
}

fn warn_of_unknown_names(config: &Config) {
    for name in reach::unknown_peers(config) {
        tracing::warn!(
            "`allow` or `expose` names {name}, but no peer has this name: nothing is allowed by that"
        );
    }
}

/// What to tell where the host has IPv6 off.
pub const IPV6_OFF: &str =
    "IPv6 is off on this host (`sysctl net.ipv6.conf.all.disable_ipv6` shows 1, or the kernel has none)";

fn warn_of_default_routes(peers: &[Peer], known: &[Peer]) {
    let is_default = |peer: &&Peer| peer.enabled && peer.allowed_ips().any(|net| net.prefix_len() == 0);
    for peer in peers.iter().filter(is_default) {
        if !known.iter().filter(is_default).any(|known| known.public_key == peer.public_key) {
            tracing::warn!(
                "peer {} is allowed every address; it may send from them, but this host gets no default route \
                 to it: add the route yourself if you mean one",
                peer.name
            );
        }
    }
}

fn changed_settings<'a>(old: &'a Config, new: &'a Config) -> impl Iterator<Item = String> + 'a {
    new.settings.iter().filter_map(|setting| {
        let before = old.settings.iter().find(|it| it.key == setting.key);
        (before.map(|it| &it.value) != Some(&setting.value)).then(|| setting.key.clone())
    })
}
