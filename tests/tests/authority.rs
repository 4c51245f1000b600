//! The cluster's authority is replaced: while it is worked with, with nodes that are killed, join or are away, and when its key leaked.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use agent::{
    peers::INCARNATION,
    trust::authority::{Authority, save_certificate},
};
use anyhow::{Context as _, ensure};
use harness::{
    channels,
    cluster::{Cluster, PATIENCE, is_alive},
    fpagent::{self, Answer},
    secrecy, wait_for,
};
use proto::peer::{RenewLeaseRequest, peer_service_client::PeerServiceClient};
use serde_json::Value;
use tonic::{
    Code,
    metadata::{Ascii, MetadataValue},
};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Waits until an authority other than this one signs, and these nodes have their certificates of it. Returns its fingerprint.
fn wait_renewed(
    cluster: &Cluster,
    through: usize,
    old: &str,
    names: &[&str],
) -> anyhow::Result<String> {
    let mut last = Value::Null;
    let found = wait_for(&format!("{names:?} to be renewed"), PATIENCE, || {
        let answer = cluster
            .node(through)
            .fp(&["authority", "show", "-o", "json"])?;
        let Ok(shown) = answer.json() else {
            return Ok(None);
        };
        last = shown.clone();
        let signing = text(&shown["signing"]["fingerprint"]);
        let nodes = shown["nodes"].as_array().context("no nodes")?;
        let renewed = nodes
            .iter()
            .filter(|node| node["certificate"] == signing.as_str());
        let renewed: BTreeSet<String> = renewed.map(|node| text(&node["node"])).collect();
        let all = names.iter().all(|name| renewed.contains(*name));
        Ok((signing != old && all).then_some(signing))
    });
    found.with_context(|| format!("it is {last}"))
}

/// Runs a command over the network with a folder of certificates.
fn run_as(cluster: &Cluster, to: usize, certs: &Path, args: &[&str]) -> anyhow::Result<Answer> {
    let address = format!("https://{}", cluster.node(to).listen);
    let certs = certs.display().to_string();
    let options = ["--addr", &address, "--certs", &certs, "--timeout", "20s"];
    fpagent::run(None, &[args, &options[..]].concat())
}

/// Makes somebody's certificate in a folder.
fn create(cluster: &Cluster, through: usize, folder: &Path, more: &[&str]) -> anyhow::Result<()> {
    let out = folder.display().to_string();
    let create = ["cert", "create", "ann", "--role", "viewer", "--out", &out];
    cluster
        .node(through)
        .fp(&[&create[..], more].concat())?
        .success()
}

fn restart(cluster: &mut Cluster, number: usize) -> anyhow::Result<()> {
    let agent = cluster.node_mut(number);
    agent.kill()?;
    agent.start()?;
    agent.wait_answers()
}

/// What happens while the cluster is worked with.
fn replace(cluster: &mut Cluster, folder: &Path) -> anyhow::Result<()> {
    let (ann, new_ann) = (folder.join("ann"), folder.join("new-ann"));
    let old = wait_renewed(cluster, 1, "", &["node1", "node2", "node3"])?;
    create(cluster, 1, &ann, &[])?;
    let before = cluster.token(1, "10m")?;

    // While it spreads: one that is away comes back in the middle.
    cluster.node_mut(3).kill()?;
    let begun = cluster.node(1).json(&["authority", "replace"])?;
    ensure!(begun["phase"] == "spreading", "{begun}");
    ensure!(begun["signing"]["fingerprint"] == old.as_str(), "{begun}");
    let new = text(&begun["other"]["fingerprint"]);
    cluster.node_mut(3).start()?;
    cluster.node_mut(3).wait_answers()?;
    let signs = wait_renewed(cluster, 2, &old, &["node1", "node2", "node3"])?;
    ensure!(signs == new, "{signs} signs, and {new} was made");

    // Both are trusted: people's certificates, an old token, and a new one; a node is killed, and comes back.
    run_as(cluster, 2, &ann, &["vm", "ls"])?.success()?;
    run_as(cluster, 3, &ann, &["vm", "ls"])?.success()?;
    let shown = cluster.node(2).metrics(&ann)?;
    ensure!(shown.contains("# TYPE"), "{shown}");
    let newcomer = cluster.newcomer("node4")?;
    Cluster::join(&newcomer, &before)?.success()?;
    cluster.take_in(newcomer)?;
    cluster.grow(2, "node5")?;
    for number in [1, 2] {
        restart(cluster, number)?;
        cluster.wait_online(5)?;
    }
    let all = ["node1", "node2", "node3", "node4", "node5"];
    wait_renewed(cluster, 1, &old, &all)?;
    cluster
        .node(1)
        .fp(&["authority", "replace"])?
        .refused(&["finish that first"])?;
    let problems = cluster.node(1).json(&["status"])?["problems"].to_string();
    ensure!(problems.contains("every node is renewed"), "{problems}");

    // Nobody is surprised by what ends.
    let told = cluster.node(1).fp(&["authority", "finish"])?;
    told.refused(&["nothing was changed", "--yes"])?;
    ensure!(
        told.out.contains("of ann (viewer) will end") && told.out.contains("of admin"),
        "{}",
        told.out
    );
    create(cluster, 2, &new_ann, &["--replace"])?;
    run_as(cluster, 2, &ann, &["vm", "ls"])?.refused(&["was revoked"])?;
    let unused = cluster.token(1, "10m")?;
    cluster
        .node(2)
        .fp(&["authority", "finish", "--yes"])?
        .success()?;
    restart(cluster, 3)?;
    cluster.wait_online(5)?;

    // What is of the old one is refused, and told why; what is of the new one works everywhere.
    let admin = cluster.node(1).data.join("certs/admin");
    for to in [1, 3, 5] {
        run_as(cluster, to, &admin, &["vm", "ls"])?
            .refused(&["authority that was replaced", "cert create admin"])?;
        run_as(cluster, to, &new_ann, &["vm", "ls"])?.success()?;
        let told = cluster.node(to).metrics(&admin)?;
        ensure!(told.contains("authority that was replaced"), "{told}");
        let shown = cluster.node(to).metrics(&new_ann)?;
        ensure!(shown.contains("# TYPE"), "{shown}");
    }
    let certificates = cluster.node(1).json(&["cert", "ls"])?;
    let good = certificates["items"].as_array().context("no items")?;
    let good = good.iter().filter(|one| one["revokedAt"] == Value::Null);
    let good: Vec<String> = good.map(|one| text(&one["authority"])).collect();
    ensure!(good == [new.as_str()], "{certificates}");
    let late = cluster.newcomer("node6")?;
    Cluster::join(&late, &unused)?.success()
}

#[test]
fn the_authority_is_replaced_while_the_cluster_works_and_a_guest_runs() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(3)?;
    let folder = tempfile::tempdir()?;
    let boot = [
        "vm", "create", "web", "--image", "tiny", "--node", "node2", "--wait",
    ];
    cluster.node(1).fp(&boot)?.success()?;
    let pid = cluster.vm(1, "web")?["pid"].clone();
    let addresses: Vec<String> = cluster.agents.iter().map(|agent| agent.address()).collect();
    let addresses = addresses.join(",");
    let goes_on = AtomicBool::new(true);
    let rounds = thread::scope(|scope| -> anyhow::Result<u32> {
        let worker = scope.spawn(|| fpagent::work(&addresses, &goes_on));
        let replaced = replace(&mut cluster, folder.path());
        goes_on.store(false, Ordering::Relaxed);
        let rounds = worker
            .join()
            .map_err(|_| anyhow::anyhow!("the worker panicked"))?;
        replaced?;
        rounds
    })?;
    println!("{rounds} changes were made and read meanwhile");
    ensure!(rounds > 10, "hardly any work was done: {rounds}");
    let now = cluster.vm(3, "web")?;
    ensure!(now["pid"] == pid && now["state"] == "running", "{now}");
    let pid = pid.as_u64().context("no pid")? as u32;
    ensure!(is_alive(pid), "the guest's process has ended");
    cluster
        .node(3)
        .fp(&["fork", "web", "--name", "try", "--timeout", "30s"])?
        .success()?;

    // The new key is where it belongs, and nowhere else: not in the log, not in what is shown.
    let key = fs::read_to_string(cluster.node(1).data.join("certs/ca.key.pem"))?;
    let line = key.lines().nth(1).context("no key")?;
    for agent in &cluster.agents {
        let theirs = fs::read_to_string(agent.data.join("certs/ca.key.pem"))?;
        ensure!(theirs == key, "{} has another key", agent.name);
        let found = secrecy::files_with(&agent.data, line)?;
        let own = agent.data.join("certs/ca.key.pem").display().to_string();
        ensure!(found == [own], "it is in {found:?}");
        ensure!(!agent.log_text().contains(line), "{} says it", agent.name);
    }
    let loaded = Authority::load(
        ulid::Ulid::new(),
        &cluster.node(1).data.join("certs/ca.pem"),
        &cluster.node(1).data.join("certs/ca.key.pem"),
    )?;
    // A recognisable part of it as it is, where text would not be found.
    let raw = loaded.key_der();
    for agent in &cluster.agents {
        let log = agent.data.join("raft");
        ensure!(
            !holds(&log, &raw[40..60])?,
            "the key is in {}",
            log.display()
        );
    }
    Ok(())
}

/// Whether a file below a folder has these bytes in it.
fn holds(folder: &Path, bytes: &[u8]) -> anyhow::Result<bool> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if holds(&path, bytes)? {
                return Ok(true);
            }
            continue;
        }
        let content = match fs::read(&path) {
            // The log was cut off meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read?,
        };
        if content.windows(bytes.len()).any(|window| window == bytes) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn a_node_that_is_given_up_is_refused_and_told_what_to_do() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let old = wait_renewed(&cluster, 1, "", &["node1", "node2", "node3"])?;
    let token = cluster.token(1, "10m")?;
    cluster.node_mut(3).kill()?;
    cluster.node(1).fp(&["authority", "replace"])?.success()?;
    // At once, perhaps before anybody else has the key.
    restart(&mut cluster, 1)?;
    wait_renewed(&cluster, 2, &old, &["node1", "node2"])?;
    cluster
        .node(1)
        .fp(&["authority", "finish", "--yes"])?
        .refused(&["node node3", "--force"])?;
    let told = cluster.node(1).fp(&["authority", "finish"])?.out;
    ensure!(
        told.contains("node node3 is not renewed") && told.contains("join token"),
        "{told}"
    );
    let finish = ["authority", "finish", "--force", "--yes"];
    cluster.node(1).fp(&finish)?.success()?;
    cluster
        .node(1)
        .fp(&["authority", "finish", "--yes"])?
        .refused(&["is not being replaced"])?;

    let newcomer = cluster.newcomer("late")?;
    Cluster::join(&newcomer, &token)?.refused(&["authority was replaced", "token create"])?;
    ensure!(!newcomer.data.exists(), "it left something");

    // It believes the others by what the old authority signed, and is refused.
    let given_up = cluster.node_mut(3);
    given_up.start()?;
    let told = wait_for("node3 to be told", PATIENCE, || {
        let answer = given_up.fp(&["status", "-o", "json"])?;
        let Ok(status) = answer.json() else {
            return Ok(None);
        };
        let problems = status["problems"].to_string();
        let said = problems.contains("authority was replaced without this node");
        Ok(said.then_some(problems))
    })?;
    ensure!(told.contains("fpagent node rm node3 --force"), "{told}");
    let log = given_up.log_text();
    ensure!(log.contains("authority that was replaced"), "{log}");
    let doctor = given_up.json(&["doctor"])?.to_string();
    ensure!(doctor.contains("replaced without this node"), "{doctor}");
    let refused = (1..=2).any(|number| {
        let log = fs::read_to_string(cluster.node(number).data.join("audit.log"));
        log.is_ok_and(|text| text.contains("the certificate of node 3 is of an authority"))
    });
    ensure!(refused, "nobody has a line of that");
    let nodes = cluster.node(1).json(&["node", "ls"])?;
    ensure!(nodes["items"][2]["state"] == "offline", "{nodes}");

    // What it was told helps.
    cluster.node_mut(3).terminate()?;
    cluster
        .node(1)
        .fp(&["node", "rm", "node3", "--force"])?
        .success()?;
    let gone = cluster.agents.remove(2);
    fs::remove_dir_all(&gone.data)?;
    cluster.grow(1, "node3")?;
    cluster.wait_online(3)
}

#[test]
fn it_goes_on_without_the_leader_and_takes_that_in_when_it_is_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let all = ["node1", "node2", "node3"];
    let old = wait_renewed(&cluster, 1, "", &all)?;
    let leader = cluster.leader()?;
    let through = leader % 3 + 1;
    let others: Vec<&str> = (1..=3)
        .filter(|number| *number != leader)
        .map(|number| all[number - 1])
        .collect();
    cluster
        .node(through)
        .fp(&["authority", "replace"])?
        .success()?;
    cluster.node_mut(leader).kill()?;
    let new = wait_renewed(&cluster, through, &old, &others)?;
    let finish = ["authority", "finish", "--yes"];
    cluster
        .node(through)
        .fp(&finish)?
        .refused(&[&format!("node {}", all[leader - 1])])?;
    cluster.node_mut(leader).start()?;
    cluster.node_mut(leader).wait_answers()?;
    wait_renewed(&cluster, leader, &old, &all)?;
    // The one that leads now is lost with the last step.
    cluster.wait_online(3)?;
    let next = cluster.leader()?;
    cluster.node(leader).fp(&finish)?.success()?;
    cluster.node_mut(next).kill()?;
    let left = next % 3 + 1;
    let shown = cluster.node(left).json(&["authority", "show"])?;
    ensure!(
        shown["phase"] == "finished" && shown["signing"]["fingerprint"] == new.as_str(),
        "{shown}"
    );
    let label = ["node", "label", "node1", "after=1"];
    cluster.node(left).fp(&label)?.success()?;
    cluster.node_mut(next).start()?;
    cluster.node_mut(next).wait_answers()?;
    cluster.wait_online(3)?;
    let known = wait_renewed(&cluster, next, &old, &all)?;
    ensure!(known == new, "{known} is not {new}");
    Ok(())
}

#[test]
fn what_a_leaked_key_signed_counts_for_known_nodes_only() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let folder = tempfile::tempdir()?;
    let ann = folder.path().join("ann");
    let old = wait_renewed(&cluster, 1, "", &["node1", "node2", "node3"])?;
    create(&cluster, 1, &ann, &[])?;
    let token = cluster.token(1, "10m")?;
    let cluster_id = text(&cluster.node(1).json(&["status"])?["clusterId"]);

    // What a thief of the key makes of it.
    let certs = cluster.node(1).data.join("certs");
    let leaked = Authority::load(
        cluster_id.parse()?,
        &certs.join("ca.pem"),
        &certs.join("ca.key.pem"),
    )?;
    let node = forged(&folder.path().join("node"), &leaked, |leaked| {
        leaked.issue_node(2, "node2")
    })?;
    let admin = forged(&folder.path().join("admin"), &leaked, |leaked| {
        leaked.issue_admin("admin")
    })?;
    let listed = run_as(&cluster, 3, &admin, &["vm", "ls"])?;
    listed.success().context("the forgery is none")?;
    ask_as_node(&cluster, &cluster_id, &node)?.context("the forgery of a node is none")?;

    // One is away, so that the old one is trusted for a while.
    cluster.node_mut(3).kill()?;
    let compromised = ["authority", "replace", "--compromised"];
    cluster.node(1).fp(&compromised)?.success()?;
    // The node that was asked knows at once.
    for certs in [&admin, &ann] {
        run_as(&cluster, 1, certs, &["vm", "ls"])?
            .refused(&["certificate"])
            .with_context(|| certs.display().to_string())?;
    }
    let refused = ask_as_node(&cluster, &cluster_id, &node)?;
    let refused = refused.err().context("a forged node was let in")?;
    ensure!(refused.code() == Code::Unauthenticated, "{refused}");
    wait_renewed(&cluster, 2, &old, &["node1", "node2"])?;
    run_as(&cluster, 2, &admin, &["vm", "ls"])?.refused(&["authority that was replaced"])?;
    let newcomer = cluster.newcomer("late")?;
    ensure!(Cluster::join(&newcomer, &token)?.code == 1, "it joined");

    // The known node that was away comes back with what the leaked key signed for it, and is renewed.
    cluster.node_mut(3).start()?;
    cluster.node_mut(3).wait_answers()?;
    cluster.wait_online(3)?;
    wait_renewed(&cluster, 1, &old, &["node1", "node2", "node3"])?;
    cluster
        .node(3)
        .fp(&["authority", "finish", "--yes"])?
        .success()?;
    create(&cluster, 3, &folder.path().join("new"), &[])?;
    run_as(&cluster, 1, &folder.path().join("new"), &["vm", "ls"])?.success()?;
    cluster.grow(2, "node4")?;
    cluster.wait_online(4)
}

/// A folder with a certificate that somebody makes who has an authority's key.
fn forged(
    folder: &Path,
    leaked: &Authority,
    make: impl FnOnce(
        &Authority,
    ) -> Result<agent::trust::authority::Credentials, agent::trust::TrustError>,
) -> anyhow::Result<PathBuf> {
    fs::create_dir(folder)?;
    save_certificate(leaked.certificate(), &folder.join("ca.pem"))?;
    make(leaked)?.save(&folder.join("cert.pem"), &folder.join("key.pem"))?;
    Ok(folder.to_owned())
}

/// Asks what only nodes may ask, as node 2 with a certificate of a folder; of whoever leads or not.
fn ask_as_node(
    cluster: &Cluster,
    cluster_id: &str,
    certs: &Path,
) -> anyhow::Result<Result<(), tonic::Status>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let incarnation: MetadataValue<Ascii> = cluster_id.parse()?;
    runtime.block_on(async {
        let channel = channels::as_user(cluster.node(1), certs)?;
        let says = move |mut request: tonic::Request<()>| {
            request
                .metadata_mut()
                .insert(INCARNATION, incarnation.clone());
            Ok(request)
        };
        let mut peers = PeerServiceClient::with_interceptor(channel, says);
        let request = RenewLeaseRequest {
            node: 2,
            address: cluster.node(2).listen.clone(),
            now_ms: 0,
            room: None,
        };
        let asked = peers.renew_lease(request).await;
        Ok(match asked {
            Ok(_) => Ok(()),
            // It does not lead; but it was asked.
            Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
            Err(status) => Err(status),
        })
    })
}
