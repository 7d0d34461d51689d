//! The demonstration, as a machine runs it.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_demonstration_passes_every_check_and_leaves_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_adit"))
        .args(["demo", "--json", "--clients", "3"])
        .output()
        .expect("adit starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(output.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(report["schema"], 1);
    let steps = report["steps"].as_array().expect("steps");
    assert!(steps.len() >= 10, "{report:#}");
    assert!(steps.iter().all(|step| step["ok"] == true), "{report:#}");
}
