//! Who may call what: one table, looked at for every call before its service is.

use std::{
    convert::Infallible,
    mem,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures::future::BoxFuture;
use raft::{
    node::Caller,
    state::{Forgotten, NodeId, Role, State},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service, http},
};
use tower::Layer;

use super::asker::actor;
use crate::{
    audit::{self, Entry},
    errors::ApiError,
    metrics,
    node::{Node, now},
    peers::INCARNATION,
    trust::{
        authority::{User, unit_of},
        identity::Identity,
        tls::{accept::Peer, server::PeerRole},
    },
};

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Somebody with this role or one that may more, or who may open the Unix socket.
    Role(Role),
    /// A join token.
    Token,
    /// A node of the cluster.
    Node,
    /// A node of the cluster, or one that was removed and that the consensus has not let go yet: it may be needed for that.
    Consensus,
}

/// What the calls begin with that nodes make beside the consensus.
const PEERS: &str = "forkypig.peer.v1.PeerService/";

use Needs::{Consensus, Node as ByNode};
const VIEWER: Needs = Needs::Role(Role::Viewer);
const OPERATOR: Needs = Needs::Role(Role::Operator);
const ADMIN: Needs = Needs::Role(Role::Admin);

/// All services, with what is needed for their calls. A call that is not in here is refused, whoever makes it.
const TABLE: &[(&str, &[(&str, Needs)])] = &[
    (
        "forkypig.v1.ClusterService",
        &[
            ("GetStatus", VIEWER),
            ("CheckHost", VIEWER),
            ("CreateToken", ADMIN),
            ("ListTokens", ADMIN),
            ("RevokeToken", ADMIN),
            ("CreateCertificate", ADMIN),
            ("ListCertificates", ADMIN),
            ("RevokeCertificate", ADMIN),
            ("CreateBackup", ADMIN),
        ],
    ),
    (
        "forkypig.v1.NodeService",
        &[
            ("ListNodes", VIEWER),
            ("GetNode", VIEWER),
            ("LabelNode", ADMIN),
            ("CordonNode", ADMIN),
            ("DeleteNode", ADMIN),
        ],
    ),
    (
        "forkypig.v1.ImageService",
        &[
            ("ImportImage", OPERATOR),
            ("ListImages", VIEWER),
            ("GetImage", VIEWER),
            ("DeleteImage", OPERATOR),
        ],
    ),
    (
        "forkypig.v1.VmService",
        &[
            ("CreateVm", OPERATOR),
            ("ListVms", VIEWER),
            ("GetVm", VIEWER),
            ("SetVmPower", OPERATOR),
            ("DeleteVm", OPERATOR),
            ("ResetVm", OPERATOR),
            ("SuspendVm", OPERATOR),
            ("WaitVm", VIEWER),
            ("Fork", OPERATOR),
            ("ReadLogs", VIEWER),
            ("Console", OPERATOR),
        ],
    ),
    (
        "forkypig.v1.SnapshotService",
        &[
            ("CreateSnapshot", OPERATOR),
            ("ListSnapshots", VIEWER),
            ("GetSnapshot", VIEWER),
            ("TagSnapshot", OPERATOR),
            ("WarmSnapshot", OPERATOR),
            ("DeleteSnapshot", OPERATOR),
        ],
    ),
    (
        "forkypig.v1.GuestService",
        &[
            ("Exec", OPERATOR),
            ("Forward", OPERATOR),
            ("CopyIn", OPERATOR),
            ("CopyOut", OPERATOR),
        ],
    ),
    (
        "forkypig.v1.OperationService",
        &[
            ("ListOperations", VIEWER),
            ("GetOperation", VIEWER),
            ("CancelOperation", OPERATOR),
        ],
    ),
    (
        "forkypig.v1.OwnerService",
        &[
            ("Share", OPERATOR),
            ("SetQuota", ADMIN),
            ("GetQuota", VIEWER),
            ("ListQuotas", VIEWER),
            ("DeleteQuota", ADMIN),
        ],
    ),
    (
        "forkypig.v1.JoinService",
        &[("Join", Needs::Token), ("WithdrawJoin", Needs::Token)],
    ),
    (
        "forkypig.peer.v1.RaftService",
        &[
            ("AppendEntries", Consensus),
            ("Vote", Consensus),
            ("InstallSnapshot", Consensus),
            ("Propose", Consensus),
            ("HearLeader", Consensus),
            ("ReadIndex", Consensus),
        ],
    ),
    (
        "forkypig.peer.v1.PeerService",
        &[
            ("RenewLease", ByNode),
            ("Observe", ByNode),
            ("PrepareFork", ByNode),
            ("HandSecrets", ByNode),
            ("FetchFile", ByNode),
            ("ReadConsole", ByNode),
            ("Console", ByNode),
            ("Exec", ByNode),
            ("WaitGuest", ByNode),
            ("Forward", ByNode),
            ("CopyIn", ByNode),
            ("CopyOut", ByNode),
        ],
    ),
    (
        "grpc.health.v1.Health",
        &[("Check", VIEWER), ("Watch", VIEWER), ("List", VIEWER)],
    ),
    (
        "grpc.reflection.v1.ServerReflection",
        &[("ServerReflectionInfo", VIEWER)],
    ),
];

/// What a call needs, by its path without the slash before it.
fn needs(call: &str) -> Option<Needs> {
    let (service, method) = call.split_once('/')?;
    let (_, methods) = TABLE.iter().find(|(name, _)| *name == service)?;
    let found = methods.iter().find(|(name, _)| *name == method);
    found.map(|(_, needs)| *needs)
}

/// Whether somebody may do what needs this; if not, why. `takes_part` tells whether a node takes part in the consensus.
fn check(
    who: &PeerRole,
    needs: Needs,
    state: &State,
    takes_part: impl FnOnce(NodeId) -> bool,
) -> Result<(), ApiError> {
    let refused = match (who, needs) {
        (PeerRole::Local, Needs::Role(_)) | (PeerRole::Joiner { .. }, Needs::Token) => {
            return Ok(());
        }
        (PeerRole::Node(id), Needs::Node | Consensus) => {
            if !state.was_removed(*id) {
                return Ok(());
            }
            match (takes_part(*id), needs) {
                (true, Consensus) => return Ok(()),
                (true, _) => format!("node {id} is being removed from the cluster"),
                (false, _) => return Err(ApiError::NodeRemoved(*id)),
            }
        }
        (PeerRole::User(user), Needs::Role(least)) => match is_valid(user, state) {
            Ok(()) if user.role >= least => return Ok(()),
            Ok(()) => {
                let (least, own) = (unit_of(least), unit_of(user.role));
                format!("this needs the role {least}, and {} is {own}", user.name)
            }
            Err(problem) => problem,
        },
        (PeerRole::Joiner { .. }, _) => "a join token allows nothing but joining".to_owned(),
        (_, Needs::Token) => "joining needs a join token".to_owned(),
        (_, Needs::Node | Consensus) => "only nodes of the cluster may call this".to_owned(),
        (PeerRole::Node(_), Needs::Role(_)) => {
            "a node's certificate is for what nodes ask of each other".to_owned()
        }
    };
    Err(ApiError::NotAllowed(refused))
}

/// Refuses what a node asks that is in another incarnation of the cluster: it knows neither what is there now nor who may do what. The
/// consensus looks at that by itself.
fn check_incarnation(
    call: &str,
    named: Option<&http::HeaderValue>,
    identity: &Identity,
) -> Result<(), String> {
    let own = identity.incarnation.to_string();
    let is_same = named.is_some_and(|named| named.as_bytes() == own.as_bytes());
    match call.starts_with(PEERS) && !is_same {
        true => Err("the cluster was recovered or restored without this node".to_owned()),
        false => Ok(()),
    }
}

/// Whether somebody's certificate is still good: its connection may be older than what became of it. The state forgets one that has
/// ended, revoked or not, so that its end is told by itself; and it may not know yet of one that another node has just signed.
fn is_valid(user: &User, state: &State) -> Result<(), String> {
    let noted = state.certificates.get(&user.certificate);
    // It may have been revoked, which nobody remembers.
    let is_older = |forgotten: &Forgotten| forgotten.is_older(user.certificate.0);
    let problem = if user.expires_at <= now() {
        "has expired"
    } else if noted.is_some_and(|noted| noted.revoked_at.is_some()) {
        "was revoked"
    } else if noted.is_none() && state.forgotten.as_ref().is_some_and(is_older) {
        "is not known since the cluster's state was put back"
    } else {
        return Ok(());
    };
    let (id, name) = (user.certificate, &user.name);
    Err(format!("the certificate {id} of {name} {problem}"))
}

/// Refuses calls that their callers may not make, and has those that change something in the audit log.
#[derive(Debug, Clone)]
pub struct Access {
    node: Arc<Node>,
}

impl Access {
    /// To a node.
    pub fn new(node: &Arc<Node>) -> Self {
        Self {
            node: Arc::clone(node),
        }
    }
}

impl<S> Layer<S> for Access {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            inner,
            node: Arc::clone(&self.node),
        }
    }
}

/// What is guarded so.
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    inner: S,
    node: Arc<Node>,
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let call = request.uri().path().trim_start_matches('/').to_owned();
        let peer = request.extensions().get::<Peer>().cloned();
        let caller = peer.as_ref().and_then(|peer| match peer.role {
            PeerRole::Node(id) => Some(Caller(id)),
            _ => None,
        });
        let asker = peer.as_ref().and_then(|peer| actor(&peer.role));
        let wants_metrics = call == metrics::PATH;
        let needs = match wants_metrics {
            true => Some(VIEWER),
            false => needs(&call),
        };
        let named = request.headers().get(INCARNATION);
        let checked = match (&peer, needs) {
            (Some(peer), Some(needs)) => check_incarnation(&call, named, &self.node.identity)
                .map_err(ApiError::NotAllowed)
                .and_then(|()| {
                    let takes_part = |id| self.node.raft.status().takes_part(id);
                    check(&peer.role, needs, &self.node.state(), takes_part)
                }),
            // Such as one of a newer client.
            (Some(_), None) => Err(ApiError::Unsupported("there is no such call".to_owned())),
            (None, _) => Err(ApiError::NotAllowed("nobody knows who this is".to_owned())),
        };
        let name = call.clone();
        let node = Arc::clone(&self.node);
        let entry = move |about: &str, outcome: &str| {
            let entry = Entry {
                call: &call,
                peer: peer.as_ref(),
                about,
                outcome,
            };
            match peer.as_ref().map(|peer| &peer.role) {
                // One that was removed may call again and again.
                Some(PeerRole::Node(_)) => node.audit.refused_node(&entry),
                _ => node.audit.note(&entry),
            }
        };
        if let Err(why) = checked {
            entry("", &format!("refused: {why}"));
            return Box::pin(async move {
                Ok(match wants_metrics {
                    true => plain(http::StatusCode::FORBIDDEN, format!("{why}\n")),
                    false => Status::from(why).into_http(),
                })
            });
        }
        if wants_metrics {
            let node = Arc::clone(&self.node);
            return Box::pin(
                async move { Ok(plain(http::StatusCode::OK, metrics::text(&node).await)) },
            );
        }
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        // The one that is ready, and not its copy.
        let next = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, next);
        // For who sees not all, what is not found may be another's.
        let may_be_hidden = asker.is_some_and(|by| !by.is_admin);
        let is_audited = !matches!(needs, Some(VIEWER | Needs::Node | Consensus));
        Box::pin(async move {
            let begun = Instant::now();
            let (about, answer) = audit::during(inner.call(request)).await;
            let Ok(answer) = answer;
            let outcome = outcome(&answer);
            metrics::call(&name, outcome, begun.elapsed());
            let is_refused = is_refusal(outcome) || (may_be_hidden && outcome == NOT_FOUND);
            match (outcome, is_audited || is_refused) {
                (_, false) => {}
                (OK, true) => entry(&about, OK),
                (failed, true) => entry(&about, &format!("failed: {failed}")),
            }
            Ok(answer)
        })
    }
}

/// Whether a call was refused for what it carried: what cannot be a field's value, is larger than a message may be, or is said for
/// another. Somebody tries something, whatever the call is.
fn is_refusal(outcome: &str) -> bool {
    matches!(
        outcome,
        "invalid-argument" | "out-of-range" | "permission-denied"
    )
}

/// An answer for who does not speak gRPC.
fn plain(status: http::StatusCode, text: String) -> http::Response<Body> {
    let mut answer = http::Response::new(Body::new(text));
    *answer.status_mut() = status;
    let kind = http::HeaderValue::from_static(metrics::CONTENT_TYPE);
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    answer
}

/// The outcome of what is about something that is not there, or not for its caller.
const NOT_FOUND: &str = "not-found";

/// The outcome of what did not fail.
const OK: &str = "ok";

/// What became of a call, as far as its answer's beginning says it: a stream may still break.
fn outcome(answer: &http::Response<Body>) -> &'static str {
    let status = answer.headers().get(Status::GRPC_STATUS);
    match status.map(|status| Code::from_bytes(status.as_bytes())) {
        None | Some(Code::Ok) => OK,
        Some(Code::Cancelled) => "cancelled",
        Some(Code::Unknown) => "unknown",
        Some(Code::InvalidArgument) => "invalid-argument",
        Some(Code::DeadlineExceeded) => "deadline-exceeded",
        Some(Code::NotFound) => NOT_FOUND,
        Some(Code::AlreadyExists) => "already-exists",
        Some(Code::PermissionDenied) => "permission-denied",
        Some(Code::ResourceExhausted) => "resource-exhausted",
        Some(Code::FailedPrecondition) => "failed-precondition",
        Some(Code::Aborted) => "aborted",
        Some(Code::OutOfRange) => "out-of-range",
        Some(Code::Unimplemented) => "unimplemented",
        Some(Code::Internal) => "internal",
        Some(Code::Unavailable) => "unavailable",
        Some(Code::DataLoss) => "data-loss",
        Some(Code::Unauthenticated) => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;
    use raft::state::{Certificate, CertificateId};

    use super::*;

    const SERIAL: CertificateId = CertificateId(7);

    fn user(role: Role) -> PeerRole {
        PeerRole::User(User {
            name: "ann".to_owned(),
            owner: "ann".to_owned(),
            role,
            certificate: SERIAL,
            expires_at: u64::MAX,
        })
    }

    fn everybody() -> Vec<PeerRole> {
        vec![
            user(Role::Viewer),
            user(Role::Operator),
            user(Role::Admin),
            PeerRole::Local,
            PeerRole::Node(2),
            PeerRole::Joiner { key_hash: [1; 32] },
        ]
    }

    #[test]
    fn every_call_that_there_is_is_in_the_table_and_no_other() {
        let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let there: BTreeSet<String> = set
            .file
            .iter()
            .flat_map(|file| file.service.iter().map(move |service| (file, service)))
            .flat_map(|(file, service)| {
                service.method.iter().map(move |method| {
                    format!("{}.{}/{}", file.package(), service.name(), method.name())
                })
            })
            .collect();
        let ours = TABLE
            .iter()
            .filter(|(service, _)| service.starts_with("forkypig."));
        let known: BTreeSet<String> = ours
            .flat_map(|(service, methods)| {
                methods
                    .iter()
                    .map(move |(method, _)| format!("{service}/{method}"))
            })
            .collect();
        assert_eq!(there, known);
    }

    #[test]
    fn each_may_call_what_the_table_says_and_nothing_else() {
        let state = State::new();
        for (service, methods) in TABLE {
            for (method, _) in *methods {
                let needs = needs(&format!("{service}/{method}")).unwrap();
                // Viewer, operator, admin, the socket, a node, a joiner.
                let may = match needs {
                    VIEWER => [true, true, true, true, false, false],
                    OPERATOR => [false, true, true, true, false, false],
                    ADMIN => [false, false, true, true, false, false],
                    ByNode | Consensus => [false, false, false, false, true, false],
                    Needs::Token => [false, false, false, false, false, true],
                };
                for (who, may) in everybody().iter().zip(may) {
                    let checked = check(who, needs, &state, |_| false);
                    assert_eq!(
                        checked.is_ok(),
                        may,
                        "{who:?} {service}/{method}: {checked:?}"
                    );
                }
            }
        }
        for none in [
            "",
            "/",
            "forkypig.v1.VmService",
            "forkypig.v1.VmService/",
            "VmService/GetVm",
        ] {
            assert_eq!(needs(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_certificate_that_was_revoked_or_has_ended_allows_nothing() {
        let mut state = State::new();
        let mut ann = User {
            name: "ann".to_owned(),
            owner: "ann".to_owned(),
            role: Role::Admin,
            certificate: SERIAL,
            expires_at: u64::MAX,
        };
        assert_eq!(is_valid(&ann, &state), Ok(()), "it is not known yet");
        let mut noted = Certificate {
            name: "ann".to_owned(),
            owner: "ann".to_owned(),
            role: Role::Admin,
            created_at: 1,
            expires_at: u64::MAX,
            revoked_at: None,
        };
        state.certificates.insert(SERIAL, noted.clone());
        assert_eq!(is_valid(&ann, &state), Ok(()));
        noted.revoked_at = Some(2);
        state.certificates.insert(SERIAL, noted);
        assert!(is_valid(&ann, &state).unwrap_err().contains("revoked"));
        // One that a state does not know which was put back since: whether it was revoked nobody remembers.
        state.certificates.clear();
        state.forgotten = Some(Forgotten { from: 5, to: 7 });
        assert!(is_valid(&ann, &state).unwrap_err().contains("put back"));
        ann.certificate = CertificateId(8 << 80);
        assert_eq!(is_valid(&ann, &state), Ok(()), "it was made after that");
        // However long its connection stands, and though nobody remembers any more that it was revoked.
        ann.expires_at = 2;
        state.certificates.clear();
        assert!(is_valid(&ann, &state).unwrap_err().contains("expired"));
    }

    #[test]
    fn a_node_that_was_removed_may_only_help_to_let_it_go() {
        let mut state = State::new();
        let node = PeerRole::Node(2);
        let may = |state: &State, needs, takes_part| check(&node, needs, state, |_| takes_part);
        assert!(may(&state, ByNode, false).is_ok(), "it is not known yet");
        state.next_node = 3;
        assert!(may(&state, Consensus, true).is_ok());
        let leaving = may(&state, ByNode, true).unwrap_err();
        assert!(matches!(leaving, ApiError::NotAllowed(_)), "{leaving}");
        for needs in [ByNode, Consensus] {
            let removed = may(&state, needs, false).unwrap_err();
            assert!(matches!(removed, ApiError::NodeRemoved(2)), "{removed}");
        }
    }

    #[test]
    fn what_a_node_of_another_incarnation_asks_is_refused() {
        let incarnation = ulid::Ulid::from_parts(3, 4);
        let address = "127.0.0.1:7400".to_owned();
        let identity = Identity {
            cluster: ulid::Ulid::from_parts(1, 2),
            incarnation,
            node: 1,
            name: "host-a".to_owned(),
            listen: address.clone(),
            advertise: address,
            members: Vec::new(),
        };
        let named = |text: String| http::HeaderValue::try_from(text).unwrap();
        let (own, other) = (
            named(incarnation.to_string()),
            named(identity.cluster.to_string()),
        );
        let lease = "forkypig.peer.v1.PeerService/RenewLease";
        assert!(
            TABLE
                .iter()
                .any(|(service, _)| PEERS == format!("{service}/"))
        );
        assert_eq!(check_incarnation(lease, Some(&own), &identity), Ok(()));
        assert!(check_incarnation(lease, Some(&other), &identity).is_err());
        assert!(check_incarnation(lease, None, &identity).is_err());
        // Users are in none.
        let list = "forkypig.v1.VmService/ListVms";
        assert_eq!(check_incarnation(list, None, &identity), Ok(()));
    }

    #[test]
    fn an_answer_says_what_became_of_the_call() {
        assert_eq!(outcome(&http::Response::new(Body::empty())), "ok");
        let refused = Status::not_found("x").into_http();
        assert_eq!(outcome(&refused), "not-found");
    }
}
