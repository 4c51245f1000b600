//! The failpoints of the agent, read from its sources: there is no other list of them.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context as _;

use crate::repository;

/// The calls that are failpoints.
const CALLS: [&str; 3] = ["reached", "reached_by", "write"];

/// All names. Fails when one is used twice, or is not written out.
pub fn all() -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for sources in ["qemu/src", "agent/src"] {
        look(&repository().join(sources), &mut names)?;
    }
    Ok(names)
}

fn look(folder: &Path, names: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            look(&path, names)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            read(&fs::read_to_string(&path)?, names).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

fn read(source: &str, names: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for call in source.split("failpoint::").skip(1) {
        let Some((function, rest)) = call.split_once('(') else {
            continue;
        };
        if !CALLS.contains(&function) {
            continue;
        }
        let name = rest
            .trim_start()
            .strip_prefix('"')
            .and_then(|rest| rest.split_once('"'))
            .context("a failpoint whose name is not written out")?
            .0;
        anyhow::ensure!(
            names.insert(name.to_owned()),
            "two failpoints are called {name}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_must_differ() {
        let mut names = BTreeSet::new();
        let source = "failpoint::reached(\"a.b\"); use failpoint::VARIABLE; failpoint::reached_by(\n  \"a.c\", pid)";
        read(source, &mut names).unwrap();
        assert_eq!(names, BTreeSet::from(["a.b".into(), "a.c".into()]));
        assert!(read("failpoint::write(\"a.b\")?", &mut names).is_err());
        assert!(read("failpoint::reached(name)", &mut names).is_err());
    }
}
