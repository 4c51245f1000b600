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
    state::{Forgotten, Millis, NodeId, Role, State},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service, http},
};
use tower::Layer;

use super::{asker::actor, authority};
use crate::{
    audit::{self, Entry},
    errors::ApiError,
    metrics,
    node::Node,
    peers::INCARNATION,
    trust::{
        authority::{User, unit_of},
        identity::Identity,
        replacement::{Known, Standing},
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
            ("GetAuthority", VIEWER),
            ("ReplaceAuthority", ADMIN),
            ("FinishAuthority", ADMIN),
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
            ("DrainNode", ADMIN),
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
            ("MoveVm", OPERATOR),
            ("ProtectVm", OPERATOR),
            ("WaitVm", VIEWER),
            ("Fork", OPERATOR),
            ("ForkGroup", OPERATOR),
            ("ListGroups", VIEWER),
            ("GetGroup", VIEWER),
            ("DeleteGroup", OPERATOR),
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
            ("ReplicateSnapshot", OPERATOR),
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
        "forkypig.v1.LeaseService",
        &[
            ("CreateLease", OPERATOR),
            ("RenewLease", OPERATOR),
            ("EndLease", OPERATOR),
            ("ListLeases", VIEWER),
            ("SetKeep", OPERATOR),
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
        "forkypig.v1.MapService",
        &[
            ("StartMap", OPERATOR),
            ("ListMaps", VIEWER),
            ("GetMap", VIEWER),
            ("ReadMap", VIEWER),
            ("CancelMap", OPERATOR),
            ("DeleteMap", OPERATOR),
        ],
    ),
    ("forkypig.v1.EventService", &[("ReadEvents", VIEWER)]),
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
            ("ReceiveVm", ByNode),
            ("FetchAuthority", ByNode),
            ("DescribeFile", ByNode),
            ("ReadFile", ByNode),
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

/// Whether somebody may do what needs this now; if not, why. `takes_part` tells whether a node takes part in the consensus.
fn check(
    who: &PeerRole,
    needs: Needs,
    state: &State,
    now: Millis,
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
        (PeerRole::User(user), Needs::Role(least)) => match is_valid(user, state, now) {
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

/// Refuses whose certificate rests on an authority that was replaced, or whose key is in wrong hands: its connection may be older than what
/// became of that. Of the others `check` says what they may. A node that was removed is told that, whatever became of the authority since.
fn check_standing(
    peer: &Peer,
    known: Option<&Known>,
    check: impl FnOnce() -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let checked = check();
    let (Some(shown), Some(known)) = (&peer.shown, known) else {
        return checked;
    };
    let (node, whose, hint) = match &peer.role {
        PeerRole::Node(id) => (
            Some(*id),
            format!("the certificate of node {id}"),
            "remove the node on another one (`fpagent node rm NAME --force`), take what you need out of its data directory, empty that, \
             and join with a new token"
                .to_owned(),
        ),
        PeerRole::User(user) => (
            None,
            format!("the certificate {} of {}", user.certificate, user.name),
            format!(
                "an administrator makes a new one: `fpagent cert create {} --role {}`",
                user.name,
                unit_of(user.role)
            ),
        ),
        PeerRole::Joiner { .. } | PeerRole::Local => return checked,
    };
    match (known.standing(shown, node), &checked) {
        (Standing::Good, _) | (_, Err(ApiError::NodeRemoved(_))) => checked,
        (Standing::Replaced | Standing::Compromised, _) => {
            Err(ApiError::AuthorityReplaced { whose, hint })
        }
    }
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
fn is_valid(user: &User, state: &State, now: Millis) -> Result<(), String> {
    let noted = state.certificates.get(&user.certificate);
    // It may have been revoked, which nobody remembers.
    let is_older = |forgotten: &Forgotten| forgotten.is_older(user.certificate.0);
    let problem = if user.expires_at <= now {
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
                    let (state, now) = (self.node.state(), self.node.now());
                    let known = authority::known(&self.node, &state);
                    check_standing(peer, known.as_ref(), || {
                        check(&peer.role, needs, &state, now, takes_part)
                    })
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
mod tests;
