use std::path::Path;

use adit_sim::scenario::run;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

const RANDOM_SCENARIOS: u64 = 120;

#[test]
fn every_committed_scenario_holds_and_happens_the_same_way_twice() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut files: Vec<_> = corpus.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10);
    for file in files {
        println!("{}", file.display());
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(run(&bytes), run(&bytes));
    }
}

/// `SIM_SEEDS=FROM-TO` runs other scenarios, for as long as anybody likes.
#[test]
fn random_scenarios_hold() {
    let seeds = std::env::var("SIM_SEEDS").ok().and_then(|range| {
        let (from, to) = range.split_once('-')?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    let (mut sent, mut delivered) = (0, 0);
    for seed in seeds.unwrap_or(0..RANDOM_SCENARIOS) {
        let bytes = random_script(seed);
        let outcome = std::panic::catch_unwind(|| run(&bytes));
        let Ok(outcome) = outcome else { panic!("scenario {seed} breaks a rule: {bytes:02x?}") };
        sent += outcome.sent;
        delivered += outcome.delivered;
    }
    assert!(delivered > sent / 4, "the scenarios leave something to deliver: {delivered} of {sent}");
}

fn random_script(seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = vec![0; 4 + (rng.next_u32() % 120) as usize];
    rng.fill_bytes(&mut bytes);
    bytes
}
