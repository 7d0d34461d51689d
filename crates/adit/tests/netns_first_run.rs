//! The first run as a person has it: two terminals on the server, one on the laptop, and what is on their screens.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::ADIT;
use common::internet::{GATEWAY, Internet, WEB, home};
use common::terminal::Terminal;

/// For a busy machine; a person waits a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// Seconds of processor time that the shell's commands have used, as bash's `times` says it: `0m0.012s 0m0.004s`.
fn processor_seconds(terminal: &Terminal) -> f64 {
    let shown = terminal.run("times", PATIENCE);
    let seconds = |word: &str| {
        let (minutes, seconds) = word.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    shown.split_whitespace().filter_map(seconds).sum()
}

#[test]
fn a_person_at_terminals_gets_from_nothing_to_a_page_through_the_tunnel() {
    let net = Internet::new("firstrun", 1);
    let client = &net.clients[0];
    let path = format!(
        "{}:{}",
        Path::new(ADIT).parent().unwrap().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let open = |host: &adit_lab::Host, name: &str| {
        let home = home(host).display().to_string();
        Terminal::open(host, name, &[("PATH", &path), ("ADIT_HOME", &home)])
    };
    let (server, second, laptop) =
        (open(&net.gateway, "server"), open(&net.gateway, "second"), open(client, "laptop"));
    let started = Instant::now();

    let said = server.run("adit init", PATIENCE);
    for part in [
        GATEWAY,
        "this host's own public address",
        "eth0",
        "10.86.0.0/24",
        "random and private",
        "next: adit",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    server.type_line("adit gateway");
    server.wait_for("gateway ready", PATIENCE);
    let said = second.run("adit invite laptop", PATIENCE);
    let url =
        said.split_whitespace().find(|word| word.starts_with("adit://")).unwrap_or_else(|| panic!("{said}"));
    assert!(said.contains("this works once, for 10 min"), "{said}");
    let said = laptop.run(&format!("adit join '{url}'"), PATIENCE);
    assert!(said.contains("as laptop, with 10.86.0.2") && said.contains("is up"), "{said}");
    let page = laptop.run(&format!("curl -s http://{WEB}/"), PATIENCE);
    let took = started.elapsed();
    assert!(page.contains(GATEWAY), "the web server sees the gateway: {page}");

    server.press("C-c");
    server.wait_for("gateway stopped", PATIENCE);
    server.wait_for_prompt(PATIENCE);
    let down = laptop.run("adit down", PATIENCE);
    assert!(down.contains("is down"), "{down}");
    let work: f64 = [&server, &second, &laptop].map(processor_seconds).iter().sum();
    println!("{took:?} from the first key to the page, {work:.2} s of processor time");
    assert!(work < 10.0, "{work} s of processor time");
}
