//! How fast a port forwarded without root is, beside a program of the same kind, in one run.
//!
//! `adit proxy -L` in both suites and `onetun` (when `--onetun` names it) lead a local port to the same web server
//! through the same gateway, over a way that a relay makes long and lossy. Every figure is a median of interleaved runs.
//!
//! ```text
//! cargo build --release -p adit && sudo target/release/examples/proxy_speed --onetun ~/.cargo/bin/onetun
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_lab::{End, Host, Lab, Process, wait_for};
use anyhow::{Context, Result, bail};

const GATEWAY: &str = "198.51.100.2";
const WEB: &str = "203.0.113.80";
const DIRECT: &str = "198.51.100.2:51821";
const RELAY: &str = "127.0.0.1:51821";
const PORT: u16 = 8088;
const SINK: u16 = 8089;
const SOON: Duration = Duration::from_secs(10);

struct Options {
    onetun: Option<PathBuf>,
    adit: PathBuf,
    runs: usize,
    seconds: u32,
}

/// A way to the gateway: round trip in milliseconds and loss each way in percent.
type Way = (u32, u32);

/// Downloads and uploads in Mb/s, one of each per run.
type Rates = (Vec<f64>, Vec<f64>);

const WAYS: [Way; 6] = [(0, 0), (20, 0), (100, 0), (0, 1), (20, 1), (100, 1)];

fn main() -> Result<()> {
    let options = options()?;
    let world = World::new(&options.adit)?;
    let mut contenders = vec![("adit aes-256-gcm", "aes"), ("adit chacha20", "chacha")];
    if options.onetun.is_some() {
        contenders.push(("onetun", "onetun"));
    }
    let mut figures: BTreeMap<(Way, &str), Rates> = BTreeMap::new();
    for run in 0..options.runs {
        for way in WAYS {
            for (label, profile) in &contenders {
                let (down, up) = world
                    .measure(&options, way, profile)
                    .with_context(|| format!("{label}, {} ms, {} % loss", way.0, way.1))?;
                eprintln!("run {run}: {:>3} ms {} %  {label:<17} {down:8.1} {up:8.1} Mb/s", way.0, way.1);
                let entry = figures.entry((way, label)).or_default();
                entry.0.push(down);
                entry.1.push(up);
            }
        }
    }
    println!(
        "| round trip | loss | program | download Mb/s | upload Mb/s | ratio to onetun |\n|---|---|---|---|---|---|"
    );
    for way in WAYS {
        let of = |label: &str| figures.get(&(way, label)).map(|(down, up)| (median(down), median(up)));
        let base = of("onetun");
        for (label, _) in &contenders {
            let Some((down, up)) = of(label) else { continue };
            let ratio = base.map_or("-".to_owned(), |(d, u)| format!("{:.1} / {:.1}", down / d, up / u));
            println!("| {} ms | {} % | {label} | {down:.0} | {up:.0} | {ratio} |", way.0, way.1);
        }
    }
    Ok(())
}

fn options() -> Result<Options> {
    let adit =
        std::env::current_exe()?.parent().and_then(Path::parent).context("no target directory")?.join("adit");
    let mut options = Options { onetun: None, adit, runs: 5, seconds: 4 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--onetun" => options.onetun = Some(value.into()),
            "--adit" => options.adit = value.into(),
            "--runs" => options.runs = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            _ => bail!("{word} is not understood: --onetun PATH, --adit PATH, --runs N, --seconds N"),
        }
    }
    Ok(options)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

struct World {
    client: Host,
    adit: String,
    profiles: BTreeMap<&'static str, String>,
    sink: Process,
    _running: Vec<Process>,
    // The last to go: it ends what the hosts still run.
    _lab: Lab,
}

impl World {
    fn new(adit: &Path) -> Result<Self> {
        let adit = adit.display().to_string();
        let lab = Lab::with_agent("proxyspeed", [&adit, "lab"])?;
        let (client, gateway, web) = (lab.host("client")?, lab.host("gateway")?, lab.host("web")?);
        lab.connect(
            End::new(&client, "eth0").address("198.51.100.1/24"),
            End::new(&gateway, "eth0").address(format!("{GATEWAY}/24")),
        )?;
        lab.connect(
            End::new(&web, "eth0").address(format!("{WEB}/24")),
            End::new(&gateway, "eth1").address("203.0.113.1/24"),
        )?;
        gateway.add_route("default via 203.0.113.80")?;
        let home = gateway.directory().join("home").display().to_string();
        let verb = |arguments: &[&str]| gateway.exec([&[&adit, "--home", &home], arguments].concat());
        verb(&["init", "--endpoint", RELAY, "--uplink", "eth1"])
            .or_else(|_| verb(&["init", "--endpoint", RELAY]))?;
        let mut profiles = BTreeMap::new();
        for (name, suite) in
            [("aes", "aes-256-gcm"), ("chacha", "chacha20-poly1305"), ("onetun", "chacha20-poly1305")]
        {
            profiles.insert(name, verb(&["peer", "add", name, "--suite", suite])?.stdout);
        }
        let mut server = gateway.spawn([&adit, "--home", &home, "gateway"])?;
        server.wait_for_text("gateway ready", SOON)?;
        let mut http = web.agent(["http-server", "--listen", &format!("{WEB}:{PORT}")]).spawn()?;
        http.wait_for_text("listening", SOON)?;
        let mut sink = web.agent(["tcp-sink", "--listen", &format!("{WEB}:{SINK}")]).spawn()?;
        sink.wait_for_text("listening", SOON)?;
        Ok(Self { client, adit, profiles, sink, _running: vec![server, http], _lab: lab })
    }

    /// Download and upload through one program over one way, in Mb/s.
    fn measure(&self, options: &Options, way: Way, contender: &str) -> Result<(f64, f64)> {
        let relay = if way == (0, 0) { None } else { Some(self.relay(way)?) };
        let endpoint = if relay.is_some() { RELAY } else { DIRECT };
        let mut program = self.start(options, contender, endpoint)?;
        let curl = |seconds: u32, bytes: u64| {
            self.client.attempt([
                "curl",
                "-sS",
                "-o",
                "/dev/null",
                "--max-time",
                &seconds.to_string(),
                "-w",
                "%{size_download} %{time_total} %{time_starttransfer}",
                &format!("http://127.0.0.1:{PORT}/file?bytes={bytes}&seed=1"),
            ])
        };
        // The first request waits for the session.
        wait_for("the first byte", Duration::from_secs(20), || {
            curl(3, 1).ok().filter(|output| output.ok()).map(drop)
        })
        .with_context(|| format!("{}: {}{}", program.command(), program.stdout(), program.stderr()))?;
        let output = curl(options.seconds, 1 << 40)?.stdout;
        let mut numbers = output.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
        let (Some(bytes), Some(total), Some(first)) = (numbers.next(), numbers.next(), numbers.next()) else {
            bail!("curl says {output:?}");
        };
        let down = bytes * 8.0 / 1e6 / (total - first).max(0.001);
        let counted = || self.sink.stdout().lines().count();
        let before = counted();
        // The sink has the last word: not every program passes on its answer after the sender's end.
        let source = self.client.agent(["tcp-source", &format!("127.0.0.1:{SINK}")]);
        source
            .arg("--seconds")
            .arg(options.seconds.to_string())
            .deadline(Duration::from_secs(60))
            .attempt()?;
        wait_for("the sink's count", Duration::from_secs(90), || (counted() > before).then_some(()))?;
        let report = self.sink.stdout();
        let report: serde_json::Value = serde_json::from_str(report.lines().last().unwrap_or_default())?;
        let up = report["mbits_per_second"].as_f64().with_context(|| format!("no rate in {report}"))?;
        program.end();
        drop(relay);
        Ok((down, up))
    }

    fn relay(&self, way: Way) -> Result<Process> {
        let (delay, loss) = (f64::from(way.0) / 2.0, way.1);
        let relay = self.client.agent(["udp-relay", "--listen", RELAY, "--to", DIRECT, "--seed", "7"]);
        let relay = relay.arg("--delay-ms").arg(delay.to_string());
        let mut relay = relay.arg("--loss-percent").arg(loss.to_string()).spawn()?;
        relay.wait_for_text("listening", SOON)?;
        Ok(relay)
    }

    fn start(&self, options: &Options, contender: &str, endpoint: &str) -> Result<Process> {
        let profile = self.profiles.get(contender).context("no such profile")?.replace(RELAY, endpoint);
        let forwards = [format!("127.0.0.1:{PORT}:{WEB}:{PORT}"), format!("127.0.0.1:{SINK}:{WEB}:{SINK}")];
        if contender != "onetun" {
            let file = self.client.write(&format!("{contender}.conf"), &profile)?.display().to_string();
            let mut command = vec![self.adit.as_str(), "proxy", &file];
            for forward in &forwards {
                command.extend(["-L", forward]);
            }
            return Ok(self.client.spawn(command)?);
        }
        let value = |key: &str| {
            let line = profile.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('='));
            line.map(|value| value.trim().to_owned()).with_context(|| format!("no {key} in the profile"))
        };
        let key = self.client.write("onetun.key", value("PrivateKey")?)?.display().to_string();
        let address = value("Address")?;
        let address = address.split([',', '/']).next().unwrap_or_default().to_owned();
        let onetun = options.onetun.as_ref().context("--onetun")?.display().to_string();
        let mut command = vec![onetun];
        command.extend(forwards);
        command.extend(["--private-key-file".to_owned(), key]);
        command.extend(["--endpoint-public-key".to_owned(), value("PublicKey")?]);
        if let Ok(secret) = value("PresharedKey") {
            command.extend(["--preshared-key".to_owned(), secret]);
        }
        command.extend(["--endpoint-addr".to_owned(), endpoint.to_owned()]);
        command.extend(["--source-peer-ip".to_owned(), address, "--log".to_owned(), "error".to_owned()]);
        Ok(self.client.spawn(command)?)
    }
}
