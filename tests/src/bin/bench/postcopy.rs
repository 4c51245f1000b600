//! QEMU's postcopy over a link of ours: the other way to have a guest run before its memory is there.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use harness::cluster::PATIENCE;
use serde_json::json;

use crate::bare::{Bare, Qemu};

/// What goes through the link at once, bytes.
const PIECE: usize = 16 << 10;

/// Milliseconds since it was asked for.
pub struct Moved {
    /// The guest runs where it is moved to.
    pub running: f64,
    /// It printed something there.
    pub printed: f64,
    /// All of its memory is there.
    pub whole: f64,
}

/// Moves a guest that has been loaded from a stream and runs, once. What receives it waits for it already.
pub fn once(bare: &Bare, stream: &Path, rate: u64) -> anyhow::Result<Moved> {
    let receiver = bare.receiver()?;
    let mut from = bare.start()?;
    from.load(stream)?;
    from.ask("cont", json!({}))?;
    wait_printed(&bare.console())?;
    let mut to = receiver.start()?;
    for side in [&mut from, &mut to] {
        let on = ["postcopy-ram", "postcopy-preempt"]
            .map(|name| json!({"capability": name, "state": true}));
        side.ask("migrate-set-capabilities", json!({"capabilities": on}))?;
    }
    // The link is what holds it back.
    let unbounded = json!({"max-bandwidth": 1_u64 << 40, "max-postcopy-bandwidth": 0});
    from.ask("migrate-set-parameters", unbounded)?;
    let socket = receiver.console().with_extension("migration");
    if socket.exists() {
        fs::remove_file(&socket)?;
    }
    to.ask(
        "migrate-incoming",
        json!({"uri": format!("unix:{}", socket.display())}),
    )?;
    let port = link(socket, rate)?;
    let begun = Instant::now();
    let millis = || begun.elapsed().as_secs_f64() * 1e3;
    from.ask("migrate", json!({"uri": format!("tcp:127.0.0.1:{port}")}))?;
    until(&mut from, "query-migrate", &["active"])?;
    from.ask("migrate-start-postcopy", json!({}))?;
    until(&mut to, "query-status", &["running"])?;
    let running = millis();
    wait_printed(&receiver.console())?;
    let printed = millis();
    from.wait_migrated()?;
    Ok(Moved {
        running,
        printed,
        whole: millis(),
    })
}

fn until(side: &mut Qemu, question: &str, statuses: &[&str]) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let answer = side.ask(question, json!({}))?;
        let status = answer["status"].as_str().unwrap_or_default();
        if statuses.contains(&status) {
            return Ok(());
        }
        anyhow::ensure!(
            status != "failed" && begun.elapsed() < PATIENCE,
            "{question}: {answer}"
        );
        sleep(Duration::from_micros(300));
    }
}

/// Whether a guest has printed something.
pub fn printed(console: &Path) -> bool {
    fs::metadata(console).is_ok_and(|file| file.len() > 0)
}

fn wait_printed(console: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !printed(console) {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "the guest prints nothing");
        sleep(Duration::from_micros(500));
    }
    Ok(())
}

/// A port of this host's from which bytes come to a socket, no more in a second than that, over all of its connections; answers are not held back.
/// It ends with them.
fn link(to: PathBuf, rate: u64) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let free_at = Arc::new(Mutex::new(Instant::now()));
    spawn(move || -> io::Result<()> {
        // The guest's state and what is sent ahead, and what is asked for.
        for _ in 0..2 {
            let (there, _) = listener.accept()?;
            let back = UnixStream::connect(&to)?;
            there.set_nodelay(true)?;
            let (mut answers, mut asks) = (back.try_clone()?, there.try_clone()?);
            spawn(move || io::copy(&mut answers, &mut asks));
            let free_at = Arc::clone(&free_at);
            spawn(move || hold_back(there, back, rate, &free_at));
        }
        Ok(())
    });
    Ok(port)
}

fn hold_back(
    mut from: TcpStream,
    mut to: UnixStream,
    rate: u64,
    free_at: &Mutex<Instant>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece)?;
        if length == 0 {
            return to.shutdown(std::net::Shutdown::Write);
        }
        let passes_at = {
            let mut free_at = free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = (*free_at).max(Instant::now())
                + Duration::from_secs_f64(length as f64 / rate as f64);
            *free_at
        };
        sleep(passes_at.saturating_duration_since(Instant::now()));
        to.write_all(piece.get(..length).unwrap_or_default())?;
    }
}
