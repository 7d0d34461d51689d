//! `adit peer export`: the file of a peer once more, as the gateway would write it now.

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use adit_proto::key::StaticSecret;
use anyhow::{Context, bail};
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{peer_of, tell_gateways};
use crate::config::{Config, Document, Layers, Peer, PeerName, parse_prefix};
use crate::home::Home;
use crate::invite::Terms;
use crate::keys;
use crate::lease::Lease;
use crate::private_file;
use crate::qr;
use crate::state::Lock;

/// What `adit peer export` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct ExportArgs {
    /// The peer
    name: PeerName,
    /// Give the peer a new key, so that the file is complete; the file it has stops working
    #[arg(long)]
    new_key: bool,
    /// Show the file as a QR code; needs --new-key
    #[arg(long)]
    qr: bool,
    /// Send only the gateway's networks and these through the tunnel
    #[arg(long, value_name = "CIDR", num_args = 0.., value_delimiter = ',', value_parser = parse_prefix)]
    split: Option<Vec<IpNet>>,
    /// DNS servers the client shall use
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    dns: Vec<IpAddr>,
}

const KEY_LINE: &str = "PrivateKey = ";

/// Prints the wg-quick file of a peer, alone, on stdout.
///
/// # Errors
/// There is no such peer, or a file cannot be changed.
pub fn export(home: &Home, args: &ExportArgs, layers: &Layers) -> anyhow::Result<ExitCode> {
    if args.qr && !args.new_key {
        bail!(
            "the key of {0} is only in the file that it has, and a QR code without the key is no use; \
             `adit peer export {0} --qr --new-key{1}` gives it a new one, and its file stops working",
            args.name,
            home.flag()
        );
    }
    print(home, args, layers)?;
    if args.new_key {
        let told = tell_gateways(home);
        told.print();
        for failure in told.failures {
            eprintln!("warning: {failure}, so the new key does not work there yet");
        }
        eprintln!(
            "{} has a new key, which is only in this output; its old file is worth nothing now",
            args.name
        );
    } else {
        eprintln!(
            "the key of {} is only in the file that it has: put that PrivateKey line in here",
            args.name
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn print(home: &Home, args: &ExportArgs, layers: &Layers) -> anyhow::Result<()> {
    let _lock = Lock::hold(home)?;
    let config = Config::load(home, layers)?;
    let mut peer: Peer = peer_of(home, &config, &args.name)?.clone();
    let terms = Terms { split: args.split.clone(), dns: args.dns.clone(), tags: Vec::new() };
    if !args.new_key {
        let nobody = StaticSecret::from_bytes([0; 32]);
        let file = Lease::of(home, &config, &peer, &terms)?.client_file(nobody)?.to_text();
        return write_out(&without_key(&file));
    }
    let private_key = keys::generate_private()?;
    peer.public_key = private_key.public_key();
    peer.preshared_key = Some(keys::generate_preshared()?);
    let file = Lease::of(home, &config, &peer, &terms)?.client_file(private_key)?.to_text();
    let output = if args.qr { qr::terminal(file.as_bytes())? } else { file };
    let mut document = Document::open(&home.config_file())?;
    document.set_peer(&args.name, "public_key", keys::public_text(&peer.public_key).into())?;
    if let Some(key) = &peer.preshared_key {
        document.set_peer(&args.name, "preshared_key", keys::secret_text(key.as_bytes()).as_str().into())?;
    }
    document.check()?;
    private_file::protect_stdout()?;
    // A key that nobody has got takes no other's place.
    write_out(&output).context("the peer keeps its key")?;
    document
        .save()
        .context("the file above is worth nothing, the peer keeps the key it has; export it once more")?;
    Ok(())
}

fn write_out(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write the file to stdout")
}

fn without_key(file: &str) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(file.len() + 64));
    for line in file.lines() {
        match line.starts_with(KEY_LINE) {
            true => out.push_str("# PrivateKey = the one of this peer; the gateway does not have it"),
            false => out.push_str(line),
        }
        out.push('\n');
    }
    out
}
