//! The small programs a host of the lab runs: servers, clients and a capture, so that a bare machine needs no others.
//! A program that wants to be its own agent hands the arguments after its hidden verb to [`agent_main`].
//!
//! Servers print `listening on ADDRESS` when they are ready; clients end with one line of JSON on standard output.

use std::fmt::Display;
use std::process::ExitCode;
use std::str::FromStr;

mod chatter;
mod content;
mod http;
mod mislead;
mod rate;
mod relay;
mod sequence;
mod sniff;
mod tcp;
mod udp;

pub use content::Content;
pub use sequence::SequenceReport;

const HELP: &str = "\
agents of the lab:
  http-server --listen ADDR            / answers with the caller's address;
                                       /file?bytes=N&seed=S[&kbps=K] with a file that S determines, K kB/s at most
  http-get URL [--sha256] [--resume-seconds N] [--patience-seconds N]
  tcp-sink --listen ADDR [--connections N]
  tcp-source ADDR [--seconds N] [--streams N]
  udp-echo --listen ADDR
  udp-probe ADDR [--count N] [--interval-ms N] [--bytes N] [--wait-ms N]
  udp-send ADDR COUNT [--bytes N] [--interval-us N]
  udp-sink --listen ADDR [--count N] [--idle-ms N]
  udp-counter --listen ADDR            counts for udp-rate; answers on the next port
  udp-rate ADDR [--bytes N] [--trial-ms N] [--lost-percent N] [--per-sec N]
                                       the highest rate of which less is lost, or what becomes of one rate
  udp-relay --listen ADDR --to ADDR [--delay-ms N] [--loss-percent P] [--seed N]
                                       passes datagrams on, each way after a delay, and loses some
  chatter --device NAME [--to IP]... [--source4 IP] [--source6 IP] [--existing ADDR] [--interval-ms N]
                                       sends traffic of every class until standard input closes
  icmp-redirect --victim IP --to IP --by IP
  router-advert --device NAME --network IPV6 --prefix-len N
  capture INTERFACE FILE               until standard input closes
  remove LAB                           ends and removes a lab that was kept
";

/// Runs the agent that `arguments` (without the program's name) call for; `None` when the first names no agent. Exit
/// codes: 0 done, 1 failed, 2 called wrongly.
pub fn agent_main(arguments: impl IntoIterator<Item = String>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter();
    let agent = arguments.next()?;
    let mut words = Words(arguments.collect());
    let outcome = match agent.as_str() {
        "chatter" => chatter::chatter(&mut words),
        "icmp-redirect" => mislead::redirect(&mut words),
        "router-advert" => mislead::advertise(&mut words),
        "http-server" => http::serve(&mut words),
        "http-get" => http::get(&mut words),
        "tcp-sink" => tcp::sink(&mut words),
        "tcp-source" => tcp::source(&mut words),
        "udp-echo" => udp::echo(&mut words),
        "udp-probe" => udp::probe(&mut words),
        "udp-send" => udp::send(&mut words),
        "udp-sink" => udp::sink(&mut words),
        "udp-counter" => rate::counter(&mut words),
        "udp-rate" => rate::search(&mut words),
        "udp-relay" => relay::relay(&mut words),
        "capture" => sniff::capture(&mut words),
        "remove" => words.required("LAB").and_then(|name: String| Ok(crate::Lab::remove(&name)?)),
        "help" => {
            print!("{HELP}");
            Ok(())
        }
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(AgentError::Usage(problem)) => {
            eprintln!("{agent}: {problem}\n{HELP}");
            ExitCode::from(2)
        }
        Err(AgentError::Failed(problem)) => {
            eprintln!("{agent}: {problem}");
            ExitCode::FAILURE
        }
    })
}

#[derive(Debug)]
enum AgentError {
    Usage(String),
    Failed(String),
}

impl<E: std::error::Error> From<E> for AgentError {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

type Outcome<T = ()> = Result<T, AgentError>;

fn failed(what: impl Display) -> impl FnOnce(std::io::Error) -> AgentError {
    move |error| AgentError::Failed(format!("{what}: {error}"))
}

/// The words of a command line that have not been understood yet.
struct Words(Vec<String>);

impl Words {
    fn option<T: FromStr>(&mut self, name: &str) -> Outcome<Option<T>> {
        let Some(at) = self.0.iter().position(|word| word == name) else { return Ok(None) };
        if at + 1 == self.0.len() {
            return Err(AgentError::Usage(format!("{name} needs a value")));
        }
        let value = self.0.drain(at..at + 2).next_back().unwrap_or_default();
        parsed(name, &value).map(Some)
    }

    fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|word| word != name);
        self.0.len() < before
    }

    fn required<T: FromStr>(&mut self, name: &str) -> Outcome<T> {
        if self.0.is_empty() {
            return Err(AgentError::Usage(format!("{name} is missing")));
        }
        parsed(name, &self.0.remove(0))
    }

    fn required_option<T: FromStr>(&mut self, name: &str) -> Outcome<T> {
        self.option(name)?.ok_or_else(|| AgentError::Usage(format!("{name} is missing")))
    }

    fn end(&self) -> Outcome {
        match self.0.first() {
            None => Ok(()),
            Some(word) => Err(AgentError::Usage(format!("{word:?} is not understood"))),
        }
    }
}

fn parsed<T: FromStr>(name: &str, value: &str) -> Outcome<T> {
    value.parse().map_err(|_| AgentError::Usage(format!("{value:?} is no value for {name}")))
}

fn megabits_per_second(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { (bytes as f64 * 8.0 / seconds / 1e6 * 100.0).round() / 100.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Words {
        Words(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn options_and_positions_may_be_mixed() {
        let mut words = words("--bytes 7 10.0.0.1:9 --slow 12");
        assert_eq!(words.option::<u32>("--bytes").unwrap(), Some(7));
        assert!(words.flag("--slow") && !words.flag("--slow"));
        assert_eq!(words.required::<String>("ADDR").unwrap(), "10.0.0.1:9");
        assert!(words.end().is_err());
        assert_eq!(words.required::<u8>("COUNT").unwrap(), 12);
        assert!(words.end().is_ok());
    }

    #[test]
    fn wrong_calls_are_usage_errors() {
        assert!(matches!(words("--bytes").option::<u32>("--bytes"), Err(AgentError::Usage(_))));
        assert!(matches!(words("--bytes x").option::<u32>("--bytes"), Err(AgentError::Usage(_))));
        assert!(matches!(words("").required::<u32>("COUNT"), Err(AgentError::Usage(_))));
    }

    #[test]
    fn an_unknown_agent_is_left_to_the_caller() {
        assert!(agent_main(["no-such-agent".to_owned()]).is_none());
        assert!(agent_main(["help".to_owned()]).is_some());
    }
}
