//! The corpus of configurations that are wrong (`tests/corpus/malformed.txt`).

use std::path::Path;

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An `adit.toml`.
    Toml,
    /// A wg-quick file.
    Conf,
    /// A variable.
    Env,
    /// A flag.
    Flag,
}

/// A configuration that is wrong, and what its error has to say.
#[derive(Clone, Debug)]
pub struct Case {
    pub kind: Kind,
    /// Part of the reason or the fix.
    pub words: String,
    /// The text; for a variable or flag `KEY NAME VALUE`.
    pub text: String,
    /// Line and column; `None` is the file as a whole.
    pub place: Option<(usize, usize)>,
}

/// A gateway that is right: what every wrong one is put in place of.
pub fn good_gateway() -> String {
    format!("config_version = 1\n[gateway]\nprivate_key = \"{KEY}\"\nnetwork = \"10.9.0.0/24\"\n")
}

pub fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/malformed.txt");
    let corpus = std::fs::read_to_string(path).unwrap();
    corpus.split("\n=== ").skip(1).map(case).collect()
}

fn case(entry: &str) -> Case {
    let (head, body) = entry.split_once('\n').unwrap_or((entry, ""));
    let (kind, words) = head.split_once('|').unwrap_or_else(|| panic!("{head}"));
    let kind = match kind.trim() {
        "toml" => Kind::Toml,
        "conf" => Kind::Conf,
        "env" => Kind::Env,
        "flag" => Kind::Flag,
        other => panic!("{other}"),
    };
    let interface = format!("[Interface]\nPrivateKey = {KEY}");
    let marked = body
        .replace("{G}\n", &good_gateway())
        .replace("{I}", &interface)
        .replace("{P}", &format!("[Peer]\nPublicKey = {PUBLIC}"))
        .replace("{KEY}", KEY)
        .replace("{PUB}", PUBLIC)
        .replace("{OTHER}", OTHER)
        .replace("{NUL}", "\0");
    let place = marked.find('§').map(|at| {
        let before = &marked[..at];
        let line = before.matches('\n').count() + 1;
        (line, before.rsplit('\n').next().unwrap_or_default().chars().count() + 1)
    });
    Case { kind, words: words.trim().to_owned(), text: marked.replace('§', ""), place }
}
