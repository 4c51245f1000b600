//! The command line as a value. Called by `main`.

use std::path::PathBuf;
use std::time::Duration;

use fp_guest::pages::PAGE_SIZE;

use crate::agent::local::Ask;
use crate::churn::Churn;
use crate::fill::Fill;
use crate::pulse::{Pulse, Raw};

/// What the program was asked to do.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// `fpguest agent`
    Agent,
    /// `fpguest fork`, `exit`, `wait`, `get`, `identity`, `watch`
    Ask(Ask),
    /// `fpguest up`
    Up,
    /// `fpguest pulse`
    Pulse(Pulse),
    /// `fpguest beat`
    Beat {
        /// From one mark to the next.
        interval: Duration,
    },
    /// `fpguest churn`
    Churn(Churn),
    /// `fpguest fill`
    Fill(Fill),
    /// `fpguest echo`
    Echo {
        /// The port's name.
        port: String,
    },
    /// `fpguest hostile`
    Hostile {
        /// What it does.
        kind: String,
    },
}

/// Reads `words`, the command's options.
///
/// # Errors
/// What is wrong with them, for the user.
pub fn parse(command: &str, words: &[String]) -> Result<Command, String> {
    if let Some(asked) = parse_asked(command, words)? {
        return Ok(asked);
    }
    let (mut disk, mut interval, mut mib, mut rate) = (None, None, 64, 0);
    let (mut raw, mut raw_offset, mut port, mut kind) = (None, 0, None, None);
    let mut words = words.iter();
    while let Some(name) = words.next() {
        let value = words.next().ok_or(format!("{name} needs a value"))?;
        match (command, name.as_str()) {
            ("pulse" | "churn", "--disk") => disk = Some(PathBuf::from(value)),
            ("pulse" | "beat", "--interval-ms") => interval = Some(number(name, value)?),
            ("fill", "--rate") => rate = number(name, value)?,
            ("churn" | "fill", "--mib") => mib = number(name, value)?,
            ("pulse", "--raw") => raw = Some(PathBuf::from(value)),
            ("pulse", "--raw-offset") => raw_offset = page_offset(name, value)?,
            ("echo", "--port") => port = Some(value.clone()),
            ("hostile", "--kind") => kind = Some(value.clone()),
            _ => return Err(format!("{command} has no option {name}")),
        }
    }
    let interval = |default| Duration::from_millis(interval.map_or(default, u64::from));
    match command {
        "agent" => Ok(Command::Agent),
        "pulse" => Ok(Command::Pulse(Pulse {
            disk: disk.ok_or("pulse needs --disk FILE")?,
            raw: raw.map(|device| Raw {
                device,
                offset: raw_offset,
            }),
            interval: interval(100),
        })),
        "beat" => Ok(Command::Beat {
            interval: interval(50),
        }),
        "churn" => Ok(Command::Churn(Churn {
            mib: mib as usize,
            disk,
        })),
        "fill" => Ok(Command::Fill(Fill {
            mib: mib as usize,
            rate: rate as usize,
        })),
        "echo" => Ok(Command::Echo {
            port: port.ok_or("echo needs --port NAME")?,
        }),
        "hostile" => Ok(Command::Hostile {
            kind: kind.ok_or("hostile needs --kind KIND")?,
        }),
        _ => Err(format!("there is no command {command}")),
    }
}

/// The commands that ask something of the agent, and have words besides options; `None` for the others.
fn parse_asked(command: &str, words: &[String]) -> Result<Option<Command>, String> {
    let one = |what: &str| match words {
        [word] => Ok(word.clone()),
        _ => Err(format!("{command} needs {what}")),
    };
    let ask = match command {
        "fork" => parse_fork(words)?,
        "exit" => {
            let code = one("CODE")?;
            let parsed = code.parse();
            let code = parsed.map_err(|_| format!("CODE is a number, not {code:?}"))?;
            Ask::Exit { code }
        }
        "wait" => Ask::Wait {
            children: words.to_vec(),
        },
        "get" => Ask::Get { key: one("KEY")? },
        "identity" | "watch" | "up" if !words.is_empty() => {
            return Err(format!("{command} takes nothing"));
        }
        "identity" => Ask::Identity,
        "watch" => Ask::Watch,
        "up" => return Ok(Some(Command::Up)),
        _ => return Ok(None),
    };
    Ok(Some(Command::Ask(ask)))
}

fn parse_fork(words: &[String]) -> Result<Ask, String> {
    let (mut count, mut fork_name) = (1, String::new());
    let mut words = words.iter();
    while let Some(name) = words.next() {
        let value = words.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "-n" | "--count" => count = number(name, value)?,
            "--name" => fork_name.clone_from(value),
            _ => return Err(format!("fork has no option {name}")),
        }
    }
    Ok(Ask::Fork {
        count,
        name: fork_name,
    })
}

fn number(name: &str, value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{name} needs a number from 1 on, not {value:?}")),
    }
}

fn page_offset(name: &str, value: &str) -> Result<u64, String> {
    match value.parse::<u64>() {
        Ok(offset) if offset.is_multiple_of(PAGE_SIZE as u64) => Ok(offset),
        _ => Err(format!(
            "{name} needs a multiple of {PAGE_SIZE}, not {value:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Command, String> {
        let mut words = text.split(' ').map(String::from);
        let command = words.next().unwrap();
        parse(&command, &words.collect::<Vec<_>>())
    }

    #[test]
    fn options_and_their_defaults() {
        let pulse = |ms| {
            Command::Pulse(Pulse {
                disk: "/p".into(),
                raw: None,
                interval: Duration::from_millis(ms),
            })
        };
        assert_eq!(parse_text("pulse --disk /p"), Ok(pulse(100)));
        assert_eq!(parse_text("pulse --interval-ms 5 --disk /p"), Ok(pulse(5)));
        let Ok(Command::Pulse(raw)) =
            parse_text("pulse --disk /p --raw /dev/vda --raw-offset 8192")
        else {
            panic!("not parsed");
        };
        let expected = Raw {
            device: "/dev/vda".into(),
            offset: 8192,
        };
        assert_eq!(raw.raw, Some(expected));
        assert_eq!(
            parse_text("churn"),
            Ok(Command::Churn(Churn {
                mib: 64,
                disk: None
            }))
        );
        let beat = |ms| {
            Ok(Command::Beat {
                interval: Duration::from_millis(ms),
            })
        };
        assert_eq!(parse_text("beat"), beat(50));
        assert_eq!(parse_text("beat --interval-ms 20"), beat(20));
        let fill = Command::Fill(Fill { mib: 3, rate: 2 });
        assert_eq!(parse_text("fill --mib 3 --rate 2"), Ok(fill));
    }

    #[test]
    fn what_the_agent_is_asked_for() {
        let fork = |count, name: &str| {
            Ok(Command::Ask(Ask::Fork {
                count,
                name: name.into(),
            }))
        };
        assert_eq!(parse_text("fork"), fork(1, ""));
        assert_eq!(parse_text("fork -n 3 --name job"), fork(3, "job"));
        assert_eq!(
            parse_text("exit 3"),
            Ok(Command::Ask(Ask::Exit { code: 3 }))
        );
        let children = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(
            parse_text("wait a b"),
            Ok(Command::Ask(Ask::Wait { children }))
        );
        for text in [
            "fork -n 0",
            "fork -n",
            "exit",
            "exit x",
            "get",
            "get a b",
            "up x",
        ] {
            assert!(parse_text(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word) in [
            ("pulse", "--disk"),
            ("pulse --disk", "value"),
            ("pulse --disk /p --mib 3", "--mib"),
            ("pulse --disk /p --raw /d --raw-offset 100", "4096"),
            ("beat --interval-ms 0", "from 1"),
            ("beat --mib 3", "--mib"),
            ("echo", "--port"),
            ("echo --disk /p", "--disk"),
            ("hostile", "--kind"),
            ("churn --mib 0", "from 1"),
            ("churn --mib many", "many"),
            ("fill --disk /p", "--disk"),
            ("frob", "frob"),
        ] {
            assert!(parse_text(text).unwrap_err().contains(word), "{text}");
        }
    }
}
