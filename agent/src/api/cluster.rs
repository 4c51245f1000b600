//! The cluster, its tokens, and newcomers.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use proto::v1::{
    Authority, Certificate, CheckHostRequest, CheckHostResponse, CreateBackupRequest,
    CreateBackupResponse, CreateCertificateRequest, CreateCertificateResponse, CreateTokenRequest,
    CreateTokenResponse, FinishAuthorityRequest, GetAuthorityRequest, GetStatusRequest,
    GetStatusResponse, JoinRequest, JoinResponse, ListCertificatesRequest,
    ListCertificatesResponse, ListTokensRequest, ListTokensResponse, ReplaceAuthorityRequest,
    RevokeCertificateRequest, RevokeTokenRequest, RevokeTokenResponse, Token, WithdrawJoinRequest,
    WithdrawJoinResponse, cluster_service_server::ClusterService, join_service_server::JoinService,
};
use raft::state::{
    self, Actor, CertificateId, Command, Owned, RequestKey, Response as Outcome, State, TokenId,
};
use tokio::{task::spawn_blocking, time::Instant};
use tonic::{Request, Response, Status};
use ulid::Ulid;

use super::{
    Api, asker::asked, authority, carry::Answers, deadline, request_key, role, unexpected,
};
use crate::{
    audit,
    backup::{About, Backup},
    blobs::hex,
    convert,
    errors::ApiError,
    trust::{
        authority::UserCertificate, names, replacement::Known, tls::server::PeerRole,
        token::JoinToken,
    },
    upgrade,
};

/// How long a token can be used when nobody says otherwise, and at most.
const TOKEN_TTL: Duration = Duration::from_secs(3600);
const LONGEST_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// The same for certificates.
const CERTIFICATE_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
const LONGEST_CERTIFICATE_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

/// How much of a backup is sent at once, bytes.
const BACKUP_CHUNK: usize = 1 << 20;

#[tonic::async_trait]
impl ClusterService for Api {
    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let (by, _) = asked(&request)?;
        let node = &self.node;
        let published = node.raft.published().borrow().clone();
        let (state, status) = (published.view, node.raft.status());
        let online = node.leases.online();
        let nodes: Vec<_> = state
            .nodes
            .values()
            .map(|one| convert::node(&state, &by, one, online.as_ref(), &status))
            .collect();
        let own = nodes.iter().find(|one| one.id == node.id()).cloned();
        // Of many VMs it takes long enough to hold up others.
        let whole = Arc::clone(&state);
        let digest = spawn_blocking(move || state::digest(&whole))
            .await
            .map_err(|error| ApiError::Internal(error.to_string()))?;
        Ok(Response::new(GetStatusResponse {
            cluster_id: node.cluster().to_string(),
            incarnation: node.identity.incarnation.to_string(),
            node: own,
            leader: status
                .leader
                .map_or_else(String::new, |leader| convert::node_name(&state, leader)),
            quorum: status.quorum_ok,
            term: status.term,
            applied_index: published.index,
            nodes,
            vms: seen(state.vms.len(), state.vms.values(), &by),
            snapshots: seen(state.snapshots.len(), state.snapshots.values(), &by),
            images: seen(state.images.len(), state.images.values(), &by),
            problems: self.problems(&status, online.as_ref()),
            started_at: Some(node.started_at.into()),
            state_digest: digest,
            memory: Some(node.host_memory().await.map_err(ApiError::Internal)?),
            version: state.version,
        }))
    }

    async fn check_host(
        &self,
        _: Request<CheckHostRequest>,
    ) -> Result<Response<CheckHostResponse>, Status> {
        Ok(Response::new(CheckHostResponse {
            checks: crate::doctor::check(&self.node),
        }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let ttl = match Duration::from_secs(request.ttl_seconds) {
            Duration::ZERO => TOKEN_TTL,
            ttl if ttl > LONGEST_TTL => {
                let problem = "a token can be used for 30 days at most".to_owned();
                return Err(ApiError::InvalidField {
                    field: "ttlSeconds",
                    problem,
                }
                .into());
            }
            ttl => ttl,
        };
        let state = self.read(deadline).await?;
        // This node's own address first: it knows of the token before the others.
        let mut addresses = vec![self.node.identity.advertise.clone()];
        addresses.extend(
            state
                .nodes
                .values()
                .filter(|node| node.id != self.node.id())
                .map(|node| node.address.clone()),
        );
        let id = Ulid::new();
        let authority = self.node.authority().fingerprint();
        let token = JoinToken::generate(id, authority, &addresses).map_err(internal)?;
        let key_hash = token.key_hash().map_err(internal)?;
        let expires_at = self.node.now() + ttl.as_millis() as u64;
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::CreateToken {
            id: TokenId(id.0),
            key_hash,
            expires_at,
            authority,
        };
        self.change(&by, key, command, deadline).await?;
        if !self.node.state().tokens.contains_key(&TokenId(id.0)) {
            // The request was answered before, and the token's secret was shown then, once.
            let problem =
                "a token was made for this request before; it is shown only once".to_owned();
            return Err(ApiError::InvalidField {
                field: "requestId",
                problem,
            }
            .into());
        }
        Ok(Response::new(CreateTokenResponse {
            token: token.to_text(),
            id: TokenId(id.0).to_string(),
            expires_at: Some(convert::timestamp(expires_at)),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let state = self.read(deadline(&request)).await?;
        let now = self.node.now();
        let tokens = state
            .tokens
            .iter()
            .filter(|(_, token)| token.expires_at > now && token.node.is_none());
        let tokens = tokens.map(|(id, token)| Token {
            id: id.to_string(),
            created_at: Some(convert::timestamp(token.created_at)),
            expires_at: Some(convert::timestamp(token.expires_at)),
            authority: hex(&token.authority),
        });
        Ok(Response::new(ListTokensResponse {
            tokens: tokens.collect(),
        }))
    }

    async fn create_certificate(
        &self,
        request: Request<CreateCertificateRequest>,
    ) -> Result<Response<CreateCertificateResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        Ok(Response::new(self.issue(&by, request, deadline).await?))
    }

    async fn list_certificates(
        &self,
        request: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        let state = self.read(deadline(&request)).await?;
        let now = self.node.now();
        let certificates = state.certificates.iter();
        let valid = certificates.filter(|(_, certificate)| certificate.expires_at > now);
        Ok(Response::new(ListCertificatesResponse {
            certificates: valid
                .map(|(id, certificate)| convert::certificate(*id, certificate))
                .collect(),
        }))
    }

    async fn revoke_certificate(
        &self,
        request: Request<RevokeCertificateRequest>,
    ) -> Result<Response<Certificate>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::RevokeCertificate {
            certificate: request.certificate,
        };
        let (id, certificate) = self.certificate(&by, key, command, deadline).await?;
        Ok(Response::new(convert::certificate(id, &certificate)))
    }

    async fn get_authority(
        &self,
        request: Request<GetAuthorityRequest>,
    ) -> Result<Response<Authority>, Status> {
        self.authority_of(request).await
    }

    async fn replace_authority(
        &self,
        request: Request<ReplaceAuthorityRequest>,
    ) -> Result<Response<Authority>, Status> {
        self.replace(request).await
    }

    async fn finish_authority(
        &self,
        request: Request<FinishAuthorityRequest>,
    ) -> Result<Response<Authority>, Status> {
        self.finish(request).await
    }

    type CreateBackupStream = Answers<CreateBackupResponse>;

    async fn create_backup(
        &self,
        request: Request<CreateBackupRequest>,
    ) -> Result<Response<Self::CreateBackupStream>, Status> {
        let deadline = deadline(&request);
        let with_authority = request.into_inner().with_authority;
        audit::about(|| match with_authority {
            true => "the state and the authority's key".to_owned(),
            false => "the state".to_owned(),
        });
        self.read(deadline).await?;
        let published = self.node.raft.published().borrow().clone();
        let (identity, authority) = (&self.node.identity, self.node.authority());
        if with_authority {
            // With another one's key it could not be restored.
            authority::check_signs(&authority, Known::of(&published.view).as_ref())?;
        }
        let backup = Backup {
            about: About {
                cluster: identity.cluster.0,
                incarnation: identity.incarnation.0,
                node: identity.name.clone(),
                taken_at: self.node.now(),
                term: self.node.raft.status().term,
                index: published.index,
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                authority: authority.certificate().to_vec(),
            },
            state: State::clone(&published.view),
            authority_key: with_authority.then(|| authority.key_der()),
        };
        let bytes: Bytes = spawn_blocking(move || backup.to_bytes())
            .await
            .map_err(|error| ApiError::Internal(error.to_string()))?
            .into();
        let chunks = (0..bytes.len()).step_by(BACKUP_CHUNK).map(move |start| {
            let chunk = bytes.slice(start..bytes.len().min(start + BACKUP_CHUNK));
            Ok(CreateBackupResponse { chunk })
        });
        Ok(Response::new(stream::iter(chunks).boxed()))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        self.change(&by, key, Command::RevokeToken { id: request.id }, deadline)
            .await?;
        Ok(Response::new(RevokeTokenResponse {}))
    }
}

#[tonic::async_trait]
impl JoinService for Api {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let deadline = deadline(&request);
        let key_hash = token_of(&request)?;
        self.can_sign()?;
        let request = request.into_inner();
        names::check_advertised(&request.address).map_err(|error| ApiError::InvalidField {
            field: "address",
            problem: error.to_string(),
        })?;
        // The certificate request is looked at before the token is used up: one that cannot be signed costs nothing.
        let own = self.node.authority();
        let trial = own.sign_node_request(0, "trial", &request.csr);
        trial.map_err(|error| ApiError::InvalidField {
            field: "csr",
            problem: error.to_string(),
        })?;
        // What a leaked key signs from here on counts for nobody.
        let known = authority::known(&self.node, &self.node.state());
        let known = known.filter(|known| known.replacement.is_compromised);
        authority::check_signs(&own, known.as_ref())?;
        let mut body = request.clone();
        // The same call sent again may come with another one.
        body.csr.clear();
        let key = request_key(&body, |request| &mut request.request_id);
        let patience = self.node.newcomer_patience.as_millis() as u64;
        let command = Command::Join {
            start_by: self.node.now() + patience,
            key_hash,
            name: request.name.clone(),
            address: request.address,
            newest_version: request.newest_version,
        };
        let id = match self
            .change(&Actor::cluster(), key, command, deadline)
            .await?
        {
            Outcome::Node(id) => id,
            other => return Err(unexpected(other).into()),
        };
        let certificate = own
            .sign_node_request(id, &request.name, &request.csr)
            .map_err(internal)?;
        let (state, status) = (self.node.state(), self.node.raft.status());
        let online = self.node.leases.online();
        let known = authority::known(&self.node, &state);
        let replacement = known.map_or_else(Vec::new, |known| known.to_text().into_bytes());
        tracing::info!(node = id, name = request.name, "a node joined");
        Ok(Response::new(JoinResponse {
            cluster_id: self.node.cluster().to_string(),
            incarnation: self.node.identity.incarnation.to_string(),
            node_id: id,
            certificate: certificate.to_vec().into(),
            authority_certificate: own.certificate().to_vec().into(),
            authority_key: own.key_der().into(),
            replacement: replacement.into(),
            nodes: state
                .nodes
                .values()
                .map(|one| convert::node(&state, &Actor::cluster(), one, online.as_ref(), &status))
                .collect(),
        }))
    }

    async fn withdraw_join(
        &self,
        request: Request<WithdrawJoinRequest>,
    ) -> Result<Response<WithdrawJoinResponse>, Status> {
        let deadline = deadline(&request);
        let key_hash = token_of(&request)?;
        let command = Command::WithdrawJoin { key_hash };
        // Harmless when it is sent again.
        let outcome = self.node.propose(None, command, deadline).await;
        outcome.map_err(ApiError::from)?.map_err(ApiError::from)?;
        Ok(Response::new(WithdrawJoinResponse {}))
    }
}

/// The token that a newcomer has shown.
fn token_of<T>(request: &Request<T>) -> Result<[u8; 32], ApiError> {
    match role(request) {
        Some(PeerRole::Joiner { key_hash }) => Ok(*key_hash),
        _ => Err(ApiError::NotAllowed(
            "joining needs a join token".to_owned(),
        )),
    }
}

impl Api {
    /// Whether what is signed here now would be valid when it says. The others would refuse what begins in their future.
    pub(super) fn can_sign(&self) -> Result<(), ApiError> {
        match self.node.clock.problem() {
            Some(problem) => Err(ApiError::HostUnfit {
                problem: format!("{problem}: it signs no certificates"),
                hint: "synchronise it (NTP), or ask another node",
            }),
            None => Ok(()),
        }
    }

    /// Signs a certificate, once it is in the state.
    async fn issue(
        &self,
        by: &Actor,
        request: CreateCertificateRequest,
        deadline: Instant,
    ) -> Result<CreateCertificateResponse, ApiError> {
        let invalid = |field, problem: &str| ApiError::InvalidField {
            field,
            problem: problem.to_owned(),
        };
        let role = convert::role(request.role())
            .ok_or_else(|| invalid("role", "must be viewer, operator or admin"))?;
        let ttl = match Duration::from_secs(request.ttl_seconds) {
            Duration::ZERO => CERTIFICATE_TTL,
            ttl if ttl > LONGEST_CERTIFICATE_TTL => {
                return Err(invalid(
                    "ttlSeconds",
                    "a certificate is valid for 366 days at most",
                ));
            }
            ttl => ttl,
        };
        self.can_sign()?;
        let expires_at = self.node.now() + ttl.as_millis() as u64;
        let owner = match &request.owner {
            own if own.is_empty() => request.name.clone(),
            owner => owner.clone(),
        };
        let id = CertificateId(Ulid::new().0);
        // The certificate request is looked at before anything is noted: one that cannot be signed changes nothing.
        let authority = self.node.authority();
        let sign = |id: CertificateId, name: &str, owner: &str, role, expires_at: u64| {
            let user = UserCertificate {
                id: Ulid(id.0),
                name,
                owner,
                role,
                expires_at: SystemTime::UNIX_EPOCH + Duration::from_millis(expires_at),
            };
            authority.sign_user_request(user, &request.csr)
        };
        sign(id, "trial", "trial", role, expires_at)
            .map_err(|error| invalid("csr", &error.to_string()))?;
        let mut body = request.clone();
        // Whoever asks again after a lost answer has a new key.
        body.csr.clear();
        let key = request_key(&body, |request| &mut request.request_id);
        let command = Command::IssueCertificate {
            id,
            name: request.name.clone(),
            owner: owner.clone(),
            role,
            expires_at,
            authority: authority.fingerprint(),
            replace: request.replace,
        };
        let (id, noted) = self.certificate(by, key, command, deadline).await?;
        if noted.authority != authority.fingerprint() {
            let problem =
                "was used for a certificate of an authority that has been replaced since: ask anew";
            return Err(invalid("requestId", problem));
        }
        let der =
            sign(id, &noted.name, &noted.owner, noted.role, noted.expires_at).map_err(internal)?;
        Ok(CreateCertificateResponse {
            certificate: Some(convert::certificate(id, &noted)),
            der: der.to_vec().into(),
            authority_certificate: authority.certificate().to_vec().into(),
        })
    }

    /// Changes a certificate, and gives it as it is then.
    async fn certificate(
        &self,
        by: &Actor,
        key: RequestKey,
        command: Command,
        deadline: Instant,
    ) -> Result<(CertificateId, state::Certificate), ApiError> {
        match self.change(by, key, command, deadline).await? {
            Outcome::Certificate(id) => {
                let state = self.read(deadline).await?;
                let noted = state.certificates.get(&id).cloned();
                let gone = || ApiError::Internal(format!("the certificate {id} has expired"));
                Ok((id, noted.ok_or_else(gone)?))
            }
            other => Err(unexpected(other)),
        }
    }

    /// What is wrong with the cluster, as this node sees it.
    fn problems(
        &self,
        status: &raft::node::Status,
        online: Option<&std::collections::BTreeSet<u64>>,
    ) -> Vec<String> {
        let state = self.node.state();
        let mut problems = Vec::new();
        if status.leader.is_none() || !status.quorum_ok {
            problems.push(
                "no leader with a quorum: changes are refused; start the agents of most voters, or mend the network"
                    .to_owned(),
            );
        }
        for node in state.nodes.values() {
            if !node.has_started() {
                problems.push(format!(
                    "node {} has joined and not started: start its agent (fpagent run), or it is forgotten in time",
                    node.name
                ));
            } else if online.is_some_and(|online| !online.contains(&node.id)) {
                problems.push(format!(
                    "node {} is offline: start its agent (fpagent run)",
                    node.name
                ));
            }
            let capacity = node.capacity.iter().flat_map(|capacity| &capacity.problems);
            problems.extend(capacity.map(|problem| format!("node {}: {problem}", node.name)));
        }
        problems.extend(authority::problems(&self.node, &state));
        problems.extend(upgrade::held_back_by(&state));
        problems.extend(self.node.density.problems());
        if let Err(ApiError::DiskFull(problem)) = self.has_room() {
            problems.push(format!("{problem}: new work is refused; free room"));
        }
        problems
    }
}

/// How many of these somebody may see.
fn seen<'a, T: Owned + 'a>(count: usize, all: impl Iterator<Item = &'a Arc<T>>, by: &Actor) -> u32 {
    let count = match by.is_admin {
        true => count,
        false => all.filter(|one| one.ownership().is_seen_by(by)).count(),
    };
    u32::try_from(count).unwrap_or(u32::MAX)
}

pub(super) fn internal(error: crate::trust::TrustError) -> ApiError {
    ApiError::Internal(crate::errors::chain(&error))
}
