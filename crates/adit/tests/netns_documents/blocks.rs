//! The blocks of the documents, and how each is run.

use std::fs;
use std::path::{Path, PathBuf};

/// What becomes of a block.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    /// Each line is run on the server.
    Server,
    /// The same, once this line of the document stands below `[gateway]`.
    ServerWith(&'static str),
    /// Each line is run on the laptop.
    Laptop,
    /// The same, while the tunnel is up.
    Connected,
    /// This test in this file runs each line, between what it needs.
    Here(&'static str, &'static str),
    /// Tests do what each line says; the block itself names places or does things that a lab has not.
    Elsewhere(&'static [Shown], &'static str),
    /// It cannot be run by a test.
    Never(&'static str),
}

/// Where a line is shown: how it begins, the file and the function of the test, and words of the line that are in both.
pub(super) type Shown = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// Every block by its document and how its first line begins, in the order in which they are run.
pub(super) const BLOCKS: &[(&str, &str, How)] = &[
    (
        "README.md",
        "cargo xtask demo",
        How::Elsewhere(
            &[
                (
                    "cargo xtask demo",
                    "netns_demo.rs",
                    "the_demonstration_passes_every_check_and_leaves_nothing",
                    &["demo"],
                ),
                (
                    "cargo xtask ci",
                    "netns_documents/blocks.rs",
                    "every_block_of_commands_is_run_or_has_a_reason_why_not",
                    &["cargo xtask ci"],
                ),
            ],
            "the first is a program of its own, and the second is the run that runs this test",
        ),
    ),
    (
        "README.md",
        "cargo build --release",
        How::Never("it installs for everybody on the machine that runs the test"),
    ),
    ("README.md", "sudo adit init", How::Server),
    ("README.md", "sudo adit join", How::Laptop),
    (
        "README.md",
        "sudo ln -s adit",
        How::Here("netns_documents/main.rs", "wg_quick_works_with_adit_as_its_device_as_it_is_written"),
    ),
    (
        "README.md",
        "sudo adit lockdown on",
        How::Elsewhere(
            &[
                (
                    "sudo adit lockdown on",
                    "netns_kill_switch.rs",
                    "lockdown_closes_a_host_before_a_tunnel_and_after_it",
                    &["lockdown", "on"],
                ),
                (
                    "sudo adit service install",
                    "netns_systemd.rs",
                    "a_service_is_installed_started_watched_stopped_and_taken_away_by_a_real_systemd",
                    &["service", "install"],
                ),
            ],
            "systemd is process 1 of a machine, and a lab's host has none",
        ),
    ),
    ("README.md", "sudo adit reload", How::ServerWith("lan = [\"192.168.7.0/24\"]")),
    ("README.md", "sudo adit peer add phone --qr", How::Server),
    (
        "README.md",
        "sudo adit up --carrier wss",
        How::Here("netns_recipes.rs", "the_tunnel_passes_through_nginx_as_the_recipe_says"),
    ),
    (
        "README.md",
        "adit join --no-up",
        How::Here("netns_documents/main.rs", "what_needs_no_root_works_for_nobody_as_it_is_written"),
    ),
    (
        "README.md",
        "adit proxy --socks5",
        How::Here("netns_documents/main.rs", "what_needs_no_root_works_for_nobody_as_it_is_written"),
    ),
    (
        "README.md",
        "sudo adit ip",
        How::Here(
            "netns_documents/main.rs",
            "addresses_and_speed_are_told_and_leaks_looked_for_as_it_is_written",
        ),
    ),
    ("docs/inside-api.md", "curl http://10.86.0.1", How::Connected),
    (
        "docs/split-tunnel.md",
        "sudo adit up --exclude",
        How::Here("netns_documents/main.rs", "a_split_tunnel_works_as_it_is_written"),
    ),
    (
        "docs/split-tunnel.md",
        "sudo adit verify",
        How::Here(
            "netns_documents/main.rs",
            "addresses_and_speed_are_told_and_leaks_looked_for_as_it_is_written",
        ),
    ),
    (
        "docs/performance.md",
        "sudo cargo xtask bench",
        How::Never("it needs the machine to itself for minutes"),
    ),
    (
        "docs/performance.md",
        "dpkg-deb -x wireguard-go",
        How::Never("it needs the machine to itself for minutes"),
    ),
];

/// Commands that stay, and what they say when they are ready.
pub(super) const STAYING: &[(&str, &str)] = &[("sudo adit gateway", "gateway ready")];

pub(super) struct Block {
    pub(super) document: String,
    pub(super) line: usize,
    pub(super) commands: Vec<String>,
}

pub(super) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn documents(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// Every fenced block that says it is for a shell.
pub(super) fn blocks() -> Vec<Block> {
    let root = checkout();
    let mut paths: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md"].map(|name| root.join(name)).into();
    documents(&root.join("docs"), &mut paths);
    let mut blocks = Vec::new();
    for path in paths {
        let document = path.strip_prefix(&root).unwrap().display().to_string();
        let mut open: Option<Block> = None;
        for (number, text) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            match (&mut open, text) {
                (None, "```sh" | "```bash" | "```shell" | "```console") => {
                    open = Some(Block { document: document.clone(), line: number + 1, commands: Vec::new() });
                }
                (Some(_), "```") => blocks.extend(open.take()),
                (Some(block), command) => block.commands.push(command.to_owned()),
                (None, _) => {}
            }
        }
        assert!(open.is_none(), "{document}: a block has no end");
    }
    blocks
}

pub(super) fn is_block(block: &Block, (document, start, _): &(&str, &str, How)) -> bool {
    block.document == *document && block.commands.first().is_some_and(|first| first.starts_with(start))
}

#[test]
fn every_block_of_commands_is_run_or_has_a_reason_why_not() {
    let blocks = blocks();
    for block in &blocks {
        let known = BLOCKS.iter().filter(|row| is_block(block, row)).count();
        assert_eq!(
            known, 1,
            "{}:{}: say in this test how it is run: {:?}",
            block.document, block.line, block.commands
        );
    }
    for row in BLOCKS {
        assert_eq!(
            blocks.iter().filter(|block| is_block(block, row)).count(),
            1,
            "{row:?} is in no document"
        );
        if let How::Elsewhere(shown, _) = row.2 {
            let block = blocks.iter().find(|block| is_block(block, row)).unwrap();
            every_line_is_shown(block, shown);
        }
        if let How::Here(file, function) = row.2 {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
            let source = fs::read_to_string(path).unwrap();
            let (_, test) = source.split_once(&format!("#[test]\nfn {function}(")).expect(function);
            let test = test.split("\n#[test]\n").next().unwrap();
            let reads = [format!("Script::of(\"{}\", \"{}\")", row.0, row.1), "block(\"sh\", ".to_owned()];
            assert!(reads.iter().any(|it| test.contains(it)), "{function} does not run {row:?}");
        }
        if let How::Elsewhere(_, why) | How::Never(why) = row.2 {
            assert!(why.len() > 10, "{row:?}");
        }
    }
}

/// Each line by one test that is there and says the words of it.
fn every_line_is_shown(block: &Block, shown: &[Shown]) {
    let place = format!("{}:{}", block.document, block.line);
    assert_eq!(block.commands.len(), shown.len(), "{place}: a test for each line");
    for command in &block.commands {
        let of_it: Vec<&Shown> = shown.iter().filter(|it| command.starts_with(it.0)).collect();
        let [(_, file, function, words)] = of_it.as_slice() else {
            panic!("{place}: which test is for `{command}`?")
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{place}: {file}: {error}"));
        assert!(
            source.contains(&format!("#[test]\nfn {function}(")),
            "{place}: {file} has no test {function}"
        );
        assert!(!words.is_empty(), "{place}: `{command}`");
        for word in *words {
            assert!(command.contains(word), "{place}: `{word}` is not in `{command}`");
            assert!(source.contains(word), "{place}: {file} never says `{word}`");
        }
    }
}

#[test]
fn a_line_that_no_test_shows_is_noticed() {
    let block = |command: &str| Block { document: "x".into(), line: 1, commands: vec![command.to_owned()] };
    let noticed = |command: &'static str, shown: &'static [Shown]| {
        std::panic::catch_unwind(move || every_line_is_shown(&block(command), shown)).is_err()
    };
    const DEMO: &str = "the_demonstration_passes_every_check_and_leaves_nothing";
    assert!(!noticed("adit demo", &[("adit demo", "netns_demo.rs", DEMO, &["demo"])]));
    assert!(noticed("adit demo --frobnicate", &[("adit demo", "netns_demo.rs", DEMO, &["--frobnicate"])]));
    assert!(noticed("adit demo", &[("adit demo", "netns_demo.rs", "no_such_test", &["demo"])]));
    assert!(noticed("adit demo", &[("adit demo", "no_such_file.rs", DEMO, &["demo"])]));
    assert!(noticed("adit other", &[("adit demo", "netns_demo.rs", DEMO, &["demo"])]));
}

#[test]
fn every_question_is_titled_by_a_message_that_adit_prints() {
    let root = checkout();
    let mut sources = Vec::new();
    rust_files(&root.join("crates/adit/src"), &mut sources);
    // A message may go over the end of a line of the source.
    let joined = |text: String| {
        text.split('\n').map(|line| line.trim()).collect::<Vec<_>>().join(" ").replace("\\ ", "")
    };
    let sources: String = sources.iter().map(|path| joined(fs::read_to_string(path).unwrap())).collect();
    let faq = fs::read_to_string(root.join("docs/faq.md")).unwrap();
    let titles: Vec<_> =
        faq.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    assert!(titles.len() >= 8, "{titles:?}");
    for title in titles.iter().filter(|title| **title != "Packet filtered") {
        assert!(sources.contains(title), "adit never says `{title}`");
    }
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
