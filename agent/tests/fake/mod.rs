//! An agent that answers as a test tells it: over a Unix socket and over TLS, with real certificates and tokens.

mod services;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use agent::trust::{
    authority::{Authority, save_certificate},
    identity::{Identity, LocalNode, Member},
    tls::{
        accept::{bind_unix, tls_incoming, unix_incoming},
        own::OwnCertificate,
        server::{ServerTls, TokenLookup},
    },
};
use futures::stream;
use proto::v1::{
    cluster_service_server::ClusterServiceServer, image_service_server::ImageServiceServer,
    join_service_server::JoinServiceServer, snapshot_service_server::SnapshotServiceServer,
    vm_service_server::VmServiceServer,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Code, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt as _};
use ulid::Ulid;

/// What a call is answered with, when it is not answered as usual.
#[derive(Clone)]
pub enum Reply {
    /// With this status.
    Refuse(Status),
    /// Not at all.
    Never,
    /// Not at all: the connection breaks.
    Break,
}

/// Settings and secrets of a fork.
pub type Told = (BTreeMap<String, String>, BTreeMap<String, bytes::Bytes>);

/// What the services share.
pub struct Shared {
    node: LocalNode,
    https: String,
    replies: Mutex<VecDeque<Reply>>,
    always: Mutex<Option<Reply>>,
    request_ids: Mutex<Vec<String>>,
    told: Mutex<Option<Told>>,
    tokens: Arc<Tokens>,
    /// Whether newcomers are answered with another cluster's authority, and how many of them withdrew.
    lies: AtomicBool,
    withdrawn: AtomicUsize,
}

#[derive(Debug, Default)]
struct Tokens(Mutex<BTreeSet<[u8; 32]>>);

impl TokenLookup for Tokens {
    fn is_valid(&self, key_hash: &[u8; 32]) -> bool {
        self.0.lock().unwrap().contains(key_hash)
    }
}

/// A running agent.
pub struct Fake {
    /// `unix://…`
    pub address: String,
    /// `https://…`
    pub https: String,
    /// An administrator's certificate.
    pub certs: PathBuf,
    /// For what a test needs, too.
    pub folder: TempDir,
    shared: Arc<Shared>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// A status with details as agents send them.
pub fn status(code: Code, reason: &str, message: &str, hint: &str) -> Status {
    let metadata: HashMap<String, String> = [("hint".to_owned(), hint.to_owned())].into();
    Status::with_error_details(
        code,
        message,
        ErrorDetails::with_error_info(reason, "forkypig", metadata),
    )
}

impl Fake {
    /// Starts one with an authority of its own.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let advertise = listener.local_addr().unwrap().to_string();
        let cluster = Ulid::new();
        let authority = Authority::create(cluster).unwrap();
        let credentials = authority.issue_node(1, "host-a").unwrap();
        let certs = folder.path().join("certs");
        std::fs::create_dir(&certs).unwrap();
        save_certificate(authority.certificate(), &certs.join("ca.pem")).unwrap();
        authority
            .issue_admin("ann")
            .unwrap()
            .save(&certs.join("cert.pem"), &certs.join("key.pem"))
            .unwrap();
        let members = vec![Member {
            id: 1,
            name: "host-a".to_owned(),
            address: advertise.clone(),
        }];
        let (name, listen) = ("host-a".to_owned(), advertise.clone());
        let identity = Identity {
            cluster,
            incarnation: cluster,
            node: 1,
            name,
            listen,
            advertise: advertise.clone(),
            members,
        };
        let shared = Arc::new(Shared {
            node: LocalNode {
                identity,
                authority,
                credentials,
                replacement: None,
            },
            https: advertise.clone(),
            replies: Mutex::default(),
            always: Mutex::default(),
            request_ids: Mutex::default(),
            told: Mutex::default(),
            tokens: Arc::default(),
            lies: AtomicBool::default(),
            withdrawn: AtomicUsize::default(),
        });
        let socket = folder.path().join("agent.sock");
        let tls = ServerTls::new(
            &shared.node,
            OwnCertificate::new(&shared.node).unwrap(),
            shared.tokens.clone(),
            Arc::new(rustls::time_provider::DefaultTimeProvider),
        )
        .unwrap();
        let incoming = stream::select(
            Box::pin(tls_incoming(listener, tls, |_, _| {})),
            Box::pin(unix_incoming(bind_unix(&socket).unwrap())),
        );
        let (stop, stopped) = oneshot::channel();
        let serving = Server::builder()
            .add_service(VmServiceServer::from_arc(shared.clone()))
            .add_service(ImageServiceServer::from_arc(shared.clone()))
            .add_service(SnapshotServiceServer::from_arc(shared.clone()))
            .add_service(ClusterServiceServer::from_arc(shared.clone()))
            .add_service(JoinServiceServer::from_arc(shared.clone()))
            .serve_with_incoming_shutdown(incoming, async {
                // An error means that the test is over, too.
                let _ = stopped.await;
            });
        let task = tokio::spawn(async { serving.await.unwrap() });
        let address = format!("unix://{}", socket.display());
        Self {
            address,
            https: format!("https://{advertise}"),
            certs,
            folder,
            shared,
            stop,
            task,
        }
    }

    /// What the next calls are answered with; those after them are answered as usual.
    pub fn will(&self, replies: impl IntoIterator<Item = Reply>) {
        *self.shared.replies.lock().unwrap() = replies.into_iter().collect();
    }

    /// What all calls are answered with from now on; `None` for as usual.
    pub fn will_always(&self, reply: Option<Reply>) {
        *self.shared.always.lock().unwrap() = reply;
    }

    /// Newcomers are answered with another cluster's authority from now on.
    pub fn will_lie(&self) {
        self.shared.lies.store(true, Ordering::Relaxed);
    }

    /// How many newcomers have withdrawn.
    pub fn withdrawn(&self) -> usize {
        self.shared.withdrawn.load(Ordering::Relaxed)
    }

    /// The request ids that have come, in their order.
    pub fn request_ids(&self) -> Vec<String> {
        self.shared.request_ids.lock().unwrap().clone()
    }

    /// What the last fork's guests are told.
    pub fn told(&self) -> Option<Told> {
        self.shared.told.lock().unwrap().clone()
    }

    /// Ends it, and fails when something in it failed.
    pub async fn end(self) {
        // A panic in it is told by the join.
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }
}

impl Shared {
    /// Answers as the test told.
    async fn obey(&self, request_id: &str) -> Result<(), Status> {
        if !request_id.is_empty() {
            self.request_ids.lock().unwrap().push(request_id.to_owned());
        }
        let next = self.replies.lock().unwrap().pop_front();
        let reply = next.or_else(|| self.always.lock().unwrap().clone());
        match reply {
            None => Ok(()),
            Some(Reply::Refuse(status)) => Err(status),
            Some(Reply::Never) => std::future::pending().await,
            // It takes the connection's task with it, and so the connection.
            Some(Reply::Break) => panic!("the connection breaks, as the test wants"),
        }
    }
}
