//! `fpagent join`: makes this host a node of a cluster that is there.

use std::{io::Read as _, time::Duration};

use proto::v1::{self, JoinRequest, WithdrawJoinRequest};
use rustls::pki_types::CertificateDer;
use ulid::Ulid;

use super::init::{PreparedView, check_args};
use crate::{
    client::{
        Context,
        args::cluster::{InitArgs, JoinArgs},
        failure::{Failure, FailureKind},
        progress::Progress,
        reach::Reach,
    },
    trust::{
        TrustError,
        authority::{Authority, Credentials, certificate_request, fingerprint},
        identity::{DataDir, Identity, LocalNode, Member, Prepared},
        replacement::Known,
        token::JoinToken,
    },
};

/// How long the cluster is told of a join that failed here.
const WITHDRAWAL: Duration = Duration::from_secs(5);

pub(crate) async fn run(context: &Context, args: JoinArgs) -> Result<(), Failure> {
    let advertise = check_args(&args.node)?;
    let token: JoinToken = read_token(&args.token)?
        .parse()
        .map_err(TrustError::Token)?;
    let dir = DataDir::new(&args.node.data_dir);
    if let Some(identity) = already(&dir, &token)? {
        return said_already(context, &identity, &dir);
    }
    // Nothing is asked of the cluster that this host could not keep.
    dir.check(None, &args.node.name)?;
    let reserved = dir.reserve()?;
    let reach = Reach::for_joiner(&token, context.global.timeout())?;
    let progress = Progress::spinner("joining");
    let joined = tokio::select! {
        joined = let_in(&reach, &token, args.node, advertise) => joined,
        _ = tokio::signal::ctrl_c() => Err(Unjoined::Maybe(Failure::refused("interrupted", ""))),
    };
    let prepared = joined.and_then(|node| {
        let prepared = reserved.prepare(&node, None);
        let prepared = prepared.map_err(|error| Unjoined::Maybe(error.into()))?;
        Ok((node, prepared))
    });
    drop(progress);
    let (node, prepared) = match prepared {
        Ok(prepared) => prepared,
        Err(Unjoined::Refused(failure)) => return Err(failure),
        Err(Unjoined::Maybe(failure)) => return Err(withdraw(&token, failure).await),
    };
    if let Prepared::Already(identity) = prepared {
        return said_already(context, &identity, &dir);
    }
    if !context.for_people() {
        return context.data(&PreparedView::new("new", &node.identity, &dir));
    }
    let Identity {
        cluster,
        node: number,
        name,
        ..
    } = &node.identity;
    context.say(format_args!(
        "{name} is node {number} of the cluster {cluster}."
    ))?;
    context.say(format_args!(
        "  start it            fpagent run --data-dir {}",
        dir.root().display()
    ))
}

/// Why a host has not joined.
enum Unjoined {
    /// The cluster refused: it knows nothing of it.
    Refused(Failure),
    /// The cluster may have let it in.
    Maybe(Failure),
}

/// Has the cluster let this host in.
async fn let_in(
    reach: &Reach,
    token: &JoinToken,
    args: InitArgs,
    advertise: String,
) -> Result<LocalNode, Unjoined> {
    let refused = |error: TrustError| Unjoined::Refused(error.into());
    let (key, csr) = certificate_request().map_err(refused)?;
    let request = JoinRequest {
        name: args.name.clone(),
        address: advertise.clone(),
        csr: csr.into(),
        newest_version: raft::version::newest(),
        // Another one each time: an earlier one may have been answered, and there must not be two of one number.
        request_id: Ulid::new().to_string(),
    };
    let answer = reach
        .call(async |attempt| attempt.join().join(attempt.request(request.clone())).await)
        .await
        .map_err(|failure| match failure.kind {
            FailureKind::Refused => Unjoined::Refused(failure),
            _ => Unjoined::Maybe(failure),
        })?;
    let ulid = |text: &str| {
        let problem = "the cluster answered with an id that is none";
        Ulid::from_string(text).map_err(|_| Unjoined::Maybe(Failure::refused(problem, "")))
    };
    let identity = Identity {
        cluster: ulid(&answer.cluster_id)?,
        incarnation: ulid(&answer.incarnation)?,
        node: answer.node_id,
        name: args.name,
        listen: args.listen,
        advertise,
        members: answer.nodes.iter().map(member).collect(),
    };
    accept(answer, identity, key, token).map_err(Unjoined::Maybe)
}

/// Tells the cluster that this host does not join after all. Should that not get through, the cluster forgets it in time.
async fn withdraw(token: &JoinToken, failure: Failure) -> Failure {
    let told = async {
        let reach = Reach::for_joiner(token, WITHDRAWAL)?;
        let request = WithdrawJoinRequest {};
        reach
            .call(async |attempt| attempt.join().withdraw_join(attempt.request(request)).await)
            .await
    };
    match told.await {
        Ok(_) => failure,
        Err(_) => failure.and(
            "should the cluster have let this host in, it forgets it in time, and takes the token again until then",
        ),
    }
}

/// The node that the directory holds already, when it is one of the token's cluster.
fn already(dir: &DataDir, token: &JoinToken) -> Result<Option<Identity>, Failure> {
    let Some(identity) = dir.identity()? else {
        return Ok(None);
    };
    let node = dir.load()?;
    let known = node.replacement.as_ref();
    let is_known = known.is_some_and(|known| known.names(&token.authority));
    if is_known || node.authority.fingerprint() == token.authority {
        return Ok(Some(identity));
    }
    let (path, cluster) = (dir.root().to_owned(), identity.cluster.to_string());
    Err(TrustError::OtherCluster { path, cluster }.into())
}

fn said_already(context: &Context, identity: &Identity, dir: &DataDir) -> Result<(), Failure> {
    if !context.for_people() {
        return context.data(&PreparedView::new("already", identity, dir));
    }
    let (name, number, cluster) = (&identity.name, identity.node, identity.cluster);
    context.say(format_args!(
        "{} is node {number} ({name}) of the cluster {cluster} already; nothing was changed.",
        dir.root().display()
    ))
}

/// Takes the cluster's answer only when it fits what the token pins and what was asked for.
fn accept(
    answer: v1::JoinResponse,
    identity: Identity,
    key: rustls::pki_types::PrivateKeyDer<'static>,
    token: &JoinToken,
) -> Result<LocalNode, Failure> {
    let wrong = |problem: String| {
        let said = "what the cluster says of its authority cannot be read";
        Failure::refused(format!("{said}: {problem}"), "")
    };
    let known = match answer.replacement.is_empty() {
        true => None,
        false => Some(Known::read(&answer.replacement).map_err(wrong)?),
    };
    let shown = fingerprint(&CertificateDer::from(answer.authority_certificate.as_ref()));
    // While the authority is being replaced the token may pin either of the two.
    let is_replaced = known
        .as_ref()
        .is_some_and(|known| known.names(&token.authority) && known.names(&shown));
    if shown != token.authority && !is_replaced {
        return Err(Failure::refused(
            "the cluster answered with an authority that is not the token's",
            "",
        ));
    }
    let authority = Authority::from_der(
        identity.cluster,
        &answer.authority_certificate,
        &answer.authority_key,
    )?;
    let credentials = Credentials {
        certificate: CertificateDer::from(answer.certificate.to_vec()),
        key,
    };
    credentials.check()?;
    Ok(LocalNode {
        identity,
        authority,
        credentials,
        replacement: known,
    })
}

fn member(node: &v1::Node) -> Member {
    Member {
        id: node.id,
        name: node.name.clone(),
        address: node.address.clone(),
    }
}

fn read_token(argument: &str) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    let read = std::io::stdin().take(16_384).read_to_string(&mut text);
    read.map_err(|error| Failure::refused(format!("cannot read the token: {error}"), ""))?;
    Ok(text)
}
