//! `fpagent init`: makes the first node of a new cluster, on disk only.

use serde::Serialize;
use ulid::Ulid;

use crate::{
    client::{Context, args::cluster::InitArgs, failure::Failure},
    trust::{
        authority::Authority,
        identity::{DataDir, Identity, LocalNode, Member, Prepared},
        names,
    },
};

/// What became of a data directory.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PreparedView {
    /// `new` or `already`.
    pub outcome: &'static str,
    /// The cluster's id.
    pub cluster_id: String,
    /// The node's number.
    pub node_id: u64,
    /// The node's name.
    pub name: String,
    /// Where others reach it.
    pub address: String,
    /// Its data directory.
    pub data_dir: String,
}

impl PreparedView {
    /// Of a directory that holds this node.
    pub fn new(outcome: &'static str, identity: &Identity, dir: &DataDir) -> Self {
        Self {
            outcome,
            cluster_id: identity.cluster.to_string(),
            node_id: identity.node,
            name: identity.name.clone(),
            address: identity.advertise.clone(),
            data_dir: dir.root().display().to_string(),
        }
    }
}

/// Checks name and addresses; returns the address at which others reach the node.
pub fn check_args(args: &InitArgs) -> Result<String, Failure> {
    let checked = || {
        names::check_name(&args.name)?;
        names::check_address(&args.listen)?;
        let advertise = args
            .advertise
            .clone()
            .unwrap_or_else(|| args.listen.clone());
        names::check_advertised(&advertise).map(|()| advertise)
    };
    checked().map_err(|error| Failure::usage(error, ""))
}

pub(crate) fn run(context: &Context, args: InitArgs) -> Result<(), Failure> {
    let advertise = check_args(&args)?;
    let dir = DataDir::new(&args.data_dir);
    if let Some(identity) = dir.check(None, &args.name)? {
        return said_already(context, &identity, &dir);
    }
    let cluster = Ulid::new();
    let authority = Authority::create(cluster)?;
    let credentials = authority.issue_node(1, &args.name)?;
    let admin = authority.issue_admin("admin")?;
    let identity = Identity {
        cluster,
        incarnation: cluster,
        node: 1,
        name: args.name.clone(),
        listen: args.listen,
        advertise: advertise.clone(),
        members: vec![Member {
            id: 1,
            name: args.name,
            address: advertise,
        }],
    };
    let node = LocalNode {
        identity,
        authority,
        credentials,
        replacement: None,
    };
    match dir.prepare(&node, Some(&admin))? {
        Prepared::New => {}
        Prepared::Already(identity) => return said_already(context, &identity, &dir),
    }
    if !context.for_people() {
        return context.data(&PreparedView::new("new", &node.identity, &dir));
    }
    let shown = dir.root().display();
    context.say(format_args!(
        "{} is the first node of the new cluster {cluster}.",
        node.identity.name
    ))?;
    context.say(format_args!(
        "  start it            fpagent run --data-dir {shown}"
    ))?;
    context.say("  let others join     fpagent token create")?;
    context.say(format_args!(
        "  use it from afar    --addr https://{} --certs {}",
        node.identity.advertise,
        dir.admin_certs().display()
    ))
}

fn said_already(context: &Context, identity: &Identity, dir: &DataDir) -> Result<(), Failure> {
    if !context.for_people() {
        return context.data(&PreparedView::new("already", identity, dir));
    }
    let (name, cluster) = (&identity.name, identity.cluster);
    context.say(format_args!(
        "{} holds the node {name} of the cluster {cluster} already; nothing was changed.",
        dir.root().display()
    ))
}
