//! Secrets that a user names: read from files or standard input, never from the command line, which every process list shows.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, IsTerminal as _, Read},
};

use bytes::Bytes;
use zeroize::Zeroizing;

use super::{
    args::guest::{SecretArg, SecretFrom},
    failure::Failure,
};

/// How long a secret may be, bytes: what agents take.
const LONGEST: usize = 16 << 10;

/// Reads secrets.
///
/// # Errors
/// Wrong usage when one was typed, comes from a terminal, or is named twice; a refusal when one cannot be read.
pub fn read(secrets: &[SecretArg]) -> Result<BTreeMap<String, Bytes>, Failure> {
    let mut values = BTreeMap::new();
    let mut stdin_of: Option<&str> = None;
    for SecretArg { key, from } in secrets {
        let value = match from {
            SecretFrom::Typed => {
                return Err(Failure::usage(
                    format!("the secret {key} is on the command line, where process lists show it"),
                    &format!(
                        "put it into a file: --secret {key}=@FILE, or {key}=@- for standard input"
                    ),
                ));
            }
            SecretFrom::Stdin => {
                if let Some(other) = stdin_of.replace(key) {
                    return Err(Failure::usage(
                        format!("standard input cannot be both {other} and {key}"),
                        "put one of them into a file",
                    ));
                }
                let stdin = io::stdin();
                from_open(key, "standard input", stdin.is_terminal(), stdin.lock())?
            }
            SecretFrom::File(path) => {
                let name = path.display().to_string();
                let file = File::open(path).map_err(|error| unreadable(key, &name, &error))?;
                from_open(key, &name, file.is_terminal(), file)?
            }
        };
        if values.insert(key.clone(), value).is_some() {
            return Err(Failure::usage(
                format!("the secret {key} is named twice"),
                "",
            ));
        }
    }
    Ok(values)
}

fn from_open(key: &str, name: &str, is_terminal: bool, from: impl Read) -> Result<Bytes, Failure> {
    if is_terminal {
        return Err(Failure::usage(
            format!("the secret {key} would be read from a terminal, {name}"),
            "pipe it in, or name a file",
        ));
    }
    // Of its full length from the start: what is moved when it grows is not overwritten.
    let mut value = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
    from.take(LONGEST as u64 + 1)
        .read_to_end(&mut value)
        .map_err(|error| unreadable(key, name, &error))?;
    if value.len() > LONGEST {
        return Err(Failure::refused(
            format!("the secret {key} in {name} is longer than {LONGEST} bytes"),
            "put it into the image or onto a disk, and hand over its key",
        ));
    }
    Ok(Bytes::from_owner(value))
}

fn unreadable(key: &str, name: &str, error: &io::Error) -> Failure {
    Failure::refused(
        format!("the secret {key} cannot be read from {name}: {error}"),
        "",
    )
}

#[cfg(test)]
mod tests {
    use super::{super::failure::FailureKind, *};

    fn file(key: &str, path: impl Into<std::path::PathBuf>) -> SecretArg {
        SecretArg {
            key: key.to_owned(),
            from: SecretFrom::File(path.into()),
        }
    }

    #[test]
    fn files_are_read_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, b"hunter2\n\0").unwrap();
        let values = read(&[file("a", &path), file("b", &path)]).unwrap();
        assert_eq!(values["a"], b"hunter2\n\0"[..]);
        assert_eq!(values.len(), 2);

        let twice = read(&[file("a", &path), file("a", &path)]).unwrap_err();
        assert!(twice.line().contains("named twice"), "{}", twice.line());
        std::fs::write(&path, vec![b'x'; LONGEST]).unwrap();
        assert_eq!(read(&[file("a", &path)]).unwrap()["a"].len(), LONGEST);
        std::fs::write(&path, vec![b'x'; LONGEST + 1]).unwrap();
        let long = read(&[file("a", &path)]).unwrap_err();
        assert!(long.line().contains("longer than"), "{}", long.line());
        for nothing in [folder.path().join("none"), folder.path().to_owned()] {
            let failure = read(&[file("a", nothing)]).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Refused);
            assert!(
                failure.line().contains("the secret a"),
                "{}",
                failure.line()
            );
        }
    }

    #[test]
    fn a_terminal_is_refused() {
        let failure = from_open("a", "/dev/tty", true, io::empty()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
        assert!(failure.line().contains("terminal"), "{}", failure.line());
    }
}
