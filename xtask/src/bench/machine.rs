//! What the benchmark runs on, and what its processes cost: `/proc`, read.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// `USER_HZ`, which the kernel promises to programs on every architecture we build for.
const TICKS_PER_SEC: f64 = 100.0;

/// The machine in words: processor, cores, kernel.
pub fn description() -> BTreeMap<String, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let after_colon = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let flags = after_colon("flags").unwrap_or_default();
    let notable = ["aes", "vaes", "vpclmulqdq", "avx2", "avx512f"];
    let extensions: Vec<&str> = flags.split(' ').filter(|flag| notable.contains(flag)).collect();
    BTreeMap::from([
        ("cpu".to_owned(), after_colon("model name").unwrap_or_else(|| "unknown".to_owned())),
        ("cpu extensions".to_owned(), extensions.join(" ")),
        ("cores".to_owned(), cores.to_string()),
        ("kernel".to_owned(), read("/proc/sys/kernel/osrelease").trim().to_owned()),
        (
            "tcp congestion control".to_owned(),
            read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned(),
        ),
        ("architecture".to_owned(), std::env::consts::ARCH.to_owned()),
    ])
}

/// The CPU time that a process and its threads have used.
pub fn cpu_time_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}: has it ended?"))?;
    parse_stat(&stat).with_context(|| format!("{path} is not understood"))
}

/// Fields 14 and 15; the name, field 2, may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Duration::from_secs_f64((user + system) / TICKS_PER_SEC))
}

/// The CPU time that the whole machine has used, interrupts included and idling not.
pub fn cpu_time() -> Result<Duration> {
    parse_machine_stat(&fs::read_to_string("/proc/stat")?).context("/proc/stat is not understood")
}

/// `cpu user nice system idle iowait irq softirq steal …`: idle and iowait are no work, and what the hypervisor
/// stole is not ours.
fn parse_machine_stat(stat: &str) -> Option<Duration> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<f64> = fields.map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let busy = [0, 1, 2, 5, 6].into_iter().map(|at| ticks.get(at).copied()).sum::<Option<f64>>()?;
    Some(Duration::from_secs_f64(busy / TICKS_PER_SEC))
}

/// Lets the peak RSS of a process start anew.
pub fn reset_peak_rss(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

/// The highest RSS of a process, in KiB.
pub fn peak_rss_kib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.with_context(|| format!("{path} has no VmHWM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_shift_its_times() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 5 0";
        assert_eq!(parse_stat(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse_stat("12 (a"), None);
        assert_eq!(parse_stat("12 (a) S 1 2"), None);
    }

    #[test]
    fn a_waiting_machine_and_a_stolen_one_do_no_work() {
        let stat = "cpu  100 200 300 9000 9000 400 500 9000 0 0\ncpu0 1 2 3\n";
        assert_eq!(parse_machine_stat(stat), Some(Duration::from_secs(15)));
        assert_eq!(parse_machine_stat("intr 5\n"), None);
    }

    #[test]
    fn our_own_process_has_used_time_and_memory() {
        let pid = std::process::id();
        let started = std::time::Instant::now();
        while cpu_time_of(pid).unwrap().is_zero() && started.elapsed() < Duration::from_secs(20) {
            std::hint::black_box((0..100_000).sum::<u64>());
        }
        assert!(!cpu_time_of(pid).unwrap().is_zero());
        assert!(cpu_time().unwrap() >= cpu_time_of(pid).unwrap());
        assert!(peak_rss_kib(pid).unwrap() > 100.0);
        assert!(cpu_time_of(u32::MAX).is_err());
    }
}
