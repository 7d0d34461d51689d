//! `adit plan`: what `up` or `gateway` would change on this host, without changing anything.

use std::path::PathBuf;
use std::process::ExitCode;

use adit_host::{Plan, Preview, Step};
use clap::Subcommand;
use serde::Serialize;

use crate::cli::GatewayArgs;
use crate::config::{ClientFlags, Layers};
use crate::home::Home;
use crate::profile::{self, ForVerb};
use crate::{client, control, gateway, privilege};

#[derive(Serialize)]
struct Page<'a> {
    schema: u32,
    interface: &'a str,
    /// Whether making the plan would change anything.
    changes: bool,
    plan: &'a [Preview],
}

/// Whose plan.
#[derive(Debug, Subcommand)]
pub enum PlanVerb {
    /// For a tunnel
    Up {
        /// A wg-quick file, or the name of a profile [default: the only profile]
        #[arg(value_name = "FILE.conf|NAME")]
        file: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The settings of `up`.
        #[command(flatten)]
        settings: ClientFlags<true>,
    },
    /// For the gateway
    Gateway {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The settings of `gateway`.
        #[command(flatten)]
        settings: GatewayArgs,
    },
}

/// Shows the plan of a tunnel or of the gateway of `home`.
///
/// # Errors
/// What would keep `up` or `gateway` from beginning, and when the host cannot be looked at.
pub fn run(home: &Home, verb: PlanVerb, layers: Layers) -> anyhow::Result<ExitCode> {
    privilege::require_root("plan")?;
    match verb {
        PlanVerb::Up { file, json, settings } => {
            let file = profile::find(home, file.as_deref(), ForVerb("plan up", ""))?;
            let (interface, plan) = client::plan_of(home, &file, &settings.over(layers))?;
            show(home, &interface, &plan, json, &format!("adit up {}{}", file.display(), home.flag()))
        }
        PlanVerb::Gateway { json, settings } => {
            let (interface, plan) = gateway::plan_of(home, &settings.over(layers))?;
            show(home, &interface, &plan, json, &format!("adit gateway{}", home.flag()))
        }
    }
}

fn show(home: &Home, interface: &str, plan: &Plan, json: bool, command: &str) -> anyhow::Result<ExitCode> {
    let shown = adit_host::preview(plan)?;
    let changes = shown.iter().any(|it| it.step != Step::Nothing);
    if json {
        let page = Page { schema: control::SCHEMA, interface, changes, plan: &shown };
        crate::print_line(&serde_json::to_string(&page)?)?;
    } else {
        let mut text: String = shown.iter().map(|it| format!("{it}\n")).collect();
        text += &match changes {
            true => format!(
                "\n+ is new, ~ takes the place of what is there, = is so already, ! cannot be made.\n\
                 Nothing was changed. `{command}` makes it so, and `adit down {interface}{}` puts back what was there.",
                home.flag()
            ),
            false => "\nThis host is as the plan says.".to_owned(),
        };
        crate::print_line(text.trim_start())?;
    }
    let refused = shown.iter().any(|it| it.step == Step::Refused);
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
