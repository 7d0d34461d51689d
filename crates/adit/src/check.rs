//! `adit check`: whether a configuration is right, without touching anything.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use crate::config::diagnostic::Place;
use crate::config::wgquick::{Hooks, WgQuick};
use crate::config::{ClientSettings, Complaint, Config, Document, Layers, Report, Source};
use crate::gateway::stream_warning;
use crate::home::Home;

/// Checks `file`, or the configuration of `home`. Names ending in `.conf` are wg-quick files.
///
/// # Errors
/// The report of every error, unless it was printed as JSON.
pub fn run(
    home: &Home,
    file: Option<&Path>,
    allow_hooks: bool,
    json: bool,
    layers: &Layers,
) -> anyhow::Result<ExitCode> {
    let path = file.map_or_else(|| home.config_file(), Path::to_owned);
    let mut warnings = Vec::new();
    let checked = if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("conf")) {
        let hooks = if allow_hooks { Hooks::Allowed } else { Hooks::Refused };
        WgQuick::load(&path, hooks).and_then(|file| {
            ClientSettings::load(home, layers, Some(&file))?;
            Ok(describe_client(&file))
        })
    } else if is_of_a_client(&path) {
        let settings = ClientSettings::load_file(&path, layers, None);
        settings.and_then(|_| Config::log_file(&path, layers)).map(|_| "settings of a client".to_owned())
    } else {
        let config = Config::load_file(&path, layers);
        if path == home.config_file() {
            warnings.extend(config.iter().filter_map(|config| stream_warning(home, config)));
        }
        config.and_then(|config| {
            read_certificate(home, &path, &config)?;
            Ok(describe_gateway(&config))
        })
    };
    let name = path.display().to_string();
    match checked {
        Ok(summary) if json => {
            let page = json!({"schema": 1, "file": name, "ok": true, "summary": summary, "errors": [], "warnings": warnings});
            crate::print_line(&page.to_string())?;
        }
        Ok(summary) => {
            warnings.iter().for_each(|text| eprintln!("warning: {text}"));
            crate::print_line(&format!("{name}: ok ({summary})"))?;
        }
        Err(report) if json => {
            crate::print_line(&errors(&name, &report).to_string())?;
            return Ok(ExitCode::FAILURE);
        }
        Err(report) => return Err(report.into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the gateway would not start without; one that it makes itself is not made here.
fn read_certificate(home: &Home, path: &Path, config: &Config) -> Result<(), Report> {
    if config.gateway.stream.certificate.is_none() {
        return Ok(());
    }
    crate::gateway::stream_recognition(home, config).map(drop).map_err(|error| {
        let complaint = Complaint::new(
            format!("{error:#}"),
            "set `stream_certificate` and `stream_key` to files that can be read, or remove both",
        );
        Report::single(&Source::new(path.display().to_string(), ""), Place::File, complaint)
    })
}

/// Settings without a gateway, for the profiles of this home.
fn is_of_a_client(path: &Path) -> bool {
    Document::open(path)
        .is_ok_and(|document| !document.has("gateway") && !document.has("peer") && document.has("client"))
}

fn errors(name: &str, report: &Report) -> serde_json::Value {
    let errors: Vec<_> = report
        .diagnostics()
        .iter()
        .map(|diagnostic| {
            let (line, column, place) = match &diagnostic.place {
                Place::Span(span) => {
                    let (line, column) = report.source().line_column(span.start);
                    (Some(line), Some(column), None)
                }
                Place::File => (None, None, None),
                Place::Outside(place) => (None, None, Some(place)),
            };
            let complaint = &diagnostic.complaint;
            json!({"line": line, "column": column, "place": place, "reason": complaint.reason, "fix": complaint.fix})
        })
        .collect();
    json!({"schema": 1, "file": name, "ok": false, "count": report.count(), "errors": errors})
}

fn describe_gateway(config: &Config) -> String {
    let gateway = &config.gateway;
    let peers = count(config.peers.len(), "peer");
    format!("gateway {}, UDP port {}, {peers}", gateway.interface, gateway.listen_port)
}

fn describe_client(file: &WgQuick) -> String {
    let addresses: Vec<String> = file.interface.addresses.iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
    let note = if file.interface.save_config {
        "; SaveConfig has no effect, adit never rewrites the file"
    } else {
        ""
    };
    format!("wg-quick file, {addresses}, {}{note}", count(file.peers.len(), "peer"))
}

fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
