//! The file that `fpagent run --config` names: a line `NAME = VALUE` for each option, with the words that would be typed. What is typed,
//! or is in the environment, goes before it.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, FromArgMatches as _, parser::ValueSource};

use super::options::RunOptions;
use crate::client::args::{Cli, Command};

/// The longest file, bytes.
const LONGEST: u64 = 64 << 10;
/// The command whose options these are.
const RUN: &str = "run";
/// What says where everything is, and is said before there is a file to be read.
const TYPED: [&str; 2] = ["data-dir", "config"];

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the settings in {path} cannot be read")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not as it must be.
    #[error("line {line} of the settings: {problem}")]
    Line {
        /// Its number, from 1 on.
        line: usize,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The command line that they were to be added to is none.
    #[error("the command line cannot be read again")]
    CommandLine(#[from] clap::Error),
}

/// An option that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The number of its line, from 1 on.
    pub line: usize,
    /// The option, without hyphens before it.
    pub name: String,
    /// Its value, as it would be typed.
    pub value: String,
}

/// Reads settings.
///
/// # Errors
/// `Line` where one is none, or an option is set twice.
pub fn parse(text: &str) -> Result<Vec<Setting>, ConfigError> {
    let (mut settings, mut seen) = (Vec::new(), BTreeSet::new());
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let wrong = |problem: &str| ConfigError::Line {
            line: number,
            problem: problem.to_owned(),
        };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return Err(wrong("it is not NAME = VALUE"));
        };
        let (name, value) = (name.trim(), value.trim());
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
        if !name.starts_with(|first: char| first.is_ascii_lowercase())
            || !name.bytes().all(is_plain)
        {
            return Err(wrong(
                "what is before = is no option: write it without hyphens before it, as in qemu = /usr/bin/qemu-system-x86_64",
            ));
        }
        if value.is_empty() || value.chars().any(char::is_control) {
            return Err(wrong("what is behind = is no value"));
        }
        if TYPED.contains(&name) {
            return Err(wrong("this option is said on the command line only"));
        }
        if !seen.insert(name.to_owned()) && !planted::planted("settings.twice") {
            return Err(wrong("this option is set in a line before"));
        }
        settings.push(Setting {
            line: number,
            name: name.to_owned(),
            value: value.to_owned(),
        });
    }
    Ok(settings)
}

/// The options of a command line, with those that a file adds to it.
///
/// # Errors
/// The file is not there, or one of its lines sets no option or not to a value of it.
pub fn load(line: &[OsString], path: &Path) -> Result<RunOptions, ConfigError> {
    let mut text = String::new();
    let file = |source| ConfigError::File {
        path: path.to_owned(),
        source,
    };
    let read = File::open(path).and_then(|open| {
        let length = open.take(LONGEST + 1).read_to_string(&mut text)?;
        match length as u64 > LONGEST {
            true => Err(io::Error::other(format!(
                "it has more than {LONGEST} bytes"
            ))),
            false => Ok(()),
        }
    });
    read.map_err(file)?;
    complete(line, &text)
}

/// The options of a command line, with those that these settings add to it.
///
/// # Errors
/// As [`load`].
pub fn complete(line: &[OsString], text: &str) -> Result<RunOptions, ConfigError> {
    let settings = parse(text)?;
    let command = Cli::command();
    let typed = command.clone().try_get_matches_from(line)?;
    let typed = typed.subcommand_matches(RUN);
    let options = command.find_subcommand(RUN);
    let mut line = line.to_vec();
    for Setting {
        line: number,
        name,
        value,
    } in settings
    {
        let mut known = options.into_iter().flat_map(clap::Command::get_arguments);
        let Some(option) = known.find(|option| option.get_long() == Some(&name)) else {
            return Err(ConfigError::Line {
                line: number,
                problem: format!("there is no option --{name}; fpagent run --help lists them"),
            });
        };
        let source = typed.and_then(|typed| typed.value_source(option.get_id().as_str()));
        if !matches!(source, None | Some(ValueSource::DefaultValue)) {
            continue;
        }
        line.push(format!("--{name}={value}").into());
        // One by one, so that it is known which is wrong.
        if let Err(error) = command.clone().try_get_matches_from(&line) {
            let said = error.to_string();
            let problem = said.lines().next().unwrap_or_default();
            return Err(ConfigError::Line {
                line: number,
                problem: problem.trim_start_matches("error: ").to_owned(),
            });
        }
    }
    let parsed = Cli::from_arg_matches(&command.try_get_matches_from(line)?)?;
    match parsed.command {
        Command::Run(options) => Ok(*options),
        _ => Err(Cli::command()
            .error(
                clap::error::ErrorKind::InvalidSubcommand,
                "only run has settings",
            )
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> Vec<OsString> {
        let words = format!("fpagent run --data-dir /d {words}");
        words.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn what_is_typed_goes_before_what_is_set_and_that_before_what_is_usual() {
        let text = "# settings\n\n qemu = /q with a space \r\nready-forks=3\nreserve-memory = 1G\n";
        let options = complete(&line("--ready-forks 5"), text).unwrap();
        assert_eq!(options.qemu, Path::new("/q with a space"));
        assert_eq!((options.ready_forks, options.reserve_memory), (5, 1 << 30));
        assert_eq!(options.waiting_processes, 2);
    }

    #[test]
    fn a_line_that_is_wrong_is_named() {
        for (text, words) in [
            ("qemu", "line 1 of the settings: it is not NAME = VALUE"),
            (
                "\n--qemu = x",
                "line 2 of the settings: what is before = is no option",
            ),
            ("qemu = ", "is no value"),
            ("qemu = a\u{7}", "is no value"),
            (
                "qemu = a\nqemu = b",
                "line 2 of the settings: this option is set in a line before",
            ),
            ("data-dir = /x", "on the command line only"),
            ("config = /x", "on the command line only"),
            ("colour = red", "there is no option --colour"),
            ("timeout = 5s", "there is no option --timeout"),
            (
                "ready-forks = many",
                "line 1 of the settings: invalid value 'many'",
            ),
            ("merge-memory = perhaps", "invalid value 'perhaps'"),
        ] {
            let error = complete(&line(""), text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_of_settings_is_one_and_not_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings");
        let missing = load(&line(""), &path).unwrap_err();
        assert!(missing.to_string().contains("cannot be read"), "{missing}");
        std::fs::write(&path, "#".repeat(LONGEST as usize + 1)).unwrap();
        assert!(matches!(
            load(&line(""), &path),
            Err(ConfigError::File { .. })
        ));
        std::fs::write(&path, "log-format = json\n").unwrap();
        let options = load(&line(""), &path).unwrap();
        assert_eq!(options.log_format, super::super::options::LogFormat::Json);
    }
}
