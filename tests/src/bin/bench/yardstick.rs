//! What the same costs without us: a bare QEMU that loads the same files, QEMU's own way (its whole state through a file,
//! both ways), and the prototypes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    bare::Bare,
    host,
    report::{Row, Series},
    run::Bench,
    scenario,
};

/// Measures all of them.
pub fn measure(bench: &Bench, rounds: u32, prototypes: Option<&Path>) -> anyhow::Result<Vec<Row>> {
    bench.boot("parent", scenario::quiet(256))?;
    bench.fp(&["snapshot", "create", "parent", "s"])?;
    bench.fp(&["vm", "pause", "parent"])?;
    let mut floor = Floor::of(bench, "@s")?;
    for _ in 0..rounds {
        floor.once(true)?;
    }
    let Floor { bare, stream, .. } = &floor;
    let whole = whole_state(bare, stream, bench.cluster.folder(), rounds)?;
    let mut rows = vec![floor.row("floor: a bare QEMU, started and loaded"), whole];
    if let Some(folder) = prototypes {
        rows.extend(floor_prototype(folder)?);
        rows.extend(tracked_prototype(folder)?);
    }
    Ok(rows)
}

/// What a child costs without us: a bare QEMU with its arguments and its files.
pub struct Floor {
    bare: Bare,
    stream: PathBuf,
    running: Vec<f64>,
    cpu: f64,
}

impl Floor {
    /// Of the children of a snapshot that is the only one of its node.
    pub fn of(bench: &Bench, snapshot: &str) -> anyhow::Result<Self> {
        let (_, names) = bench.fork(1, &[snapshot, "--paused"])?;
        let shown = bench.cluster.vm(1, &names[0])?;
        let pid = shown["pid"].as_u64().context("the child has no process")?;
        let data = bench.cluster.data_of(&shown["node"])?;
        let bare = Bare::like(pid, data, bench.cluster.folder())?;
        bench.remove(&names)?;
        let mut streams = fs::read_dir(data.join("streams"))?;
        let stream = streams.next().context("no stream")??.path();
        anyhow::ensure!(streams.next().is_none(), "more than one stream");
        Ok(Self {
            bare,
            stream,
            running: Vec::new(),
            cpu: 0.0,
        })
    }

    /// Starts and loads one, and lets it run, or not.
    pub fn once(&mut self, go: bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut qemu = self.bare.start()?;
        qemu.load(&self.stream)?;
        if go {
            qemu.ask("cont", json!({}))?;
        }
        self.running.push(begun.elapsed().as_secs_f64() * 1e3);
        self.cpu += host::cpu_ms(qemu.process.id());
        Ok(())
    }

    pub fn row(&self, what: &str) -> Row {
        Row {
            what: what.to_owned(),
            running_ms: Series::of(self.running.clone()),
            cpu_ms: Some(self.cpu / self.running.len() as f64),
            ..Row::default()
        }
    }
}

/// The whole state to a file and back: `stop`, `migrate`, and a new process with `-incoming`.
fn whole_state(bare: &Bare, stream: &Path, folder: &Path, rounds: u32) -> anyhow::Result<Row> {
    let file = folder.join("whole.state");
    let (mut pause, mut running) = (Vec::new(), Vec::new());
    for _ in 0..rounds.min(5) {
        let mut parent = bare.start()?;
        parent.load(stream)?;
        parent.ask("cont", json!({}))?;
        parent.ask(
            "migrate-set-parameters",
            json!({"max-bandwidth": 1_u64 << 40}),
        )?;
        let begun = Instant::now();
        parent.ask("stop", json!({}))?;
        parent.ask(
            "migrate",
            json!({"uri": format!("file:{}", file.display())}),
        )?;
        parent.wait_migrated()?;
        pause.push(begun.elapsed().as_secs_f64() * 1e3);
        drop(parent);
        let begun = Instant::now();
        let mut child = bare.start()?;
        child.load(&file)?;
        child.ask("cont", json!({}))?;
        running.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    fs::remove_file(&file)?;
    Ok(Row {
        what: "QEMU's own way: its whole state, a file".to_owned(),
        pause_ms: Series::of(pause),
        running_ms: Series::of(running),
        ..Row::default()
    })
}

/// What a prototype prints. Its guest hangs while it boots now and then, as emulated ones do: then it is started again.
fn prototype(folder: &Path, name: &str, args: &[&str]) -> anyhow::Result<String> {
    for _ in 0..3 {
        let output = Command::new("timeout")
            // Interrupted it ends its guests and removes its files, which lie in memory.
            .args(["--signal", "INT", "--kill-after", "5", "90", "python3"])
            .arg(folder.join(name))
            .args(args)
            .output()?;
        match output.status.code() {
            Some(0) => return Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Some(124) => eprintln!("    {name} hangs; starting it again"),
            _ => anyhow::bail!("{name}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
    anyhow::bail!("{name} hung three times")
}

fn floor_prototype(folder: &Path) -> anyhow::Result<Vec<Row>> {
    let floor = ["--depth", "3", "--children", "10", "--json"];
    let found: Value = serde_json::from_str(&prototype(folder, "fork_floor.py", &floor)?)?;
    let one = |value: &Value| value.as_f64().and_then(|value| Series::of(vec![value]));
    let row = |what: &str, pause: &Value, running: &Value| Row {
        what: format!("prototype: {what}"),
        pause_ms: one(pause),
        running_ms: one(running),
        ..Row::default()
    };
    let first = &found["first_capture"];
    Ok(vec![
        row("first capture", &first["pause"], &Value::Null),
        row(
            "fork without a pool",
            &Value::Null,
            &found["fork_without_pool"]["total"],
        ),
        row(
            "fork from a generic pool",
            &Value::Null,
            &found["fork_from_generic_pool"]["total"],
        ),
        row(
            "whole state",
            &found["full_state"]["pause"],
            &found["full_state"]["restore"],
        ),
    ])
}

fn tracked_prototype(folder: &Path) -> anyhow::Result<Vec<Row>> {
    let text = prototype(folder, "tracked_capture.py", &["--captures", "10"])?;
    let pauses = text
        .lines()
        .filter_map(|line| {
            line.split_once("pause ")?
                .1
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .collect();
    Ok(vec![Row {
        what: "prototype: tracked captures".to_owned(),
        pause_ms: Some(Series::of(pauses).context("tracked_capture.py printed no pauses")?),
        ..Row::default()
    }])
}
