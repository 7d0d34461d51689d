//! Licence expressions (SPDX): may we ship what is under them?

/// Permissive licences; `deny.toml` has the same list.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "NCSA",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether an expression such as `MIT OR (Apache-2.0 AND ISC)` can be met with permissive licences.
pub fn is_permissive(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let (value, rest) = any_of(&tokens);
    value && rest.is_empty()
}

fn any_of<'a>(tokens: &'a [&'a str]) -> (bool, &'a [&'a str]) {
    let (mut value, mut rest) = all_of(tokens);
    while let ["OR", tail @ ..] = rest {
        let (next, after) = all_of(tail);
        (value, rest) = (value | next, after);
    }
    (value, rest)
}

fn all_of<'a>(tokens: &'a [&'a str]) -> (bool, &'a [&'a str]) {
    let (mut value, mut rest) = one(tokens);
    while let ["AND", tail @ ..] = rest {
        let (next, after) = one(tail);
        (value, rest) = (value & next, after);
    }
    (value, rest)
}

fn one<'a>(tokens: &'a [&'a str]) -> (bool, &'a [&'a str]) {
    match tokens {
        ["(", tail @ ..] => match any_of(tail) {
            (value, [")", rest @ ..]) => (value, rest),
            (_, rest) => (false, rest),
        },
        [licence, "WITH", exception, rest @ ..] => {
            (PERMISSIVE.contains(&format!("{licence} WITH {exception}").as_str()), rest)
        }
        [licence, rest @ ..] => (PERMISSIVE.contains(licence), rest),
        [] => (false, tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissive_expressions_pass() {
        for expression in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
            "ISC AND (Apache-2.0 OR ISC) AND OpenSSL",
        ] {
            assert!(is_permissive(expression), "{expression}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for expression in [
            "",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "MPL-2.0",
            "GPL-2.0-only WITH Classpath-exception-2.0",
            "(MIT",
            "MIT Apache-2.0",
        ] {
            assert!(!is_permissive(expression), "{expression}");
        }
    }
}
