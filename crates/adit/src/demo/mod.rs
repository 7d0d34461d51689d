//! `adit demo`: a small internet on this machine, in namespaces of its own, on which everything the program promises is
//! shown and checked.

mod crash;
mod interruption;
mod load;
mod reach;
mod removal;
mod report;
mod scenery;
mod snapshot;
mod tunnel;
mod visit;
mod wire;

use std::process::ExitCode;

use self::interruption::Interruption;
use self::report::Report;
use self::scenery::Scenery;
use self::snapshot::Snapshot;
use self::tunnel::Tunnels;
use crate::cli::Color;

/// Shows on this machine alone what adit does, and checks it. Needs root; leaves this machine's network as it is.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Print one JSON document at the end instead of a page to read.
    #[arg(long)]
    pub json: bool,
    /// Leave the little network running and print how to enter and how to remove it.
    #[arg(long)]
    pub keep: bool,
    /// How many clients download at once.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=200))]
    pub clients: u8,
}

/// Runs the demonstration; exit code 1 when any of its checks failed.
pub fn run(args: DemoArgs, color: Color) -> anyhow::Result<ExitCode> {
    crate::privilege::require_root("demo")?;
    for tool in ["ip", "nft", "ping"] {
        adit_lab::find_tool(tool)?;
    }
    let machine = Snapshot::of_machine()?;
    let lab = adit_lab::Lab::new("demo")?;
    let _interruption = Interruption::guard(lab.name())?;
    let mut report = Report::new(args.json, color.wanted(&std::io::stdout()));
    let Some(scenery) = Scenery::build(&mut report, lab, usize::from(args.clients)) else {
        return report.finish();
    };
    let tunnels = play(&mut report, &scenery);
    if args.keep {
        scenery.keep(&mut report, tunnels)?;
    } else {
        removal::show(&mut report, scenery, tunnels, &machine);
    }
    report.finish()
}

/// The acts in order; ends early when one cannot be played at all.
fn play(report: &mut Report, scenery: &Scenery) -> Option<Tunnels> {
    visit::before(report, scenery)?;
    let mut tunnels = Tunnels::open(report, scenery)?;
    // What is open has to be closed in sight even when an act failed.
    let _ = play_inside(report, scenery, &mut tunnels);
    Some(tunnels)
}

fn play_inside(report: &mut Report, scenery: &Scenery, tunnels: &mut Tunnels) -> Option<()> {
    visit::after(report, scenery)?;
    reach::show(report, tunnels)?;
    wire::show(report, scenery, tunnels)?;
    load::download(report, scenery)?;
    load::crowd(report, scenery, tunnels)?;
    load::speed(report, scenery, tunnels)?;
    crash::show(report, scenery, tunnels)
}
