//! `adit ip`: the address the world sees, and whether it is our own.
//!
//! ```text
//!   gateway's whoami (through the tunnel) ─┐
//!   services, around the tunnel (marked) ──┴─► outside ─┐
//!   services, by the ordinary route ──────────► seen ───┴─► masked: they differ
//! ```

mod answer;
mod ask;
mod page;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use serde::Serialize;

use self::ask::Asker;
use crate::config::{Config, Layers, ServiceUrl};
use crate::home::Home;
use crate::inside;
use crate::privilege;
use crate::status::{self, Role};
use crate::web::{Trust, Way};

/// What `adit ip` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct IpArgs {
    /// Only the address without the tunnel
    #[arg(long)]
    outside: bool,
    /// Only IPv4
    #[arg(short = '4', long)]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Ask this service, and not the usual ones; may be repeated
    #[arg(long, value_name = "URL", value_parser = |url: &str| url.parse::<ServiceUrl>().map(|it| it.to_string()))]
    service: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An address, and who said it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Found {
    address: IpAddr,
    source: String,
}

/// A service that said nothing of use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Failure {
    service: String,
    asked: &'static str,
    reason: String,
}

/// What was found out over one IP version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Seen {
    /// The address the world sees now.
    seen: Option<Found>,
    /// The address it would see without the tunnel.
    outside: Option<Found>,
    /// Whether they differ; unknown when one is.
    masked: Option<bool>,
    failures: Vec<Failure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Page {
    schema: u32,
    tunnel: &'static str,
    interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<Seen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<Seen>,
}

/// The tunnel that packets of this host may take.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tunnel {
    Up {
        interface: String,
        mark: u32,
        inside_api: Vec<SocketAddr>,
    },
    Down,
    /// Only root can tell.
    Unknown,
}

/// Prints the address the world sees and, unless only one of them is asked for, the one without the tunnel.
///
/// # Errors
/// The configuration is wrong, or only root can do what is asked.
pub fn run(home: &Home, args: &IpArgs, mut layers: Layers) -> anyhow::Result<ExitCode> {
    if !args.service.is_empty() {
        layers.flag("ip.services", "--service", args.service.join(" "));
    }
    let asker = Asker { services: Config::ip_services(home, &layers)?, trust: Trust::of_host() };
    let tunnel = tunnel(home)?;
    if tunnel == Tunnel::Unknown && args.outside {
        bail!(
            "whether a tunnel is up, and how to go around it, only root can tell; run `sudo adit ip --outside{}`",
            home.flag()
        );
    }
    if matches!(tunnel, Tunnel::Up { mark: 1.., .. }) && !privilege::may_configure_network() {
        bail!("a tunnel is up, and only root may go around it; run `sudo adit ip{}`", home.flag());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let page = runtime.block_on(ask(&asker, &tunnel, args));
    // A resolver that hangs is not waited for.
    runtime.shutdown_background();
    if args.json {
        crate::print_line(&serde_json::to_string(&page)?)?;
    } else {
        crate::print_line(&page::print(&page, args.outside, &home.flag()))?;
        for line in page::complaints(&page) {
            eprintln!("{line}");
        }
    }
    let has_answer =
        [&page.ipv4, &page.ipv6].into_iter().flatten().any(|it| it.seen.is_some() || it.outside.is_some());
    Ok(if has_answer { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The address that the first service to answer sees this host at, and who that was; nothing after `patience`.
pub fn seen_by_services(home: &Home, patience: std::time::Duration) -> Option<(IpAddr, String)> {
    let services = Config::ip_services(home, &Layers::default()).ok()?;
    let asker = Asker { services, trust: Trust::of_host() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let asking = async {
        let way = Way::default();
        let (found, _) = asker.in_turn(Family::V4, &way, "seen").await;
        match found {
            Some(found) => Some(found),
            None => asker.in_turn(Family::V6, &way, "seen").await.0,
        }
    };
    let found = runtime.block_on(async { tokio::time::timeout(patience, asking).await.ok().flatten() });
    runtime.shutdown_background();
    found.map(|found| (found.address, found.source))
}

/// The first tunnel that captures what leaves this host, or else the first.
fn tunnel(home: &Home) -> anyhow::Result<Tunnel> {
    let is_root = privilege::user_id() == Some(0);
    let reports = match status::collect(home, None) {
        Ok(reports) => reports,
        Err(_) if !is_root => return Ok(Tunnel::Unknown),
        Err(error) => return Err(error),
    };
    let tunnels = || reports.iter().filter(|report| report.role == Role::Client);
    match tunnels().find(|report| report.fwmark != 0).or(tunnels().next()) {
        Some(report) => Ok(Tunnel::Up {
            interface: report.interface.clone(),
            mark: report.fwmark,
            inside_api: report.peers.iter().flat_map(|peer| &peer.inside_api).copied().collect(),
        }),
        None if !is_root && is_closed_to_us(&Home::new(None)?.run_dir) => Ok(Tunnel::Unknown),
        None => Ok(Tunnel::Down),
    }
}

fn is_closed_to_us(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

async fn ask(asker: &Asker, tunnel: &Tunnel, args: &IpArgs) -> Page {
    let wants = |only: bool| only || args.ipv4 == args.ipv6;
    let told = match tunnel {
        Tunnel::Up { interface, inside_api, .. } => inside::whoami(interface, inside_api)
            .await
            .map(|(api, told)| (format!("gateway {}", api.ip()), told.outside))
            .map_err(|reason| Failure { service: "gateway".to_owned(), asked: "outside", reason }),
        Tunnel::Down | Tunnel::Unknown => Ok((String::new(), None)),
    };
    let of = |family: Family, wanted: bool| {
        let told = &told;
        async move { if wanted { Some(one_family(asker, tunnel, args, family, told).await) } else { None } }
    };
    let (ipv4, ipv6) = tokio::join!(of(Family::V4, wants(args.ipv4)), of(Family::V6, wants(args.ipv6)));
    let (word, interface) = match tunnel {
        Tunnel::Up { interface, .. } => ("up", Some(interface.clone())),
        Tunnel::Down => ("down", None),
        Tunnel::Unknown => ("unknown", None),
    };
    Page { schema: 1, tunnel: word, interface, ipv4, ipv6 }
}

type Told = Result<(String, Option<SocketAddr>), Failure>;

async fn one_family(asker: &Asker, tunnel: &Tunnel, args: &IpArgs, family: Family, told: &Told) -> Seen {
    let ordinary = Way::default();
    let Tunnel::Up { mark, .. } = tunnel else {
        let (found, failures) = asker.in_turn(family, &ordinary, "seen").await;
        let is_down = *tunnel == Tunnel::Down;
        let outside = found.clone().filter(|_| is_down);
        let masked = outside.as_ref().map(|_| false);
        return Seen { seen: found.filter(|_| !args.outside), outside, masked, failures };
    };
    let around = Way { mark: *mark, interface: None };
    let outside = async {
        let (found, mut failures) = match told {
            Ok((gateway, Some(outside))) if Family::of(outside.ip()) == family => {
                let source = gateway.clone();
                if answer::is_public(outside.ip()) {
                    return (Some(Found { address: outside.ip(), source }), Vec::new());
                }
                let reason = format!("it sees {}, which nobody has on the internet", outside.ip());
                (None, vec![Failure { service: source, asked: "outside", reason }])
            }
            Ok(_) => (None, Vec::new()),
            Err(failure) => (None, vec![failure.clone()]),
        };
        let (later, more) = asker.in_turn(family, &around, "outside").await;
        failures.extend(more);
        (found.or(later), failures)
    };
    let seen = async {
        if args.outside { (None, Vec::new()) } else { asker.in_turn(family, &ordinary, "seen").await }
    };
    let ((outside, mut failures), (seen, more)) = tokio::join!(outside, seen);
    failures.extend(more);
    let masked = seen.as_ref().zip(outside.as_ref()).map(|(seen, outside)| seen.address != outside.address);
    Seen { seen, outside, masked, failures }
}
