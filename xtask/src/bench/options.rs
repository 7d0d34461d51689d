//! What is asked of the benchmark.

use std::path::PathBuf;
use std::str::FromStr;

use super::work::Work;

/// How to call it; shown on wrong calls.
pub const USAGE: &str = "\
cargo xtask bench [OPTIONS]
cargo xtask bench order [SECS]
                        datagrams at 90 % of the highest rate for SECS (60), with new keys in between, at 1, 2
                        and 4 lanes: all have to arrive, in order

  --quick               one run of one second each: a smoke test, not a measurement
  --runs N              interleaved runs, of which medians are shown (5)
  --seconds N           seconds of each TCP measurement (3)
  --only WORK,...       some of: tcp udp rtt handshakes peers storm, or one of a group such as udp-64; storm (all of
                        10,000 peers start over while one is active) only when asked for
  --peers PEER,...      some of: aes chacha aes-tcp wireguard-go openvpn null gotatun none
                        (all but gotatun, which is built from source, and none, which is the bare link)
  --wireguard-go PATH   measure this wireguard-go in place of the installed one
  --nic KIND            offload (the virtual link as it is), plain (like a plain network card) or both
  --json FILE           where to write every value (bench.json in the target directory)
  --append              add to that FILE: more runs of the same works, or other works, of the same programs
  --svg FILE            draw the ratios to wireguard-go
  --markdown            print tables for a document
  --document FILE       write the figures into a document, between its two marks
  --from FILE           measure nothing: show an earlier --json FILE";

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Aes,
    Chacha,
    AesTcp,
    WireguardGo,
    Openvpn,
    Null,
    Gotatun,
    None,
}

impl Peer {
    pub const ALL: [Self; 8] = [
        Self::Aes,
        Self::Chacha,
        Self::AesTcp,
        Self::WireguardGo,
        Self::Openvpn,
        Self::Null,
        Self::Gotatun,
        Self::None,
    ];
    const USUAL: [Self; 6] =
        [Self::Aes, Self::Chacha, Self::AesTcp, Self::WireguardGo, Self::Openvpn, Self::Null];

    pub fn name(self) -> &'static str {
        match self {
            Self::Aes => "aes",
            Self::Chacha => "chacha",
            Self::AesTcp => "aes-tcp",
            Self::WireguardGo => "wireguard-go",
            Self::Openvpn => "openvpn",
            Self::Null => "null",
            Self::Gotatun => "gotatun",
            Self::None => "none",
        }
    }

    /// Whether it answers WireGuard handshakes with a cipher of ours, and takes many peers.
    pub fn is_wireguard(self) -> bool {
        matches!(self, Self::Aes | Self::Chacha | Self::WireguardGo | Self::Gotatun)
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name).join(" ");
        Self::ALL
            .into_iter()
            .find(|peer| peer.name() == text)
            .ok_or_else(|| format!("{text:?} is none of the peers: {known}"))
    }
}

/// What the link between the two hosts can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nic {
    Offload,
    Plain,
}

impl Nic {
    pub fn name(self) -> &'static str {
        match self {
            Self::Offload => "offload",
            Self::Plain => "plain",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Offload, Self::Plain].into_iter().find(|nic| nic.name() == name)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub quick: bool,
    pub runs: usize,
    pub seconds: u32,
    /// `None` is the usual plan.
    pub only: Option<Vec<Work>>,
    pub peers: Vec<Peer>,
    pub wireguard_go: Option<PathBuf>,
    pub nics: Vec<Nic>,
    pub json: Option<PathBuf>,
    /// Whether the file holds runs that these are added to.
    pub append: bool,
    pub svg: Option<PathBuf>,
    pub markdown: bool,
    pub document: Option<PathBuf>,
    pub from: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments after `bench`; an error says which one is wrong, and why.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            quick: false,
            runs: 0,
            seconds: 0,
            only: None,
            peers: Peer::USUAL.to_vec(),
            wireguard_go: None,
            nics: vec![Nic::Offload, Nic::Plain],
            json: None,
            append: false,
            svg: None,
            markdown: false,
            document: None,
            from: None,
        };
        let (mut runs, mut seconds) = (None, None);
        let mut args = args.iter().copied();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg {
                "--quick" => options.quick = true,
                "--append" => options.append = true,
                "--markdown" => options.markdown = true,
                "--runs" => runs = Some(number(arg, value()?, 100)?),
                "--seconds" => seconds = Some(number(arg, value()?, 60)?),
                "--only" => options.only = Some(Work::selected(value()?)?),
                "--peers" => options.peers = list(value()?)?,
                "--wireguard-go" => options.wireguard_go = Some(value()?.into()),
                "--nic" => options.nics = nics(value()?)?,
                "--json" => options.json = Some(value()?.into()),
                "--svg" => options.svg = Some(value()?.into()),
                "--document" => options.document = Some(value()?.into()),
                "--from" => options.from = Some(value()?.into()),
                other => return Err(format!("{other:?} is not understood")),
            }
        }
        let (usual_runs, usual_seconds) = if options.quick { (1, 1) } else { (5, 3) };
        options.runs = runs.unwrap_or(usual_runs) as usize;
        options.seconds = seconds.unwrap_or(usual_seconds);
        Ok(options)
    }

    /// What is measured of `peer` over `nic`, in order. Without `--only`, what only sets a bound is measured in bulk
    /// transfer alone, and a plain network card is for throughput.
    pub fn planned(&self, nic: Nic, peer: Peer) -> impl Fn(&Work) -> bool {
        let chosen = self.only.clone();
        move |work| {
            let wanted = match &chosen {
                Some(works) => works.contains(work),
                None if *work == Work::Storm => false,
                None if !peer.is_wireguard() => work.is_bulk(),
                None => nic == Nic::Offload || work.is_bulk() || matches!(work, Work::Udp(64 | 1300)),
            };
            let possible =
                peer.is_wireguard() || !matches!(work, Work::Handshakes | Work::Peers(_) | Work::Storm);
            wanted && possible
        }
    }
}

fn number(name: &str, text: &str, most: u32) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("{name} takes a number from 1 to {most}, not {text:?}"))
}

fn list(text: &str) -> Result<Vec<Peer>, String> {
    let mut peers = text.split(',').map(str::parse).collect::<Result<Vec<Peer>, _>>()?;
    peers.sort();
    peers.dedup();
    Ok(peers)
}

fn nics(text: &str) -> Result<Vec<Nic>, String> {
    if text == "both" {
        return Ok(vec![Nic::Offload, Nic::Plain]);
    }
    let nic = Nic::from_name(text);
    nic.map(|nic| vec![nic]).ok_or_else(|| format!("--nic takes offload, plain or both, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_arguments_measures_five_runs_of_the_usual_peers() {
        let options = Options::parse(&[]).unwrap();
        assert_eq!((options.runs, options.seconds, options.quick), (5, 3, false));
        assert_eq!(options.nics, [Nic::Offload, Nic::Plain]);
        assert!(options.peers.contains(&Peer::WireguardGo) && !options.peers.contains(&Peer::Gotatun));
    }

    #[test]
    fn quick_is_short_unless_told_otherwise() {
        let quick = Options::parse(&["--quick"]).unwrap();
        assert_eq!((quick.runs, quick.seconds), (1, 1));
        let told = Options::parse(&["--quick", "--runs", "2"]).unwrap();
        assert_eq!((told.runs, told.seconds), (2, 1));
    }

    #[test]
    fn peers_are_taken_in_any_order_and_once() {
        let options = Options::parse(&["--peers", "none,aes,none"]).unwrap();
        assert_eq!(options.peers, [Peer::Aes, Peer::None]);
    }

    #[test]
    fn a_wrong_argument_is_named() {
        for (args, named) in [
            (&["--runs"][..], "--runs"),
            (&["--runs", "0"], "--runs"),
            (&["--runs", "many"], "many"),
            (&["--seconds", "61"], "61"),
            (&["--peers", "aes,ipsec"], "ipsec"),
            (&["--only", "tcp,quic"], "quic"),
            (&["--nic", "fast"], "fast"),
            (&["--colour"], "--colour"),
            (&["quick"], "quick"),
        ] {
            let error = Options::parse(args).unwrap_err();
            assert!(error.contains(named), "{args:?}: {error}");
        }
    }

    #[test]
    fn what_only_sets_a_bound_is_measured_in_bulk_unless_asked_for() {
        let usual = Options::parse(&[]).unwrap();
        assert!(usual.planned(Nic::Offload, Peer::Aes)(&Work::RttLoad));
        assert!(!usual.planned(Nic::Plain, Peer::Aes)(&Work::RttLoad));
        assert!(!usual.planned(Nic::Offload, Peer::Null)(&Work::RttLoad));
        let asked = Options::parse(&["--only", "rtt,handshakes"]).unwrap();
        assert!(asked.planned(Nic::Plain, Peer::Null)(&Work::RttLoad));
        assert!(!asked.planned(Nic::Offload, Peer::Openvpn)(&Work::Handshakes));
    }
}
