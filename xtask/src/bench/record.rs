//! What was measured: every value of every run, kept as JSON.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::options::{Nic, Peer};
use super::work::Work;

const SCHEMA: u64 = 1;

/// The values of one measurement, by name; units are in the names.
pub type Values = BTreeMap<String, f64>;

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub run: usize,
    pub nic: Nic,
    pub work: Work,
    pub peer: Peer,
    pub values: Values,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The machine, in words.
    pub machine: BTreeMap<String, String>,
    /// What each peer is, by its name.
    pub versions: BTreeMap<String, String>,
    pub seconds: u32,
    pub samples: Vec<Sample>,
}

impl Record {
    pub fn to_json(&self) -> Value {
        let samples: Vec<Value> = self.samples.iter().map(Sample::to_json).collect();
        json!({
            "schema": SCHEMA,
            "machine": self.machine,
            "versions": self.versions,
            "seconds": self.seconds,
            "samples": samples,
        })
    }

    pub fn from_json(value: &Value) -> Result<Self> {
        if value["schema"].as_u64() != Some(SCHEMA) {
            bail!("this is no record of a benchmark with schema {SCHEMA}");
        }
        let words = |key: &str| -> BTreeMap<String, String> {
            let pairs = value[key].as_object().into_iter().flatten();
            pairs.filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))).collect()
        };
        let samples = value["samples"].as_array().context("the record has no samples")?;
        Ok(Self {
            machine: words("machine"),
            versions: words("versions"),
            seconds: value["seconds"].as_u64().unwrap_or_default() as u32,
            samples: samples.iter().map(Sample::from_json).collect::<Result<_>>()?,
        })
    }

    /// How many runs most works have, and the works that have other numbers of them.
    pub fn usual_runs(&self) -> (usize, Vec<(Work, usize)>) {
        let mut counts: BTreeMap<(Work, Nic), usize> = BTreeMap::new();
        for sample in &self.samples {
            let count = counts.entry((sample.work, sample.nic)).or_default();
            *count = (*count).max(sample.run + 1);
        }
        let of = |runs: usize| counts.values().filter(|count| **count == runs).count();
        let usual = counts.values().copied().max_by_key(|runs| (of(*runs), *runs)).unwrap_or(0);
        let mut others: Vec<_> =
            counts.iter().filter(|it| *it.1 != usual).map(|((work, _), runs)| (*work, *runs)).collect();
        others.dedup();
        (usual, others)
    }

    /// How many runs there are of one work.
    pub fn runs_of(&self, nic: Nic, work: Work) -> usize {
        let ours = self.samples.iter().filter(|sample| (sample.nic, sample.work) == (nic, work));
        ours.map(|sample| sample.run + 1).max().unwrap_or(0)
    }

    /// This record, to be continued with what `new` describes: on the same machine, with the same programs.
    pub fn continued_by(mut self, new: Self) -> Result<Self> {
        if self.machine != new.machine || self.seconds != new.seconds {
            bail!("that record is of another machine or another length; choose another --json FILE");
        }
        for (peer, version) in new.versions {
            let before = self.versions.entry(peer).or_insert_with(|| version.clone());
            if *before != version {
                bail!("that record is of {before}, not of {version}; choose another --json FILE");
            }
        }
        Ok(self)
    }

    pub fn has(&self, nic: Nic, peer: Peer) -> bool {
        self.samples.iter().any(|sample| sample.nic == nic && sample.peer == peer)
    }

    /// The value of every run that has it, in order.
    pub fn values(&self, nic: Nic, work: Work, peer: Peer, name: &str) -> Vec<f64> {
        self.by_run(nic, work, peer, name).into_values().collect()
    }

    /// The ratios of two measurements, each within one run.
    pub fn ratios(&self, nic: Nic, name: &str, above: (Work, Peer), below: (Work, Peer)) -> Vec<f64> {
        let below = self.by_run(nic, below.0, below.1, name);
        let above = self.by_run(nic, above.0, above.1, name);
        let ratio = |(run, value): (usize, f64)| {
            below.get(&run).filter(|other| **other > 0.0).map(|other| value / other)
        };
        above.into_iter().filter_map(ratio).collect()
    }

    fn by_run(&self, nic: Nic, work: Work, peer: Peer, name: &str) -> BTreeMap<usize, f64> {
        let ours = |sample: &&Sample| (sample.nic, sample.work, sample.peer) == (nic, work, peer);
        let samples = self.samples.iter().filter(ours);
        samples.filter_map(|sample| Some((sample.run, *sample.values.get(name)?))).collect()
    }
}

impl Sample {
    fn to_json(&self) -> Value {
        json!({
            "run": self.run,
            "nic": self.nic.name(),
            "work": self.work.to_string(),
            "peer": self.peer.name(),
            "values": self.values,
        })
    }

    fn from_json(value: &Value) -> Result<Self> {
        let word = |key: &str| value[key].as_str().with_context(|| format!("a sample has no {key}"));
        let pairs = value["values"].as_object().context("a sample has no values")?;
        Ok(Self {
            run: value["run"].as_u64().context("a sample has no run")? as usize,
            nic: Nic::from_name(word("nic")?).context("a sample has an unknown nic")?,
            work: word("work")?.parse().map_err(anyhow::Error::msg)?,
            peer: word("peer")?.parse().map_err(anyhow::Error::msg)?,
            values: pairs.iter().filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect(),
        })
    }
}

/// The middle value; of two in the middle their mean.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        _ if sorted.is_empty() => None,
        1 => sorted.get(middle).copied(),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The value that this share of all does not exceed.
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// A record for tests: `wireguard-go` as given, the others a multiple of it.
#[cfg(test)]
pub fn sample_record() -> Record {
    let mut record = Record { seconds: 3, ..Record::default() };
    record.machine.insert("cpu".into(), "a processor".into());
    record.versions.insert("wireguard-go".into(), "v0.0.1".into());
    for (run, speed) in [1.0, 2.0, 4.0].into_iter().enumerate() {
        for (peer, factor) in
            [(Peer::Aes, 3.0), (Peer::Chacha, 2.0), (Peer::WireguardGo, 1.0), (Peer::Null, 5.0)]
        {
            for nic in [Nic::Offload, Nic::Plain] {
                for work in Work::all() {
                    let mut values = Values::new();
                    for metric in work.metrics() {
                        let value = if metric.is_cost() { speed / factor } else { speed * factor };
                        values.insert(metric.name.to_owned(), value);
                    }
                    record.samples.push(Sample { run, nic, work, peer, values });
                }
            }
        }
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_not_the_mean() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[100.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
    }

    #[test]
    fn a_percentile_is_a_value_that_occurred() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.99), Some(198.0));
        assert_eq!(percentile(&values, 0.5), Some(100.0));
        assert_eq!(percentile(&[5.0], 0.99), Some(5.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn ratios_are_taken_within_a_run_and_runs_that_lack_one_are_left_out() {
        let mut record = sample_record();
        let (aes, go) = ((Work::TcpX1, Peer::Aes), (Work::TcpX1, Peer::WireguardGo));
        assert_eq!(record.ratios(Nic::Offload, "gbps", aes, go), [3.0, 3.0, 3.0]);
        record.samples.retain(|it| (it.run, it.work, it.peer) != (1, Work::TcpX1, Peer::WireguardGo));
        assert_eq!(record.ratios(Nic::Offload, "gbps", aes, go), [3.0, 3.0]);
        assert_eq!(record.usual_runs().0, 3);
    }

    #[test]
    fn works_that_were_run_more_often_or_less_are_told_apart() {
        let mut record = sample_record();
        assert_eq!(record.usual_runs(), (3, Vec::new()));
        record.samples.retain(|it| it.work != Work::Storm || it.run == 0);
        assert_eq!(record.usual_runs(), (3, vec![(Work::Storm, 1)]));
        record.samples.retain(|it| it.work == Work::Storm);
        assert_eq!(record.usual_runs(), (1, Vec::new()));
    }

    #[test]
    fn a_record_survives_the_way_through_json() {
        let record = sample_record();
        let text = record.to_json().to_string();
        assert_eq!(Record::from_json(&serde_json::from_str(&text).unwrap()).unwrap(), record);
    }

    #[test]
    fn a_record_is_continued_only_with_the_same_programs_on_the_same_machine() {
        let record = sample_record();
        assert_eq!(record.runs_of(Nic::Plain, Work::TcpX4), 3);
        let new = || Record { samples: Vec::new(), ..record.clone() };
        let mut other_peer = new();
        other_peer.versions = [("openvpn".to_owned(), "2".to_owned())].into();
        let merged = record.clone().continued_by(other_peer).unwrap();
        assert_eq!((merged.versions.len(), &merged.samples), (2, &record.samples));
        let mut newer = new();
        newer.versions.insert("wireguard-go".into(), "v0.0.2".into());
        assert!(record.clone().continued_by(newer).is_err());
        assert!(record.clone().continued_by(Record { seconds: 1, ..new() }).is_err());
        let machine = [("cpu".to_owned(), "another".to_owned())].into();
        assert!(record.clone().continued_by(Record { machine, ..new() }).is_err());
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for text in [
            "{}",
            r#"{"schema": 2, "samples": []}"#,
            r#"{"schema": 1}"#,
            r#"{"schema": 1, "samples": [{"run": 0, "nic": "offload", "work": "x", "peer": "aes", "values": {}}]}"#,
        ] {
            assert!(Record::from_json(&serde_json::from_str(text).unwrap()).is_err(), "{text}");
        }
        assert!(Record::from_json(&json!({"schema": 1, "samples": []})).is_ok());
    }
}
