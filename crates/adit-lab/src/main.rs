use std::process::ExitCode;

fn main() -> ExitCode {
    adit_lab::agent_main(std::env::args().skip(1)).unwrap_or_else(|| {
        eprintln!("adit-lab: no such agent; `adit-lab help` lists them");
        ExitCode::from(2)
    })
}
