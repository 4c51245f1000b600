//! Who gets in: nobody without a certificate of the cluster's authority or an unused join token.

use std::time::Duration;

use anyhow::Context as _;
use harness::{cluster::Cluster, fpagent, wait_for};

#[test]
fn certificates_decide_who_gets_in() -> anyhow::Result<()> {
    let (cluster, other) = (Cluster::start(1)?, Cluster::start(1)?);
    let address = format!("https://{}", cluster.node(1).listen);
    let certs = |cluster: &Cluster| {
        cluster
            .node(1)
            .data
            .join("certs/admin")
            .display()
            .to_string()
    };
    let list = |certs: &str| {
        fpagent::run(
            None,
            &[
                "node",
                "ls",
                "--addr",
                &address,
                "--certs",
                certs,
                "--timeout",
                "3s",
            ],
        )
    };
    list(&certs(&cluster))?.success()?;

    let stranger = list(&certs(&other))?;
    assert_ne!(stranger.code, 0, "{stranger:?}");
    // One's own certificate does not help against the other authority, either way round.
    let mixed = tempfile::tempdir()?;
    for (name, from) in [
        ("ca.pem", &cluster),
        ("cert.pem", &other),
        ("key.pem", &other),
    ] {
        std::fs::copy(
            from.node(1).data.join("certs/admin").join(name),
            mixed.path().join(name),
        )?;
    }
    let stranger = list(&mixed.path().display().to_string())?;
    assert_ne!(stranger.code, 0, "{stranger:?}");

    // Nothing shown, or no TLS at all. Whatever is sent, no answer comes.
    let ca = cluster.node(1).data.join("certs/admin/ca.pem");
    let naked = cluster
        .node(1)
        .command("curl")
        .args([
            "--silent",
            "--show-error",
            "--http2-prior-knowledge",
            "--max-time",
            "5",
            "--cacert",
        ])
        .arg(&ca)
        .args([
            "--connect-to",
            &format!("agent.forkypig:443:{}", cluster.node(1).listen),
            "https://agent.forkypig/",
        ])
        .output()?;
    assert!(
        !naked.status.success() && naked.stdout.is_empty(),
        "{naked:?}"
    );
    let plain = cluster
        .node(1)
        .command("curl")
        .args([
            "--silent",
            "--max-time",
            "5",
            &format!("http://{}/", cluster.node(1).listen),
        ])
        .output()?;
    assert!(
        !plain.status.success() && plain.stdout.is_empty(),
        "{plain:?}"
    );
    Ok(())
}

#[test]
fn a_token_lets_one_node_in_once() -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    let good = cluster.token(1, "5m")?;
    let first = cluster.newcomer("first")?;
    Cluster::join(&first, &good)?.success()?;
    // Again, by the same directory: nothing to do. By another: used up.
    Cluster::join(&first, &good)?.success()?;
    let second = cluster.newcomer("second")?;
    let refused = Cluster::join(&second, &good)?;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(
        !second.data.exists(),
        "a join that failed left something behind"
    );

    // Altered in one letter, wherever.
    let fresh = cluster.token(1, "5m")?;
    for place in [12, fresh.len() / 2, fresh.len() - 2] {
        let mut altered: Vec<char> = fresh.chars().collect();
        altered[place] = if altered[place] == 'A' { 'B' } else { 'A' };
        let altered: String = altered.into_iter().collect();
        let refused = Cluster::join(&second, &altered)?;
        assert_ne!(refused.code, 0, "altered at {place}: {refused:?}");
    }
    // Expired.
    let short = cluster.token(1, "1s")?;
    wait_for("the token's end", Duration::from_secs(10), || {
        let tokens = cluster.node(1).json(&["token", "ls"])?;
        Ok((tokens["items"].as_array().map(Vec::len) == Some(1)).then_some(()))
    })?;
    let refused = Cluster::join(&second, &short)?;
    assert_ne!(refused.code, 0, "{refused:?}");
    // Revoked.
    let id = cluster.node(1).json(&["token", "ls"])?["items"][0]["id"]
        .as_str()
        .context("no id")?
        .to_owned();
    cluster.node(1).fp(&["token", "revoke", &id])?.success()?;
    let refused = Cluster::join(&second, &fresh)?;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(!second.data.exists());
    let nodes = cluster.node(1).json(&["node", "ls"])?;
    assert_eq!(nodes["items"].as_array().map(Vec::len), Some(2));

    // A directory of one cluster does not join another.
    let other = Cluster::start(1)?;
    let refused = Cluster::join(&first, &other.token(1, "5m")?)?;
    assert_ne!(refused.code, 0, "{refused:?}");
    Ok(())
}
