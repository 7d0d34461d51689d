//! `adit invite`: one URL with which a machine becomes a peer of the gateway, by `adit join`.
//!
//! ```text
//!   invite ─► secret ─► keys ─┬─► invites.json: public half, address, terms ─► the gateway takes it for a peer
//!                             └─► URL                                           that reaches the inside API only
//! ```

mod book;
mod secret;
mod url;

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddrV4};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use ipnet::IpNet;
use serde_json::{Value, json};
use zeroize::Zeroizing;

pub use self::book::{Invite, Invites, Standing, Terms, Use};
pub use self::secret::{InviteKeys, InviteSecret};
pub use self::url::{CarrierKind, InviteUrl, MAX_BYTES as URL_BYTES_MAX, OtherEndpoint, UrlError};

use crate::config::diagnostic::did_you_mean;
use crate::config::{Config, Layers, PeerName, parse_prefix, parse_tag};
use crate::home::Home;
use crate::keys;
use crate::lease;
use crate::peer::tell_gateways;
use crate::private_file;
use crate::qr;
use crate::resolvers;
use crate::state::Lock;
use crate::stream::Recognition;
use crate::table::Table;
use crate::wall_clock;

/// What `adit invite` is told.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct InviteArgs {
    #[command(subcommand)]
    verb: Option<InviteVerb>,
    /// Name of the peer that joins: letters, digits or _.-
    #[arg(required = true)]
    name: Option<PeerName>,
    /// How long the invite can be accepted: a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = book::parse_lifetime)]
    expires: Duration,
    /// How many may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    uses: u32,
    /// Send everything through the tunnel (the default)
    #[arg(long, conflicts_with = "split")]
    full_tunnel: bool,
    /// Send only the gateway's networks and these through the tunnel
    #[arg(long, value_name = "CIDR", num_args = 0.., value_delimiter = ',', value_parser = parse_prefix)]
    split: Option<Vec<IpNet>>,
    /// DNS servers the client shall use [default: with a full tunnel, those of this host]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    dns: Vec<IpAddr>,
    /// Leave the client with the DNS servers that it has
    #[arg(long, conflicts_with = "dns")]
    no_dns: bool,
    /// A word to sort peers by; may be given several times
    #[arg(long = "tag", value_name = "WORD", value_parser = parse_tag)]
    tags: Vec<String>,
    /// Show the URL as a QR code too
    #[arg(long)]
    qr: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum InviteVerb {
    /// List the invites and what became of them
    #[command(visible_alias = "ls")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take an invite back; whoever joined with it stays a peer
    Revoke {
        /// The name it was made for
        name: PeerName,
    },
}

/// Makes an invite and prints its URL alone on stdout, or lists or revokes invites.
///
/// # Errors
/// The name is taken, the network is full, or a file cannot be changed; nothing was changed then.
pub fn run(home: &Home, args: &InviteArgs, layers: &Layers) -> anyhow::Result<ExitCode> {
    match (&args.verb, &args.name) {
        (Some(InviteVerb::List { json }), _) => list(home, *json),
        (Some(InviteVerb::Revoke { name }), _) => revoke(home, name),
        (None, Some(name)) => invite(home, name, args, layers),
        (None, None) => bail!("name the peer that joins: `adit invite NAME`"),
    }
}

fn invite(home: &Home, name: &PeerName, args: &InviteArgs, layers: &Layers) -> anyhow::Result<ExitCode> {
    let (url, expires) = make(home, name, args, layers)?;
    let told = tell_gateways(home);
    for failure in &told.failures {
        eprintln!("warning: {failure}, so nobody can join with it yet");
    }
    if told.heard.is_empty() && told.failures.is_empty() {
        eprintln!(
            "note: no gateway runs here now, so nobody can join yet; `adit gateway{}` runs it",
            home.flag()
        );
    }
    let written = if args.json {
        let page = json!({"schema": 1, "name": name.as_str(), "url": url.as_str(), "expires": expires});
        write_secret(&page.to_string())
    } else {
        write_secret(&url)
    };
    if let Err(error) = written {
        revoke_quietly(home, name)?;
        return Err(error).context("cannot write the invite to stdout; it was taken back");
    }
    if args.qr {
        eprint!("{}", qr::terminal(url.as_bytes())?.as_str());
    }
    if !args.json {
        let times = if args.uses == 1 { "once".to_owned() } else { format!("{} times", args.uses) };
        eprintln!(
            "this works {times}, for {}; on the machine that joins run: sudo adit join 'URL'",
            duration_text(args.expires.as_secs())
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The URL of a new invite, once it is written down, and when it runs out.
fn make(
    home: &Home,
    name: &PeerName,
    args: &InviteArgs,
    layers: &Layers,
) -> anyhow::Result<(Zeroizing<String>, u64)> {
    let _lock = Lock::hold(home)?;
    let config = Config::load(home, layers)?;
    let now = wall_clock::now();
    let mut invites = Invites::load(home, now)?;
    let flag = home.flag();
    if config.peers.iter().any(|peer| peer.name == *name) {
        bail!(
            "there is a peer `{name}` already; choose another name, or run `adit peer rm {name}{flag}` first"
        );
    }
    if invites.list.iter().any(|it| it.name == *name && it.is_open(now)) {
        bail!(
            "`{name}` is invited already; take that back with `adit invite revoke {name}{flag}`, or choose another \
             name"
        );
    }
    if invites.list.iter().filter(|it| it.is_open(now)).count() >= book::OPEN_MOST {
        bail!(
            "{} invites are open already; revoke some (`adit invite list{flag}` shows them), or make one with --uses",
            book::OPEN_MOST
        );
    }
    let port = config.gateway.inside_api.context(
        "the inside API is off, and peers join by it: set `inside_api` below [gateway] to a port, then reload",
    )?;
    let endpoint = lease::endpoint_of(home, &config)?;
    let api = config.gateway.addresses().into_iter().find_map(|net| match net.addr() {
        IpAddr::V4(address) => Some(SocketAddrV4::new(address, port.get())),
        IpAddr::V6(_) => None,
    });
    let secret = InviteSecret::generate()?;
    let gateway = config.gateway.private_key.public_key();
    let InviteKeys { private_key, preshared_key } = secret.keys(&gateway);
    let expires = now.saturating_add(args.expires.as_secs());
    let address = invites.free_address(&config, now)?;
    invites.list.push(Invite {
        name: name.clone(),
        public_key: private_key.public_key(),
        preshared_key,
        address,
        created: now,
        expires,
        uses: args.uses,
        used: Vec::new(),
        revoked: None,
        terms: Terms { split: args.split.clone(), dns: args.dns_servers(), tags: args.tags.clone() },
    });
    let recognition = crate::gateway::stream_offer(home, &config)?;
    let url = InviteUrl {
        endpoint,
        gateway,
        secret,
        address,
        inside_api: api.context("the gateway has no IPv4 address inside")?,
        others: Vec::new(),
        tls_pin: recognition.pin_bytes(),
        server_name: None,
        vouched_for: recognition == Recognition::Authorities,
    };
    private_file::protect_stdout()?;
    // The last that can go wrong: an invite without its URL would stand in the way of the next.
    invites.save()?;
    Ok((url.to_text(), expires))
}

impl InviteArgs {
    /// Whoever sends everything through the tunnel means its questions for names too.
    fn dns_servers(&self) -> Vec<IpAddr> {
        match self.dns.is_empty() && !self.no_dns && self.split.is_none() {
            true => resolvers::reachable_by_others(),
            false => self.dns.clone(),
        }
    }
}

fn write_secret(text: &str) -> io::Result<()> {
    let mut line = Zeroizing::new(String::with_capacity(text.len() + 1));
    line.push_str(text);
    line.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush())
}

fn list(home: &Home, json: bool) -> anyhow::Result<ExitCode> {
    let now = wall_clock::now();
    let invites = Invites::load(home, now)?;
    if json {
        let list: Vec<Value> = invites.list.iter().map(|invite| describe(invite, now)).collect();
        crate::print_line(&json!({"schema": 1, "invites": list}).to_string())?;
    } else if invites.list.is_empty() {
        eprintln!("there are no invites; `adit invite NAME{}` makes one", home.flag());
    } else {
        let mut table = Table::new(["NAME", "STATE", "JOINED", "TAGS"]);
        for invite in &invites.list {
            table.row([
                invite.name.to_string(),
                state_text(invite, now),
                format!("{} of {}", invite.used.len(), invite.uses),
                invite.terms.tags.join(", "),
            ]);
        }
        crate::print_line(table.to_string().trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn state_text(invite: &Invite, now: u64) -> String {
    let ago = |at: u64| duration_text(now.saturating_sub(at));
    match invite.standing(now) {
        Standing::Open => format!("open for {}", duration_text(invite.expires.saturating_sub(now))),
        Standing::UsedUp(at) => format!("used up {} ago", ago(at)),
        Standing::Expired(at) => format!("expired {} ago", ago(at)),
        Standing::Revoked(at) => format!("revoked {} ago", ago(at)),
    }
}

fn describe(invite: &Invite, now: u64) -> Value {
    let state = match invite.standing(now) {
        Standing::Open => "open",
        Standing::UsedUp(_) => "used_up",
        Standing::Expired(_) => "expired",
        Standing::Revoked(_) => "revoked",
    };
    let used: Vec<Value> = invite
        .used
        .iter()
        .map(|it| json!({"name": it.name.as_str(), "public_key": keys::public_text(&it.public_key), "at": it.at}))
        .collect();
    json!({
        "name": invite.name.as_str(),
        "state": state,
        "created": invite.created,
        "expires": invite.expires,
        "revoked": invite.revoked,
        "uses": invite.uses,
        "used": used,
        "tags": invite.terms.tags,
        "split": invite.terms.split,
        "dns": invite.terms.dns,
    })
}

fn revoke(home: &Home, name: &PeerName) -> anyhow::Result<ExitCode> {
    let now = wall_clock::now();
    let invites = Invites::load(home, now)?;
    if !revoke_quietly(home, name)? {
        let names: Vec<&str> =
            invites.list.iter().filter(|it| it.is_open(now)).map(|it| it.name.as_str()).collect();
        let over = invites.list.iter().rev().find(|it| it.name == *name);
        return Err(match (over, did_you_mean(name.as_str(), names)) {
            (Some(over), _) => {
                anyhow!("the invite for `{name}` is not open: it was {}", state_text(over, now))
            }
            (None, Some(word)) => anyhow!("there is no invite for `{name}`; did you mean `{word}`?"),
            (None, None) => {
                anyhow!("there is no invite for `{name}`; `adit invite list{}` shows them", home.flag())
            }
        });
    }
    let failures = tell_gateways(home).failures;
    if failures.is_empty() {
        eprintln!("revoked the invite for {name}");
        return Ok(ExitCode::SUCCESS);
    }
    bail!("the invite for {name} is revoked, but a gateway may not know yet: {}", failures.join("; "))
}

/// Whether there was an open invite of that name.
fn revoke_quietly(home: &Home, name: &PeerName) -> anyhow::Result<bool> {
    let _lock = Lock::hold(home)?;
    let now = wall_clock::now();
    let mut invites = Invites::load(home, now)?;
    let mut found = false;
    for invite in invites.list.iter_mut().filter(|it| it.name == *name && it.is_open(now)) {
        invite.revoked = Some(now);
        found = true;
    }
    if found {
        invites.save()?;
    }
    Ok(found)
}

/// A length of time for people, in its largest fitting unit.
pub fn duration_text(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7_200 => format!("{} min", secs / 60),
        7_200..172_800 => format!("{} h", secs / 3_600),
        _ => format!("{} days", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        for (secs, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (600, "10 min"),
            (7_200, "2 h"),
            (86_400, "24 h"),
            (604_800, "7 days"),
        ] {
            assert_eq!(duration_text(secs), text);
        }
    }
}
