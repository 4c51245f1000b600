//! The page server: the process `fpagent page-server`. The agent starts it when the first file is to be shown; it ends when no
//! agent is connected and nobody has any of them open.

use std::{
    fs::{self, DirBuilder, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::DirBuilderExt as _, net::UnixStream},
    path::{Path, PathBuf},
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use fuser::{Config, MountOption, Session, SessionACL};
use qemu::sys::spawn::given_listener;

use super::{
    FOLDER,
    fuse::{Folder, Shared, detach},
    pages::Stage,
    wire::{ToAgent, ToServer},
};
use crate::beside::line;

/// Between two looks whether anything is left to do.
const PAUSE: Duration = Duration::from_millis(200);

/// Shows files below a data directory until nobody needs that. The agent gave us a listening socket.
pub fn run(data: &Path) -> anyhow::Result<()> {
    let folder = data.join(FOLDER);
    detach(&folder).context("what an earlier server left mounted cannot be detached")?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(&folder)?;
    let mut config = Config::default();
    // Guests' users read it; the kernel holds them against each file's group.
    config.acl = SessionACL::All;
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::DefaultPermissions,
        MountOption::FSName("fpagent".to_owned()),
    ];
    let shared = Shared::default();
    let session = Session::new(Folder(shared.clone()), &folder, &config);
    let session = session.with_context(|| format!("cannot mount at {}", folder.display()))?;
    let kernel = session.spawn().context("cannot answer the kernel")?;

    let listener = given_listener().context("no listening socket was given")?;
    let (agents, data) = (shared.clone(), data.to_owned());
    thread::spawn(move || {
        // One after the other: the newest is the one that counts.
        for agent in listener.incoming() {
            match agent {
                Ok(agent) => talk(&agents, &data, agent),
                Err(error) => eprintln!("an agent cannot be heard: {error}"),
            }
        }
    });
    // The agent that started us connects first.
    let mut was_used = false;
    loop {
        thread::sleep(PAUSE);
        if kernel.guard.is_finished() {
            anyhow::bail!("the file system was taken away");
        }
        let mut files = shared.files();
        let idle = files.tidy();
        if idle && was_used {
            // In one step with the look: an agent that comes now starts another.
            files.close();
            drop(files);
            return Ok(detach(&folder)?);
        }
        was_used |= !idle;
    }
}

/// Serves one agent until it is gone.
fn talk(shared: &Shared, data: &Path, agent: UnixStream) {
    // What is in it is bounded by how much the kernel asks for at once: each that waits is asked for once.
    let (sender, receiver) = channel::<ToAgent>();
    let Ok(mut writer) = agent.try_clone() else {
        return;
    };
    if !shared.files().tell(sender) {
        return;
    }
    let tells = thread::spawn(move || {
        while let Ok(message) = receiver.recv() {
            let said = line(&message).and_then(|line| writer.write_all(&line));
            if said.is_err() {
                break;
            }
        }
        // Whoever listens hears that there will be no more.
        let _gone = writer.shutdown(std::net::Shutdown::Both);
    });
    for said in BufReader::new(agent).lines() {
        let Ok(said) = said else { break };
        match serde_json::from_str::<ToServer>(&said) {
            Ok(message) => obey(shared, data, message),
            Err(error) => {
                eprintln!("an agent says what this server does not know ({error}): {said}");
                break;
            }
        }
    }
    shared.files().leave();
    let _ended = tells.join();
}

fn obey(shared: &Shared, data: &Path, message: ToServer) {
    match message {
        ToServer::Show {
            file,
            part,
            size,
            group,
        } => {
            let opened = open_part(data, &part);
            let mut files = shared.files();
            let problem = match opened {
                Ok(part) => {
                    files.show(file.clone(), part, size, group);
                    None
                }
                Err(error) => Some(format!("{part} cannot be opened: {error}")),
            };
            files.say(ToAgent::Shown { file, problem });
        }
        ToServer::Here { file, from, to } => shared.files().came(&file, from..to),
        ToServer::Whole { file } => shared.files().end(&file, Stage::Whole),
        ToServer::GivenUp { file } => shared.files().end(&file, Stage::GivenUp),
    }
}

fn open_part(data: &Path, part: &str) -> std::io::Result<File> {
    let path: PathBuf = data.join(part);
    let file = File::open(&path)?;
    match fs::symlink_metadata(&path)?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("it is no file")),
    }
}
