use std::thread;
use std::time::Duration;

use adit_lab::{Content, wait_for};
use serde_json::Value;

use super::load::file;
use super::report::Report;
use super::scenery::{GATEWAY, Scenery, WEB, http_url};
use super::tunnel::{Gateway, Tunnels};

const DOWNLOAD: Content = Content { seed: 2, bytes: 6_000_000 };
const KILOBYTES_PER_SECOND: u64 = 2_000;
const SOON: Duration = Duration::from_secs(10);
const LONGEST_PAUSE_SECS: &str = "30";
const PATIENCE: Duration = Duration::from_secs(90);

/// The gateway dies in the middle of a download and comes back.
pub(super) fn show(report: &mut Report, scenery: &Scenery, tunnels: &mut Tunnels) -> Option<()> {
    let why = "The gateway is killed while client A downloads, as by a power cut, and started again. Nobody tells the\n\
               client. Its connection to the web server must survive, and the file must be whole.";
    report.step("crash", "The gateway is killed and comes back", why, |step| {
        let a = &scenery.clients[0];
        let path = format!("{}&kbps={KILOBYTES_PER_SECOND}", file(DOWNLOAD));
        let url = http_url(WEB, &path);
        step.command(a.name(), &format!("curl '{url}' | sha256sum &"));
        let already = scenery.visitors().len();
        let mut download =
            a.agent(["http-get", "--sha256", "--patience-seconds", LONGEST_PAUSE_SECS, &url]).spawn()?;
        wait_for("the download to begin", SOON, || (scenery.visitors().len() > already).then_some(()))?;
        thread::sleep(Duration::from_millis(700));

        let gateway = &mut tunnels.gateway;
        step.command("gateway", &format!("kill -9 {}", gateway.process.id()));
        gateway.process.crash();
        let running = if download.ended().is_none() { "running" } else { "over" };
        step.check("when the gateway was gone, the download was", "running", running);
        step.command("gateway", "adit gateway");
        gateway.process = Gateway::spawn(&gateway.host)?;

        let output = match download.finish(PATIENCE) {
            Ok(output) => output,
            Err(error) => {
                step.verify("the download", false, "goes on and ends whole", error);
                return Ok(());
            }
        };
        let report: Value = serde_json::from_str(&output)?;
        step.check("SHA-256 of the file", DOWNLOAD.sha256(), report["sha256"].as_str().unwrap_or("none"));
        let pause = report["longest_pause_seconds"].as_f64().unwrap_or_default();
        step.say(&format!("(its longest pause was {pause:.1} s)"));
        step.figure("longest_pause_seconds", pause);
        let seen = scenery.get(a, WEB, "/")?;
        step.check(
            "the web server still says client-a comes from",
            GATEWAY,
            seen["text"].as_str().unwrap_or("").trim(),
        );
        Ok(())
    })
}
