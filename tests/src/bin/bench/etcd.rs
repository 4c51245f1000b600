//! Debian's etcd beside: three members on this machine with TLS between them and to clients, and what is asked of them by gRPC.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use harness::{cluster::signal, wait_for};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustix::process::Signal;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_prost::ProstCodec;

/// How long members may take to elect a leader, or to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// The name that all members' certificate has.
const NAME: &str = "localhost";

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
pub struct PutRequest {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Its value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// Of `etcdserverpb.PutResponse` nothing is looked at.
#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

/// `etcdserverpb.StatusResponse`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// `etcdserverpb.ResponseHeader`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// Calls of one member over one connection.
#[derive(Debug, Clone)]
pub struct Client(Grpc<Channel>);

impl Client {
    async fn call<Q, A>(&mut self, path: &'static str, request: Q) -> anyhow::Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        let answer = self.0.unary(Request::new(request), path, codec).await?;
        Ok(answer.into_inner())
    }

    /// Sets a key.
    pub async fn put(&mut self, request: PutRequest) -> anyhow::Result<()> {
        let _: PutResponse = self.call("/etcdserverpb.KV/Put", request).await?;
        Ok(())
    }

    async fn status(&mut self) -> anyhow::Result<StatusResponse> {
        self.call("/etcdserverpb.Maintenance/Status", StatusRequest {})
            .await
    }
}

/// A cluster of three, gone with the value.
pub struct Etcd {
    members: Vec<Child>,
    /// Where clients reach them.
    ports: Vec<u16>,
    tls: ClientTlsConfig,
}

/// What a member is started with.
struct Member {
    name: String,
    client: u16,
    peer: u16,
}

impl Member {
    fn peer_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.peer)
    }

    fn start(&self, folder: &Path, cluster: &str) -> anyhow::Result<Child> {
        let data = folder.join(&self.name);
        let log = File::create(data.with_extension("log"))?;
        let client = format!("https://127.0.0.1:{}", self.client);
        let file = |name: &str| folder.join(name).display().to_string();
        // It ends with whoever measures, whatever ends that.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program());
        command.arg("--data-dir").arg(&data);
        for (option, value) in [
            ("--name", self.name.as_str()),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &self.peer_url()),
            ("--initial-advertise-peer-urls", &self.peer_url()),
            ("--initial-cluster", cluster),
            ("--trusted-ca-file", &file("ca.pem")),
            ("--cert-file", &file("cert.pem")),
            ("--key-file", &file("key.pem")),
            ("--peer-trusted-ca-file", &file("ca.pem")),
            ("--peer-cert-file", &file("cert.pem")),
            ("--peer-key-file", &file("key.pem")),
        ] {
            command.arg(option).arg(value);
        }
        command
            .args(["--client-cert-auth", "--peer-client-cert-auth"])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("etcd cannot be started; deploy/deps.sh --bench fetches it")
    }
}

/// The program that `deploy/deps.sh --bench` fetched, or the system's.
fn program() -> PathBuf {
    let fetched = harness::repository().join(".local/etcd/usr/bin/etcd");
    match fetched.exists() {
        true => fetched,
        false => "etcd".into(),
    }
}

impl Etcd {
    /// Starts three members with their data in a folder.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let tls = certificates(folder)?;
        // Ports that are free now, all held until all are known.
        let held: Vec<TcpListener> = (0..6)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()?;
        let mut ports = Vec::new();
        for listener in &held {
            ports.push(listener.local_addr()?.port());
        }
        drop(held);
        let members: Vec<Member> = (1..)
            .zip(ports.chunks_exact(2))
            .map(|(number, pair)| Member {
                name: format!("etcd{number}"),
                client: pair[0],
                peer: pair[1],
            })
            .collect();
        let all: Vec<String> = members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url()))
            .collect();
        let mut started = Self {
            members: Vec::new(),
            ports: members.iter().map(|member| member.client).collect(),
            tls,
        };
        for member in &members {
            started.members.push(member.start(folder, &all.join(","))?);
        }
        Ok(started)
    }

    /// The members' processes.
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Child::id).collect()
    }

    /// A connection of its own to a member, by its number from 0 on. It is made when it is first used.
    pub fn connect(&self, member: usize) -> anyhow::Result<Client> {
        let address = format!("https://127.0.0.1:{}", self.ports[member]);
        let endpoint = Endpoint::from_shared(address)?.tls_config(self.tls.clone())?;
        Ok(Client(Grpc::new(endpoint.connect_lazy())))
    }

    /// The leading member's number, once there is one that all agree about, and its version.
    pub fn leader(&self, runtime: &tokio::runtime::Runtime) -> anyhow::Result<(usize, String)> {
        wait_for("a leader of etcd", PATIENCE, || {
            let mut found = None;
            for member in 0..self.ports.len() {
                let asked = runtime.block_on(async { self.connect(member)?.status().await });
                let Ok(status) = asked else { return Ok(None) };
                let own = status.header.map(|header| header.member_id);
                if status.leader == 0 {
                    return Ok(None);
                }
                if own == Some(status.leader) {
                    found = Some((member, status.version));
                }
            }
            Ok(found)
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let ended = signal(member.id(), Signal::TERM)
                .and_then(|()| wait_for("etcd's end", PATIENCE, || Ok(member.try_wait()?)));
            if let Err(error) = ended {
                eprintln!("{error:#}; it is killed");
                // An error says that it has ended.
                let _ = member.kill();
                let _ = member.wait();
            }
        }
    }
}

/// Writes an authority and one certificate of it, for members and clients alike, and gives what a client shows.
fn certificates(folder: &Path) -> anyhow::Result<ClientTlsConfig> {
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(DnType::CommonName, "etcd authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);

    let mut own = CertificateParams::new([NAME.to_owned(), "127.0.0.1".to_owned()])?;
    own.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let own_key = KeyPair::generate()?;
    let own_pem = own.signed_by(&own_key, &issuer)?.pem();
    let key_pem = own_key.serialize_pem();
    for (name, content) in [
        ("ca.pem", &authority_pem),
        ("cert.pem", &own_pem),
        ("key.pem", &key_pem),
    ] {
        fs::write(folder.join(name), content)?;
    }
    Ok(ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority_pem))
        .identity(Identity::from_pem(own_pem, key_pem))
        .domain_name(NAME))
}
