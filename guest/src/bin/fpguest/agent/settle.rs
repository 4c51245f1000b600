//! What follows on becoming somebody, once the host says so: its name on disk, SSH host keys, and the hooks of the image.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use fp_guest::channel::message::{Failed, HostKeys, Identity, Origin, Settle};
use tokio::{process::Command, time::timeout};

use super::identity::{self, Root};

/// Programs that a fork runs, in the order of their names.
const HOOKS: &str = "etc/forkypig/fork.d";
/// How long one may take.
const HOOK_PATIENCE: Duration = Duration::from_secs(30);
/// The most of a hook's errors that is told.
const MOST_ERRORS: usize = 400;

/// Does all of it with what the host sent for it, and gives what failed.
pub async fn settle(
    root: &Root,
    identity: &Identity,
    wants_host_keys: bool,
    word: Settle,
) -> Vec<Failed> {
    let mut failed = Vec::new();
    let mut note = |step: String, result: Result<(), String>| {
        failed.extend(result.err().map(|reason| Failed { step, reason }));
    };
    let kept = identity::keep_hostname(root, &identity.name);
    note(
        "hostname".to_owned(),
        kept.map_err(|error| error.to_string()),
    );
    if wants_host_keys {
        note("ssh-host-keys".to_owned(), take_keys(root, word.host_keys));
    }
    if identity.origin() == Origin::Fork {
        match hooks(&root.file(HOOKS)) {
            Ok(hooks) => {
                for hook in hooks {
                    let name = hook.file_name().unwrap_or_default().to_string_lossy();
                    note(format!("hook {name}"), run(&hook, identity).await);
                }
            }
            Err(error) => note("hooks".to_owned(), Err(error.to_string())),
        }
    }
    failed
}

fn take_keys(root: &Root, keys: Option<HostKeys>) -> Result<(), String> {
    let keys = keys.ok_or("the host sent none")?;
    identity::set_host_keys(root, &keys.ed25519, &keys.ed25519_public)
        .map_err(|error| error.to_string())?;
    reload_sshd(root).map_err(|error| format!("sshd does not take them: {error}"))
}

/// Has the daemon read its keys again, if it runs.
fn reload_sshd(root: &Root) -> io::Result<()> {
    let Ok(text) = fs::read_to_string(root.file("run/sshd.pid")) else {
        return Ok(());
    };
    let pid = text
        .trim()
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    match pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::HUP)) {
        None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
        Some(Err(error)) => Err(error.into()),
    }
}

/// The programs of a folder that may be run, by name; none when there is no folder.
fn hooks(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let metadata = fs::metadata(&path)?;
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            hooks.push(path);
        }
    }
    hooks.sort();
    Ok(hooks)
}

/// What a hook is told.
fn environment(identity: &Identity) -> Vec<(&'static str, OsString)> {
    vec![
        ("FP_FORK_ID", identity.fork_id.clone().into()),
        ("FP_NAME", identity.name.clone().into()),
        ("FP_INDEX", identity.index.to_string().into()),
        ("FP_COUNT", identity.count.to_string().into()),
        ("FP_PARENT", identity.parent.clone().into()),
    ]
}

async fn run(hook: &Path, identity: &Identity) -> Result<(), String> {
    let child = Command::new(hook)
        .envs(environment(identity))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let output = match timeout(HOOK_PATIENCE, child.wait_with_output()).await {
        Ok(output) => output.map_err(|error| error.to_string())?,
        Err(_) => {
            let seconds = HOOK_PATIENCE.as_secs();
            return Err(format!("it took longer than {seconds} s and was ended"));
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(MOST_ERRORS).collect();
    Err(format!("{}: {said}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            origin: Origin::Fork.into(),
            name: "web-2".to_owned(),
            index: 1,
            count: 3,
            ..Identity::default()
        }
    }

    fn script(folder: &Path, name: &str, mode: u32, text: &str) {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn hooks_run_by_name_and_what_fails_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let say = |text: &str| {
            format!(
                "echo {text} $FP_NAME $FP_INDEX $FP_COUNT >> {}",
                out.display()
            )
        };
        script(folder.path(), "20-second", 0o755, &say("second"));
        script(folder.path(), "10-first", 0o755, &say("first"));
        script(folder.path(), "30-not-run", 0o644, &say("never"));
        script(folder.path(), "40-fails", 0o755, "echo no luck >&2; exit 7");
        let hooks = hooks(folder.path()).unwrap();
        assert_eq!(hooks.len(), 3);
        let mut results = Vec::new();
        for hook in &hooks {
            results.push(run(hook, &identity()).await);
        }
        assert_eq!(
            fs::read_to_string(&out).unwrap(),
            "first web-2 1 3\nsecond web-2 1 3\n"
        );
        assert_eq!(results[..2], [Ok(()), Ok(())]);
        let reason = results[2].as_ref().unwrap_err();
        assert!(
            reason.contains('7') && reason.contains("no luck"),
            "{reason}"
        );
    }

    #[test]
    fn an_image_without_hooks_has_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(hooks(&folder.path().join("fork.d")).unwrap().is_empty());
    }
}
