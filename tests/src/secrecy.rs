//! Where something that is secret can be found from outside: in files and in the list of processes.

use std::{fs, path::Path, process::Command};

use crate::{cluster::PATIENCE, processes, wait_for};

/// Files in a folder, and in those in it, that hold some bytes (without a line's end among them).
pub fn files_with(folder: &Path, secret: &str) -> anyhow::Result<Vec<String>> {
    // A folder of a cluster holds gigabytes of guests' memory and disks. The pattern is in a file, for it shall be on no command line.
    let pattern = tempfile::NamedTempFile::new()?;
    fs::write(pattern.path(), secret)?;
    wait_for("a look at all files", PATIENCE, || {
        let grep = Command::new("grep")
            .args(["--recursive", "--files-with-matches", "--text"])
            .args(["--fixed-strings", "--devices=skip", "--file"])
            .args([pattern.path(), folder])
            .env("LC_ALL", "C")
            .output()?;
        let out = String::from_utf8_lossy(&grep.stdout);
        let found: Vec<String> = out.lines().map(str::to_owned).collect();
        // 1 says that there are none. Where one went away while it looked, it looks again.
        Ok((grep.status.code() == Some(1) || !found.is_empty()).then_some(found))
    })
}

/// Processes that have it on their command line or in their environment.
pub fn processes_with(secret: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for file in ["cmdline", "environ"] {
        for (pid, bytes) in processes::all(file)? {
            if holds(&bytes, secret.as_bytes()) {
                found.push(format!("/proc/{pid}/{file}"));
            }
        }
    }
    Ok(found)
}

fn holds(bytes: &[u8], secret: &[u8]) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret)
}

#[cfg(test)]
mod tests {
    use std::{process::Stdio, time::Duration};

    use super::*;

    const SECRET: &str = "an-unlikely-word-5b1f";

    #[test]
    fn what_is_there_is_found_in_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        fs::write(folder.path().join("other"), "nothing").unwrap();
        assert_eq!(files_with(folder.path(), SECRET).unwrap(), [""; 0]);
        let file = folder.path().join("deep/file");
        fs::write(
            &file,
            [b"\0\xff\n".as_slice(), SECRET.as_bytes(), b"\0"].concat(),
        )
        .unwrap();
        let found = files_with(folder.path(), SECRET).unwrap();
        assert_eq!(found, [file.display().to_string()]);
    }

    #[test]
    fn what_is_there_is_found_in_the_list_of_processes() {
        assert_eq!(processes_with(SECRET).unwrap(), [""; 0]);
        // Both wait for a line.
        let mut shells = [Command::new("sh"), Command::new("sh")];
        for shell in &mut shells {
            shell.args(["-c", "read -r line"]).stdin(Stdio::piped());
        }
        shells[0].env("WORD", SECRET);
        shells[1].arg(SECRET);
        let named = shells.map(|mut shell| shell.spawn().unwrap());
        let pids = named.each_ref().map(|child| format!("/{}/", child.id()));
        // The kernel lets who started a program go on before that program's words can be read.
        let found = wait_for("both to be found", Duration::from_secs(10), || {
            let found = processes_with(SECRET)?;
            let has = |pid: &String| found.iter().any(|place| place.contains(pid));
            Ok(pids.iter().all(has).then_some(()))
        });
        for mut child in named {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        found.unwrap();
    }
}
