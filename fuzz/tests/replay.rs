//! Runs every committed input of every target, and mutations of them with a fixed seed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use adit_fuzz::mutation::{Rng, mutate};
use adit_fuzz::{TARGETS, corpus};

const MUTATIONS: usize = 100_000;
const BUDGET: Duration = Duration::from_secs(3);

#[test]
fn every_target_holds_on_its_corpus() {
    for target in TARGETS {
        let inputs = corpus::read(target.name).unwrap();
        assert!(!inputs.is_empty(), "the corpus of {} is empty", target.name);
        (target.run)(&[]);
        for (name, input) in inputs {
            println!("{} {name}", target.name);
            (target.run)(&input);
        }
    }
}

#[test]
fn every_target_holds_on_mutations_of_its_corpus() {
    for target in TARGETS {
        let inputs: Vec<Vec<u8>> =
            corpus::read(target.name).unwrap().into_iter().map(|(_, input)| input).collect();
        let mut rng = Rng::new(0xad17);
        let start = Instant::now();
        for number in 0..MUTATIONS {
            let mut input = inputs[rng.below(inputs.len())].clone();
            let other = inputs[rng.below(inputs.len())].clone();
            mutate(&mut rng, &mut input, &other);
            let outcome = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(outcome.is_ok(), "{} breaks on mutation {number}: {input:02x?}", target.name);
            if start.elapsed() > BUDGET {
                println!("{}: {number} mutations in {BUDGET:?}", target.name);
                break;
            }
        }
    }
}

#[test]
fn every_corpus_and_every_libfuzzer_target_has_its_harness() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let list = |dir: &str| -> BTreeSet<String> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        let files = path.read_dir().unwrap().map(|entry| entry.unwrap().path());
        files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(list("corpus"), names);
    assert_eq!(list("libfuzzer/fuzz_targets"), names);
}
