//! `fpagent join`: makes this host a node of a cluster that is there.

use std::io::Read as _;

use proto::v1::{self, JoinRequest};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use super::init::{PreparedView, check_args};
use crate::{
    client::{
        Context, args::cluster::JoinArgs, failure::Failure, progress::Progress, reach::Reach,
    },
    trust::{
        TrustError,
        authority::{Authority, Credentials, certificate_request, fingerprint},
        identity::{DataDir, Identity, LocalNode, Member, Prepared},
        token::JoinToken,
    },
};

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
    let (key, csr) = certificate_request()?;
    let request = JoinRequest {
        name: args.node.name.clone(),
        address: advertise.clone(),
        csr: csr.into(),
        newest_version: raft::version::newest(),
        request_id: request_id(&token, &args.node.name)?,
    };
    let reach = Reach::for_joiner(&token, context.global.timeout())?;
    let progress = Progress::spinner("joining");
    let answer = reach
        .call(async |attempt| attempt.join().join(attempt.request(request.clone())).await)
        .await;
    drop(progress);
    let answer = answer?;
    let identity = Identity {
        cluster: Ulid::from_string(&answer.cluster_id)
            .map_err(|_| Failure::refused("the cluster answered with an id that is none", ""))?,
        node: answer.node_id,
        name: args.node.name,
        listen: args.node.listen,
        advertise,
        members: answer.nodes.iter().map(member).collect(),
    };
    let node = accept(answer, identity, key, &token)?;
    match dir.prepare(&node, None)? {
        Prepared::New => {}
        Prepared::Already(identity) => return said_already(context, &identity, &dir),
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

/// The node that the directory holds already, when it is one of the token's cluster.
fn already(dir: &DataDir, token: &JoinToken) -> Result<Option<Identity>, Failure> {
    let Some(identity) = dir.identity()? else {
        return Ok(None);
    };
    let node = dir.load()?;
    if node.authority.fingerprint() == token.authority {
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
    if fingerprint(&CertificateDer::from(answer.authority_certificate.as_ref())) != token.authority
    {
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
    })
}

fn member(node: &v1::Node) -> Member {
    Member {
        id: node.id,
        name: node.name.clone(),
        address: node.address.clone(),
    }
}

/// The same join sent again has the same id: derived from what makes it the same.
fn request_id(token: &JoinToken, name: &str) -> Result<String, Failure> {
    let digest = Sha256::new()
        .chain_update(token.key_hash()?)
        .chain_update(name)
        .finalize();
    let hex: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!("join-{hex}"))
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
