//! The agent is killed at every step that has a failpoint, and comes back: nothing that is listed is unusable, nothing usable is
//! lost, nothing is left over, no parent stands still.
//!
//! The failpoints are read from the sources. One that is not named by a way to it, or is not reached on it, fails.

use std::{fs, thread, time::Duration};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, signal},
    copies::agree,
    failpoints,
    fpagent::{self, Answer},
    lineage::histories,
    soundness::{Acknowledged, Ground, goes_on, settled, usable},
    wait_for,
};
use qemu::failpoint::KILL;
use rustix::process::Signal;

/// What has an agent come to a failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A VM's first capture.
    FirstCapture,
    /// `snapshot create`.
    Capture,
    /// `fork VM`.
    ForkVm,
    /// `group fork`.
    ForkGroup,
    /// `fork @SNAPSHOT`.
    ForkSnapshot,
    /// The same with forks that are ready.
    ForkReady,
    /// The same with processes that wait for any fork.
    ForkWaiting,
    /// `snapshot warm -n 1`.
    Warm,
    /// `snapshot warm -n 0` when one is ready.
    Cool,
    /// Captures, until the disk's chain is too long.
    Merge,
    /// `vm rm`.
    Remove,
    /// A restart of the host.
    Verify,
    /// `vm reset`.
    Reset,
    /// `vm suspend`.
    Suspend,
    /// `authority replace`.
    Authority,
    /// The same, where there are other nodes.
    AuthorityOfOthers,
    /// `fork --node`, on the node that fetches what it lacks.
    Fetch,
    /// The same, on the node that has it.
    Give,
    /// `vm move`, on the node that the VM leaves.
    MoveFrom,
    /// The same, on the node that it goes to.
    MoveTo,
    /// The same of a VM that is stopped, on the node that it leaves.
    MoveDisk,
    /// The same of one that is suspended, on the node that it goes to.
    MoveSuspended,
}

fn way(failpoint: &str) -> Option<Way> {
    Some(match failpoint {
        "capture.base-made" | "capture.base-copied" => Way::FirstCapture,
        "operation.snapshot-told" => Way::Capture,
        "restore.folder-renamed" | "pool.taken" => Way::ForkReady,
        // Of a fork that nobody asked for by name: nobody would delete its folder either.
        "pool.made" | "restore.folder-made" => Way::Warm,
        "pool.given-up" => Way::Cool,
        "authority.asked" => Way::AuthorityOfOthers,
        "transfer.part-read" => Way::Give,
        "move.disk-frozen" => Way::MoveDisk,
        "move.moment-held" => Way::MoveSuspended,
        "move.captured-ahead" | "move.sent-ahead" | "move.stopped" | "move.handed" => Way::MoveFrom,
        _ => match failpoint.split_once('.')?.0 {
            "capture" | "secure" => Way::Capture,
            "operation" => Way::ForkVm,
            "group" => Way::ForkGroup,
            "restore" => Way::ForkSnapshot,
            "shape" => Way::ForkWaiting,
            "merge" => Way::Merge,
            "remove" => Way::Remove,
            "verify" => Way::Verify,
            "reset" => Way::Reset,
            "suspend" => Way::Suspend,
            "authority" => Way::Authority,
            "transfer" => Way::Fetch,
            "move" => Way::MoveTo,
            _ => return None,
        },
    })
}

/// The failpoints on these ways.
fn on(ways: &[Way]) -> anyhow::Result<Vec<String>> {
    let all = failpoints::all()?.into_iter();
    Ok(all
        .filter(|name| way(name).is_some_and(|way| ways.contains(&way)))
        .collect())
}

#[test]
fn there_is_a_way_to_every_failpoint() -> anyhow::Result<()> {
    let all = failpoints::all()?;
    assert!(all.len() > 50, "{}: they were not found", all.len());
    for name in all {
        assert!(way(&name).is_some(), "no test comes to {name}");
    }
    Ok(())
}

/// A node with failpoints, a guest that runs on it, and a snapshot of that.
struct Node {
    cluster: Cluster,
    ground: Ground,
    options: Vec<String>,
}

impl Node {
    /// `first` are met by the parent's first capture.
    fn start(first: &[String]) -> anyhow::Result<Self> {
        let mut cluster = Cluster::start(1)?;
        cluster.import("tiny", "fp.pulse")?;
        let boot = cluster.folder().join("boot");
        fs::write(&boot, "first\n")?;
        let boot = boot.display().to_string();
        let agent = cluster.node_mut(1);
        agent.terminate()?;
        agent.set_program(env!("CARGO_BIN_EXE_fpagent-failpoints"));
        // None is ready that nobody asked for: what there is, is what a test made.
        let options = ["--ready-forks", "0", "--host-boot-file", &boot];
        agent.set_options(&options);
        agent.start()?;
        agent.wait_answers()?;
        cluster.wait_online(1)?;
        let create = ["vm", "create", "parent", "--image", "tiny", "--wait"];
        cluster.node(1).fp(&create)?.success()?;
        cluster.wait_pulses("parent", 3)?;

        let mut create = None;
        for name in first {
            cluster.node(1).arm(name, KILL)?;
            match create {
                None => create = Some(ask(&cluster, &["snapshot", "create", "parent", "kept"])),
                // It is begun again by itself.
                Some(_) => cluster.node_mut(1).start()?,
            }
            die(&mut cluster, name)?;
        }
        if create.is_some() {
            come_back(&mut cluster)?;
        }
        let create =
            create.unwrap_or_else(|| ask(&cluster, &["snapshot", "create", "parent", "kept"]));
        answer(create)?.success()?;
        secured(&cluster)?;
        let ground = Ground::of(&cluster, "parent", "@kept")?;
        let options = options.map(str::to_owned).to_vec();
        let node = Self {
            cluster,
            ground,
            options,
        };
        node.check(&Acknowledged::default())?;
        Ok(node)
    }

    /// What must hold now, and after all that was made was deleted.
    fn check(&self, acknowledged: &Acknowledged) -> anyhow::Result<()> {
        settled(&self.cluster)?;
        acknowledged.is_there(&self.cluster)?;
        usable(&self.cluster)?;
        self.ground.undo(&self.cluster)
    }

    /// Has the agent killed at a failpoint that a request comes to. Returns the request's answer.
    fn killed(&mut self, name: &str, args: &[&str]) -> anyhow::Result<Answer> {
        self.cluster.node(1).arm(name, KILL)?;
        let request = ask(&self.cluster, args);
        die(&mut self.cluster, name)?;
        come_back(&mut self.cluster)?;
        answer(request)
    }

    /// The same, and everything is as it should be afterwards.
    fn sound(&mut self, name: &str, args: &[&str]) -> anyhow::Result<()> {
        let acknowledged = Acknowledged::now(&self.cluster)?;
        self.killed(name, args)?
            .success()
            .with_context(|| format!("killed at {name}: fpagent {}", args.join(" ")))?;
        self.check(&acknowledged)
            .with_context(|| format!("killed at {name}"))
    }

    fn fp(&self, args: &[&str]) -> anyhow::Result<()> {
        self.cluster.node(1).fp(args)?.success()
    }

    /// The same for a failpoint that is come to only where processes wait for any fork. The agent that comes back has none: what
    /// is there then was left over.
    fn killed_where_some_wait(&mut self, name: &str, args: &[&str]) -> anyhow::Result<()> {
        let acknowledged = Acknowledged::now(&self.cluster)?;
        let mut options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        let none = options.clone();
        options.extend(["--waiting-processes", "2"]);
        let before = self.cluster.processes()?.len();
        let agent = self.cluster.node_mut(1);
        agent.terminate()?;
        agent.set_options(&options);
        agent.start()?;
        agent.wait_answers()?;
        wait_for("two processes to wait", PATIENCE, || {
            Ok((self.cluster.processes()?.len() == before + 2).then_some(()))
        })?;
        self.cluster.node_mut(1).set_options(&none);
        self.cluster.node(1).arm(name, KILL)?;
        let request = ask(&self.cluster, args);
        die(&mut self.cluster, name)?;
        come_back(&mut self.cluster)?;
        answer(request)?.success()?;
        self.check(&acknowledged)
    }

    fn warm(&self) -> anyhow::Result<()> {
        self.fp(&["snapshot", "warm", "@kept", "-n", "1"])?;
        wait_for("a fork to be ready", PATIENCE, || {
            let shown = self.cluster.node(1).json(&["snapshot", "show", "@kept"])?;
            Ok((shown["ready"] == 1).then_some(()))
        })
    }
}

type Request = thread::JoinHandle<anyhow::Result<Answer>>;

/// A request, made beside what else is done. It is sent again as long as nobody answers.
fn ask(cluster: &Cluster, args: &[&str]) -> Request {
    ask_through(cluster, 1, args)
}

fn ask_through(cluster: &Cluster, through: usize, args: &[&str]) -> Request {
    let address = cluster.node(through).address();
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    thread::spawn(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        fpagent::run(Some(&address), &args)
    })
}

fn answer(request: Request) -> anyhow::Result<Answer> {
    request
        .join()
        .map_err(|_| anyhow::anyhow!("the client panicked"))?
}

/// Waits until the agent was killed at a failpoint.
fn die(cluster: &mut Cluster, name: &str) -> anyhow::Result<()> {
    died(cluster, 1, name)
}

fn died(cluster: &mut Cluster, number: usize, name: &str) -> anyhow::Result<()> {
    let agent = cluster.node_mut(number);
    let what = format!("the agent to be killed at {name}");
    wait_for(&what, Duration::from_secs(20), || {
        Ok(agent.has_ended()?.then_some(()))
    })?;
    anyhow::ensure!(
        agent.was_reached(),
        "the agent ended before {name}:\n{}",
        agent.log_tail()
    );
    Ok(())
}

/// Starts the agent again; the parent does not stand still.
fn come_back(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    goes_on(cluster, "parent")
}

fn secured(cluster: &Cluster) -> anyhow::Result<()> {
    wait_for("the snapshot to be on disk", PATIENCE, || {
        let shown = cluster.node(1).json(&["snapshot", "show", "@kept"])?;
        Ok((shown["safety"] == "disk").then_some(()))
    })
}

#[test]
fn killed_at_every_step_of_a_capture() -> anyhow::Result<()> {
    let mut node = Node::start(&on(&[Way::FirstCapture])?)?;
    for name in on(&[Way::Capture])? {
        node.sound(&name, &["snapshot", "create", "parent", "made"])?;
    }
    Ok(())
}

#[test]
fn killed_again_when_it_begins_again_with_a_capture() -> anyhow::Result<()> {
    let mut node = Node::start(&[])?;
    let names = on(&[Way::Capture])?.into_iter();
    for name in names.filter(|name| name.starts_with("capture.")) {
        let acknowledged = Acknowledged::now(&node.cluster)?;
        node.cluster.node(1).arm(&name, KILL)?;
        let create = ["snapshot", "create", "parent", "made"];
        let request = ask(&node.cluster, &create);
        die(&mut node.cluster, &name)?;
        // The disk has moved on again, and nobody but its own process may read what it left behind.
        node.cluster.node(1).arm("capture.stream-written", KILL)?;
        node.cluster.node_mut(1).start()?;
        die(&mut node.cluster, "capture.stream-written")?;
        come_back(&mut node.cluster)?;
        answer(request)?
            .success()
            .and_then(|()| node.check(&acknowledged))
            .with_context(|| format!("killed at {name}, and again"))?;
    }
    Ok(())
}

#[test]
fn killed_at_every_step_of_forking_a_group() -> anyhow::Result<()> {
    let mut node = Node::start(&[])?;
    for member in ["db", "web"] {
        let create = ["vm", "create", member, "--image", "tiny", "--group", "app"];
        node.fp(&[&create[..], &["--wait"]].concat())?;
        node.cluster.wait_pulses(member, 3)?;
    }
    let mut steps = on(&[Way::ForkGroup])?;
    // Where all members stand still, and each of them has been captured or none is.
    steps.extend(["capture.stopped", "capture.all-taken", "capture.saved"].map(str::to_owned));
    for name in steps {
        let acknowledged = Acknowledged::now(&node.cluster)?;
        let answer = node.killed(&name, &["group", "fork", "app", "-n", "2", "--name", "try"])?;
        let made = || -> anyhow::Result<()> {
            answer.success()?;
            settled(&node.cluster)?;
            acknowledged.is_there(&node.cluster)?;
            let copies = ["try-1-db", "try-1-web", "try-2-db", "try-2-web"];
            for vm in ["db", "web"].into_iter().chain(copies) {
                goes_on(&node.cluster, vm)?;
            }
            histories(&node.cluster, &copies.map(str::to_owned))?;
            for copy in ["try-1", "try-2"] {
                node.fp(&["group", "rm", copy, "--force"])?;
            }
            Ok(())
        };
        made().with_context(|| format!("killed at {name}"))?;
    }
    node.fp(&["group", "rm", "app", "--force"])?;
    // The switch ended with the last member, and what it printed stays.
    let log = node.cluster.node(1).data.join("run/switch.log");
    wait_for("the switch to end", PATIENCE, || {
        Ok((!log.with_extension("sock").exists()).then_some(()))
    })?;
    fs::remove_file(log)?;
    node.ground.undo(&node.cluster)
}

#[test]
fn killed_at_every_step_of_a_fork() -> anyhow::Result<()> {
    let mut node = Node::start(&[])?;
    for name in on(&[Way::ForkVm])? {
        node.sound(&name, &["fork", "parent", "-n", "2", "--name", "child"])?;
    }
    for name in on(&[Way::ForkSnapshot])? {
        node.sound(&name, &["fork", "@kept", "-n", "2", "--name", "child"])?;
    }
    for name in on(&[Way::ForkReady])? {
        node.warm()?;
        node.sound(&name, &["fork", "@kept", "-n", "2", "--name", "child"])?;
    }
    for name in on(&[Way::ForkWaiting])? {
        let fork = ["fork", "@kept", "-n", "2", "--name", "child"];
        node.killed_where_some_wait(&name, &fork)
            .with_context(|| format!("killed at {name}"))?;
    }
    Ok(())
}

#[test]
fn killed_at_every_step_of_making_ready_and_of_removal() -> anyhow::Result<()> {
    let mut node = Node::start(&[])?;
    for name in on(&[Way::Warm])? {
        node.sound(&name, &["snapshot", "warm", "@kept", "-n", "1"])?;
    }
    for name in on(&[Way::Cool])? {
        node.warm()?;
        node.sound(&name, &["snapshot", "warm", "@kept", "-n", "0"])?;
    }
    for name in on(&[Way::Remove])? {
        node.fp(&["fork", "parent", "-n", "2", "--name", "child"])?;
        let mut acknowledged = Acknowledged::now(&node.cluster)?;
        acknowledged.forget_vm("child-1");
        node.killed(&name, &["vm", "rm", "--force", "child-1"])?
            .success()?;
        node.check(&acknowledged)
            .with_context(|| format!("killed at {name}"))?;
    }
    Ok(())
}

#[test]
fn killed_at_every_step_of_going_back() -> anyhow::Result<()> {
    let mut node = Node::start(&[])?;
    for (way, args, then) in [
        (
            Way::Reset,
            &["vm", "reset", "child", "--to", "@kept"][..],
            None,
        ),
        (Way::Suspend, &["vm", "suspend", "child"], Some("resume")),
    ] {
        for name in on(&[way])? {
            node.fp(&["fork", "parent", "--name", "child"])?;
            let mut acknowledged = Acknowledged::now(&node.cluster)?;
            // It gets another process, or none.
            acknowledged.forget_vm("child");
            node.killed(&name, args)?
                .success()
                .with_context(|| format!("killed at {name}"))?;
            if let Some(then) = then {
                assert_eq!(node.cluster.vm(1, "child")?["state"], "suspended");
                node.fp(&["vm", then, "child"])?;
            }
            goes_on(&node.cluster, "child")?;
            node.check(&acknowledged)
                .with_context(|| format!("killed at {name}"))?;
        }
    }
    Ok(())
}

#[test]
fn killed_at_every_step_of_merging_layers() -> anyhow::Result<()> {
    let mut node = Node::start(&[])?;
    for name in on(&[Way::Merge])? {
        let acknowledged = Acknowledged::now(&node.cluster)?;
        node.cluster.node(1).arm(&name, KILL)?;
        let mut requests = Vec::new();
        // The chain is too long after so many captures, each of a disk that was written to.
        for number in 0..12 {
            let made = format!("made{number}");
            requests.push(ask(&node.cluster, &["snapshot", "create", "parent", &made]));
            let agent = node.cluster.node_mut(1);
            let ended = wait_for("a merge", Duration::from_secs(1), || {
                Ok(agent.has_ended()?.then_some(()))
            });
            if ended.is_ok() {
                break;
            }
        }
        die(&mut node.cluster, &name)?;
        come_back(&mut node.cluster)?;
        for request in requests {
            answer(request)?
                .success()
                .with_context(|| format!("killed at {name}"))?;
        }
        node.check(&acknowledged)
            .with_context(|| format!("killed at {name}"))?;
    }
    Ok(())
}

#[test]
fn killed_at_every_step_of_verifying() -> anyhow::Result<()> {
    let mut node = Node::start(&[])?;
    let cluster = &mut node.cluster;
    cluster.node_mut(1).kill()?;
    for pid in cluster.processes()? {
        signal(pid, Signal::KILL)?;
    }
    wait_for("the guests' end", PATIENCE, || {
        Ok(cluster.processes()?.is_empty().then_some(()))
    })?;
    fs::write(cluster.folder().join("boot"), "second\n")?;
    for name in on(&[Way::Verify])?.iter().rev() {
        cluster.node(1).arm(name, KILL)?;
        cluster.node_mut(1).start()?;
        die(cluster, name)?;
    }
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    // As soon as it is verified.
    node.fp(&["fork", "@kept", "--name", "child"])?;
    node.cluster.wait_vm(1, "parent", "failed")?;
    node.fp(&["vm", "start", "parent"])?;
    node.check(&Acknowledged::default())
}

/// Waits until the new authority signs, and these nodes have their certificates of it. Returns its fingerprint.
fn renewed(cluster: &Cluster, through: usize, names: &[&str]) -> anyhow::Result<String> {
    wait_for(&format!("{names:?} to be renewed"), PATIENCE, || {
        let shown = cluster.node(through).json(&["authority", "show"])?;
        let (signing, nodes) = (&shown["signing"]["fingerprint"], &shown["nodes"]);
        let is_renewed = |name: &&str| {
            let mut nodes = nodes.as_array().into_iter().flatten();
            nodes.any(|node| node["node"] == **name && node["certificate"] == *signing)
        };
        let is_done = shown["phase"] == "renewing" && names.iter().all(is_renewed);
        Ok(is_done.then(|| signing.as_str().unwrap_or_default().to_owned()))
    })
}

#[test]
fn killed_at_every_step_of_replacing_the_authority() -> anyhow::Result<()> {
    let mut node = Node::start(&[])?;
    for name in on(&[Way::Authority])? {
        let acknowledged = Acknowledged::now(&node.cluster)?;
        node.killed(&name, &["authority", "replace"])?
            .success()
            .with_context(|| format!("killed at {name}"))?;
        let new = renewed(&node.cluster, 1, &["node1"]).with_context(|| name.clone())?;
        node.fp(&["authority", "finish", "--yes"])?;
        // The next start finds what was left.
        node.cluster.node_mut(1).kill()?;
        come_back(&mut node.cluster)?;
        let shown = node.cluster.node(1).json(&["authority", "show"])?;
        anyhow::ensure!(
            shown["phase"] == "finished" && shown["signing"]["fingerprint"] == new.as_str(),
            "killed at {name}: {shown}"
        );
        let certs = node.cluster.node(1).data.join("certs");
        anyhow::ensure!(!certs.join("next").exists(), "{name} leaves it");
        node.check(&acknowledged)
            .with_context(|| format!("killed at {name}"))?;
    }
    Ok(())
}

#[test]
fn an_authority_whose_key_is_lost_with_its_node_is_made_anew() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let agent = cluster.node_mut(1);
    agent.terminate()?;
    agent.set_program(env!("CARGO_BIN_EXE_fpagent-failpoints"));
    agent.start()?;
    agent.wait_answers()?;
    cluster.wait_online(3)?;
    for name in on(&[Way::AuthorityOfOthers])? {
        cluster.node(1).arm(&name, KILL)?;
        let begun = ask(&cluster, &["authority", "replace"]);
        die(&mut cluster, &name)?;
        let lost = cluster.node(2).json(&["authority", "show"])?["other"]["fingerprint"].clone();
        cluster
            .node(2)
            .fp(&["authority", "finish", "--yes"])?
            .refused(&["does not sign yet"])?;
        cluster.node(2).fp(&["authority", "replace"])?.success()?;
        let new = renewed(&cluster, 3, &["node2", "node3"])?;
        anyhow::ensure!(new != lost, "{new} was lost");
        // The one that has another key finds that out.
        cluster.node_mut(1).start()?;
        cluster.node_mut(1).wait_answers()?;
        answer(begun)?.success()?;
        renewed(&cluster, 1, &["node1", "node2", "node3"])?;
        cluster
            .node(1)
            .fp(&["authority", "finish", "--yes"])?
            .success()?;
        cluster.wait_online(3)?;
    }
    Ok(())
}

/// A cluster of three, of which two agents have failpoints, with a guest on the first node that writes records.
fn two_that_can_be_killed(vm: &str) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    for number in [1, 2] {
        let agent = cluster.node_mut(number);
        agent.terminate()?;
        agent.set_program(env!("CARGO_BIN_EXE_fpagent-failpoints"));
        agent.start()?;
        agent.wait_answers()?;
    }
    cluster.wait_online(3)?;
    let create = [
        "vm", "create", vm, "--image", "tiny", "--node", "node1", "--wait",
    ];
    cluster.node(3).fp(&create)?.success()?;
    cluster.wait_pulses(vm, 3)?;
    Ok(cluster)
}

#[test]
fn killed_at_every_step_of_fetching() -> anyhow::Result<()> {
    let mut cluster = two_that_can_be_killed("parent")?;
    for (way, killed) in [(Way::Fetch, 2), (Way::Give, 1)] {
        for name in on(&[way])? {
            cluster.node(killed).arm(&name, KILL)?;
            let fork = ["fork", "parent", "--node", "node2", "--name", "far"];
            let request = ask_through(&cluster, 3, &fork);
            died(&mut cluster, killed, &name)?;
            cluster.node_mut(killed).start()?;
            cluster.node_mut(killed).wait_answers()?;
            answer(request)?
                .success()
                .and_then(|()| goes_on(&cluster, "far"))
                .and_then(|()| goes_on(&cluster, "parent"))
                .and_then(|()| agree(&cluster))
                .with_context(|| format!("killed at {name}"))?;
            // Nothing of it is left, and all of it comes again the next time.
            cluster
                .node(3)
                .fp(&["vm", "rm", "--force", "far"])?
                .success()?;
            let (bases, streams) = ("bases", "streams");
            wait_for("what was fetched to be gone", PATIENCE, || {
                let left = |folder| {
                    Ok::<_, anyhow::Error>(fs::read_dir(cluster.node(2).data.join(folder))?.count())
                };
                Ok((left(bases)? == 0 && left(streams)? == 0).then_some(()))
            })
            .with_context(|| format!("killed at {name}"))?;
        }
    }
    Ok(())
}

/// The number of the node that a VM lives on.
fn lives_on(cluster: &Cluster, vm: &str) -> anyhow::Result<usize> {
    let node = cluster.vm(3, vm)?["node"].clone();
    let name = node.as_str().context("no node")?;
    let number = name
        .strip_prefix("node")
        .and_then(|number| number.parse().ok());
    number.with_context(|| format!("{name} is no node of these"))
}

#[test]
fn killed_at_every_step_of_moving() -> anyhow::Result<()> {
    let mut cluster = two_that_can_be_killed("web")?;
    let ways = [
        (Way::MoveFrom, None),
        (Way::MoveTo, None),
        (
            Way::MoveDisk,
            Some((&["stop", "web", "--force"][..], "start")),
        ),
        (Way::MoveSuspended, Some((&["suspend", "web"], "resume"))),
    ];
    for (way, rest) in ways {
        for name in on(&[way])? {
            move_and_kill(&mut cluster, way, &name, rest)
                .with_context(|| format!("killed at {name}"))?;
        }
    }
    histories(&cluster, &["web".to_owned()]).map(drop)
}

fn move_and_kill(
    cluster: &mut Cluster,
    way: Way,
    name: &str,
    rest: Option<(&[&str], &str)>,
) -> anyhow::Result<()> {
    if let Some((rest, _)) = rest {
        cluster.node(3).fp(&[&["vm"], rest].concat())?.success()?;
    }
    let from = lives_on(cluster, "web")?;
    let to = 3 - from;
    let killed = match way {
        Way::MoveFrom | Way::MoveDisk => from,
        _ => to,
    };
    cluster.node(killed).arm(name, KILL)?;
    let node = format!("node{to}");
    let request = ask_through(cluster, 3, &["vm", "move", "web", "--node", &node]);
    if let Err(error) = died(cluster, killed, name) {
        return Err(error.context(format!("the move was answered {:?}", answer(request))));
    }
    cluster.node_mut(killed).start()?;
    cluster.node_mut(killed).wait_answers()?;
    let answer = answer(request)?;
    settled(cluster)?;
    // It goes on here or there, as it is said, and what is over is cleared away.
    let now = lives_on(cluster, "web")?;
    println!("killed at {name}: it lives on node{now}, and was moved from node{from}");
    anyhow::ensure!(
        (answer.code == 0) == (now == to),
        "it lives on node{now}, and the answer was {answer:?}"
    );
    if let Some((_, go_on)) = rest {
        cluster.node(3).fp(&["vm", go_on, "web"])?.success()?;
    }
    goes_on(cluster, "web")?;
    cluster.wait_pulses("web", 2)?;
    let other = 3 - now;
    // A moment stays where it is held.
    let folders = match way {
        Way::MoveSuspended => &["vms"][..],
        _ => &["bases", "streams", "layers", "vms"],
    };
    let mut left = Vec::new();
    let cleared = wait_for("what it left to be gone", PATIENCE, || {
        left.clear();
        for folder in folders {
            for entry in fs::read_dir(cluster.node(other).data.join(folder))? {
                left.push(entry?.path().display().to_string());
            }
        }
        Ok((left.is_empty() && cluster.processes()?.len() == 1).then_some(()))
    });
    cleared.with_context(|| format!("{left:?} are left"))
}
