//! `adit peer add`: a peer whose file is made here, for those who cannot join with an invite.

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use adit_proto::suite::Suite;
use anyhow::{Context, bail};
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{remove_from_file, tell_gateways};
use crate::config::{Config, Document, Layers, Peer, PeerName, parse_prefix, parse_suite, parse_tag};
use crate::events::{Event, EventLog};
use crate::home::Home;
use crate::invite::{Invites, Terms};
use crate::keys;
use crate::lease::{self, Lease};
use crate::private_file;
use crate::qr;
use crate::state::{Leases, Lock};
use crate::wall_clock;

/// What `adit peer add` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct AddArgs {
    /// Name of the new peer: letters, digits or _.-
    pub name: PeerName,
    /// Print the file for a stock WireGuard app: it gets the suite that those speak
    #[arg(long, conflicts_with = "qr")]
    pub conf: bool,
    /// Show that file as a QR code, for the WireGuard app of a phone
    #[arg(long)]
    pub qr: bool,
    /// Cipher suite: aes-256-gcm for adit clients, chacha20-poly1305 for any WireGuard app too
    /// [default: aes-256-gcm where this CPU has AES instructions; chacha20-poly1305 with --conf or --qr]
    #[arg(long, value_parser = parse_suite)]
    pub suite: Option<Suite>,
    /// Send everything through the tunnel (the default)
    #[arg(long, conflicts_with = "split")]
    pub full_tunnel: bool,
    /// Send only the gateway's networks and these through the tunnel
    #[arg(long, value_name = "CIDR", num_args = 0.., value_delimiter = ',', value_parser = parse_prefix)]
    pub split: Option<Vec<IpNet>>,
    /// DNS servers the client shall use
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub dns: Vec<IpAddr>,
    /// A word to sort peers by; may be given several times
    #[arg(long = "tag", value_name = "WORD", value_parser = parse_tag)]
    pub tags: Vec<String>,
}

/// Makes a peer and prints its wg-quick file, alone, on stdout.
///
/// # Errors
/// The name is taken, the network is full, or a file cannot be changed; nothing was changed then.
pub fn add(home: &Home, args: &AddArgs, layers: &Layers) -> anyhow::Result<ExitCode> {
    let Added { peer, output } = make(home, args, layers)?;
    let written = io::stdout().write_all(output.as_bytes()).and_then(|()| io::stdout().flush());
    if let Err(error) = written {
        // The key is lost with the output, so a peer that nobody can be is taken back.
        remove_from_file(home, &args.name, layers)?;
        return Err(error).context("cannot write the client's file to stdout; the peer was not added");
    }
    let list: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
    eprintln!("added peer {} with {}; its key is only in this output", args.name, list.join(" and "));
    match peer.suite {
        Suite::Aes256Gcm => eprintln!(
            "it uses aes-256-gcm, which only adit speaks; for a stock WireGuard app add it with --suite chacha20-poly1305"
        ),
        Suite::ChaCha20Poly1305 => {
            eprintln!("it uses chacha20-poly1305, which adit and every WireGuard app speak")
        }
    }
    let told = tell_gateways(home);
    told.print();
    for failure in told.failures {
        eprintln!("warning: {failure}, so {} cannot connect to it yet", args.name);
    }
    Ok(ExitCode::SUCCESS)
}

struct Added {
    peer: Peer,
    output: Zeroizing<String>,
}

fn make(home: &Home, args: &AddArgs, layers: &Layers) -> anyhow::Result<Added> {
    let _lock = Lock::hold(home)?;
    let config = Config::load(home, layers)?;
    if config.peers.iter().any(|peer| peer.name == args.name) {
        bail!(
            "there is a peer `{0}` already; choose another name, or run `adit peer rm {0}{1}` first",
            args.name,
            home.flag()
        );
    }
    let now = wall_clock::now();
    let invited = Invites::load(home, now)?.open_addresses(now);
    let mut leases = Leases::load(home)?;
    let private_key = keys::generate_private()?;
    let stock = args.conf || args.qr;
    let default = || if stock { Suite::ChaCha20Poly1305 } else { lease::suite_for(&lease::suites_here()) };
    let peer = Peer {
        preshared_key: Some(keys::generate_preshared()?),
        addresses: leases.next(&config, &invited)?,
        suite: args.suite.unwrap_or_else(default),
        tags: args.tags.clone(),
        ..Peer::new(args.name.clone(), private_key.public_key())
    };
    let terms = Terms { split: args.split.clone(), dns: args.dns.clone(), tags: Vec::new() };
    let file = Lease::of(home, &config, &peer, &terms)?.client_file(private_key)?.to_text();
    let output = if args.qr { qr::terminal(file.as_bytes())? } else { file };
    let mut document = Document::open(&home.config_file())?;
    document.add_peer(&peer)?;
    document.check()?;
    private_file::protect_stdout()?;
    leases.save(home)?;
    document.save()?;
    EventLog::new(home, config.log.events).record(&Event::enrolled(&peer, "peer add"));
    Ok(Added { peer, output })
}
