//! Going on after a majority was lost, and after everything was.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;
use harness::{
    cluster::{Agent, Cluster, PATIENCE, is_alive},
    fpagent::{self, Answer},
    wait_for,
};
use serde_json::Value;

/// A command that works on files only.
fn offline(args: &[&str]) -> anyhow::Result<Answer> {
    fpagent::run(None, args)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// `fpagent recover` on an agent's directory.
fn recover(agent: &Agent, more: &[&str]) -> anyhow::Result<Answer> {
    let data = text(&agent.data);
    offline(&[&["recover", "--data-dir", &data][..], more].concat())
}

fn label(agent: &Agent, label: &str) -> anyhow::Result<Answer> {
    agent.fp(&["node", "label", "node1", label, "--timeout", "20s"])
}

fn labels(agent: &Agent) -> anyhow::Result<BTreeMap<String, String>> {
    let node = agent.json(&["node", "show", "node1"])?;
    Ok(serde_json::from_value(node["labels"].clone())?)
}

fn nodes(agent: &Agent) -> anyhow::Result<Vec<Value>> {
    let list = agent.json(&["node", "ls"])?;
    Ok(list["items"].as_array().context("no items")?.clone())
}

/// Waits until nodes are in these states, as one of them sees it.
fn wait_states(agent: &Agent, states: &[&str]) -> anyhow::Result<()> {
    wait_for(&format!("nodes that are {states:?}"), PATIENCE, || {
        let nodes = nodes(agent)?;
        let are = nodes.iter().map(|node| &node["state"]);
        Ok(are.eq(states).then_some(()))
    })
}

/// Waits until a node says that it has a leader with a quorum.
fn wait_quorum(agent: &Agent) -> anyhow::Result<()> {
    wait_for(&format!("a quorum of {}", agent.name), PATIENCE, || {
        Ok((agent.json(&["status"])?["quorum"] == true).then_some(()))
    })
}

fn start(agent: &mut Agent) -> anyhow::Result<()> {
    agent.start()?;
    agent.wait_answers()?;
    wait_quorum(agent)
}

fn token(agent: &Agent) -> anyhow::Result<String> {
    let token = agent.json(&["token", "create", "--ttl", "5m"])?;
    Ok(token["token"].as_str().context("no token")?.to_owned())
}

#[test]
fn one_of_three_goes_on_with_all_that_was_acknowledged_and_others_join() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    for number in 0..6 {
        label(cluster.node(number % 3 + 1), &format!("w{number}=x"))?.success()?;
    }
    let unused = token(cluster.node(2))?;
    // Its own: so it has all that came before.
    label(cluster.node(1), "last=x")?.success()?;
    let before = labels(cluster.node(1))?;
    assert_eq!(before.len(), 7);
    let alone = recover(cluster.node(1), &[])?;
    alone.refused(&["in use"])?;
    for number in [2, 3] {
        let agent = cluster.node_mut(number);
        agent.kill()?;
        fs::remove_dir_all(&agent.data)?;
    }
    wait_for("the quorum's loss", PATIENCE, || {
        Ok((label(cluster.node(1), "lost=x")?.code == 3).then_some(()))
    })?;
    cluster.node_mut(1).terminate()?;

    let told = recover(cluster.node(1), &[])?;
    told.refused(&["nothing was changed"])?;
    for word in ["known to be committed", "node2 (voter", "join anew"] {
        assert!(told.out.contains(word), "{word:?} is not in: {}", told.out);
    }
    let told = recover(cluster.node(1), &["-o", "json"])?;
    let told: Value = serde_json::from_str(&told.out)?;
    assert_eq!(
        (&told["done"], &told["had"]["nodes"][2]["role"]),
        (&false.into(), &"voter".into())
    );
    recover(cluster.node(1), &["--yes"])?.success()?;
    let audit = fs::read_to_string(cluster.node(1).data.join("audit.log"))?;
    assert!(audit.contains("\"call\":\"fpagent recover\""), "{audit}");

    start(cluster.node_mut(1))?;
    // What was refused for want of a quorum is in its log all the same, and counts from now on.
    let mut after = labels(cluster.node(1))?;
    after.remove("lost");
    assert_eq!(after, before);
    label(cluster.node(1), "again=x")?.success()?;
    wait_states(cluster.node(1), &["online", "offline", "offline"])?;

    // Whether a token was used is not known any more.
    let mut joiner = cluster.newcomer("node4")?;
    assert_ne!(Cluster::join(&joiner, &unused)?.code, 0);
    Cluster::join(&joiner, &token(cluster.node(1))?)?.success()?;
    start(&mut joiner)?;
    label(&joiner, "through=x")?.success()?;
    cluster.agents.push(joiner);
    let joined = &nodes(cluster.node(1))?[3];
    assert!(
        joined["id"].as_u64() > Some(1_000),
        "numbers that others may have had: {joined}"
    );

    // It is alone by what it knows: there is nothing to be recovered.
    cluster.node_mut(1).terminate()?;
    recover(cluster.node(1), &["--yes"])?.refused(&["the only voter", "fpagent run"])?;
    start(cluster.node_mut(1))?;
    let mut last = labels(cluster.node(1))?;
    let added = [last.remove("again"), last.remove("through")];
    last.remove("lost");
    assert!(added.iter().all(Option::is_some));
    assert_eq!(last, before);
    Ok(())
}

#[test]
fn nodes_of_before_do_no_harm_until_they_follow() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    label(cluster.node(1), "before=x")?.success()?;
    for number in [2, 3, 1] {
        cluster.node_mut(number).terminate()?;
    }
    let done = recover(cluster.node(1), &["--yes", "-o", "json"])?.json()?;
    let incarnation = done["incarnation"].as_str().context("none")?.to_owned();
    start(cluster.node_mut(1))?;

    // Two of three are a majority of before: it was not lost after all.
    for number in [2, 3] {
        cluster.node_mut(number).start()?;
    }
    for number in [2, 3] {
        cluster.node_mut(number).wait_answers()?;
        wait_quorum(cluster.node(number))?;
    }
    label(cluster.node(2), "stale=x")?.success()?;
    label(cluster.node(1), "anew=x")?.success()?;
    wait_for("a word about it", PATIENCE, || {
        let log = cluster.node(2).log_text();
        Ok(log
            .contains("this one before or after it was recovered")
            .then_some(()))
    })?;
    let own = |key: &str| labels(cluster.node(1)).map(|labels| labels.contains_key(key));
    assert!(own("before")? && own("anew")? && !own("stale")?);
    let status = cluster.node(1).json(&["status"])?;
    assert_eq!(
        (&status["leader"], &status["quorum"]),
        (&"node1".into(), &true.into())
    );
    assert!(!labels(cluster.node(3))?.contains_key("anew"));
    // Nor do they count as being there: nothing could be placed on them.
    wait_states(cluster.node(1), &["online", "offline", "offline"])?;

    for number in [2, 3] {
        cluster.node_mut(number).terminate()?;
        let follow = ["--follow", &incarnation];
        recover(cluster.node(number), &follow)?.refused(&["nothing was changed"])?;
        let follow = ["--follow", &incarnation, "--yes"];
        recover(cluster.node(number), &follow)?.success()?;
        recover(cluster.node(number), &follow)?.refused(&["already"])?;
        start(cluster.node_mut(number))?;
    }
    wait_for("three voters", PATIENCE, || {
        let nodes = nodes(cluster.node(1))?;
        let votes = |node: &&Value| node["role"] == "voter" && node["state"] == "online";
        Ok((nodes.iter().filter(votes).count() == 3).then_some(()))
    })?;
    label(cluster.node(3), "together=x")?.success()?;
    for number in 1..=3 {
        let labels = labels(cluster.node(number))?;
        let keys: Vec<&str> = labels.keys().map(String::as_str).collect();
        assert_eq!(keys, ["anew", "before", "together"], "node {number}");
    }
    Ok(())
}

/// A backup of a cluster, in its folder.
fn backup(cluster: &Cluster, name: &str, more: &[&str]) -> anyhow::Result<String> {
    let file = text(&cluster.folder().join(name));
    let args = [&["backup", &file][..], more].concat();
    cluster.node(1).fp(&args)?.success()?;
    Ok(file)
}

#[test]
fn a_state_that_is_put_back_takes_up_its_vms_and_leaves_newer_ones_running() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(1)?;
    let create = |cluster: &Cluster, name: &str| -> anyhow::Result<u32> {
        let vm = ["vm", "create", name, "--image", "tiny", "--wait"];
        cluster.node(1).fp(&vm)?.success()?;
        let pid = cluster.vm(1, name)?["pid"].as_u64().context("no pid")?;
        Ok(u32::try_from(pid)?)
    };
    let old = create(&cluster, "old")?;
    create(&cluster, "gone")?;
    let file = backup(&cluster, "one.fpbackup", &[])?;
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let newer = create(&cluster, "newer")?;
    let newer_id = cluster.vm(1, "newer")?["id"]
        .as_str()
        .context("no id")?
        .to_owned();
    let capture = ["snapshot", "create", "newer", "kept"];
    cluster.node(1).fp(&capture)?.success()?;
    cluster
        .node(1)
        .fp(&["vm", "rm", "--force", "gone"])?
        .success()?;
    let files = |cluster: &Cluster| -> anyhow::Result<usize> {
        let data = &cluster.node(1).data;
        Ok(fs::read_dir(data.join("streams"))?.count() + fs::read_dir(data.join("bases"))?.count())
    };
    let before = files(&cluster)?;
    assert!(before >= 2);
    cluster.node_mut(1).terminate()?;

    let data = text(&cluster.node(1).data);
    let restore = ["restore", &file, "--data-dir", &data];
    offline(&restore)?.refused(&["nothing was changed"])?;
    offline(&[&restore[..], &["--yes"]].concat())?.success()?;
    start(cluster.node_mut(1))?;

    assert_eq!(cluster.wait_vm(1, "old", "running")?["pid"], old);
    let gone = cluster.wait_vm(1, "gone", "failed")?;
    let reason = gone["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("nothing of it is left"), "{gone}");
    assert_ne!(cluster.node(1).fp(&["vm", "show", "newer"])?.code, 0);
    assert!(is_alive(newer), "it is newer than the backup");
    let doctor = cluster.node(1).json(&["doctor"])?;
    let checks = doctor["items"].as_array().context("no items")?;
    let unknown = checks.iter().find(|check| check["name"] == "unknown-vms");
    let found = unknown.context("no check")?["found"].to_string();
    assert!(
        found.contains(&newer_id) && found.contains(&newer.to_string()),
        "{found}"
    );

    // Users' certificates are as good as revoked: nobody remembers which were.
    let address = format!("https://{}", cluster.node(1).listen);
    let certs = text(&cluster.node(1).data.join("certs/admin"));
    let list = ["vm", "ls", "--addr", &address, "--certs", &certs];
    offline(&list)?.refused(&["revoked"])?;

    // What is deleted now has files collected: not those of the newer VM, nor of its snapshot.
    for name in ["old", "gone"] {
        cluster
            .node(1)
            .fp(&["vm", "rm", "--force", name])?
            .success()?;
    }
    wait_for("the old one's end", PATIENCE, || {
        Ok((!is_alive(old)).then_some(()))
    })?;
    wait_states(cluster.node(1), &["online"])?;
    create(&cluster, "another")?;
    assert!(is_alive(newer));
    assert_eq!(files(&cluster)?, before);
    let layer = cluster
        .node(1)
        .data
        .join("layers")
        .join(format!("{newer_id}.qcow2"));
    assert!(layer.exists());
    Ok(())
}

#[test]
fn a_new_host_goes_on_with_a_backup_and_bad_ones_are_refused() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    label(cluster.node(1), "kept=x")?.success()?;
    let bare = backup(&cluster, "bare.fpbackup", &[])?;
    let whole = backup(&cluster, "whole.fpbackup", &["--with-authority"])?;
    let audit = fs::read_to_string(cluster.node(1).data.join("audit.log"))?;
    assert!(
        audit.contains("the state and the authority's key"),
        "{audit}"
    );
    let piped = cluster
        .node(1)
        .fp(&["backup", "check", &whole, "-o", "json"])?
        .json()?;
    assert_eq!(
        (&piped["withAuthority"], &piped["nodes"][0]["name"]),
        (&true.into(), &"node1".into())
    );

    let bytes = fs::read(&whole)?;
    let bad = cluster.folder().join("bad.fpbackup");
    let mut new = cluster.newcomer("node9")?;
    let data = text(&new.data);
    let listen = new.listen.clone();
    let anew = |file: &str, name: &str, more: &[&str]| {
        let node = [
            "restore",
            file,
            "--data-dir",
            &data,
            "--name",
            name,
            "--listen",
            &listen,
        ];
        offline(&[&node[..], more].concat())
    };
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    for (content, what) in [
        (&bytes[..bytes.len() - 40], "cut off"),
        (&bytes[..30], "cut off"),
        (&damaged[..], "damaged"),
        (&b"something else"[..], "no backup"),
    ] {
        fs::write(&bad, content)?;
        offline(&["backup", "check", &text(&bad)])?.refused(&["bad.fpbackup", what])?;
        anew(&text(&bad), "node9", &[])?.refused(&["bad.fpbackup", what])?;
        assert!(!new.data.exists());
    }
    anew(&bare, "node9", &[])?.refused(&["private key", "--authority"])?;
    anew(&whole, "node1", &[])?.refused(&["node1", "--name"])?;
    assert!(!new.data.exists());

    // All is lost.
    cluster.node_mut(1).kill()?;
    let authority = cluster.folder().join("certs");
    fs::rename(cluster.node(1).data.join("certs"), &authority)?;
    fs::remove_dir_all(&cluster.node(1).data)?;
    anew(&bare, "node9", &["--authority", &text(&authority)])?.success()?;
    fs::remove_dir_all(&new.data)?;
    anew(&whole, "node9", &[])?.success()?;
    start(&mut new)?;
    assert!(labels(&new)?.contains_key("kept"));
    label(&new, "again=x")?.success()?;
    let address = format!("https://{}", new.listen);
    let certs = text(&new.data.join("certs/admin"));
    offline(&["node", "ls", "--addr", &address, "--certs", &certs])?.success()?;
    let of_before = text(&authority.join("admin"));
    let before = offline(&["node", "ls", "--addr", &address, "--certs", &of_before])?;
    before.refused(&["revoked"])?;
    cluster.agents.push(new);
    Ok(())
}

#[test]
fn a_backup_from_before_the_authority_was_replaced_goes_on_under_the_new_one() -> anyhow::Result<()>
{
    let mut cluster = Cluster::start(1)?;
    let file = backup(&cluster, "before.fpbackup", &["--with-authority"])?;
    let node = cluster.node(1);
    node.fp(&["authority", "replace"])?.success()?;
    let new = wait_for("node1 to be renewed", PATIENCE, || {
        let shown = node.json(&["authority", "show"])?;
        let signing = &shown["signing"]["fingerprint"];
        let is_renewed = shown["nodes"][0]["certificate"] == *signing;
        Ok((shown["phase"] == "renewing" && is_renewed).then(|| signing.clone()))
    })?;
    node.fp(&["authority", "finish", "--yes"])?.success()?;

    // On a new host, with the certificates of one that is left.
    let other = cluster.newcomer("node9")?;
    let certs = node.data.join("certs");
    let (data, authority) = (text(&other.data), text(&certs));
    let anew = [
        "restore",
        &file,
        "--data-dir",
        &data,
        "--name",
        "node9",
        "--listen",
        &other.listen,
        "--authority",
        &authority,
    ];
    offline(&anew)?.success()?;
    for name in ["ca.pem", "ca.key.pem", "replacement.json"] {
        let theirs = fs::read(other.data.join("certs").join(name))?;
        assert!(theirs == fs::read(certs.join(name))?, "another {name}");
    }

    // Where the directory is left.
    let admin = text(&certs.join("admin"));
    let address = format!("https://{}", node.listen);
    cluster.node_mut(1).terminate()?;
    let data = text(&cluster.node(1).data);
    offline(&["restore", &file, "--data-dir", &data, "--yes"])?.success()?;
    start(cluster.node_mut(1))?;
    let shown = cluster.node(1).json(&["authority", "show"])?;
    assert_eq!(
        (&shown["phase"], &shown["signing"]["fingerprint"]),
        (&"finished".into(), &new)
    );
    let as_before = ["vm", "ls", "--addr", &address, "--certs", &admin];
    offline(&as_before)?.refused(&["authority that was replaced"])?;
    let out = text(&cluster.folder().join("ann"));
    let create = ["cert", "create", "ann", "--role", "viewer", "--out", &out];
    cluster.node(1).fp(&create)?.success()?;
    offline(&["vm", "ls", "--addr", &address, "--certs", &out])?.success()
}
