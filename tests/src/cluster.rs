//! A cluster of agent processes on this machine, gone with the value that holds it.

use std::{
    fs::{self, File},
    io,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use qemu::{failpoint, groups::Groups, layout::write_whole};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    fpagent::{self, Answer},
    image::Image,
    network::{Namespace, Network, address},
    panics, processes, wait_for,
};

/// How long a cluster may take for something that takes a second when nothing else runs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where an agent listens that has a host of its own.
const PORT: u16 = 7841;

/// How many processes wait for forks.
const WAITING: &str = "--waiting-processes";

/// Has every cluster be on hosts of its own, whose agents send no more than so much a second, such as `119M` for 1 Gbit/s.
const LINK: &str = "FP_LINK";
/// What agents are told of that.
const RATE: &str = "--transfer-rate";

fn link() -> Option<String> {
    std::env::var(LINK).ok()
}

/// One agent.
#[derive(Debug)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Its data directory.
    pub data: PathBuf,
    /// HOST:PORT.
    pub listen: String,
    /// What it runs on, where that is not this machine itself.
    host: Option<Arc<Namespace>>,
    extra: Vec<String>,
    program: Option<PathBuf>,
    variables: Vec<(String, String)>,
    child: Option<Child>,
}

impl Agent {
    /// The address of its Unix socket, for `FPAGENT_ADDR`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.data.with_extension("sock")
    }

    fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// Starts it.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let program = self.program.clone().unwrap_or_else(fpagent::binary);
        // A session of its own, as a service has: its priority is not that of the tests beside it.
        // What waits for forks that may come is none of most tests' affair: they count processes.
        let waiting: &[&str] = match self.extra.iter().any(|option| option == WAITING) {
            true => &[],
            false => &[WAITING, "0"],
        };
        let rate = link().filter(|_| !self.extra.iter().any(|option| option == RATE));
        let rate = rate.map(|rate| [RATE.to_owned(), rate]);
        let child = self
            .command("setsid")
            .arg(program)
            .arg("run")
            .arg("--data-dir")
            .arg(&self.data)
            .arg("--socket")
            .arg(self.socket())
            .args(&self.extra)
            .args(waiting)
            .args(rate.into_iter().flatten())
            .env("RUST_LOG", "info,openraft=off,agent=debug,qemu=debug")
            .env(failpoint::VARIABLE, self.failpoint())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// A command that runs where it does.
    pub fn command(&self, program: &str) -> Command {
        match &self.host {
            Some(host) => host.command(program),
            None => Command::new(program),
        }
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Adds options of `fpagent run`, for its next start.
    pub fn set_options(&mut self, options: &[&str]) {
        self.extra = options.iter().map(|option| (*option).to_owned()).collect();
    }

    /// Has it be another program than `fpagent`, from its next start on.
    pub fn set_program(&mut self, program: &str) {
        self.program = Some(program.into());
    }

    /// Sets a variable of its environment, for its next start.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Where a failpoint is armed.
    fn failpoint(&self) -> PathBuf {
        self.data.with_extension("failpoint")
    }

    /// Arms a failpoint: the first that gets there meets the action (of [`failpoint::FULL`], all). Only of a program that has
    /// failpoints.
    pub fn arm(&self, name: &str, action: &str) -> anyhow::Result<()> {
        let file = self.failpoint();
        remove_if_there(&file.with_extension(failpoint::REACHED))?;
        Ok(write_whole(&file, format!("{name} {action}").as_bytes())?)
    }

    /// Arms nothing any more.
    pub fn disarm(&self) -> anyhow::Result<()> {
        remove_if_there(&self.failpoint())
    }

    /// Whether the armed failpoint was reached.
    pub fn was_reached(&self) -> bool {
        self.failpoint().with_extension(failpoint::REACHED).exists()
    }

    /// Whether its process has ended, and is no more to be waited for.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        let Some(child) = &mut self.child else {
            return Ok(true);
        };
        let ended = child.try_wait()?.is_some();
        if ended {
            self.child = None;
        }
        Ok(ended)
    }

    /// Runs a command of `fpagent` against it.
    pub fn fp(&self, args: &[&str]) -> anyhow::Result<Answer> {
        fpagent::run(Some(&self.address()), args)
    }

    /// Runs a command that must succeed and print JSON.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let answer = self.fp(&[args, &["-o", "json"]].concat())?;
        answer
            .json()
            .with_context(|| format!("{}: fpagent {}", self.name, args.join(" ")))
    }

    /// What it measured, as another program than ours reads it with a folder's certificate, which believes the folder's authority.
    pub fn metrics(&self, certs: &Path) -> anyhow::Result<String> {
        let output = self
            .command("curl")
            .args(["--silent", "--show-error", "--max-time", "10", "--http2"])
            .arg("--cacert")
            .arg(certs.join("ca.pem"))
            .arg("--cert")
            .arg(certs.join("cert.pem"))
            .arg("--key")
            .arg(certs.join("key.pem"))
            .arg("--connect-to")
            .arg(format!("agent.forkypig:443:{}", self.listen))
            .arg("https://agent.forkypig/metrics")
            .output()?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for its orderly end.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        signal(child.id(), Signal::TERM)?;
        let status = wait_for("an agent's orderly end", PATIENCE, || Ok(child.try_wait()?))?;
        anyhow::ensure!(
            status.success(),
            "{} ended with {status}:\n{}",
            self.name,
            self.log_tail()
        );
        Ok(())
    }

    /// Waits until it ends by itself, and returns what it has logged.
    pub fn wait_end(&mut self) -> anyhow::Result<String> {
        let what = format!("the end of {}", self.name);
        wait_for(&what, PATIENCE, || Ok(self.has_ended()?.then_some(())))?;
        Ok(self.log_text())
    }

    /// Tries to start it; it must end at once, with an error.
    pub fn refuses_to_run(&self, words: &[&str]) -> anyhow::Result<()> {
        let (data, socket) = (self.data.display(), self.socket());
        let (data, socket) = (data.to_string(), socket.display().to_string());
        let answer = fpagent::run(None, &["run", "--data-dir", &data, "--socket", &socket])?;
        anyhow::ensure!(answer.code == 1, "{answer:?}");
        let said = answer.err.lines().last().unwrap_or_default();
        for word in words {
            anyhow::ensure!(said.contains(word), "{word:?} is not in: {said}");
        }
        Ok(())
    }

    /// What it has logged, without colours.
    pub fn log_text(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let mut pieces = text.split("\x1b[");
        let plain = pieces.next().unwrap_or_default().to_owned();
        pieces.fold(plain, |plain, piece| {
            plain + piece.split_once('m').map_or("", |(_, rest)| rest)
        })
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Waits until it answers.
    pub fn wait_answers(&mut self) -> anyhow::Result<()> {
        let what = format!("an answer of {}", self.name);
        wait_for(&what, PATIENCE, || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                anyhow::bail!("{} ended with {status}:\n{}", self.name, self.log_tail());
            }
            Ok((self.fp(&["status", "-o", "json"])?.code == 0).then_some(()))
        })
    }
}

fn remove_if_there(file: &Path) -> anyhow::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("no process id")?;
    Ok(kill_process(pid, signal)?)
}

/// Whether a process is there (and not one that only waits to be reaped).
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
}

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its agents: node1, node2, …
    pub agents: Vec<Agent>,
    folder: tempfile::TempDir,
    network: Option<Network>,
    /// Whether it tells at its end what its agents logged.
    pub tells: bool,
}

impl Cluster {
    /// Makes a cluster of `nodes` agents, all online: on this host, or with [`LINK`] on hosts of their own.
    pub fn start(nodes: usize) -> anyhow::Result<Self> {
        Self::start_in(nodes, folder()?)
    }

    /// The same, in a folder that the caller chose.
    pub fn start_in(nodes: usize, folder: tempfile::TempDir) -> anyhow::Result<Self> {
        let network = link().map(|_| Network::of(nodes)).transpose()?;
        Self::start_on(nodes, folder, network)
    }

    /// The same, each agent on a host of its own.
    pub fn start_apart(nodes: usize) -> anyhow::Result<Self> {
        Self::start_on(nodes, folder()?, Some(Network::of(nodes)?))
    }

    fn start_on(
        nodes: usize,
        folder: tempfile::TempDir,
        network: Option<Network>,
    ) -> anyhow::Result<Self> {
        panics::keep();
        let mut cluster = Self {
            tells: true,
            agents: Vec::new(),
            folder,
            network,
        };
        for number in 1..=nodes {
            cluster.add(number)?;
        }
        // Each hears of the others by its own renewals: what it is asked next it decides by what it has heard.
        cluster.wait_online(nodes)?;
        Ok(cluster)
    }

    /// Makes a cluster with the tiny image imported as `tiny`.
    pub fn with_image(nodes: usize) -> anyhow::Result<Self> {
        let cluster = Self::start(nodes)?;
        cluster.import("tiny", "")?;
        Ok(cluster)
    }

    /// Agents with the image whose guests are worked in: see [`Image::of_guests`]. It is called `guest`.
    pub fn with_guests(nodes: usize) -> anyhow::Result<Self> {
        let cluster = Self::start(nodes)?;
        cluster.import_image("guest", Image::of_guests()?, "")?;
        Ok(cluster)
    }

    /// An agent, by its number from 1 on.
    pub fn node(&self, number: usize) -> &Agent {
        &self.agents[number - 1]
    }

    /// The same, to change it.
    pub fn node_mut(&mut self, number: usize) -> &mut Agent {
        &mut self.agents[number - 1]
    }

    /// The folder that everything lies in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// An agent that is not a member yet; its data directory does not exist.
    pub fn newcomer(&self, name: &str) -> anyhow::Result<Agent> {
        Ok(self.agent(name, format!("127.0.0.1:{}", free_port()?), None))
    }

    fn agent(&self, name: &str, listen: String, host: Option<Arc<Namespace>>) -> Agent {
        Agent {
            name: name.to_owned(),
            data: self.folder.path().join(name),
            listen,
            host,
            extra: Vec::new(),
            program: None,
            variables: Vec::new(),
            child: None,
        }
    }

    /// The network between the agents, where they are apart.
    pub fn network(&self) -> anyhow::Result<&Network> {
        self.network.as_ref().context("all agents are on one host")
    }

    /// `fpagent join`, by an agent with this token.
    pub fn join(agent: &Agent, token: &str) -> anyhow::Result<Answer> {
        let data = agent.data.display().to_string();
        let args = [
            "join",
            "--data-dir",
            &data,
            "--name",
            &agent.name,
            "--listen",
            &agent.listen,
            "--token",
            token,
        ];
        fpagent::run_on(agent.host.as_deref(), None, &args)
    }

    fn add(&mut self, number: usize) -> anyhow::Result<()> {
        let name = format!("node{number}");
        let agent = match &self.network {
            Some(network) => {
                let host = Arc::clone(network.host(number));
                self.agent(&name, format!("{}:{PORT}", address(number)), Some(host))
            }
            None => self.newcomer(&name)?,
        };
        if number > 1 {
            return self.let_in(1, agent).map(drop);
        }
        let data = agent.data.display().to_string();
        let args = [
            "init",
            "--data-dir",
            &data,
            "--name",
            &agent.name,
            "--listen",
            &agent.listen,
        ];
        fpagent::run(None, &args)?.success()?;
        self.take_in(agent).map(drop)
    }

    /// A join token, made by a node.
    pub fn token(&self, through: usize, ttl: &str) -> anyhow::Result<String> {
        let made = self
            .node(through)
            .json(&["token", "create", "--ttl", ttl])?;
        Ok(made["token"].as_str().context("no token")?.to_owned())
    }

    /// Has a newcomer join by a token of a node's, and starts it. Returns its number among the agents.
    pub fn grow(&mut self, through: usize, name: &str) -> anyhow::Result<usize> {
        let agent = self.newcomer(name)?;
        self.let_in(through, agent)
    }

    fn let_in(&mut self, through: usize, agent: Agent) -> anyhow::Result<usize> {
        Self::join(&agent, &self.token(through, "5m")?)?.success()?;
        self.take_in(agent)
    }

    /// Starts an agent that has joined. Returns its number among the agents.
    pub fn take_in(&mut self, mut agent: Agent) -> anyhow::Result<usize> {
        agent.start()?;
        agent.wait_answers()?;
        self.agents.push(agent);
        Ok(self.agents.len())
    }

    /// Waits until this many nodes are online and one leads, as each agent that answers sees it: one that has just begun has not heard of all.
    pub fn wait_online(&self, nodes: usize) -> anyhow::Result<()> {
        wait_for(&format!("{nodes} nodes online"), PATIENCE, || {
            let mut seen = Vec::new();
            for agent in &self.agents {
                seen.extend(sees_online(agent, nodes)?);
            }
            let all_see = !seen.is_empty() && seen.into_iter().all(|sees| sees);
            Ok(all_see.then_some(()))
        })
    }

    /// Whether so many nodes are online, with a leader among them, as the first sees it that answers.
    pub fn is_online(&self, nodes: usize) -> anyhow::Result<bool> {
        for agent in &self.agents {
            if let Some(is_online) = sees_online(agent, nodes)? {
                return Ok(is_online);
            }
        }
        Ok(false)
    }

    /// The number of the leading node.
    pub fn leader(&self) -> anyhow::Result<usize> {
        wait_for("a leader", PATIENCE, || {
            for agent in &self.agents {
                let Ok(list) = agent.json(&["node", "ls"]) else {
                    continue;
                };
                let leader = list["items"]
                    .as_array()
                    .and_then(|all| all.iter().position(|node| node["leader"] == true));
                if let Some(place) = leader {
                    let name = list["items"][place]["name"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                    return Ok(self
                        .agents
                        .iter()
                        .position(|agent| agent.name == name)
                        .map(|index| index + 1));
                }
            }
            Ok(None)
        })
    }

    /// Imports the tiny image under a name, with words added to its kernel's command line.
    pub fn import(&self, name: &str, words: &str) -> anyhow::Result<()> {
        self.import_image(name, Image::Tiny, words)
    }

    /// The same of any image.
    pub fn import_image(&self, name: &str, image: Image, words: &str) -> anyhow::Result<()> {
        let options = image.import_options(words)?;
        let import = ["image", "import", name].into_iter();
        let import: Vec<&str> = import.chain(options.iter().map(String::as_str)).collect();
        self.node(1).fp(&import)?.success()
    }

    /// A VM as a node shows it.
    pub fn vm(&self, through: usize, name: &str) -> anyhow::Result<Value> {
        self.node(through).json(&["vm", "show", name])
    }

    /// Kills a node's agent so long after a request to it was begun, and starts it again. What the request, asked again, was answered;
    /// all operations have ended then.
    pub fn kill_during(
        &mut self,
        number: usize,
        delay: Duration,
        args: &[&str],
    ) -> anyhow::Result<Answer> {
        let address = self.node(number).address();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let request = std::thread::spawn(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            fpagent::run(Some(&address), &args)
        });
        // Not to wait for something: moments of the request are what is covered.
        std::thread::sleep(delay);
        let agent = self.node_mut(number);
        agent.kill()?;
        agent.start()?;
        agent.wait_answers()?;
        let answer = request
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        wait_for("the operations' end", PATIENCE, || {
            let list = self.node(number).json(&["op", "ls"])?;
            let all = list["items"].as_array().context("no items")?;
            let open = all.iter().any(|operation| operation["state"] == "open");
            Ok((!open).then_some(()))
        })?;
        Ok(answer)
    }

    /// Waits until a VM is in a state.
    pub fn wait_vm(&self, through: usize, name: &str, state: &str) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let found = wait_for(&format!("VM {name} to be {state}"), PATIENCE, || {
            let answer = self.node(through).fp(&["vm", "show", name, "-o", "json"])?;
            last = answer
                .json()
                .unwrap_or_else(|error| Value::String(error.to_string()));
            Ok((last["state"] == state).then(|| last.clone()))
        });
        found.with_context(|| format!("it is {last}"))
    }

    /// Waits until a guest with `fp.pulse` has printed this many records more than now.
    pub fn wait_pulses(&self, name: &str, more: usize) -> anyhow::Result<()> {
        let count = || -> anyhow::Result<usize> {
            let log = self.node(1).fp(&["logs", name])?;
            log.success()?;
            Ok(guest::history::parse_console(&log.out).len())
        };
        let before = count()?;
        let what = format!("{more} more records of {name}");
        wait_for(&what, PATIENCE, || {
            Ok((count()? >= before + more).then_some(()))
        })
    }

    /// The data directory of the node with this name.
    pub fn data_of(&self, node: &Value) -> anyhow::Result<&Path> {
        let name = node.as_str().context("no node")?;
        let agent = self
            .agents
            .iter()
            .find(|agent| agent.name == name)
            .context("no such node")?;
        Ok(&agent.data)
    }

    /// The process ids of all QEMU processes of the cluster.
    pub fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let mut all = Vec::new();
        for agent in &self.agents {
            all.extend(qemu::host::processes_of(&agent.data)?);
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Everything that would help to understand a failure.
    pub fn logs(&self) -> String {
        self.agents
            .iter()
            .map(|agent| format!("--- {}\n{}\n", agent.name, agent.log_tail()))
            .collect()
    }
}

/// Whether so many nodes are online, with a leader among them, as one sees it; `None` when it does not answer.
fn sees_online(agent: &Agent, nodes: usize) -> anyhow::Result<Option<bool>> {
    let answer = agent.fp(&["node", "ls", "-o", "json"])?;
    if answer.code != 0 {
        return Ok(None);
    }
    let list = answer.json()?;
    let all = list["items"].as_array().context("no items")?;
    let online = all.iter().filter(|node| node["state"] == "online").count();
    let leader = all.iter().any(|node| node["leader"] == true);
    let settled = all
        .iter()
        .filter(|node| node["role"] != Value::Null && node["role"] != "")
        .count();
    Ok(Some(online >= nodes && leader && settled >= nodes))
}

/// A port of this host's that nobody has, for an agent that is about to start.
///
/// Below those that the kernel gives to connections: of these a test beside this one may have thousands at the next moment. Each process
/// of tests begins at another one.
fn free_port() -> anyhow::Result<u16> {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 20_000;
    const PER_PROCESS: u32 = 32;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS {
        let next = GIVEN.fetch_add(1, Ordering::Relaxed);
        let offset = process::id().wrapping_mul(PER_PROCESS).wrapping_add(next) % PORTS;
        let port = u16::try_from(FIRST + offset)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free")
}

/// A folder for a cluster: on the machine's disk, as data directories are. Guests run as other users and must get through.
fn folder() -> anyhow::Result<tempfile::TempDir> {
    let base = crate::repository().join("target/tests");
    fs::create_dir_all(&base)?;
    let folder = tempfile::tempdir_in(base.canonicalize()?)?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
    Ok(folder)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.tells {
            // Shown by the runner when the test failed.
            eprintln!("{}", self.logs());
            panics::say_again();
        }
        for agent in &mut self.agents {
            if let Err(error) = agent.kill() {
                eprintln!("{}: {error}", agent.name);
            }
        }
        // They hold what lies below their folders until they have ended.
        let gone = wait_for("the guests' end", PATIENCE, || {
            let left = processes::of_folder(self.folder.path())?;
            for pid in &left {
                // It may have ended by itself.
                let _gone = signal(*pid, Signal::KILL);
            }
            Ok(left.is_empty().then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("{error}");
        }
        // A killed agent leaves them to its next start. Whoever opens them removes what is empty when they are let go.
        for folder in fs::read_dir(self.folder.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = agent::daemon::group_name(&folder.path());
            drop(Groups::open(None, &name));
            if let Err(error) = agent::arriving::detach(&folder.path()) {
                eprintln!("{}: {error}", folder.path().display());
            }
        }
    }
}
