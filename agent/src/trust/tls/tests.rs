//! Real handshakes over the loopback device.

use std::{
    collections::BTreeSet,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use futures::StreamExt as _;
use raft::state::{ReplacementPhase, Role};
use rustls::{
    ClientConfig,
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, sync::mpsc, task::JoinHandle};
use tonic::transport::server::Connected as _;
use ulid::Ulid;

use super::{
    accept::{Peer, bind_unix, tls_incoming, unix_incoming},
    connect::{ConnectError, Target, probe},
    own::OwnCertificate,
    server::{PeerRole, ServerTls, TokenLookup},
    *,
};
use crate::trust::{
    authority::{Authority, Credentials, save_certificate},
    identity::{Identity, LocalNode},
    replacement::{Known, tests::replaced},
    token::JoinToken,
};

#[derive(Debug, Default)]
struct Tokens(Mutex<BTreeSet<[u8; 32]>>);

impl TokenLookup for Tokens {
    fn is_valid(&self, key_hash: &[u8; 32]) -> bool {
        self.0.lock().unwrap().contains(key_hash)
    }
}

fn node(cluster: Ulid, authority: Authority, id: u64) -> LocalNode {
    let credentials = authority.issue_node(id, "host-a").unwrap();
    let address = "127.0.0.1:1".to_owned();
    let (name, members) = ("host-a".to_owned(), Vec::new());
    let identity = Identity {
        cluster,
        incarnation: cluster,
        node: id,
        name,
        listen: address.clone(),
        advertise: address,
        members,
    };
    LocalNode {
        identity,
        authority,
        credentials,
        replacement: None,
    }
}

/// A node that greets everybody whom it lets in and tells who it was.
struct Server {
    node: LocalNode,
    own: Arc<OwnCertificate>,
    tokens: Arc<Tokens>,
    address: String,
    peers: mpsc::Receiver<Peer>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn time() -> Arc<dyn TimeProvider> {
    Arc::new(DefaultTimeProvider)
}

impl Server {
    async fn start() -> Self {
        Self::start_of(Authority::create(Ulid::from_parts(1, 1)).unwrap()).await
    }

    async fn start_of(authority: Authority) -> Self {
        let node = node(authority.cluster(), authority, 1);
        let tokens = Arc::new(Tokens::default());
        let own = OwnCertificate::new(&node).unwrap();
        let tls = ServerTls::new(&node, own.clone(), tokens.clone(), time()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, peers) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            let mut incoming = std::pin::pin!(tls_incoming(listener, tls, |_, _| {}));
            while let Some(connection) = incoming.next().await {
                let mut connection = connection.unwrap();
                seen.send(connection.connect_info()).await.unwrap();
                // The client may have gone already.
                let _ = connection.write_all(b"hello").await;
                let _ = connection.shutdown().await;
            }
        });
        Self {
            node,
            own,
            tokens,
            address,
            peers,
            task,
        }
    }

    async fn probe(
        &self,
        server_name: &str,
        config: Arc<ClientConfig>,
    ) -> Result<(), ConnectError> {
        let (address, server_name) = (self.address.clone(), server_name.to_owned());
        probe(&Target::Tls {
            address,
            server_name,
            config,
        })
        .await
    }

    fn token(&self) -> JoinToken {
        let fingerprint = self.node.authority.fingerprint();
        JoinToken::generate(
            Ulid::from_parts(5, 5),
            fingerprint,
            std::slice::from_ref(&self.address),
        )
        .unwrap()
    }

    async fn role(&mut self) -> PeerRole {
        self.peers.recv().await.unwrap().role
    }
}

fn user(authority: &Authority, own: &Credentials) -> Arc<ClientConfig> {
    let folder = tempfile::tempdir().unwrap();
    save_certificate(authority.certificate(), &folder.path().join("ca.pem")).unwrap();
    own.save(
        &folder.path().join("cert.pem"),
        &folder.path().join("key.pem"),
    )
    .unwrap();
    client::for_user(folder.path()).unwrap()
}

#[tokio::test]
async fn an_administrator_is_let_in() {
    let mut server = Server::start().await;
    let config = user(
        &server.node.authority,
        &server.node.authority.issue_admin("ann").unwrap(),
    );
    server.probe(AGENT_SERVER_NAME, config).await.unwrap();
    let role = server.role().await;
    assert!(
        matches!(&role, PeerRole::User(user) if user.name == "ann" && user.owner == "ann" && user.role == Role::Admin),
        "{role:?}"
    );
}

#[tokio::test]
async fn a_node_is_let_in_and_dials_exactly_the_one_it_means() {
    let mut server = Server::start().await;
    let own = Authority::from_der(
        server.node.identity.cluster,
        server.node.authority.certificate(),
        &server.node.authority.key_der(),
    );
    let peer = node(server.node.identity.cluster, own.unwrap(), 2);
    let config = client::for_node(OwnCertificate::new(&peer).unwrap(), time()).unwrap();
    server
        .probe(&node_server_name(1), config.clone())
        .await
        .unwrap();
    assert_eq!(server.role().await, PeerRole::Node(2));
    let error = server
        .probe(&node_server_name(3), config)
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
}

#[tokio::test]
async fn a_certificate_that_was_renewed_is_shown_from_then_on_by_server_and_client() {
    let mut server = Server::start().await;
    let authority = &server.node.authority;
    let own = Authority::from_der(
        server.node.identity.cluster,
        authority.certificate(),
        &authority.key_der(),
    );
    let peer = node(server.node.identity.cluster, own.unwrap(), 2);
    let shown = OwnCertificate::new(&peer).unwrap();
    let config = client::for_node(shown.clone(), time()).unwrap();
    let name = node_server_name(1);
    let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
    let ended = |id, own: &Credentials| Credentials {
        certificate: authority
            .sign_node_until(id, "host-a", own, yesterday)
            .unwrap(),
        key: own.key.clone_key(),
    };
    // Neither side takes one that has ended.
    server.own.set(&ended(1, &server.node.credentials)).unwrap();
    let error = server.probe(&name, config.clone()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
    server.own.set(&server.node.credentials).unwrap();
    shown.set(&ended(2, &peer.credentials)).unwrap();
    let error = server.probe(&name, config.clone()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    assert!(server.peers.try_recv().is_err());
    shown.set(&peer.credentials).unwrap();
    server.probe(&name, config).await.unwrap();
    assert_eq!(server.role().await, PeerRole::Node(2));
}

#[tokio::test]
async fn nobody_is_let_in_without_a_certificate() {
    let mut server = Server::start().await;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(server.node.authority.certificate().clone())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    let error = server
        .probe(AGENT_SERVER_NAME, Arc::new(config))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    assert!(server.peers.try_recv().is_err());
}

#[tokio::test]
async fn another_authority_is_refused_by_both_sides() {
    let mut server = Server::start().await;
    // It calls itself by the same cluster's id: what counts is who signed.
    let other = Authority::create(server.node.identity.cluster).unwrap();
    let admin = other.issue_admin("ann").unwrap();
    let error = server
        .probe(AGENT_SERVER_NAME, user(&server.node.authority, &admin))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    let error = server
        .probe(AGENT_SERVER_NAME, user(&other, &admin))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
    assert!(server.peers.try_recv().is_err());
}

#[tokio::test]
async fn a_certificate_for_another_cluster_is_refused() {
    let mut server = Server::start().await;
    let (certificate, key) = (
        server.node.authority.certificate().clone(),
        server.node.authority.key_der(),
    );
    let misnamed = Authority::from_der(Ulid::from_parts(2, 2), &certificate, &key).unwrap();
    let config = user(
        &server.node.authority,
        &misnamed.issue_admin("ann").unwrap(),
    );
    assert!(server.probe(AGENT_SERVER_NAME, config).await.is_err());
    assert!(server.peers.try_recv().is_err());
}

#[tokio::test]
async fn a_token_lets_in_as_a_joiner_and_only_while_it_is_valid() {
    let mut server = Server::start().await;
    let token = server.token();
    let key_hash = token.key_hash().unwrap();
    let config = client::for_joiner(&token).unwrap();
    let error = server
        .probe(AGENT_SERVER_NAME, config.clone())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::Refused { .. }),
        "unknown: {error:?}"
    );
    server.tokens.0.lock().unwrap().insert(key_hash);
    server
        .probe(AGENT_SERVER_NAME, config.clone())
        .await
        .unwrap();
    assert_eq!(server.role().await, PeerRole::Joiner { key_hash });
    server.tokens.0.lock().unwrap().clear();
    let error = server.probe(AGENT_SERVER_NAME, config).await.unwrap_err();
    assert!(
        matches!(error, ConnectError::Refused { .. }),
        "used up: {error:?}"
    );
    assert!(server.peers.try_recv().is_err());
}

#[tokio::test]
async fn a_newcomer_is_not_lured_to_another_authority() {
    let server = Server::start().await;
    let (addresses, other) = (
        [server.address.clone()],
        Authority::create(server.node.identity.cluster).unwrap(),
    );
    let token =
        JoinToken::generate(Ulid::from_parts(5, 5), other.fingerprint(), &addresses).unwrap();
    server
        .tokens
        .0
        .lock()
        .unwrap()
        .insert(token.key_hash().unwrap());
    let error = server
        .probe(AGENT_SERVER_NAME, client::for_joiner(&token).unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
}

#[tokio::test]
async fn a_silent_connection_does_not_hold_up_others() {
    let mut server = Server::start().await;
    let _silent = tokio::net::TcpStream::connect(&server.address)
        .await
        .unwrap();
    let config = user(
        &server.node.authority,
        &server.node.authority.issue_admin("ann").unwrap(),
    );
    server.probe(AGENT_SERVER_NAME, config).await.unwrap();
    let role = server.role().await;
    assert!(
        matches!(&role, PeerRole::User(user) if user.name == "ann" && user.owner == "ann" && user.role == Role::Admin),
        "{role:?}"
    );
}

#[tokio::test]
async fn the_unix_socket_is_private_and_replaces_a_dead_agents() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/agent.sock");
    drop(bind_unix(&path).unwrap());
    let listener = bind_unix(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        bind_unix(&path).unwrap_err().kind(),
        std::io::ErrorKind::AddrInUse
    );
    let mut incoming = std::pin::pin!(unix_incoming(listener));
    // The probe above was a connection, too.
    incoming.next().await.unwrap().unwrap();
    let target = Target::Unix(path);
    let (connected, accepted) = tokio::join!(probe(&target), incoming.next());
    connected.unwrap();
    assert_eq!(
        accepted.unwrap().unwrap().connect_info(),
        Peer {
            role: PeerRole::Local,
            shown: None,
            address: None
        }
    );
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_unreachable() {
    let error = probe(&Target::Unix("/nonexistent/agent.sock".into()))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "cannot connect to unix:///nonexistent/agent.sock"
    );
}

impl Server {
    /// Follows a replacement, with a certificate of the new authority.
    fn renew(&self, known: &Known, new: &Authority) {
        let certificate = new
            .sign_node_again(1, "host-a", &self.node.credentials)
            .unwrap();
        let renewed = Credentials {
            certificate,
            key: self.node.credentials.key.clone_key(),
        };
        let trusted = &self.own.trusted;
        trusted.set(new.certificate(), known.clone()).unwrap();
        self.own
            .set_under(&renewed, new.certificate().clone())
            .unwrap();
    }
}

#[tokio::test]
async fn while_the_authority_is_replaced_both_are_trusted_and_who_knows_only_the_old_one_believes_the_new()
 {
    let mut server = Server::start().await;
    let old = Authority::from_der(
        server.node.identity.cluster,
        server.node.authority.certificate(),
        &server.node.authority.key_der(),
    )
    .unwrap();
    let ann = user(&old, &old.issue_admin("ann").unwrap());
    let token = server.token();
    let key_hash = token.key_hash().unwrap();
    server.tokens.0.lock().unwrap().insert(key_hash);
    let joiner = client::for_joiner(&token).unwrap();
    let away = node(old.cluster(), old, 2);
    let away = client::for_node(OwnCertificate::new(&away).unwrap(), time()).unwrap();

    let old = &server.node.authority;
    let of_old = old.fingerprint();
    let (known, new) = replaced(old, ReplacementPhase::Renewing, false, &[]);
    server.renew(&known, &new);
    let bob = user(&new, &new.issue_admin("bob").unwrap());
    for config in [&ann, &bob] {
        let probed = server.probe(AGENT_SERVER_NAME, config.clone()).await;
        probed.unwrap();
        assert!(matches!(server.role().await, PeerRole::User(_)));
    }
    server
        .probe(AGENT_SERVER_NAME, joiner.clone())
        .await
        .unwrap();
    assert_eq!(server.role().await, PeerRole::Joiner { key_hash });
    server
        .probe(&node_server_name(1), away.clone())
        .await
        .unwrap();
    let peer = server.peers.recv().await.unwrap();
    assert_eq!(peer.role, PeerRole::Node(2));
    assert_eq!(peer.shown.unwrap().authority, of_old);

    // After that who has one of the old is let in to be told so; a token that pins it is not believed.
    let finished = raft::state::Replacement {
        phase: ReplacementPhase::Finished,
        finished_at: Some(9),
        ..raft::state::Replacement::clone(&known.replacement)
    };
    let finished = Known {
        replacement: Arc::new(finished),
        ..known
    };
    server.renew(&finished, &new);
    server.probe(&node_server_name(1), away).await.unwrap();
    let peer = server.peers.recv().await.unwrap();
    let standing = finished.standing(&peer.shown.unwrap(), Some(2));
    assert_ne!(standing, crate::trust::replacement::Standing::Good);
    let error = server.probe(AGENT_SERVER_NAME, joiner).await.unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
    server.probe(AGENT_SERVER_NAME, bob).await.unwrap();
}

#[tokio::test]
async fn an_authority_that_has_ended_is_believed_and_can_be_replaced() {
    let mut server =
        Server::start_of(Authority::create_ended(Ulid::from_parts(1, 1)).unwrap()).await;
    let old = &server.node.authority;
    let ann = user(old, &old.issue_admin("ann").unwrap());
    let (known, new) = replaced(old, ReplacementPhase::Renewing, false, &[]);
    server.probe(AGENT_SERVER_NAME, ann.clone()).await.unwrap();
    assert!(matches!(server.role().await, PeerRole::User(_)));
    server.renew(&known, &new);
    let bob = user(&new, &new.issue_admin("bob").unwrap());
    for config in [ann, bob] {
        server.probe(AGENT_SERVER_NAME, config).await.unwrap();
        assert!(matches!(server.role().await, PeerRole::User(_)));
    }
}

#[tokio::test]
async fn with_a_leaked_key_nobody_passes_for_a_node_that_is_called() {
    let server = Server::start().await;
    let old = &server.node.authority;
    let real = crate::trust::authority::key_hash(&server.node.credentials.certificate).unwrap();
    let caller = |keys: &[(u64, [u8; 32])]| {
        let (known, new) = replaced(old, ReplacementPhase::Renewing, true, keys);
        let mut caller = node(old.cluster(), new, 2);
        caller.replacement = Some(known);
        client::for_node(OwnCertificate::new(&caller).unwrap(), time()).unwrap()
    };
    // What it shows is of the leaked key; but its own is known.
    let name = node_server_name(1);
    server.own.set(&server.node.credentials).unwrap();
    let error = server
        .probe(&name, caller(&[(1, [1; 32])]))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
    server.probe(&name, caller(&[(1, real)])).await.unwrap();
}

/// Whoever has the old key can sign an authority of his own, and put the new one's certificate beside it.
#[tokio::test]
async fn a_detour_over_the_old_authority_rests_on_the_old_authority() {
    let mut server = Server::start().await;
    let old = &server.node.authority;
    let (known, new) = replaced(old, ReplacementPhase::Renewing, true, &[]);
    server.renew(&known, &new);
    let (evil, cross) = old.successor().unwrap();
    let admin = evil.issue_admin("eve").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(new.certificate().clone()).unwrap();
    let chain = vec![admin.certificate, new.certificate().clone(), cross];
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, admin.key)
        .unwrap();
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    let probed = server.probe(AGENT_SERVER_NAME, Arc::new(config)).await;
    probed.unwrap();
    let peer = server.peers.recv().await.unwrap();
    let standing = known.standing(&peer.shown.unwrap(), None);
    assert_eq!(standing, crate::trust::replacement::Standing::Compromised);
}
