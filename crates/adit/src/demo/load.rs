use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use adit_lab::{Content, Host, Process};
use serde_json::Value;

use super::report::{Report, Step};
use super::scenery::{GATEWAY, SINK_PORT, Scenery, WEB, fetch, http_url};
use super::tunnel::{Client, INSIDE, Tunnels};

const DOWNLOAD: Content = Content { seed: 1, bytes: 20_000_000 };
const CROWD_BYTES: u64 = 2_000_000;
const SOON: Duration = Duration::from_secs(60);

/// A file arrives as it was sent.
pub(super) fn download(report: &mut Report, scenery: &Scenery) -> Option<()> {
    let why = "A file of 20 megabytes comes through the tunnel. Its SHA-256, a fingerprint, tells whether every byte of it\n\
               arrived and in its place; here it is compared with one computed without any network.";
    report.step("download", "A real download", why, |step| {
        let a = &scenery.clients[0];
        step.command(a.name(), &format!("curl '{}' | sha256sum", http_url(WEB, &file(DOWNLOAD))));
        let got = scenery.get(a, WEB, &file(DOWNLOAD))?;
        step.check("SHA-256 of the file", DOWNLOAD.sha256(), got["sha256"].as_str().unwrap_or("none"));
        step.figure("bytes", got["bytes"].clone());
        step.figure("mbits_per_second", got["mbits_per_second"].clone());
        Ok(())
    })
}

/// Many clients join and download at the same time.
pub(super) fn crowd(report: &mut Report, scenery: &Scenery, tunnels: &mut Tunnels) -> Option<()> {
    let why = "More clients join, each a computer of its own with its own key, and all download a different file at the\n\
               same moment. To the gateway each is somebody; to the web server they are all the gateway.";
    report.step("crowd", "Many clients at once", why, |step| {
        let hosts = &scenery.clients[2..];
        let total = hosts.len();
        step.command(
            "gateway",
            &format!("adit peer add client-1 > tun-1.conf    (and so on to client-{total})"),
        );
        for (host, number) in hosts.iter().zip(1..) {
            let client = tunnels.gateway.admit_quietly(host, &format!("tun-{number}"), "aes-256-gcm")?;
            tunnels.crowd.push(client);
        }
        step.command("client-1", "adit up tun-1.conf         (and so on)");
        let handshakes = each(&tunnels.crowd, |client| {
            client.up(None)?;
            client.wait_for_handshake().map(drop)
        });
        let (handshakes, troubles) = counted(handshakes);
        step.check("clients that completed a handshake", of(total, total), of(handshakes, total));
        troubles.iter().for_each(|trouble| step.say(trouble));

        let already = scenery.visitors().len();
        step.command(
            "client-1",
            &format!("curl http://{WEB}/file | sha256sum        (and so on, all at once)"),
        );
        let started = Instant::now();
        let downloads =
            tunnels.crowd.iter().zip(100..).map(|(client, seed)| start_download(&client.host, seed));
        let mut downloads = downloads.collect::<anyhow::Result<Vec<_>>>()?;
        let outcomes = downloads.iter_mut().map(|(process, content)| whole(process, *content)).collect();
        let seconds = started.elapsed().as_secs_f64();
        let (intact, troubles) = counted(outcomes);
        step.check("files that arrived with the right SHA-256", of(total, total), of(intact, total));
        troubles.iter().for_each(|trouble| step.say(trouble));

        let visitors: BTreeSet<String> = scenery.visitors().into_iter().skip(already).collect();
        let visitors = visitors.into_iter().collect::<Vec<_>>().join(", ");
        step.check("all visitors the web server saw", GATEWAY, visitors);
        who_am_i(step, tunnels)?;
        step.figure("clients", total);
        step.figure("mbits_per_second", rounded(total as f64 * CROWD_BYTES as f64 * 8.0 / seconds / 1e6));
        Ok(())
    })
}

/// Asks a server on the gateway's inside address, which sees the clients' own inside addresses.
fn who_am_i(step: &mut Step, tunnels: &Tunnels) -> anyhow::Result<()> {
    let listen = format!("{INSIDE}:80");
    let mut server = tunnels.gateway.host.agent(["http-server", "--listen", &listen]).spawn()?;
    server.wait_for_text("listening on", SOON)?;
    step.command("client-1", &format!("curl http://{INSIDE}/        (and so on)"));
    let answers = each(&tunnels.crowd, |client| {
        let answer = fetch(&client.host, INSIDE, "/")?;
        let seen = answer["text"].as_str().unwrap_or("nothing").trim();
        anyhow::ensure!(
            seen == client.inside,
            "{} has {} and is seen as {seen}",
            client.host.name(),
            client.inside
        );
        Ok(())
    });
    let (own, troubles) = counted(answers);
    let total = tunnels.crowd.len();
    step.check("clients the gateway sees under their own inside address", of(total, total), of(own, total));
    troubles.iter().for_each(|trouble| step.say(trouble));
    let distinct: BTreeSet<&str> = tunnels.crowd.iter().map(|client| client.inside.as_str()).collect();
    step.check("different inside addresses", total, distinct.len());
    Ok(())
}

/// How many bits per second go through the tunnel.
pub(super) fn speed(report: &mut Report, scenery: &Scenery, tunnels: &Tunnels) -> Option<()> {
    let why = "How much goes through, with each of the two ways to seal. All computers of this little internet share this\n\
               machine's processors, so this is no promise for other machines.";
    report.step("speed", "How fast is it", why, |step| {
        let already = scenery.senders().len();
        let plain = rate(&scenery.gateway, 1.0)?;
        step.figure("without_tunnel_mbits_per_second", plain);
        for (client, suite) in [(&tunnels.a, "aes-256-gcm"), (&tunnels.b, "chacha20-poly1305")] {
            step.command(client.host.name(), &format!("(send to {WEB} port {SINK_PORT} for two seconds)"));
            let rate = rate(&client.host, 2.0)?;
            step.verify(suite, rate > 1.0, "more than 1 Mb/s", format!("{rate} Mb/s"));
            step.figure(&format!("{}_mbits_per_second", suite.replace('-', "_")), rate);
        }
        step.say(&format!("(from the gateway without a tunnel: {plain} Mb/s)"));
        let senders: BTreeSet<String> = scenery.senders().into_iter().skip(already).collect();
        step.check(
            "all senders the web server saw",
            GATEWAY,
            senders.into_iter().collect::<Vec<_>>().join(", "),
        );
        Ok(())
    })
}

fn rate(host: &Host, seconds: f64) -> anyhow::Result<f64> {
    let (sink, seconds) = (format!("{WEB}:{SINK_PORT}"), seconds.to_string());
    let sent = host.agent(["tcp-source", &sink, "--seconds", &seconds]).deadline(SOON).exec()?.json()?;
    Ok(rounded(sent["mbits_per_second"].as_f64().unwrap_or(0.0)))
}

fn start_download(host: &Host, seed: u64) -> anyhow::Result<(Process, Content)> {
    let content = Content { seed, bytes: CROWD_BYTES };
    let process = host.agent(["http-get", "--sha256", &http_url(WEB, &file(content))]).spawn()?;
    Ok((process, content))
}

fn whole(process: &mut Process, content: Content) -> anyhow::Result<()> {
    let report: Value = serde_json::from_str(&process.finish(SOON)?)?;
    anyhow::ensure!(
        report["sha256"] == content.sha256().as_str(),
        "`{}` got another file",
        process.command()
    );
    Ok(())
}

/// Does the same for every client, four at a time.
fn each(clients: &[Client], act: impl Fn(&Client) -> anyhow::Result<()> + Sync) -> Vec<anyhow::Result<()>> {
    let act = &act;
    clients
        .chunks(4)
        .flat_map(|some| {
            thread::scope(|scope| {
                let threads: Vec<_> = some.iter().map(|client| scope.spawn(move || act(client))).collect();
                let ended = threads.into_iter().map(|thread| thread.join());
                ended
                    .map(|it| it.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))))
                    .collect::<Vec<_>>()
            })
        })
        .collect()
}

fn counted(outcomes: Vec<anyhow::Result<()>>) -> (usize, Vec<String>) {
    let total = outcomes.len();
    let troubles: Vec<String> =
        outcomes.into_iter().filter_map(|it| it.err().map(|error| format!("{error:#}"))).collect();
    (total - troubles.len(), troubles)
}

pub(super) fn file(content: Content) -> String {
    format!("/file?bytes={}&seed={}", content.bytes, content.seed)
}

fn of(part: usize, total: usize) -> String {
    format!("{part} of {total}")
}

fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}
