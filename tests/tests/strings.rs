//! Every string that the API takes, by its own description: a field that is added is covered by itself. Each gets, in turn, what could
//! lead out of a folder, end a line or an argument early, or be too much; the answer is a refusal that says so, or what the table of
//! free text says. Nothing is changed, and nothing made where it should not be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, ensure};
use harness::{channels, cluster::Cluster, raw::call};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MethodDescriptor, Value,
};
use serde_json::json;
use tonic::Code;

fn hostile() -> Vec<(&'static str, String)> {
    vec![
        ("traversal", "../../../../tmp/fp-strings".to_owned()),
        ("traversal within", "a/../../fp-strings".to_owned()),
        ("NUL", "a\0b".to_owned()),
        ("newline", "a\nb".to_owned()),
        ("comma", "a,b=c,,d".to_owned()),
        ("quotes", "a\"b'c`d\\".to_owned()),
        ("escape", "a\u{1b}[2Jb".to_owned()),
        ("a mebibyte", "x".repeat(1 << 20)),
    ]
}

/// What a line of text may not hold, and what it may not be.
const NO_LINE: &[&str] = &["NUL", "newline", "escape", "a mebibyte"];

/// Fields whose text means nothing to us, and what is refused in them all the same. What the call would be refused for then, it is
/// refused for with any text.
const FREE: &[(&str, &[&str])] = &[
    // Words for a guest's kernel.
    ("VmService/CreateVm cmdline", NO_LINE),
    ("VmService/CreateVm labels value", NO_LINE),
    ("VmService/CreateVm labels key", NO_LINE),
    ("VmService/CreateVm constraints node_labels value", NO_LINE),
    ("VmService/CreateVm constraints node_labels key", NO_LINE),
    ("VmService/Fork labels value", NO_LINE),
    ("VmService/Fork labels key", NO_LINE),
    ("VmService/Fork constraints node_labels value", NO_LINE),
    ("VmService/Fork constraints node_labels key", NO_LINE),
    // Values of any program of the guest's: lines, and more than one.
    ("VmService/Fork settings value", &["NUL", "a mebibyte"]),
    ("NodeService/LabelNode set value", NO_LINE),
    ("NodeService/LabelNode set key", NO_LINE),
    // One that no node has is no mistake.
    ("NodeService/LabelNode remove", &[]),
    // The guest knows its users.
    ("GuestService/Exec start user", NO_LINE),
];

/// What a call would be if nothing were wrong with it but an object that is not there, or a VM that does not run: a field that is
/// right is refused for that, and nothing is changed. Where the default is such a call, it is not here.
fn sound(call: &str) -> serde_json::Value {
    match call {
        "NodeService/LabelNode" => json!({"node": "nobody"}),
        "NodeService/CordonNode" | "NodeService/DrainNode" => json!({"node": "nobody"}),
        "VmService/CreateVm" => json!({"name": "made", "image": "nothing"}),
        "VmService/SetVmPower" => json!({"vm": "nobody", "action": 2}),
        "VmService/WaitVm" => json!({"vm": "nobody", "until": 3}),
        "VmService/Fork" => json!({"source": "nobody", "count": 1, "name": "made"}),
        "VmService/ForkGroup" => json!({"group": "nobody", "count": 1, "name": "made"}),
        "VmService/ResetVm" => json!({"vm": "nobody", "snapshot": "nothing"}),
        "SnapshotService/TagSnapshot" => json!({"snapshot": "nothing", "name": "made"}),
        "SnapshotService/WarmSnapshot" => json!({"snapshot": "nothing", "count": 1}),
        "VmService/ProtectVm" => json!({"vm": "nobody"}),
        "SnapshotService/ReplicateSnapshot" => json!({"snapshot": "nothing", "replicas": 1}),
        "ClusterService/CreateCertificate" => json!({"name": "made", "role": 1}),
        "ImageService/ImportImage" => json!({"header": {"name": "made"}}),
        "GuestService/Exec" => json!({"start": {"vm": "v", "argv": ["dHJ1ZQ=="]}}),
        "GuestService/Forward" => json!({"start": {"vm": "v", "port": 80}}),
        "GuestService/CopyIn" => json!({"start": {"vm": "v", "path": "L3RtcA=="}}),
        "GuestService/CopyOut" => json!({"start": {"vm": "v", "path": "L3RtcA=="}}),
        "JoinService/Join" => json!({"name": "made", "address": "127.0.0.1:1"}),
        _ => json!({}),
    }
}

/// The way to a string in a message: the fields, from the outermost on.
#[derive(Debug, Clone)]
struct Place {
    fields: Vec<FieldDescriptor>,
    part: Part,
}

/// What of the last field is the string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    Item,
    Key,
    Value,
}

impl Place {
    fn name(&self) -> String {
        let names: Vec<&str> = self.fields.iter().map(FieldDescriptor::name).collect();
        let part = match self.part {
            Part::All | Part::Item => "",
            Part::Key => " key",
            Part::Value => " value",
        };
        names.join(" ") + part
    }

    fn put(&self, message: &mut DynamicMessage, text: &str) {
        put(message, &self.fields, self.part, text);
    }
}

fn put(message: &mut DynamicMessage, fields: &[FieldDescriptor], part: Part, text: &str) {
    let Some((field, rest)) = fields.split_first() else {
        return;
    };
    if let Kind::Message(inner) = field.kind()
        && !field.is_map()
    {
        let mut value = match message.get_field(field).into_owned() {
            Value::Message(value) => value,
            _ => DynamicMessage::new(inner),
        };
        put(&mut value, rest, part, text);
        let value = Value::Message(value);
        let value = if field.is_list() {
            Value::List(vec![value])
        } else {
            value
        };
        message.set_field(field, value);
        return;
    }
    let text = Value::String(text.to_owned());
    let value = match part {
        Part::All => text,
        Part::Item => Value::List(vec![text]),
        Part::Key | Part::Value => {
            let (key, value) = match (part, field.kind()) {
                (Part::Key, Kind::Message(entry)) => {
                    let value = Value::default_value_for_field(&entry.map_entry_value_field());
                    (text.as_str().unwrap_or_default().to_owned(), value)
                }
                _ => ("key".to_owned(), text),
            };
            Value::Map([(MapKey::String(key), value)].into())
        }
    };
    message.set_field(field, value);
}

/// All strings of a message, those in others that it holds included.
fn places(message: &prost_reflect::MessageDescriptor, before: &[FieldDescriptor]) -> Vec<Place> {
    let mut found = Vec::new();
    // None of ours holds one of its own kind.
    assert!(before.len() < 8, "{before:?}");
    for field in message.fields() {
        let mut fields = before.to_vec();
        fields.push(field.clone());
        let mut add = |part| {
            found.push(Place {
                fields: fields.clone(),
                part,
            })
        };
        match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                if entry.map_entry_key_field().kind() == Kind::String {
                    add(Part::Key);
                }
                if entry.map_entry_value_field().kind() == Kind::String {
                    add(Part::Value);
                }
            }
            Kind::Message(inner) => found.extend(places(&inner, &fields)),
            Kind::String => add(if field.is_list() {
                Part::Item
            } else {
                Part::All
            }),
            _ => {}
        }
    }
    found
}

/// What refused calls could have changed.
fn state(cluster: &Cluster) -> anyhow::Result<String> {
    let node = cluster.node(1);
    let mut all = String::new();
    for list in ["vm", "snapshot", "image", "token", "cert", "op"] {
        all += &node.json(&[list, "ls"])?.to_string();
    }
    let nodes = node.json(&["node", "ls"])?;
    let nodes = nodes["items"].as_array().context("no nodes")?;
    for node in nodes {
        all += &json!([node["name"], node["labels"], node["schedulable"]]).to_string();
    }
    Ok(all)
}

/// The names below a folder, less what the log makes of itself.
fn files(folder: &Path, found: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if path.ends_with("raft") {
            continue;
        }
        found.insert(path.display().to_string());
        if entry.file_type()?.is_dir() {
            files(&path, found)?;
        }
    }
    Ok(())
}

fn files_of(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    files(cluster.folder(), &mut found)?;
    // Where the traversals lead from there, and elsewhere.
    for folder in ["/tmp", "/"]
        .map(Path::new)
        .into_iter()
        .chain(cluster.folder().parent())
    {
        for entry in fs::read_dir(folder)? {
            let name = entry?.path().display().to_string();
            if name.contains("fp-strings") {
                found.insert(name);
            }
        }
    }
    Ok(found)
}

#[tokio::test]
async fn every_string_of_the_api_is_refused_what_it_must_not_hold() -> anyhow::Result<()> {
    let cluster = tokio::task::spawn_blocking(|| -> anyhow::Result<Cluster> {
        let cluster = Cluster::start(1)?;
        let kernel = cluster.folder().join("kernel");
        fs::write(&kernel, b"\x7fELF and nothing else")?;
        let kernel = kernel.display().to_string();
        let node = cluster.node(1);
        node.fp(&["image", "import", "none", "--kernel", &kernel])?
            .success()?;
        node.fp(&["vm", "create", "v", "--image", "none"])?
            .success()?;
        cluster.wait_vm(1, "v", "failed")?;
        Ok(cluster)
    })
    .await??;
    let node = cluster.node(1);
    let token = node.json(&["token", "create"])?;
    let token = token["token"].as_str().context("no token")?;
    let (admin, joiner) = (channels::as_admin(node)?, channels::as_joiner(node, token)?);
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET)?;
    let methods: Vec<MethodDescriptor> = pool
        .services()
        .filter(|service| service.full_name().starts_with("forkypig.v1."))
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect();
    let (before, there) = (state(&cluster)?, files_of(&cluster)?);
    let free: BTreeMap<&str, &[&str]> = FREE.iter().copied().collect();
    let (mut problems, mut free_seen, mut count) = (Vec::new(), BTreeSet::new(), 0);
    let mut noted: BTreeMap<String, usize> = BTreeMap::new();

    for method in &methods {
        let (service, name) = (method.parent_service(), method.name());
        let short = format!("{}/{name}", service.name());
        let path = format!("{}/{name}", service.full_name());
        let channel = if service.name() == "JoinService" {
            &joiner
        } else {
            &admin
        };
        let sound = DynamicMessage::deserialize(method.input(), sound(&short))?;
        for place in places(&method.input(), &[]) {
            let field = format!("{short} {}", place.name());
            let refused = free.get_key_value(field.as_str());
            free_seen.extend(refused.map(|(field, _)| *field));
            for (kind, text) in hostile() {
                let mut message = sound.clone();
                place.put(&mut message, &text);
                let status = call(channel, &path, message.encode_to_vec())
                    .await
                    .with_context(|| format!("{field}: {kind}"))?;
                count += 1;
                let code = status.code();
                if code == Code::InvalidArgument {
                    *noted.entry(path.clone()).or_default() += 1;
                }
                let fits = match refused {
                    Some((_, kinds)) if kinds.contains(&kind) => code == Code::InvalidArgument,
                    Some(_) => matches!(code, Code::NotFound | Code::FailedPrecondition),
                    None => matches!(code, Code::InvalidArgument | Code::NotFound),
                };
                if !fits
                    || status.message().len() > 4096
                    || status.message().contains(char::is_control)
                {
                    let said: String = status.message().chars().take(200).collect();
                    problems.push(format!("{field}: {kind}: {code:?}: {said:?}"));
                }
            }
        }
    }
    eprintln!("{count} calls");
    ensure!(
        problems.is_empty(),
        "{} are not right:\n{}",
        problems.len(),
        problems.join("\n")
    );
    ensure!(count > 300, "only {count} calls were made");
    let unknown: Vec<_> = free
        .keys()
        .filter(|field| !free_seen.contains(*field))
        .collect();
    ensure!(unknown.is_empty(), "there are no such fields: {unknown:?}");
    ensure!(state(&cluster)? == before, "something changed");
    let new: Vec<_> = files_of(&cluster)?.difference(&there).cloned().collect();
    ensure!(new.is_empty(), "something was made: {new:?}");
    // All that was refused for what it held is in the log, and what it held is not.
    let log = fs::read_to_string(node.data.join("audit.log"))?;
    for (path, count) in noted {
        let lines = log.lines().filter(|line| {
            line.contains(&format!("\"call\":\"{path}\"")) && line.contains("invalid-argument")
        });
        let lines = lines.count();
        ensure!(
            lines == count,
            "{path}: {lines} lines about {count} refusals"
        );
    }
    ensure!(
        log.lines().all(|line| line.len() < 1024),
        "a line is too long"
    );
    Ok(())
}
