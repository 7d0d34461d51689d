//! `adit status --watch`: the page again and again, with what went through between two of them.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::{Asking, Rate, Report};
use crate::home::Home;

/// Draws until it is ended, or nobody reads any more.
///
/// # Errors
/// An instance does not answer, or stdout cannot be written.
pub(super) fn run(home: &Home, asking: &Asking, every: Duration) -> anyhow::Result<()> {
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let mut before: Option<(Instant, Vec<Report>)> = None;
    loop {
        let mut reports = super::collect(home, asking.interface.as_deref())?;
        let now = Instant::now();
        if let Some((at, before)) = &before {
            refine(&mut reports, before, now.duration_since(*at));
        }
        let page = super::text(home, asking, &reports)?;
        let mut out = stdout.lock();
        let written = if is_terminal && !asking.json {
            // From the top, each line to its end, and what is below: no flicker, and nothing of the page before.
            let lines = page.trim_end().lines().map(|line| format!("{line}\x1b[K\n")).collect::<String>();
            let hint = format!("\n\x1b[2mevery {} s; Ctrl-C ends this\x1b[0m\x1b[K", every.as_secs_f32());
            write!(out, "\x1b[H{lines}{hint}\x1b[J")
        } else {
            writeln!(out, "{}", page.trim_end())
        };
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        drop(out);
        before = Some((now, reports));
        std::thread::sleep(every);
    }
}

/// Two pages tell better what goes through now than the instance, which looks more rarely.
fn refine(reports: &mut [Report], before: &[Report], over: Duration) {
    let over_millis = u64::try_from(over.as_millis()).unwrap_or(u64::MAX).max(1);
    for report in reports {
        let Some(old) = before.iter().find(|old| old.interface == report.interface && old.pid == report.pid)
        else {
            continue;
        };
        for peer in &mut report.peers {
            let Some(old) = old.peers.iter().find(|old| old.public_key == peer.public_key) else { continue };
            let per_sec =
                |now: u64, before: u64| now.saturating_sub(before).saturating_mul(1_000) / over_millis;
            peer.rate = Some(Rate {
                over_millis,
                rx_bytes_per_sec: per_sec(peer.rx_bytes, old.rx_bytes),
                tx_bytes_per_sec: per_sec(peer.tx_bytes, old.tx_bytes),
                rx_lost_ppm: peer.rate.and_then(|rate| rate.rx_lost_ppm),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn rates_are_of_the_time_between_two_pages() {
        let before = [report()];
        let mut now = [report()];
        now[0].peers[0].rx_bytes += 4_000;
        refine(&mut now, &before, Duration::from_secs(2));
        let rate = now[0].peers[0].rate.unwrap();
        assert_eq!((rate.rx_bytes_per_sec, rate.tx_bytes_per_sec), (2_000, 0));
        let mut restarted = [report()];
        restarted[0].pid = 2;
        refine(&mut restarted, &before, Duration::from_secs(2));
        assert!(restarted[0].peers[0].rate.is_none(), "another process counts anew");
    }
}
