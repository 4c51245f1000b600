//! Who may do what: roles, certificates that are revoked and that end, and the audit log of it all.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    fpagent::{self, Answer},
    wait_for,
};
use serde_json::{Value, json};

/// A cluster and the folder that its users' certificates are in.
struct World {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl World {
    fn certs(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn create(&self, through: usize, name: &str, role: &str, ttl: &str) -> anyhow::Result<Value> {
        let out = self.certs(name);
        let out = out.to_str().context("no text")?;
        let create = [
            "cert", "create", name, "--role", role, "--ttl", ttl, "--out", out,
        ];
        self.cluster.node(through).json(&create)
    }

    /// Runs a command as somebody, over the network.
    fn run_as(&self, through: usize, certs: &Path, args: &[&str]) -> anyhow::Result<Answer> {
        let address = format!("https://{}", self.cluster.node(through).listen);
        let certs = certs.to_str().context("no text")?;
        let options = ["--addr", &address, "--certs", certs, "--timeout", "10s"];
        fpagent::run(None, &[&options, args].concat())
    }

    fn is_refused(
        &self,
        through: usize,
        certs: &Path,
        args: &[&str],
        why: &str,
    ) -> anyhow::Result<()> {
        let answer = self.run_as(through, certs, args)?;
        anyhow::ensure!(
            answer.code == 1 && answer.err.contains(why),
            "{args:?}: {answer:?}"
        );
        Ok(())
    }

    /// What refused calls could have changed.
    fn state(&self) -> anyhow::Result<Value> {
        let list = |what: &str| self.cluster.node(1).json(&[what, "ls"]);
        let nodes = list("node")?;
        let schedulable: Vec<&Value> = nodes["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|node| &node["schedulable"])
            .collect();
        anyhow::ensure!(schedulable.len() == 3, "{nodes}");
        Ok(json!([schedulable, list("cert")?, list("token")?]))
    }

    /// The lines of a node's audit log in which all of these fields are so.
    fn audited(&self, node: usize, fields: &[(&str, &str)]) -> anyhow::Result<Vec<Value>> {
        let text = fs::read_to_string(self.cluster.node(node).data.join("audit.log"))?;
        let lines: Vec<Value> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        let fits = |line: &Value| {
            fields.iter().all(|(field, value)| {
                line[*field]
                    .as_str()
                    .is_some_and(|text| text.contains(value))
            })
        };
        Ok(lines.into_iter().filter(fits).collect())
    }
}

#[test]
fn each_may_do_what_its_certificate_says_until_that_is_revoked_or_ends() -> anyhow::Result<()> {
    let world = World {
        cluster: Cluster::start(3)?,
        folder: tempfile::tempdir()?,
    };
    for (through, name, role) in [
        (1, "vic", "viewer"),
        (2, "olga", "operator"),
        (3, "ada", "admin"),
    ] {
        let made = world.create(through, name, role, "1h")?;
        assert_eq!((&made["name"], &made["role"]), (&name.into(), &role.into()));
        let key = fs::metadata(world.certs(name).join("key.pem"))?;
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }
    let [vic, olga, ada] = ["vic", "olga", "ada"].map(|name| world.certs(name));

    // What the one may and the other may not; what is refused changes nothing.
    let before = world.state()?;
    let fork: &[&str] = &["fork", "nothing"];
    let token: &[&str] = &["token", "create"];
    let cordon: &[&str] = &["node", "cordon", "node2"];
    let no_vm = "there is no VM";
    for through in 1..=3 {
        for who in [&vic, &olga, &ada] {
            world.run_as(through, who, &["vm", "ls"])?.success()?;
        }
        world.is_refused(
            through,
            &vic,
            fork,
            "needs the role operator, and vic is viewer",
        )?;
        world.is_refused(
            through,
            &vic,
            &["exec", "nothing", "--", "true"],
            "needs the role operator",
        )?;
        world.is_refused(through, &vic, cordon, "needs the role admin")?;
        world.is_refused(through, &olga, fork, no_vm)?;
        world.is_refused(through, &ada, fork, no_vm)?;
        for admins in [token, cordon, &["cert", "ls"], &["cert", "revoke", "vic"]] {
            world.is_refused(
                through,
                &olga,
                admins,
                "needs the role admin, and olga is operator",
            )?;
        }
    }
    assert_eq!(world.state()?, before, "a refused call changed something");
    let secret = world.run_as(2, &ada, token)?;
    secret.success()?;
    world.run_as(3, &ada, cordon)?.success()?;

    // A name is one's own; the first administrator is known, too.
    let again = world.create(1, "vic", "admin", "1h");
    assert!(again.is_err() && world.certs("vic").exists(), "{again:?}");
    let listed = world
        .run_as(1, &ada, &["cert", "ls", "-o", "json"])?
        .json()?;
    let names = |listed: &Value| -> Vec<String> {
        let all = listed["items"].as_array().into_iter().flatten();
        all.map(|one| one["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(names(&listed), ["admin", "vic", "olga", "ada"], "{listed}");

    // Measurements are for viewers, by what reads those; a node's certificate is no viewer's.
    let measured = world.cluster.node(2).metrics(&vic)?;
    for line in [
        "fpagent_calls_total{call=\"forkypig.v1.VmService/Fork\",outcome=\"not-found\"} 2",
        "fpagent_call_seconds_bucket{call=\"forkypig.v1.VmService/ListVms\",le=",
        "fpagent_raft_commit_seconds_count ",
        "fpagent_raft_quorum 1",
        "fpagent_vms{state=\"running\"} 0",
        "fpagent_reconcile_seconds_sum ",
        "fpagent_guest_memory_private_bytes ",
    ] {
        assert!(measured.contains(line), "no {line} in {measured}");
    }
    let nodes = world.certs("node");
    fs::create_dir(&nodes)?;
    let certs = world.cluster.node(2).data.join("certs");
    for (from, to) in [
        ("ca.pem", "ca.pem"),
        ("node.pem", "cert.pem"),
        ("node.key.pem", "key.pem"),
    ] {
        fs::copy(certs.join(from), nodes.join(to))?;
    }
    let refused = world.cluster.node(2).metrics(&nodes)?;
    assert!(
        refused.contains("for what nodes ask of each other"),
        "{refused}"
    );

    // Revoked: at once on the node that was asked, and on the others when they know of it.
    world
        .run_as(1, &ada, &["cert", "revoke", "vic"])?
        .success()?;
    world.is_refused(1, &vic, &["vm", "ls"], "was revoked")?;
    for through in 2..=3 {
        wait_for("a revoked certificate to be refused", PATIENCE, || {
            let answer = world.run_as(through, &vic, &["vm", "ls"])?;
            Ok((answer.code == 1 && answer.err.contains("was revoked")).then_some(()))
        })?;
    }
    world
        .run_as(2, &ada, &["cert", "revoke", "admin"])?
        .success()?;
    let first = world.cluster.node(1).data.join("certs/admin");
    world.is_refused(2, &first, &["vm", "ls"], "was revoked")?;
    // Its name is free again.
    fs::remove_dir_all(world.certs("vic"))?;
    world.create(3, "vic", "viewer", "1h")?;
    world.run_as(3, &vic, &["vm", "ls"])?.success()?;

    // One that has ended.
    world.create(1, "brief", "viewer", "2s")?;
    let brief = world.certs("brief");
    wait_for("a certificate to end", PATIENCE, || {
        Ok((world.run_as(1, &brief, &["vm", "ls"])?.code != 0).then_some(()))
    })?;

    // Who is nobody, and the log of it all.
    TcpStream::connect(&world.cluster.node(1).listen)?.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    wait_for("a refused connection in the audit log", PATIENCE, || {
        let refused = world.audited(1, &[("from", "127.0.0.1"), ("outcome", "refused: ")])?;
        Ok(refused
            .iter()
            .any(|line| line["call"].is_null())
            .then_some(()))
    })?;
    for (node, fields) in [
        (
            2,
            vec![
                ("who", "vic"),
                ("role", "viewer"),
                ("call", "VmService/Fork"),
                ("outcome", "refused"),
            ],
        ),
        (
            3,
            vec![
                ("who", "olga"),
                ("call", "ClusterService/CreateToken"),
                ("outcome", "refused"),
            ],
        ),
        (
            3,
            vec![
                ("who", "olga"),
                ("call", "VmService/Fork"),
                ("outcome", "failed: not-found"),
            ],
        ),
        (
            1,
            vec![
                ("who", "ada"),
                ("about", "certificate vic"),
                ("outcome", "ok"),
                ("from", "127.0.0.1:"),
            ],
        ),
        (
            3,
            vec![
                ("who", "ada"),
                ("about", "node node2"),
                ("call", "CordonNode"),
                ("outcome", "ok"),
            ],
        ),
        (
            2,
            vec![
                ("role", "local"),
                ("from", "local"),
                ("about", "of olga, operator"),
                ("outcome", "ok"),
            ],
        ),
        (
            1,
            vec![
                ("role", "joiner"),
                ("about", "node node2"),
                ("outcome", "ok"),
            ],
        ),
    ] {
        let lines = world.audited(node, &fields)?;
        assert!(!lines.is_empty(), "node {node} has no line with {fields:?}");
    }
    let token = secret.out.trim();
    for node in 1..=3 {
        let log = world.cluster.node(node).data.join("audit.log");
        assert_eq!(fs::metadata(&log)?.permissions().mode() & 0o777, 0o600);
        assert!(
            !fs::read_to_string(&log)?.contains(token),
            "node {node} logged a token"
        );
        // Who only looks is let be.
        let looks = world.audited(node, &[("call", "ListVms")])?;
        assert!(
            looks.iter().all(|line| line["outcome"] != "ok"),
            "{looks:?}"
        );
    }
    Ok(())
}
