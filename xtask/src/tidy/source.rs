//! Rules about source files.

use super::{Finding, TextFile};

const MAX_CODE_LINES: usize = 600;

const VAGUE: &[&str] = &["utils", "util", "helpers", "helper", "manager", "misc", "common", "stuff", "tools"];

/// What must not be committed, and why.
const LEFTOVERS: &[(&str, &str)] = &[
    ("todo!(", "unfinished: finish it or leave it out"),
    ("unimplemented!(", "unfinished: finish it or leave it out"),
    ("dbg!(", "left from debugging"),
    ("FIXME", "unfinished: finish it, or open an issue"),
];

/// A test may be the child process of another one.
const IGNORED_WELL: &str = "#[ignore = \"run by another test\"]";

const MACHINE_PATHS: &[&str] = &["/home/", "/root/", "/Users/"];

/// Checks one file.
pub fn check(file: &TextFile) -> Vec<Finding> {
    let mut findings = machine_paths(file);
    if file.path.ends_with(".rs") {
        findings.extend(leftovers(file));
        findings.extend(unsafe_code(file));
        findings.extend(length(file));
        findings.extend(name(file));
    }
    findings
}

/// This directory spells the forbidden words, so it is exempt from them.
fn spells_the_rules(file: &TextFile) -> bool {
    file.path.starts_with("xtask/src/tidy/")
}

fn machine_paths(file: &TextFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    if spells_the_rules(file) {
        return findings;
    }
    for (number, line) in numbered(&file.text) {
        for path in MACHINE_PATHS {
            let starts_a_path =
                |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~}/$".contains(c));
            if line.match_indices(path).any(|(at, _)| starts_a_path(at)) {
                findings.push(Finding::new(&file.path, number, format!("a path of one machine: {path}")));
            }
        }
    }
    findings
}

fn leftovers(file: &TextFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    if spells_the_rules(file) {
        return findings;
    }
    for (number, line) in numbered(&file.text) {
        if line.contains("#[ignore") && !line.contains(IGNORED_WELL) {
            findings.push(Finding::new(&file.path, number, "a test that does not run: run it or remove it"));
        }
        for (word, why) in LEFTOVERS {
            if line.contains(word) {
                findings.push(Finding::new(&file.path, number, format!("`{word}` is {why}")));
            }
        }
    }
    findings
}

fn unsafe_code(file: &TextFile) -> Vec<Finding> {
    let allowed = file.path.starts_with("crates/adit-io/");
    let lines: Vec<&str> = file.text.lines().collect();
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let code = without_strings_and_comments(line);
        if !words(&code).any(|word| word == "unsafe") {
            continue;
        }
        if !allowed {
            findings.push(Finding::new(&file.path, index + 1, "`unsafe` belongs in adit-io only"));
            continue;
        }
        let needs_reason = code.contains("unsafe {") || code.contains("unsafe impl");
        let near = &lines[index.saturating_sub(8)..=index];
        if needs_reason && !near.iter().any(|line| line.contains("// SAFETY:")) {
            findings.push(Finding::new(&file.path, index + 1, "`unsafe` without a `// SAFETY:` before it"));
        }
    }
    findings
}

fn length(file: &TextFile) -> Option<Finding> {
    if is_test_file(&file.path) {
        return None;
    }
    let lines: Vec<&str> = file.text.lines().collect();
    let tests = lines.windows(3).position(|three| {
        three[0] == "#[cfg(test)]" && three[1..].iter().any(|line| line.starts_with("mod tests"))
    });
    let code = tests.unwrap_or(lines.len());
    (code > MAX_CODE_LINES).then(|| {
        Finding::new(
            &file.path,
            0,
            format!("{code} lines of code: find the second noun in it (most {MAX_CODE_LINES})"),
        )
    })
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || ["/tests/", "/benches/", "/examples/"].iter().any(|dir| path.contains(dir))
}

fn name(file: &TextFile) -> Option<Finding> {
    if is_test_file(&file.path) {
        return None;
    }
    let path = std::path::Path::new(&file.path);
    let stem = path.file_stem()?.to_str()?;
    let dir = path.parent().and_then(|dir| dir.file_name()).and_then(|dir| dir.to_str()).unwrap_or_default();
    [stem, dir].into_iter().find_map(|name| {
        let vague = name.split('_').any(|word| VAGUE.contains(&word) || word == "and");
        vague.then(|| Finding::new(&file.path, 0, format!("`{name}` says nothing: find the missing noun")))
    })
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// Good enough for a line at a time: a string over several lines is taken for code.
fn without_strings_and_comments(line: &str) -> String {
    let mut code = String::new();
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            _ if !in_string => code.push(c),
            _ => {}
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn faults(path: &str, text: &str) -> Vec<String> {
        check(&file(path, text)).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn a_good_file_has_no_findings() {
        assert_eq!(faults("crates/adit-proto/src/noise.rs", "//! Noise.\n\nfn mix() {}\n"), [""; 0]);
    }

    #[test]
    fn unfinished_work_is_found_by_line() {
        for word in ["todo!()", "unimplemented!()", "dbg!(x)", "// FIXME later", "#[ignore = \"slow\"]"] {
            let found = faults("crates/adit/src/a.rs", &format!("fn f() {{\n    {word}\n}}\n"));
            assert_eq!(found.len(), 1, "{word}: {found:?}");
            assert!(found[0].starts_with("crates/adit/src/a.rs:2:"), "{found:?}");
        }
    }

    #[test]
    fn only_a_test_that_another_one_runs_may_be_ignored() {
        assert_eq!(faults("crates/adit/tests/a.rs", "#[ignore = \"run by another test\"]\n"), [""; 0]);
        assert_eq!(faults("crates/adit/tests/a.rs", "#[ignore]\n").len(), 1);
    }

    #[test]
    fn paths_of_one_machine_are_found_and_relative_paths_are_not() {
        assert_eq!(faults("README.md", "see /home/someone/adit").len(), 1);
        assert_eq!(
            faults("README.md", "see docs/home/plan, $PWD/root/ and https://a.example/home/x"),
            [""; 0]
        );
    }

    #[test]
    fn unsafe_is_for_adit_io_alone() {
        let code = "// SAFETY: the descriptor is ours.\nlet n = unsafe { libc::read(fd, p, 1) };\n";
        assert_eq!(faults("crates/adit-io/src/sys.rs", code), [""; 0]);
        assert_eq!(faults("crates/adit/src/lane.rs", code).len(), 1);
    }

    #[test]
    fn unsafe_needs_its_reason() {
        let bare = "let n = unsafe { libc::read(fd, p, 1) };\n";
        assert_eq!(faults("crates/adit-io/src/sys.rs", bare).len(), 1);
        assert_eq!(faults("crates/adit-io/src/sys.rs", "unsafe impl Send for Ring {}\n").len(), 1);
    }

    #[test]
    fn the_word_unsafe_in_text_is_no_unsafe_code() {
        let text = "//! unsafe here\nlet a = \"unsafe { }\"; // unsafe\n#![forbid(unsafe_code)]\n";
        assert_eq!(faults("crates/adit-proto/src/lib.rs", text), [""; 0]);
    }

    #[test]
    fn long_files_are_found_but_their_tests_do_not_count() {
        let code = "fn f() {}\n".repeat(601);
        assert_eq!(faults("crates/adit/src/lane.rs", &code).len(), 1);
        assert_eq!(faults("crates/adit/src/lane/tests.rs", &code), [""; 0]);
        let mostly_tests = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert_eq!(faults("crates/adit/src/lane.rs", &mostly_tests), [""; 0]);
    }

    #[test]
    fn files_are_named_by_nouns() {
        assert_eq!(faults("crates/adit/src/utils.rs", "").len(), 1);
        assert_eq!(faults("crates/adit/src/peer_manager.rs", "").len(), 1);
        assert_eq!(faults("crates/adit/src/helpers/mod.rs", "").len(), 1);
        assert_eq!(faults("crates/adit/src/peer.rs", ""), [""; 0]);
        assert_eq!(faults("crates/adit/tests/common/mod.rs", ""), [""; 0]);
    }
}
