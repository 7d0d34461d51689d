//! More than two hundred configurations that are wrong: each error is at its place, and says what is wrong.

#[path = "common/corpus.rs"]
mod corpus;

use std::path::Path;

use adit::config::diagnostic::{Diagnostic, Place};
use adit::config::wgquick::{Hooks, WgQuick};
use adit::config::{ClientSettings, Config, Layers, Report, Source};
use adit::home::Home;

use corpus::{Case, Kind, cases, good_gateway};

/// Takes the configuration of a case as adit does.
fn report_of(case: &Case) -> Result<(), Report> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    match case.kind {
        Kind::Toml => {
            Config::parse(&Source::new("adit.toml", &case.text), here, &Layers::default()).map(drop)
        }
        Kind::Conf => WgQuick::parse(&Source::new("x.conf", &case.text), Hooks::Refused).map(drop),
        Kind::Env | Kind::Flag => {
            let words: Vec<&str> = case.text.trim().splitn(3, ' ').collect();
            let [key, name, value] = words.as_slice() else { panic!("{case:?}") };
            let mut layers = Layers::default();
            match case.kind {
                Kind::Env => layers.environment.push(((*name).to_owned(), (*value).to_owned())),
                _ => layers.flags.push(((*key).to_owned(), (*name).to_owned(), (*value).to_owned())),
            }
            let gateway = Config::parse(&Source::new("adit.toml", good_gateway()), here, &layers).map(drop);
            if name.starts_with("ADIT_CLIENT_") {
                let home = tempfile::tempdir().unwrap();
                let home = Home::new(Some(home.path())).unwrap();
                assert!(ClientSettings::load(&home, &layers, None).is_err(), "{case:?}");
            }
            gateway
        }
    }
}

fn is_at_its_place(case: &Case, report: &Report, found: &Diagnostic) -> bool {
    match (&found.place, case.kind) {
        (Place::Outside(place), Kind::Env | Kind::Flag) => {
            let name = case.text.trim().split(' ').nth(1).unwrap();
            place.ends_with(&format!(" {name}"))
        }
        (Place::File, Kind::Toml | Kind::Conf) => case.place.is_none(),
        (Place::Span(span), Kind::Toml | Kind::Conf) => {
            case.place == Some(report.source().line_column(span.start))
        }
        _ => false,
    }
}

#[test]
fn each_of_200_malformed_configurations_has_its_error_at_its_place() {
    let cases = cases();
    assert!(cases.len() >= 200, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let Err(report) = report_of(case) else {
            wrong.push(format!("accepted: {case:?}"));
            continue;
        };
        let first = &report.diagnostics()[0];
        let says = |found: &Diagnostic| {
            let complaint = &found.complaint;
            (complaint.reason.contains(&case.words) || complaint.fix.contains(&case.words))
                && !complaint.reason.is_empty()
                && !complaint.fix.is_empty()
        };
        let is_right = report.diagnostics().iter().any(|it| is_at_its_place(case, &report, it) && says(it));
        // What is wrong elsewhere would send the reader to a line that is right.
        if !is_right || !is_at_its_place(case, &report, first) {
            let place = match &first.place {
                Place::Span(span) => format!("{:?}", report.source().line_column(span.start)),
                other => format!("{other:?}"),
            };
            wrong.push(format!("{:?} {:?}, but {place} {}\n{}", case.place, case.words, report, case.text));
        }
    }
    assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n---\n"));
}

#[test]
fn what_the_malformed_ones_were_made_of_is_right() {
    let here = Path::new(".");
    Config::parse(&Source::new("adit.toml", good_gateway()), here, &Layers::default()).unwrap();
    let conf =
        cases().into_iter().find(|case| case.kind == Kind::Conf && case.text.contains("[Peer]")).unwrap();
    let lines: Vec<&str> = conf.text.lines().take(2).collect();
    WgQuick::parse(&Source::new("x.conf", lines.join("\n")), Hooks::Refused).unwrap();
}

#[test]
fn no_error_shows_a_key() {
    for case in cases() {
        let Err(report) = report_of(&case) else { continue };
        let page = format!("{}{report}", report.render(false));
        assert!(!page.contains("yAnz5TF+"), "{page}");
    }
}
