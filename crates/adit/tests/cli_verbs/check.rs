//! What becomes of a configuration that is wrong, open to others, or of somebody else.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use serde_json::Value;

use super::{Gateway, adit, bad, good, ran, run};

#[test]
fn a_file_that_is_no_configuration_is_not_to_be_closed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("notes.conf");
    for (text, word) in [("hello", "looks like a configuration"), ("[Interface]\n", "chmod 600")] {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        for verb in ["check", "import"] {
            let said =
                bad(&format!("{verb} {} --home {}", file.display(), directory.path().display()), 1, word);
            assert_eq!(said.stderr.contains("chmod"), word.contains("chmod"), "{}", said.stderr);
        }
    }
}

#[test]
fn a_file_that_others_may_read_is_refused_everywhere() {
    let gateway = Gateway::new();
    fs::set_permissions(gateway.file(), fs::Permissions::from_mode(0o644)).unwrap();
    let line = format!("run `chmod 600 {}`", gateway.file().display());
    for verb in ["check", "peer list", "peer add x", "init --endpoint a:1", "gateway"] {
        gateway.bad(verb, &line);
    }
    fs::set_permissions(gateway.file(), fs::Permissions::from_mode(0o600)).unwrap();
    gateway.good("check");
}

#[test]
fn below_sudo_the_file_of_who_called_it_is_taken_and_of_nobody_else() {
    let gateway = Gateway::new();
    let file = gateway.directory.path().join("laptop.conf");
    fs::write(&file, gateway.good("peer add laptop").stdout).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&file, Some(12_345), None).unwrap();
    let check = |caller: Option<&str>| {
        let mut command = adit(["check", file.to_str().unwrap()]);
        ran(command.envs(caller.map(|uid| ("SUDO_UID", uid))).output().unwrap())
    };
    let own = check(Some("12345"));
    assert_eq!(own.code, 0, "{}", own.stderr);
    for other in [None, Some("12346"), Some("root")] {
        let refused = check(other);
        assert_eq!(refused.code, 1, "{other:?}");
        assert!(refused.stderr.contains("belongs to user 12345"), "{}", refused.stderr);
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(check(Some("12345")).stderr.contains("chmod 600"), "it still has to be private");
}

#[test]
fn check_shows_every_error_with_its_place_and_json_has_them_too() {
    let gateway = Gateway::new();
    let wrong = gateway.text().replace("listen = ", "listn = ").replace("10.9.0.0/24", "10.9.0.1/24");
    fs::write(gateway.file(), &wrong).unwrap();
    let ran = gateway.bad("check", "did you mean `listen`?");
    let line = 1 + wrong.lines().position(|line| line.starts_with("listn")).unwrap();
    assert!(ran.stderr.contains(&format!("adit.toml:{line}:1\n")), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("write \"10.9.0.0/24\"") && ran.stderr.contains("2 errors"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains('\x1b'));
    let json = gateway_json(&gateway, "check --json");
    assert_eq!((&json["ok"], &json["errors"][0]["line"]), (&false.into(), &line.into()));
    let colored = gateway.bad("check --color always", "did you mean");
    assert!(colored.stderr.contains("\x1b[1;31m"));
}

fn gateway_json(gateway: &Gateway, line: &str) -> Value {
    serde_json::from_str(&run(&format!("{line} --home {}", gateway.home())).stdout).unwrap()
}

#[test]
fn check_takes_wg_quick_files_and_refuses_hooks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wg0.conf");
    let key = good("genkey").stdout;
    fs::write(&path, format!("[Interface]\nPrivateKey = {key}PostUp = echo hello\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let ran = bad(&format!("check {}", path.display()), 1, "--allow-hooks");
    assert!(ran.stderr.contains("wg0.conf:3:1\n"), "{}", ran.stderr);
    good(&format!("check --allow-hooks {}", path.display()));
}

#[test]
fn the_environment_comes_before_the_file_and_is_named_when_wrong() {
    let gateway = Gateway::new();
    let check = |name: &str, value: &str| {
        ran(adit(["check", "--home", gateway.home()]).env(name, value).output().unwrap())
    };
    assert!(check("ADIT_GATEWAY_LISTEN", "1234").stdout.contains("UDP port 1234"));
    let wrong = check("ADIT_GATEWAY_LISTN", "1234");
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr.contains("did you mean ADIT_GATEWAY_LISTEN?"), "{}", wrong.stderr);
    let by_variable = ran(adit(["check"]).env("ADIT_HOME", gateway.home()).output().unwrap());
    assert_eq!(by_variable.code, 0, "{}", by_variable.stderr);
}

#[test]
fn hostile_files_are_refused_and_never_repeat_a_key() {
    let gateway = Gateway::new();
    let text = gateway.text();
    let key = text
        .lines()
        .find_map(|line| line.strip_prefix("private_key = \""))
        .unwrap()
        .trim_end_matches('"')
        .to_owned();
    let long = format!("{text}x = \"{}\"", "y".repeat(10 << 20));
    for wrong in [
        text.replace(&format!("{key}\""), &key),
        text.replace(&key, &key[1..]),
        text.clone() + "\0",
        text.clone() + "\u{202e}",
        long,
        text.replace("[gateway]", "[gateway]\nmtu = -1\nlanes = 99999999999999999999"),
    ] {
        fs::write(gateway.file(), &wrong).unwrap();
        let ran = gateway.bad("check", "error: ");
        assert!(!ran.stderr.contains(&key[5..30]) && ran.stderr.len() < 4000, "{}", ran.stderr);
    }
    fs::write(gateway.file(), [text.as_bytes(), b"\xff"].concat()).unwrap();
    gateway.bad("check", "byte 0xff is not UTF-8");
    fs::write(gateway.file(), &text).unwrap();
    gateway.good("check");
}
