//! Rules about crates: who may depend on whom, on what, and why. Read from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Finding, licence};

/// What each of our crates may use of ours when it ships.
const MAY_USE: &[(&str, &[&str])] = &[
    ("adit", &["adit-proto", "adit-io", "adit-host", "adit-lab"]),
    ("adit-io", &["adit-proto"]),
    ("adit-proto", &[]),
    ("adit-host", &["adit-io"]),
    ("adit-lab", &[]),
    ("adit-sim", &["adit-proto"]),
    ("adit-fuzz", &["adit", "adit-proto", "adit-io"]),
    ("xtask", &["adit-lab"]),
];

/// What any of our crates may use of ours in its tests.
const MAY_TEST_WITH: &[&str] = &["adit-lab"];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

const NOTES: &str = "docs/why/dependencies.md";

/// Checks what `cargo metadata` says against the rules, and against the notes on dependencies.
pub fn check(metadata: &Value, notes: &str) -> Vec<Finding> {
    let packages: Vec<Package<'_>> = list(metadata, "packages").filter_map(Package::read).collect();
    let ours: BTreeSet<&str> = packages.iter().filter(|package| package.is_ours()).map(|p| p.name).collect();
    let mut findings = Vec::new();
    let mut direct = BTreeMap::new();
    for package in packages.iter().filter(|package| package.is_ours()) {
        for (name, kind) in &package.dependencies {
            if ours.contains(name) {
                findings.extend(between_us(package.name, name, kind));
            } else {
                direct.insert(*name, package.name);
            }
        }
    }
    findings.extend(packages.iter().filter(|package| !package.is_ours()).flat_map(theirs));
    findings.extend(notes_faults(&direct, notes));
    findings
}

struct Package<'a> {
    name: &'a str,
    licence: &'a str,
    source: Option<&'a str>,
    dependencies: Vec<(&'a str, &'a str)>,
}

impl<'a> Package<'a> {
    fn read(value: &'a Value) -> Option<Self> {
        let dependencies = list(value, "dependencies")
            .filter_map(|dep| Some((dep["name"].as_str()?, dep["kind"].as_str().unwrap_or("normal"))));
        Some(Self {
            name: value["name"].as_str()?,
            licence: value["license"].as_str().unwrap_or_default(),
            source: value["source"].as_str(),
            dependencies: dependencies.collect(),
        })
    }

    fn is_ours(&self) -> bool {
        self.source.is_none()
    }
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn between_us(from: &str, to: &str, kind: &str) -> Option<Finding> {
    let place = format!("crate {from}");
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == from) else {
        return Some(Finding::new(
            &place,
            0,
            "is unknown to the dependency rule in xtask/src/tidy/crates.rs",
        ));
    };
    let fine = allowed.contains(&to) || (kind == "dev" && MAY_TEST_WITH.contains(&to));
    (!fine).then(|| Finding::new(&place, 0, format!("must not depend on {to} ({kind})")))
}

fn theirs(package: &Package<'_>) -> Vec<Finding> {
    let place = format!("crate {}", package.name);
    let mut findings = Vec::new();
    if !licence::is_permissive(package.licence) {
        let licence = if package.licence.is_empty() { "no licence" } else { package.licence };
        findings.push(Finding::new(&place, 0, format!("has a licence we do not ship: {licence}")));
    }
    if package.source != Some(REGISTRY) {
        findings.push(Finding::new(&place, 0, "does not come from crates.io"));
    }
    findings
}

/// Each dependency has its line `| name | …` in the notes, and each line its dependency.
fn notes_faults(direct: &BTreeMap<&str, &str>, notes: &str) -> Vec<Finding> {
    let noted: BTreeMap<&str, usize> = notes
        .lines()
        .enumerate()
        .filter_map(|(index, line)| Some((line.strip_prefix("| `")?.split_once('`')?.0, index + 1)))
        .collect();
    let mut findings = Vec::new();
    for (name, user) in direct.iter().filter(|(name, _)| !noted.contains_key(*name)) {
        findings.push(Finding::new(
            NOTES,
            0,
            format!("`{name}` (used by {user}) has no line: say what it is for"),
        ));
    }
    for (name, line) in noted.iter().filter(|(name, _)| !direct.contains_key(*name)) {
        findings.push(Finding::new(NOTES, *line, format!("`{name}` is no dependency any more")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ours(name: &str, dependencies: Value) -> Value {
        json!({"name": name, "license": "MIT", "source": null, "dependencies": dependencies})
    }

    fn theirs(name: &str, licence: Value, source: &str) -> Value {
        json!({"name": name, "license": licence, "source": source, "dependencies": []})
    }

    fn faults(packages: &[Value], notes: &str) -> Vec<String> {
        check(&json!({ "packages": packages }), notes)
            .into_iter()
            .map(|finding| finding.to_string())
            .collect()
    }

    #[test]
    fn the_dependency_rule_holds_for_what_ships() {
        let proto = ours("adit-proto", json!([]));
        let io = ours("adit-io", json!([{"name": "adit-proto", "kind": null}]));
        assert_eq!(faults(&[proto.clone(), io.clone()], ""), [""; 0]);
        let proto = ours("adit-proto", json!([{"name": "adit-io", "kind": null}]));
        assert_eq!(faults(&[proto, io], "").len(), 1);
    }

    #[test]
    fn the_lab_is_for_the_program_and_for_tests() {
        let lab = ours("adit-lab", json!([]));
        let dev = ours("adit-host", json!([{"name": "adit-lab", "kind": "dev"}]));
        assert_eq!(faults(&[lab.clone(), dev], ""), [""; 0]);
        let normal = ours("adit-host", json!([{"name": "adit-lab", "kind": null}]));
        assert_eq!(faults(&[lab, normal], "").len(), 1);
    }

    #[test]
    fn a_new_crate_of_ours_needs_its_place_in_the_rule() {
        let proto = ours("adit-proto", json!([]));
        let new = ours("adit-new", json!([{"name": "adit-proto", "kind": null}]));
        assert!(faults(&[proto, new], "")[0].contains("unknown to the dependency rule"));
    }

    #[test]
    fn every_dependency_is_explained_and_every_explanation_is_used() {
        let io = ours("adit-io", json!([{"name": "libc", "kind": null}]));
        let libc = theirs("libc", json!("MIT OR Apache-2.0"), REGISTRY);
        let both = [io, libc];
        assert_eq!(faults(&both, "| `libc` | system calls |\n"), [""; 0]);
        assert_eq!(faults(&both, "").len(), 1);
        assert_eq!(faults(&both, "| `libc` | calls |\n| `gone` | nothing |\n").len(), 1);
    }

    #[test]
    fn licences_and_sources_of_others_are_checked() {
        assert_eq!(faults(&[theirs("a", json!("MIT"), REGISTRY)], ""), [""; 0]);
        assert_eq!(faults(&[theirs("a", json!("AGPL-3.0-only"), REGISTRY)], "").len(), 1);
        assert_eq!(faults(&[theirs("a", json!(null), REGISTRY)], "").len(), 1);
        assert_eq!(faults(&[theirs("a", json!("MIT"), "git+https://example.org/a")], "").len(), 1);
    }
}
