//! A tunnel at work, and what is read off.

use std::collections::BTreeMap;
use std::time::Duration;

use adit_lab::Process;
use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::machine;
use super::options::{Options, Peer};
use super::programs::Programs;
use super::record::{Values, percentile};
use super::tunnel::{Tunnel, strangers, suite_of};
use super::work::Work;
use super::world::World;

const SOON: Duration = Duration::from_secs(10);
const COUNTER_PORT: u16 = 5_300;
/// Below what makes any gateway ask for cookies.
const HANDSHAKES_PER_SEC: &str = "500";
const HANDSHAKE_PEERS: &str = "256";
const STORM_PEERS: u32 = 10_000;
const STORM_SECS: u32 = 25;
const PING_INTERVAL_SECS: f64 = 0.01;

/// One tunnel in the world.
pub struct Bench<'a> {
    pub options: &'a Options,
    pub programs: &'a Programs,
    pub world: &'a World,
    pub tunnel: &'a Tunnel,
    pub peer: Peer,
}

impl Bench<'_> {
    /// Does the work and returns the values.
    pub fn measure(&self, work: Work) -> Result<Values> {
        match work {
            Work::TcpX1 => self.tcp(&[]),
            Work::TcpReverse => self.tcp(&["--reverse"]),
            Work::TcpX4 => self.tcp(&["--parallel", "4"]),
            Work::TcpBoth => self.tcp(&["--bidir"]),
            Work::Udp(bytes) => self.udp(bytes),
            Work::RttIdle => self.rtt(),
            Work::RttLoad => self.rtt_under_load(),
            Work::Handshakes => self.handshakes(),
            Work::Storm => self.storm(),
            Work::Peers(count) => {
                let _crowd = self.tunnel.crowd(strangers(count as usize - 1)?, suite_of(self.peer))?;
                self.tcp(&[])
            }
        }
    }

    fn tcp(&self, options: &[&str]) -> Result<Values> {
        let gateway = self.tunnel.gateway_pid();
        gateway.map(machine::reset_peak_rss).transpose()?;
        let mut server = self.iperf3_server()?;
        let before = self.cpu()?;
        let report = self.iperf3(self.options.seconds, options)?;
        let after = self.cpu()?;
        server.end();
        let end = &report["end"];
        let sums = ["sum_received", "sum_received_bidir_reverse"].map(|name| &end[name]);
        let total = |key: &str| sums.iter().filter_map(|sum| sum[key].as_f64()).sum::<f64>();
        let gigabits = total("bytes") * 8.0 / 1e9;
        if gigabits <= 0.0 {
            bail!("nothing was carried: {end}");
        }
        let mut values = Values::from([
            ("gbps".to_owned(), total("bits_per_second") / 1e9),
            ("retransmits".to_owned(), end["sum_sent"]["retransmits"].as_f64().unwrap_or_default()),
            ("machine_cpu_secs".to_owned(), after.machine - before.machine),
            ("gb_per_machine_cpu_sec".to_owned(), gigabits / (after.machine - before.machine)),
        ]);
        if let Some(gateway) = gateway {
            let used = after.tunnel - before.tunnel;
            values.insert("tunnel_cpu_secs".to_owned(), used);
            values.insert("gb_per_tunnel_cpu_sec".to_owned(), gigabits / used);
            values.insert("rss_peak_kib".to_owned(), machine::peak_rss_kib(gateway)?);
        }
        values.retain(|_, value| value.is_finite());
        Ok(values)
    }

    fn udp(&self, bytes: u32) -> Result<Values> {
        let listen = format!("0.0.0.0:{COUNTER_PORT}");
        let mut counter = self.world.gateway.agent(["udp-counter", "--listen", &listen]).spawn()?;
        counter.wait_for_text("listening on", SOON)?;
        let address = format!("{}:{COUNTER_PORT}", self.tunnel.address);
        let (bytes, trial_ms) = (bytes.to_string(), if self.options.quick { "150" } else { "300" });
        let argv = ["udp-rate", &address, "--bytes", &bytes, "--trial-ms", trial_ms, "--lost-percent", "1"];
        let report = self.world.client.agent(argv).deadline(Duration::from_secs(60)).exec()?.json()?;
        if report["sender_was_the_limit"] == true {
            println!("    the sender was the limit: the tunnel may carry more");
        }
        if report["packets_per_sec"].as_f64().is_none_or(|rate| rate <= 0.0) {
            bail!("no rate came through: {report}");
        }
        let names = ["packets_per_sec", "reordered", "lost", "trials"];
        let read = |name: &str| Some((name.to_owned(), report[name].as_f64()?));
        Ok(names.into_iter().filter_map(read).collect())
    }

    fn rtt(&self) -> Result<Values> {
        self.ping(if self.options.quick { 1.0 } else { 2.0 })
    }

    fn rtt_under_load(&self) -> Result<Values> {
        // The flow has a second to fill the path, and goes on until the last echo is back.
        let secs = self.options.seconds;
        let mut server = self.iperf3_server()?;
        let (secs_text, address) = ((secs + 2).to_string(), &self.tunnel.address);
        let mut flow = self.world.client.spawn(["iperf3", "-c", address, "-t", &secs_text])?;
        std::thread::sleep(Duration::from_secs(1));
        let values = self.ping(f64::from(secs))?;
        if flow.ended().is_some() {
            bail!("the flow ended before the last echo: {}", flow.stderr());
        }
        flow.end();
        server.end();
        Ok(values)
    }

    fn ping(&self, secs: f64) -> Result<Values> {
        let count = ((secs / PING_INTERVAL_SECS) as u32).to_string();
        let interval = PING_INTERVAL_SECS.to_string();
        let argv = ["ping", "-n", "-i", &interval, "-c", &count, "-W", "1", &self.tunnel.address];
        let output = self.world.client.command(argv).deadline(Duration::from_secs(90)).attempt()?;
        let times = echo_times(&output.stdout);
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let of = |share| percentile(&times, share).context("no echo came back");
        Ok(BTreeMap::from([
            ("rtt_mean_us".to_owned(), mean),
            ("rtt_p50_us".to_owned(), of(0.5)?),
            ("rtt_p99_us".to_owned(), of(0.99)?),
            ("echoes".to_owned(), times.len() as f64),
        ]))
    }

    fn handshakes(&self) -> Result<Values> {
        let initiator = self.programs.initiator.display().to_string();
        let client = &self.world.client;
        let keys = client.exec([&initiator, "keys", HANDSHAKE_PEERS])?.stdout;
        let suite = suite_of(self.peer);
        let _crowd = self.tunnel.crowd(keys.lines().map(str::to_owned).collect(), suite)?;
        let gateway = self.tunnel.gateway_pid().context("no gateway")?;
        let address = format!("{}:{}", World::GATEWAY, self.tunnel.port);
        let (key, secs) = (self.tunnel.gateway_key()?, self.options.seconds.to_string());
        let suite = suite.unwrap_or("chacha20-poly1305");
        let before = machine::cpu_time_of(gateway)?;
        let argv = [&initiator, "run", &address, &key, suite, HANDSHAKE_PEERS, HANDSHAKES_PER_SEC, &secs];
        let said = client.command(argv).deadline(Duration::from_secs(90)).exec()?.stdout;
        let used = (machine::cpu_time_of(gateway)? - before).as_secs_f64();
        let numbers: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [sent, completed, secs] = numbers[..] else { bail!("the initiator says {said:?}") };
        if completed == 0.0 {
            bail!("none of {sent} handshakes completed");
        }
        let mut values = BTreeMap::from([
            ("handshakes_per_sec".to_owned(), completed / secs),
            ("initiations".to_owned(), sent),
            ("handshakes_per_cpu_sec".to_owned(), completed / used),
        ]);
        values.retain(|_, value| value.is_finite());
        Ok(values)
    }

    /// Each of many peers starts a session, evenly over a time, beside a flow of another.
    fn storm(&self) -> Result<Values> {
        let initiator = self.programs.initiator.display().to_string();
        let client = &self.world.client;
        let peers = STORM_PEERS.to_string();
        let keys = client.command([&initiator, "keys", &peers]).deadline(6 * SOON).exec()?.stdout;
        let suite = suite_of(self.peer);
        let _crowd = self.tunnel.crowd(keys.lines().map(str::to_owned).collect(), suite)?;
        let flow = |secs| -> Result<f64> {
            let mut server = self.iperf3_server()?;
            let report = self.iperf3(secs, &[])?;
            server.end();
            report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 reports no rate")
        };
        let before = flow(self.options.seconds)?;
        let address = format!("{}:{}", World::GATEWAY, self.tunnel.port);
        let key = self.tunnel.gateway_key()?;
        let (per_sec, secs) = ((STORM_PEERS / STORM_SECS).to_string(), STORM_SECS.to_string());
        let suite = suite.unwrap_or("chacha20-poly1305");
        let mut storm = client.spawn([&initiator, "run", &address, &key, suite, &peers, &per_sec, &secs])?;
        let during = flow(STORM_SECS)?;
        let said = adit_lab::wait_for("the end of the storm", 3 * SOON, || {
            let said = storm.stdout();
            said.ends_with('\n').then_some(said)
        })?;
        storm.end();
        let numbers: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [sent, completed, secs] = numbers[..] else { bail!("the initiator says {said:?}") };
        Ok(BTreeMap::from([
            ("goodput_percent".to_owned(), 100.0 * during / before),
            ("gbps_before".to_owned(), before / 1e9),
            ("gbps_during".to_owned(), during / 1e9),
            ("initiations".to_owned(), sent),
            ("storm_completed".to_owned(), completed),
            ("storm_secs".to_owned(), secs),
        ]))
    }

    fn iperf3_server(&self) -> Result<Process> {
        let mut server = self.world.gateway.spawn(["iperf3", "-s", "-1", "--forceflush"])?;
        server.wait_for_text("Server listening", SOON)?;
        Ok(server)
    }

    fn iperf3(&self, secs: u32, options: &[&str]) -> Result<Value> {
        let text = secs.to_string();
        let argv = [&["iperf3", "-J", "-c", &self.tunnel.address, "-t", &text], options].concat();
        let deadline = Duration::from_secs(u64::from(secs) + 20);
        let output = self.world.client.command(argv).deadline(deadline).attempt()?;
        let report = output.json()?;
        if !output.ok() {
            bail!("iperf3 {options:?}: {}", report["error"]);
        }
        Ok(report)
    }

    fn cpu(&self) -> Result<Cpu> {
        let tunnel = self.tunnel.pids().into_iter().map(machine::cpu_time_of).sum::<Result<Duration>>()?;
        Ok(Cpu { tunnel: tunnel.as_secs_f64(), machine: machine::cpu_time()?.as_secs_f64() })
    }
}

struct Cpu {
    tunnel: f64,
    machine: f64,
}

/// The round trips that `ping` prints, in microseconds; duplicates are no answers.
pub fn echo_times(text: &str) -> Vec<f64> {
    let lines = text.lines().filter(|line| !line.contains("(DUP!)"));
    let time = |line: &str| line.split_once("time=")?.1.strip_suffix(" ms")?.parse::<f64>().ok();
    lines.filter_map(time).map(|millis| millis * 1e3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_ping_are_read_in_microseconds() {
        let text = "PING 10.9.1.2 (10.9.1.2) 56(84) bytes of data.\n\
                    64 bytes from 10.9.1.2: icmp_seq=1 ttl=64 time=0.109 ms\n\
                    64 bytes from 10.9.1.2: icmp_seq=2 ttl=64 time=12 ms\n\
                    64 bytes from 10.9.1.2: icmp_seq=2 ttl=64 time=13 ms (DUP!)\n\
                    \n2 packets transmitted, 2 received, time 11ms\n";
        assert_eq!(echo_times(text), [109.0, 12_000.0]);
        assert!(echo_times("").is_empty());
    }
}
