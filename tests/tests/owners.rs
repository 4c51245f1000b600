//! Whose is what: for whom an object is not there it does not exist, in any call that there is, and how that is when it is shared.

use std::{collections::BTreeSet, fs, thread};

use anyhow::{Context as _, ensure};
use harness::{
    channels,
    cluster::{Cluster, PATIENCE},
    fpagent::Answer,
    raw::call,
    users::Users,
    wait_for,
};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use serde_json::{Value, json};
use tonic::Code;

/// An agent, and those who use it.
struct World {
    cluster: Cluster,
    users: Users,
}

impl World {
    /// Ann and Bob are operators, Al is another of Ann's, and Vic looks at what is Bob's.
    fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start(1)?;
        let users = [
            ("ann", "operator", "ann"),
            ("al", "operator", "ann"),
            ("bob", "operator", "bob"),
            ("vic", "viewer", "bob"),
        ];
        let users = Users::of(&cluster, &users)?;
        let kernel = cluster.folder().join("kernel");
        fs::write(&kernel, b"\x7fELF and nothing else")?;
        Ok(Self { cluster, users })
    }

    /// A command through the Unix socket.
    fn local(&self, args: &[&str]) -> anyhow::Result<Value> {
        self.cluster.node(1).json(args)
    }

    fn run_as(&self, name: &str, args: &[&str]) -> anyhow::Result<Answer> {
        self.users.run(self.cluster.node(1), name, args)
    }

    fn json_as(&self, name: &str, args: &[&str]) -> anyhow::Result<Value> {
        self.users.json(self.cluster.node(1), name, args)
    }

    /// The names of what somebody sees in a list.
    fn listed(&self, name: &str, what: &str) -> anyhow::Result<Vec<String>> {
        let listed = self.json_as(name, &[what, "ls"])?;
        let items = listed["items"].as_array().context("no items")?;
        let named = |item: &Value| item["name"].as_str().unwrap_or_default().to_owned();
        Ok(items.iter().map(named).collect())
    }

    fn import(&self, name: &str, image: &str) -> anyhow::Result<()> {
        let kernel = self.cluster.folder().join("kernel");
        let kernel = kernel.to_str().context("no text")?;
        self.run_as(name, &["image", "import", image, "--kernel", kernel])?
            .success()
    }

    fn digest(&self) -> anyhow::Result<String> {
        let status = self.local(&["status"])?;
        let digest = status["stateDigest"].as_str().context("no digest")?;
        Ok(digest.to_owned())
    }

    /// Lines of the audit log about a call of somebody that say what it was about.
    fn audited(&self, who: &str, path: &str, outcome: &str) -> anyhow::Result<usize> {
        let log = fs::read_to_string(self.cluster.node(1).data.join("audit.log"))?;
        let mut count = 0;
        for line in log.lines() {
            let line: Value = serde_json::from_str(line)?;
            let text = |field: &str| line[field].as_str().unwrap_or_default();
            let is_it = text("who") == who && text("call") == path && !text("about").is_empty();
            count += usize::from(is_it && text("outcome").contains(outcome));
        }
        Ok(count)
    }
}

/// What is Ann's: ids.
struct Theirs {
    vm: String,
    image: String,
}

/// A VM that does not run: it is not needed for this, as no file of the image is a kernel.
fn anns(world: &World) -> anyhow::Result<Theirs> {
    world.import("ann", "none")?;
    let image = world.json_as("ann", &["image", "show", "none"])?;
    let vm = world.json_as(
        "ann",
        &["vm", "create", "web", "--image", "none", "--group", "app"],
    )?;
    world.cluster.wait_vm(1, "ann/web", "failed")?;
    let id = |object: &Value| object["id"].as_str().unwrap_or_default().to_owned();
    Ok(Theirs {
        vm: id(&vm),
        image: id(&image),
    })
}

/// Methods that name no object with an owner: what they are about is the cluster, or all that one may see.
const NAMELESS: &[&str] = &[
    "ClusterService/",
    "NodeService/",
    "JoinService/",
    "ImageService/ImportImage",
    "ImageService/ListImages",
    "VmService/ListVms",
    "VmService/ListGroups",
    "SnapshotService/ListSnapshots",
    "OperationService/ListOperations",
    "OwnerService/ListQuotas",
    "LeaseService/CreateLease",
    "LeaseService/ListLeases",
    "MapService/ListMaps",
    // For administrators.
    "OwnerService/SetQuota",
    "OwnerService/DeleteQuota",
];

/// Every call that names an object, with that object in each place where it can stand.
fn naming(call: &str, theirs: &Theirs) -> Vec<Value> {
    let Theirs { vm, image } = theirs;
    // No snapshot and no operation is to be had without a guest: these are found by what they were made of.
    let of_vm = format!("{vm}@moment");
    match call {
        "ImageService/GetImage" | "ImageService/DeleteImage" => vec![json!({"image": image})],
        "VmService/CreateVm" => vec![json!({"name": "mine", "image": image})],
        "VmService/SetVmPower" => (1..=6)
            .map(|action| json!({"vm": vm, "action": action}))
            .collect(),
        "VmService/WaitVm" => (1..=4)
            .map(|until| json!({"vm": vm, "until": until, "port": 80}))
            .collect(),
        "VmService/DeleteVm" => vec![json!({"vm": vm, "force": true})],
        "VmService/ResetVm" => vec![
            json!({"vm": vm, "snapshot": "moment"}),
            json!({"vm": "mine", "snapshot": of_vm}),
        ],
        // It was begun with her VM, whose id is its own.
        "VmService/GetGroup" => vec![json!({"group": vm})],
        "VmService/ForkGroup" => vec![json!({"group": vm, "count": 1})],
        "VmService/DeleteGroup" => vec![json!({"group": vm, "force": true})],
        "VmService/Fork" => vec![
            json!({"source": vm, "count": 1}),
            json!({"source": vm, "count": 1, "secrets": {"k": "c2VjcmV0"}}),
            json!({"source": of_vm, "count": 1}),
        ],
        "SnapshotService/CreateSnapshot" => vec![json!({"vm": vm, "name": "mine"})],
        "SnapshotService/TagSnapshot" => vec![json!({"snapshot": of_vm, "name": "mine"})],
        "SnapshotService/GetSnapshot"
        | "SnapshotService/WarmSnapshot"
        | "SnapshotService/ReplicateSnapshot"
        | "SnapshotService/DeleteSnapshot" => vec![json!({"snapshot": of_vm})],
        "GuestService/Exec" => vec![json!({"start": {"vm": vm, "argv": ["dHJ1ZQ=="]}})],
        "GuestService/Forward" => vec![json!({"start": {"vm": vm, "port": 80}})],
        "GuestService/CopyIn" | "GuestService/CopyOut" => {
            vec![json!({"start": {"vm": vm, "path": "L3RtcA=="}})]
        }
        "OperationService/GetOperation" | "OperationService/CancelOperation" => {
            vec![json!({"operation": vm})]
        }
        "OwnerService/Share" => vec![
            json!({"vm": vm, "everyone": true}),
            json!({"image": image, "owner": "bob"}),
            json!({"snapshot": of_vm, "owner": "bob", "stop": true}),
        ],
        "LeaseService/RenewLease" | "LeaseService/EndLease" => vec![json!({"lease": vm})],
        "LeaseService/SetKeep" => vec![
            json!({"vm": vm, "keep": {"ttlMs": 1000}}),
            json!({"snapshot": of_vm, "keep": {"ttlMs": 1000}}),
        ],
        "MapService/StartMap" => vec![
            json!({"source": vm, "count": 1, "argv": ["dHJ1ZQ=="]}),
            json!({"source": of_vm, "count": 1, "argv": ["dHJ1ZQ=="]}),
        ],
        "MapService/GetMap"
        | "MapService/ReadMap"
        | "MapService/CancelMap"
        | "MapService/DeleteMap" => vec![json!({"map": vm})],
        "OwnerService/GetQuota" => vec![json!({"owner": "ann"})],
        _ => vec![json!({"vm": vm})],
    }
}

#[tokio::test]
async fn no_call_tells_of_what_is_anothers() -> anyhow::Result<()> {
    let (world, theirs) = tokio::task::spawn_blocking(|| -> anyhow::Result<_> {
        let world = World::start()?;
        let theirs = anns(&world)?;
        // One of his own, so that only the other name is wrong.
        world.import("bob", "own")?;
        world
            .run_as("bob", &["vm", "create", "mine", "--image", "own"])?
            .success()?;
        world.cluster.wait_vm(1, "bob/mine", "failed")?;
        Ok((world, theirs))
    })
    .await??;
    let node = world.cluster.node(1);
    let bob = channels::as_user(node, &world.users.certs("bob"))?;
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET)?;
    let methods: Vec<MethodDescriptor> = pool
        .services()
        .filter(|service| service.full_name().starts_with("forkypig.v1."))
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect();
    let (mut problems, mut seen, mut count) = (Vec::new(), BTreeSet::new(), 0);
    let before = world.digest()?;
    for method in &methods {
        let (service, name) = (method.parent_service(), method.name());
        let short = format!("{}/{name}", service.name());
        let nameless = NAMELESS.iter().find(|one| short.starts_with(**one));
        if let Some(nameless) = nameless {
            seen.insert(*nameless);
            continue;
        }
        let path = format!("{}/{name}", service.full_name());
        let messages = naming(&short, &theirs);
        for message in &messages {
            // The same with ids that never were.
            let text = message.to_string();
            let nothing = text
                .replace(&theirs.vm, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ")
                .replace(&theirs.image, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
            let mut said = Vec::new();
            for text in [&text, &nothing] {
                let json: Value = serde_json::from_str(text)?;
                let message = DynamicMessage::deserialize(method.input(), json)?;
                let status = call(&bob, &path, message.encode_to_vec())
                    .await
                    .with_context(|| format!("{short}: {text}"))?;
                count += 1;
                if status.code() != Code::NotFound {
                    problems.push(format!("{short}: {text}: {status:?}"));
                }
                let words = status
                    .message()
                    .replace(&theirs.vm, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
                said.push(words.replace(&theirs.image, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"));
            }
            if said[0] != said[1] {
                problems.push(format!("{short}: {said:?}"));
            }
        }
        let lines = world.audited("bob", &path, "not-found")?;
        if lines != 2 * messages.len() {
            problems.push(format!("{short}: {lines} lines in the audit log"));
        }
    }
    ensure!(
        problems.is_empty(),
        "not as it must be:\n{}",
        problems.join("\n")
    );
    ensure!(count > 60, "only {count} calls were made");
    let unknown: Vec<_> = NAMELESS.iter().filter(|one| !seen.contains(*one)).collect();
    ensure!(unknown.is_empty(), "there are no such methods: {unknown:?}");
    // Requests that were refused are remembered, and nothing else is.
    let after = world.local(&["status"])?;
    for (what, number) in [("vms", 2), ("images", 2), ("snapshots", 0)] {
        ensure!(after[what] == number, "{what}: {after}");
    }
    for name in ["vm", "image", "op", "snapshot"] {
        let hidden = world.local(&[name, "ls"])?;
        ensure!(!hidden.to_string().contains("moment"), "{hidden}");
    }
    // What only looks leaves the state as it was to the bit, unless a node says just then how a VM is.
    wait_for("looks that change nothing", PATIENCE, || {
        let looked = world.digest()?;
        for args in [["vm", "show", "ann/web"], ["image", "show", "ann/none"]] {
            world.run_as("vic", &args)?.refused(&["there is no"])?;
        }
        Ok((world.digest()? == looked && looked != before).then_some(()))
    })
}

#[test]
fn each_has_its_own_and_what_others_share() -> anyhow::Result<()> {
    let world = World::start()?;
    let theirs = anns(&world)?;
    // The same names, twice.
    world.import("bob", "none")?;
    world
        .run_as("bob", &["vm", "create", "web", "--image", "none"])?
        .success()?;
    world.cluster.wait_vm(1, "bob/web", "failed")?;
    let own = world.json_as("bob", &["vm", "show", "web"])?;
    assert_eq!(
        (&own["owner"], own["id"] == theirs.vm.as_str()),
        (&json!("bob"), false)
    );
    assert_eq!(world.listed("bob", "vm")?, ["web"]);
    assert_eq!(world.listed("vic", "vm")?, ["web"]);
    assert_eq!(
        world.json_as("al", &["vm", "show", "web"])?["id"],
        theirs.vm.as_str()
    );
    assert_eq!(world.json_as("bob", &["status"])?["vms"], 1);
    assert_eq!(world.json_as("bob", &["node", "ls"])?["items"][0]["vms"], 1);
    assert_eq!(world.local(&["node", "ls"])?["items"][0]["vms"], 2);
    // An administrator has to say which; and sees whose each is.
    let node = world.cluster.node(1);
    node.fp(&["vm", "show", "web"])?
        .refused(&["ann/web", "bob/web"])?;
    node.fp(&["tree", "web"])?.refused(&["ann/web, bob/web"])?;
    assert_eq!(world.local(&["tree", "ann/web"])?["id"], theirs.vm.as_str());
    let table = node.fp(&["vm", "ls"])?.out;
    assert!(table.starts_with("NAME  OWNER  STATE"), "{table}");
    let table = world.run_as("bob", &["vm", "ls"])?.out;
    assert!(table.starts_with("NAME  STATE"), "{table}");
    // Only administrators make something for others.
    let make = ["vm", "create", "more", "--image", "none", "--owner"];
    world
        .run_as("bob", &[&make[..], &["ann"]].concat())?
        .refused(&["only administrators"])?;
    let made = world.local(&[&make[..], &["ann"]].concat())?;
    assert_eq!(
        (&made["owner"], &made["image"]),
        (&json!("ann"), &json!("none"))
    );

    // Shared, and how far that goes.
    world
        .run_as("bob", &["vm", "create", "theirs", "--image", "ann/none"])?
        .refused(&["there is no image \"ann/none\""])?;
    let share = ["share", "image", "none", "--with", "everyone"];
    world.run_as("ann", &share)?.success()?;
    let shown = world.json_as("bob", &["image", "show", "ann/none"])?;
    assert_eq!(
        (&shown["owner"], shown["sharing"].is_null()),
        (&json!("ann"), true)
    );
    let made = ["vm", "create", "theirs", "--image", "ann/none"];
    let made = world.json_as("bob", &made)?;
    assert_eq!(
        (&made["owner"], &made["image"]),
        (&json!("bob"), &json!("ann/none"))
    );
    world
        .run_as("bob", &["image", "rm", "ann/none"])?
        .refused(&["belongs to another owner"])?;
    world
        .run_as("ann", &["image", "rm", "none"])?
        .refused(&["1 of other owners", "VM web"])?;
    world
        .run_as("ann", &["share", "vm", "web", "--with", "bob"])?
        .success()?;
    assert_eq!(world.listed("bob", "vm")?, ["theirs", "web", "web"]);
    for show in [&["vm", "show", "web"][..], &["tree", "web"]] {
        assert_eq!(world.json_as("bob", show)?["owner"], "bob");
    }
    for change in [
        &["vm", "rm", "ann/web", "--force"][..],
        &["vm", "start", "ann/web"],
        &["vm", "reset", "ann/web", "--to", "x"],
        &["vm", "suspend", "ann/web"],
        &["share", "vm", "ann/web", "--with", "everyone"],
    ] {
        world
            .run_as("bob", change)?
            .refused(&["belongs to another owner"])?;
    }
    let path = "forkypig.v1.VmService/DeleteVm";
    assert_eq!(world.audited("bob", path, "permission-denied")?, 1);
    let stop = ["share", "image", "none", "--with", "everyone", "--stop"];
    world.run_as("ann", &stop)?.success()?;
    // What was made of it stays, and does not tell of it.
    assert_eq!(
        world.json_as("bob", &["vm", "show", "theirs"])?["image"],
        ""
    );
    Ok(())
}

#[test]
fn an_owner_has_what_its_quota_allows() -> anyhow::Result<()> {
    let world = World::start()?;
    anns(&world)?;
    let node = world.cluster.node(1);
    let set = ["quota", "set", "ann", "--vms", "1", "--memory", "1G"];
    world
        .run_as("ann", &set)?
        .refused(&["needs the role admin"])?;
    let quota = world.local(&set)?;
    assert_eq!(
        (&quota["quota"]["vms"], &quota["used"]["vms"]),
        (&json!(1), &json!(1))
    );
    let create = ["vm", "create", "more", "--image", "none"];
    world
        .run_as("ann", &create)?
        .refused(&["1 of 1 VMs are used, and 1 more asked for"])?;
    // For whom it is an administrator that makes it changes nothing.
    node.fp(&[&create[..], &["--owner", "ann"]].concat())?
        .refused(&["1 of 1 VMs are used"])?;
    let own = world.json_as("al", &["quota", "show"])?;
    assert_eq!(
        (&own["owner"], &own["quota"]["memoryBytes"]),
        (&json!("ann"), &json!(1 << 30))
    );
    world
        .run_as("bob", &["quota", "show", "ann"])?
        .refused(&["there is no"])?;
    let listed = world.json_as("bob", &["quota", "ls"])?;
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(listed["items"][0]["owner"], "bob");
    world.local(&["quota", "rm", "ann"])?;
    world.run_as("ann", &create)?.success()?;
    Ok(())
}

#[test]
fn a_quota_is_exact_however_many_ask_at_once() -> anyhow::Result<()> {
    let world = World::start()?;
    anns(&world)?;
    world.local(&["quota", "set", "ann", "--vms", "4"])?;
    let made = thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|number| {
                let (world, name) = (&world, format!("more-{number}"));
                // Two of hers, and an administrator for her.
                scope.spawn(move || match number % 3 {
                    0 => world.run_as("ann", &["vm", "create", &name, "--image", "none"]),
                    1 => world.run_as("al", &["vm", "create", &name, "--image", "none"]),
                    _ => {
                        let create = ["vm", "create", &name, "--image", "none", "--owner", "ann"];
                        world.cluster.node(1).fp(&create)
                    }
                })
            })
            .collect();
        asking.into_iter().map(|one| one.join()).collect::<Vec<_>>()
    });
    let mut count = 0;
    for answer in made {
        let answer = answer.map_err(|_| anyhow::anyhow!("a panic"))??;
        match answer.success() {
            Ok(()) => count += 1,
            Err(_) => answer.refused(&["4 of 4 VMs are used"])?,
        }
    }
    assert_eq!(count, 3);
    assert_eq!(world.listed("ann", "vm")?.len(), 4);
    Ok(())
}
