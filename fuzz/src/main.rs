//! `adit-fuzz TARGET SECONDS [SEED]`: mutates the corpus of a target and keeps the input that breaks it.

use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_fuzz::mutation::{Rng, mutate};
use adit_fuzz::{TARGETS, Target, corpus, target};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match args.as_slice() {
        [name, secs] => target(name).zip(secs.parse().ok()).zip(Some(clock_seed())),
        [name, secs, seed] => target(name).zip(secs.parse().ok()).zip(seed.parse().ok()),
        _ => None,
    };
    let Some(((target, secs), seed)) = parsed else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("usage: adit-fuzz TARGET SECONDS [SEED]; targets: {}", names.join(" "));
        return ExitCode::from(2);
    };
    match fuzz(target, Duration::from_secs(secs), seed) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn fuzz(target: Target, time: Duration, seed: u64) -> std::io::Result<bool> {
    let corpus: Vec<Vec<u8>> = corpus::read(target.name)?.into_iter().map(|(_, input)| input).collect();
    let mut rng = Rng::new(seed);
    let end = Instant::now() + time;
    let mut runs = 0u64;
    while Instant::now() < end {
        for _ in 0..64 {
            let mut input = corpus.get(rng.below(corpus.len())).cloned().unwrap_or_default();
            let other = corpus.get(rng.below(corpus.len())).map_or(&[][..], Vec::as_slice);
            mutate(&mut rng, &mut input, other);
            if catch_unwind(|| (target.run)(&input)).is_err() {
                let file = keep(target, &input, seed, runs)?;
                eprintln!("broken after {runs} inputs of seed {seed}: {}", file.display());
                eprintln!("copy that file to fuzz/corpus/{}/ with the fix", target.name);
                return Ok(false);
            }
            runs += 1;
        }
    }
    println!("{}: {runs} inputs of seed {seed}, none breaks it", target.name);
    Ok(true)
}

fn keep(target: Target, input: &[u8], seed: u64, runs: u64) -> std::io::Result<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(target.name);
    std::fs::create_dir_all(&dir)?;
    let file = dir.join(format!("{seed}-{runs}"));
    std::fs::write(&file, input)?;
    Ok(file)
}

fn clock_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64)
}
