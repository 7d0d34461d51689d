use std::collections::HashMap;
use std::time::Instant;

use serde::Serialize;

use super::proc_file;

/// `USER_HZ`: a part of the interface of the kernel, the same on every machine (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// The counters of the kernel at one moment.
#[derive(Debug)]
pub(super) struct Sample {
    at: Instant,
    process_ticks: u64,
    threads: HashMap<String, (String, u64)>,
    machine: Machine,
    retransmits: u64,
    cores: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Machine {
    idle_ticks: u64,
    all_ticks: u64,
}

/// What this machine did meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Load {
    /// CPU time of the tunnel's process, as a number of cores.
    pub(super) tunnel_cores: f64,
    /// Its busiest thread.
    pub(super) busiest_thread: Option<String>,
    pub(super) busiest_thread_cores: f64,
    /// The share of this machine's CPU time that nobody used.
    pub(super) machine_idle_percent: f64,
    pub(super) cores: usize,
    /// TCP segments that this host sent again, of every connection.
    pub(super) tcp_retransmits: u64,
}

impl Sample {
    pub(super) fn take(pid: u32) -> anyhow::Result<Self> {
        let mut threads = HashMap::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            // A thread may end while we look.
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            if let Some((name, ticks)) = ticks(&stat) {
                threads.insert(entry.file_name().to_string_lossy().into_owned(), (name, ticks));
            }
        }
        let process_ticks = ticks(&proc_file(&format!("/proc/{pid}/stat"))?).map_or(0, |(_, ticks)| ticks);
        let machine = machine(&proc_file("/proc/stat")?);
        let retransmits = retransmits(&std::fs::read_to_string("/proc/self/net/snmp").unwrap_or_default());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { at: Instant::now(), process_ticks, threads, machine, retransmits, cores })
    }

    pub(super) fn until(&self, later: &Self) -> Load {
        let seconds = later.at.duration_since(self.at).as_secs_f64().max(0.001);
        let cores = |ticks: u64| ticks as f64 / TICKS_PER_SECOND / seconds;
        let since = |(id, (name, ticks)): (&String, &(String, u64))| {
            let before = self.threads.get(id).map_or(0, |(_, ticks)| *ticks);
            (name.clone(), ticks.saturating_sub(before))
        };
        let busiest = later.threads.iter().map(since).max_by_key(|(_, ticks)| *ticks);
        let idle = later.machine.idle_ticks.saturating_sub(self.machine.idle_ticks);
        let all = later.machine.all_ticks.saturating_sub(self.machine.all_ticks).max(1);
        Load {
            tunnel_cores: cores(later.process_ticks.saturating_sub(self.process_ticks)),
            busiest_thread_cores: busiest.as_ref().map_or(0.0, |(_, ticks)| cores(*ticks)),
            busiest_thread: busiest.map(|(name, _)| name),
            machine_idle_percent: idle as f64 * 100.0 / all as f64,
            cores: self.cores,
            tcp_retransmits: later.retransmits.saturating_sub(self.retransmits),
        }
    }
}

/// The name, and the time in user and kernel mode, of `/proc/PID/stat`. The name may hold spaces and parentheses.
fn ticks(stat: &str) -> Option<(String, u64)> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some((name, user + kernel))
}

/// The line of all CPUs in `/proc/stat`: user nice system idle iowait irq softirq steal.
fn machine(stat: &str) -> Machine {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
    Machine { idle_ticks: ticks.iter().skip(3).take(2).sum(), all_ticks: ticks.iter().sum() }
}

/// `RetransSegs` of `/proc/net/snmp`: a line of names and a line of values.
fn retransmits(snmp: &str) -> u64 {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == "RetransSegs").and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_kernel_are_read() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 10 18446744073709551615";
        assert_eq!(ticks(stat), Some(("a (b) c".to_owned(), 300)));
        assert_eq!(ticks("nonsense"), None);
        let all = machine("cpu  10 0 20 60 5 1 4 0 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        assert_eq!(all, Machine { idle_ticks: 65, all_ticks: 100 });
        let snmp = "Ip: a b\nIp: 1 2\nTcp: RtoMin OutSegs RetransSegs\nTcp: 200 900 17\n";
        assert_eq!((retransmits(snmp), retransmits("")), (17, 0));
    }

    #[test]
    fn a_thread_that_spins_is_the_busiest_and_one_that_sleeps_is_not() {
        let before = Sample::take(std::process::id()).unwrap();
        let spinning = std::thread::Builder::new().name("spins".into()).spawn(|| {
            let end = Instant::now() + std::time::Duration::from_millis(300);
            let mut turns = 0u64;
            while Instant::now() < end {
                turns = std::hint::black_box(turns + 1);
            }
            // The thread must still be there when it is looked at.
            std::thread::sleep(std::time::Duration::from_secs(1));
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
        let load = before.until(&Sample::take(std::process::id()).unwrap());
        spinning.unwrap().join().unwrap();
        assert!(load.tunnel_cores > 0.05, "{load:?}");
        assert!(
            load.busiest_thread_cores > 0.05 && load.busiest_thread_cores <= load.tunnel_cores + 0.1,
            "{load:?}"
        );
        assert!((0.0..=100.0).contains(&load.machine_idle_percent), "{load:?}");
        assert!(Sample::take(u32::MAX).is_err());
    }
}
