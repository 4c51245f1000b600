//! Who is refused: each changes nothing, by the digest of the replicated state, and leaves a line in the audit log of the node that was
//! asked.

use std::{
    fs,
    io::{self, Read, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use agent::{
    peers::INCARNATION,
    trust::{authority::load_certificate, token::JoinToken},
};
use anyhow::{Context as _, ensure};
use harness::{
    channels,
    cluster::{Agent, Cluster, PATIENCE},
    fpagent::{self, Answer},
    wait_for,
};
use proto::peer::{
    RaftMessage, RenewLeaseRequest, peer_service_client::PeerServiceClient,
    raft_service_client::RaftServiceClient,
};
use rustls::{
    ServerConfig, ServerConnection,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use tonic::{
    Code,
    metadata::{Ascii, MetadataValue},
};

fn token(node: &Agent, ttl: &str) -> anyhow::Result<String> {
    let made = node.json(&["token", "create", "--ttl", ttl])?;
    Ok(made["token"].as_str().context("no token")?.to_owned())
}

fn digest(node: &Agent) -> anyhow::Result<String> {
    let status = node.json(&["status"])?;
    Ok(status["stateDigest"]
        .as_str()
        .context("no digest")?
        .to_owned())
}

/// The lines of a node's audit log.
fn audited(node: &Agent) -> anyhow::Result<Vec<String>> {
    let log = fs::read_to_string(node.data.join("audit.log"))?;
    Ok(log.lines().map(str::to_owned).collect())
}

struct World {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl World {
    fn certs(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn create(&self, name: &str, role: &str, ttl: &str) -> anyhow::Result<()> {
        let out = self.certs(name).display().to_string();
        let create = [
            "cert", "create", name, "--role", role, "--ttl", ttl, "--out", &out,
        ];
        self.cluster.node(1).fp(&create)?.success()
    }

    /// Runs a command over the network, with these certificates.
    fn run_as(&self, certs: &Path, args: &[&str]) -> anyhow::Result<Answer> {
        let address = format!("https://{}", self.cluster.node(1).listen);
        let certs = certs.display().to_string();
        let options = ["--addr", &address, "--certs", &certs, "--timeout", "5s"];
        fpagent::run(None, &[args, &options[..]].concat())
    }

    /// Something that must be refused: it changes nothing, and there is a new line that says each of these words.
    fn is_refused(
        &self,
        what: &str,
        words: &[&str],
        attempt: impl FnOnce(&Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let node = self.cluster.node(1);
        let (before, lines) = (digest(node)?, audited(node)?.len());
        let got_in = attempt(self).with_context(|| what.to_owned())?;
        ensure!(!got_in, "{what}: it was not refused");
        wait_for(&format!("a line about {what}"), PATIENCE, || {
            let new = audited(node)?.split_off(lines);
            let said = new
                .iter()
                .any(|line| words.iter().all(|word| line.contains(word)));
            Ok(said.then_some(()))
        })
        .with_context(|| {
            format!(
                "the log says {:?}",
                audited(node).map(|mut all| all.split_off(lines))
            )
        })?;
        ensure!(digest(node)? == before, "{what} changed something");
        Ok(())
    }

    fn curl(&self, args: &[&str]) -> anyhow::Result<bool> {
        let output = self
            .cluster
            .node(1)
            .command("curl")
            .args(["--silent", "--max-time", "5"])
            .args(args)
            .output()?;
        ensure!(output.stdout.is_empty(), "it was answered: {output:?}");
        Ok(output.status.success())
    }

    fn joins(&self, token: &str) -> anyhow::Result<bool> {
        let newcomer = self.cluster.newcomer("newcomer")?;
        let answer = Cluster::join(&newcomer, token)?;
        ensure!(
            answer.code == 0 || !newcomer.data.exists(),
            "it left something behind"
        );
        Ok(answer.code == 0)
    }
}

#[test]
fn whoever_is_refused_changes_nothing_and_is_in_the_audit_log() -> anyhow::Result<()> {
    let mut world = World {
        cluster: Cluster::start(2)?,
        folder: tempfile::tempdir()?,
    };
    let other = Cluster::start(1)?;
    let node = world.cluster.node(1);
    for (name, role, ttl) in [
        ("vic", "viewer", "1h"),
        ("olga", "operator", "1h"),
        ("gone", "admin", "1h"),
        ("brief", "admin", "2s"),
    ] {
        world.create(name, role, ttl)?;
    }
    node.fp(&["cert", "revoke", "gone"])?.success()?;
    let brief = world.certs("brief");
    let (used, revoked) = (token(node, "5m")?, token(node, "5m")?);
    let first = world.cluster.newcomer("first")?;
    Cluster::join(&first, &used)?.success()?;
    // Until it starts, its token lets it in once more.
    world.cluster.take_in(first)?;
    world.cluster.wait_online(3)?;
    let node = world.cluster.node(1);
    let listed = node.json(&["token", "ls"])?;
    let id = listed["items"][0]["id"].as_str().context("no token")?;
    node.fp(&["token", "revoke", id])?.success()?;
    let expired = token(node, "1s")?;
    let good: JoinToken = token(node, "5m")?.parse()?;
    wait_for("a certificate to end", PATIENCE, || {
        Ok((world.run_as(&brief, &["vm", "ls"])?.code != 0).then_some(()))
    })?;
    wait_for("a token to end", PATIENCE, || {
        let tokens = node.json(&["token", "ls"])?;
        Ok((tokens["items"].as_array().map(Vec::len) == Some(1)).then_some(()))
    })?;

    // Connections.
    let ca = node.data.join("certs/admin/ca.pem").display().to_string();
    let there = format!("agent.forkypig:443:{}", node.listen);
    world.is_refused("no certificate", &["refused: ", "certificate"], |world| {
        let https = [
            "--http2",
            "--cacert",
            &ca,
            "--connect-to",
            &there,
            "https://agent.forkypig/metrics",
        ];
        world.curl(&https)
    })?;
    world.is_refused("plain HTTP", &["refused: "], |world| {
        world.curl(&[&format!("http://{}/metrics", node.listen)])
    })?;
    let strangers = world.certs("stranger");
    fs::create_dir(&strangers)?;
    let theirs = other.node(1).data.join("certs/admin");
    for name in ["cert.pem", "key.pem"] {
        fs::copy(theirs.join(name), strangers.join(name))?;
    }
    fs::copy(&ca, strangers.join("ca.pem"))?;
    world.is_refused(
        "another authority's",
        &["refused: ", "invalid peer certificate"],
        |world| Ok(world.run_as(&strangers, &["node", "cordon", "node2"])?.code == 0),
    )?;
    world.is_refused("an expired one", &["refused: ", "expired"], |world| {
        Ok(world.run_as(&brief, &["node", "cordon", "node2"])?.code == 0)
    })?;

    // Calls.
    let fork = "forkypig.v1.VmService/Fork";
    let cordon = "forkypig.v1.NodeService/CordonNode";
    let list = "forkypig.v1.VmService/ListVms";
    let nodes = world.certs("node");
    channels::copy_node_certificate(world.cluster.node(2), &nodes)?;
    for (what, certs, call, args, why) in [
        (
            "a revoked one",
            "gone",
            cordon,
            &["node", "cordon", "node2"][..],
            "was revoked",
        ),
        (
            "a viewer who forks",
            "vic",
            fork,
            &["fork", "nothing"],
            "needs the role operator",
        ),
        (
            "an operator who cordons",
            "olga",
            cordon,
            &["node", "cordon", "node2"],
            "needs the role admin",
        ),
        (
            "a node's, by a user",
            "node",
            list,
            &["vm", "ls"],
            "for what nodes ask",
        ),
    ] {
        world.is_refused(what, &[call, "refused: ", why], |world| {
            Ok(world.run_as(&world.certs(certs), args)?.code == 0)
        })?;
    }

    // Tokens. A key of one's own beside all that a token has else is a guess.
    let guess = JoinToken::generate(good.id, good.authority, &good.addresses)?.to_text();
    for (what, token) in [
        ("a used token", &used),
        ("a revoked token", &revoked),
        ("an expired token", &expired),
        ("a guessed token", &guess),
    ] {
        world.is_refused(what, &["refused: "], |world| world.joins(token))?;
    }
    // Altered on its way: this never gets as far as a node, unless somebody repairs its sum, which makes it a guess.
    let mut altered = good.to_text().into_bytes();
    altered[40] ^= 1;
    let before = digest(node)?;
    ensure!(!world.joins(&String::from_utf8(altered)?)?);
    ensure!(digest(node)? == before);
    ensure!(world.joins(&good.to_text())?, "the good one is good");
    Ok(())
}

/// Passes a connection on, and keeps what the client said.
fn relay(listener: TcpListener, to: String) -> mpsc::Receiver<Vec<u8>> {
    let (kept, said) = mpsc::channel();
    thread::spawn(move || -> io::Result<()> {
        for client in listener.incoming() {
            let (client, server) = (client?, TcpStream::connect(&to)?);
            let (mut back, mut answers) = (client.try_clone()?, server.try_clone()?);
            thread::spawn(move || {
                // Either side may go.
                let _ended = io::copy(&mut answers, &mut back);
                let _gone = back.shutdown(Shutdown::Both);
            });
            let kept = kept.clone();
            thread::spawn(move || {
                let (mut client, mut server) = (client, server);
                let mut all = Vec::new();
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = client.read(&mut piece) {
                    all.extend_from_slice(&piece[..count]);
                    if server.write_all(&piece[..count]).is_err() {
                        break;
                    }
                }
                let _gone = server.shutdown(Shutdown::Both);
                let _nobody_asks = kept.send(all);
            });
        }
        Ok(())
    });
    said
}

/// Takes any certificate, as a machine in the middle does.
#[derive(Debug)]
struct Anybody;

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: rustls::pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn shake_hands(session: &mut ServerConnection, client: &mut TcpStream) -> io::Result<()> {
    while session.is_handshaking() {
        session.complete_io(client)?;
    }
    Ok(())
}

/// Greets, as a server of HTTP/2 does, and hears what is said then.
fn listen(
    session: &mut ServerConnection,
    client: &mut TcpStream,
    said: &mut Vec<u8>,
) -> io::Result<()> {
    session.writer().write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])?;
    session.complete_io(client)?;
    while session.read_tls(client)? > 0 {
        session.process_new_packets().map_err(io::Error::other)?;
        // There is nothing more for now.
        let _empty = session.reader().read_to_end(said);
    }
    Ok(())
}

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// How each handshake went: how many bytes were said after it, or why there was none.
type Passed = Arc<Mutex<Vec<Result<usize, String>>>>;

/// Ends TLS itself, with what it shows for a certificate. Keeps what clients say to it once they trust it, and how each handshake went.
fn in_the_middle(listener: TcpListener, (chain, key): Shown) -> anyhow::Result<Passed> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (config, seen) = (Arc::new(config), Arc::new(Mutex::new(Vec::new())));
    let notes = Arc::clone(&seen);
    thread::spawn(move || -> anyhow::Result<()> {
        for client in listener.incoming() {
            let mut client = client?;
            client.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut session = ServerConnection::new(Arc::clone(&config))?;
            let mut said = Vec::new();
            let mut handled = shake_hands(&mut session, &mut client).map(|()| 0);
            if let Ok(told) = &mut handled {
                // Until it goes, or says no more.
                let _ends = listen(&mut session, &mut client, &mut said);
                *told = said.len();
            }
            let handled = handled.map_err(|error| error.to_string());
            notes
                .lock()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?
                .push(handled);
        }
        Ok(())
    });
    Ok(seen)
}

/// What the token's holder is led to: somebody else, who listens there.
fn led_to(token: &JoinToken, listener: &TcpListener) -> anyhow::Result<String> {
    let mut token = token.clone();
    token.addresses = vec![listener.local_addr()?.to_string()];
    Ok(token.to_text())
}

fn key_of(pem: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    use rustls::pki_types::pem::PemObject as _;
    Ok(PrivateKeyDer::from_pem_file(pem)?)
}

#[test]
fn a_machine_in_the_middle_gains_nothing_from_a_token() -> anyhow::Result<()> {
    let mut world = World {
        cluster: Cluster::start(1)?,
        folder: tempfile::tempdir()?,
    };
    let node = world.cluster.node(1);
    world.create("vic", "viewer", "1h")?;
    let good: JoinToken = token(node, "5m")?.parse()?;

    // One that shows a certificate of its own making, by the names that an agent has; and one that has a viewer's of the cluster,
    // with the authority's behind it.
    let made = rcgen::generate_simple_self_signed(vec![
        "agent.forkypig".into(),
        "node-1.forkypig".into(),
    ])?;
    let own: Shown = (
        vec![made.cert.der().clone()],
        PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into(),
    );
    let vic = world.certs("vic");
    let viewers: Shown = (
        vec![
            load_certificate(&vic.join("cert.pem"))?,
            load_certificate(&vic.join("ca.pem"))?,
        ],
        key_of(&vic.join("key.pem"))?,
    );
    for (what, shown) in [("its own", own), ("a viewer's", viewers)] {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let led = led_to(&good, &listener)?;
        let seen = in_the_middle(listener, shown)?;
        let before = digest(node)?;
        ensure!(!world.joins(&led)?, "{what}: it joined");
        let seen = seen
            .lock()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?
            .clone();
        ensure!(!seen.is_empty(), "{what}: nobody came");
        for handled in seen {
            ensure!(
                handled.as_ref().is_err(),
                "{what}: it was trusted, and told {handled:?} bytes"
            );
        }
        ensure!(digest(node)? == before, "{what}: something changed");
    }

    // One that passes everything on, and says it all again later: to the node that heard it, and when the token is used up.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let led = led_to(&good, &listener)?;
    let said = relay(listener, node.listen.clone());
    let newcomer = world.cluster.newcomer("node2")?;
    Cluster::join(&newcomer, &led)?.success()?;
    world.cluster.take_in(newcomer)?;
    world.cluster.wait_online(2)?;
    let node = world.cluster.node(1);
    let mut replayed = 0;
    while let Ok(all) = said.recv_timeout(Duration::from_secs(2)) {
        if all.is_empty() {
            continue;
        }
        replayed += 1;
        world.is_refused("a replay", &["refused: "], |_| {
            let mut again = TcpStream::connect(&node.listen)?;
            again.set_read_timeout(Some(Duration::from_secs(15)))?;
            again.write_all(&all)?;
            let mut answer = Vec::new();
            // The node's own part of a handshake, an alert, and the end.
            let _ended = again.read_to_end(&mut answer);
            Ok(false)
        })?;
    }
    ensure!(replayed > 0, "nothing was passed on");
    let nodes = node.json(&["node", "ls"])?;
    ensure!(
        nodes["items"].as_array().map(Vec::len) == Some(2),
        "{nodes}"
    );
    world.is_refused("the used token", &["refused: "], |world| {
        world.joins(&good.to_text())
    })
}

#[tokio::test]
async fn a_nodes_certificate_speaks_for_no_other_node() -> anyhow::Result<()> {
    let world = tokio::task::spawn_blocking(|| -> anyhow::Result<World> {
        Ok(World {
            cluster: Cluster::start(3)?,
            folder: tempfile::tempdir()?,
        })
    })
    .await??;
    let leader = world.cluster.leader()?;
    let (node, thief) = (
        world.cluster.node(leader),
        world.cluster.node(leader % 3 + 1),
    );
    let number = |node: &Agent| -> anyhow::Result<u64> {
        node.json(&["status"])?["node"]["id"]
            .as_u64()
            .context("no number")
    };
    let (own, thiefs) = (number(node)?, number(thief)?);
    let third = 6 - own - thiefs;
    let cluster_id = node.json(&["status"])?["clusterId"]
        .as_str()
        .context("no id")?
        .to_owned();
    let channel = channels::as_node(node, thief, &world.certs("node"))?;
    let incarnation: MetadataValue<Ascii> = cluster_id.parse()?;
    let says = move |mut request: tonic::Request<()>| {
        let metadata = request.metadata_mut();
        metadata.insert(INCARNATION, incarnation.clone());
        Ok(request)
    };
    let mut peers = PeerServiceClient::with_interceptor(channel.clone(), says);
    let mut members = RaftServiceClient::new(channel);
    let renew = |node| RenewLeaseRequest {
        node,
        address: thief.listen.clone(),
        now_ms: 0,
        room: None,
    };
    peers.renew_lease(renew(thiefs)).await?;

    let term = node.json(&["status"])?["term"].clone();
    let before = digest(node)?;
    let lines = audited(node)?.len();
    // A candidate's question, of a term that nobody has come to: version, term, candidate, not elected, nothing in its log.
    let ask = RaftMessage {
        cluster_id: cluster_id.clone(),
        target: own,
        payload: vec![1, 99, third as u8, 0, 0].into(),
    };
    // A leader's word: the same vote, elected; nothing before, no entries, nothing committed.
    let append = RaftMessage {
        payload: vec![1, 99, third as u8, 1, 0, 0, 0].into(),
        ..ask.clone()
    };
    for refused in [
        peers.renew_lease(renew(third)).await.err(),
        members.vote(ask).await.err(),
        members.append_entries(append).await.err(),
    ] {
        let refused = refused.context("it was taken for another")?;
        ensure!(refused.code() == Code::PermissionDenied, "{refused:?}");
    }
    let new = audited(node)?.split_off(lines);
    for call in ["RenewLease", "Vote", "AppendEntries"] {
        let said = |line: &&String| line.contains(call) && line.contains("permission-denied");
        ensure!(
            new.iter().any(|line| said(&line)),
            "no line about {call}: {new:?}"
        );
    }
    ensure!(digest(node)? == before && node.json(&["status"])?["term"] == term);
    Ok(())
}
