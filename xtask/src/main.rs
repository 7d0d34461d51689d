//! The chores of the repository, run as `cargo xtask VERB`.

mod bench;
mod binary;
mod ci;
mod demo;
mod dist;
mod fuzz;
mod leaks;
mod picture;
mod program;
mod roster;
mod setup;
mod suite;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;

const HELP: &str = "\
cargo xtask VERB

  ci                      everything a change must pass, in order; installs what is missing
  test [FILTER]           every test, or those whose name contains FILTER
  test --record           every test, then record how many there are and their names
  demo [ARGS]             build adit and run its demonstration in network namespaces
  bench [OPTIONS]         measure adit beside others; `cargo xtask bench --help` lists the options
  bench-streams [OPTIONS] measure TCP and TLS beside OpenVPN over TCP, on clean and on lossy links
  dist [OPTIONS]          packages: a .deb and a tarball, in target/dist; --binary FILE packages that
                          program, --out DIR puts them elsewhere
  picture [BINARY]        record the demonstration as docs/demo.svg
  tidy                    the rules of the house, as checks
  setup                   install the system packages that tests and the demonstration need
  fuzz TARGET [SECONDS]   look for inputs that break a parser (60 seconds unless told)
  fuzz --list             the fuzz targets
  leaks [OPTIONS]         whatever can happen to a client with a full tunnel, and a stranger who listens;
                          --count N things happen (1000), --seed S says which

Exit codes: 0 ok, 1 failed, 2 usage.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match dispatch(&args) {
        Some(Ok(true)) => ExitCode::SUCCESS,
        Some(Ok(false)) => ExitCode::FAILURE,
        Some(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{HELP}");
            ExitCode::from(2)
        }
    }
}

/// `None` is a usage error; `Some(Ok(false))` is a chore that ran and found a fault.
fn dispatch(args: &[&str]) -> Option<Result<bool>> {
    Some(match args {
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(true)
        }
        ["ci"] => ci::run(),
        ["test"] => suite::run(suite::Selection::All),
        ["test", "--record"] => suite::run(suite::Selection::Record),
        ["test", filter] if !filter.starts_with('-') => suite::run(suite::Selection::Filter(filter)),
        ["demo", rest @ ..] => demo::run(rest),
        ["bench", rest @ ..] => return bench::run(rest),
        ["bench-streams", rest @ ..] => return bench::streams::run(rest),
        ["dist", rest @ ..] => dist::run(&dist::Options::parse(rest)?),
        ["picture"] => picture::run(None),
        ["picture", binary] => picture::run(Some(binary)),
        ["tidy"] => tidy::run(),
        ["setup"] => setup::run(),
        ["leaks", rest @ ..] => leaks::run(&leaks::Options::parse(rest)?),
        ["fuzz", "--list"] => fuzz::list(),
        ["fuzz", target] if !target.starts_with('-') => fuzz::run(target, 60),
        ["fuzz", target, secs] if !target.starts_with('-') => fuzz::run(target, secs.parse().ok()?),
        _ => return None,
    })
}
