//! Any text for the daemon's settings: what is read of it is what it says, each option once, and an error is a line that names its line.

use std::{collections::BTreeSet, ffi::OsString, fmt::Write as _};

use agent::daemon::config;

use crate::input::Input;

/// Some options of the daemon's, and some that are none.
const NAMES: [&str; 12] = [
    "qemu",
    "log-format",
    "ready-forks",
    "reserve-memory",
    "merge-memory",
    "pressure-high",
    "data-dir",
    "config",
    "colour",
    "--qemu",
    "",
    "#",
];
const VALUES: [&str; 8] = ["1", "on", "1G", "/a b", "json", "", "=", "-1"];
/// Each line is a whole command line to be parsed.
const MOST_LINES: usize = 8;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let text = match input.u8() % 4 {
        0 => String::from_utf8_lossy(input.bytes(usize::MAX)).into_owned(),
        _ => lines(&mut input),
    };
    let read = match config::parse(&text) {
        Ok(read) => read,
        Err(error) => return one_line(&error.to_string()),
    };
    let names: BTreeSet<&str> = read.iter().map(|setting| setting.name.as_str()).collect();
    assert_eq!(names.len(), read.len(), "an option is set twice");
    let mut again = String::new();
    for setting in &read {
        let said = text.lines().nth(setting.line - 1).unwrap_or_default();
        assert!(
            said.contains(&setting.name) && said.contains(&setting.value),
            "{said:?}"
        );
        assert!(writeln!(again, "{}={}", setting.name, setting.value).is_ok());
    }
    let back = config::parse(&again).map(|all| {
        let pair = |one: config::Setting| (one.name, one.value);
        all.into_iter().map(pair).collect::<Vec<_>>()
    });
    let pairs: Vec<_> = read.into_iter().map(|one| (one.name, one.value)).collect();
    assert!(
        back.is_ok_and(|back| back == pairs),
        "{again:?} is read otherwise"
    );
    if pairs.len() <= MOST_LINES {
        let line = ["fpagent", "run", "--data-dir", "/d"].map(OsString::from);
        if let Err(error) = config::complete(&line, &text) {
            one_line(&error.to_string());
        }
    }
}

fn one_line(error: &str) {
    assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
}

fn lines(input: &mut Input<'_>) -> String {
    let mut text = String::new();
    for _ in 0..input.below(10) {
        let (name, value) = (input.below(NAMES.len()), input.below(VALUES.len()));
        text += [NAMES[name], " = ", VALUES[value], "\n"].concat().as_str();
    }
    text + &String::from_utf8_lossy(input.bytes(usize::MAX))
}
