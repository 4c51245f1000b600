//! One client: the product's own way to reach agents, with its retries, and the history of what it is answered.

use std::{cell::Cell as Shown, cell::RefCell, collections::BTreeMap, sync::Arc, time::Duration};

use agent::client::{
    failure::{FailureKind, reason_of},
    reach::{Address, Attempt, Reach},
    retry::{Trouble, classify},
};
use proto::v1::{
    CreateVmRequest, DeleteVmRequest, ForkRequest, GetNodeRequest, GetSnapshotRequest,
    GetVmRequest, LabelNodeRequest, ListNodesRequest, Node, Reason, TagSnapshotRequest, Vm,
};
use tonic::{Response, Status};

use super::{
    HOLLOW, PARENT, Shared,
    history::{Action, Key, Kind, Outcome},
};
use crate::random::Random;

/// How long most calls may take: longer than any fault, so that the client's own retries find the answer.
const PATIENT: Duration = Duration::from_secs(25);
/// How long some may: shorter than most faults, so that it stays open what came of them.
const HASTY: Duration = Duration::from_millis(800);
/// How long a read of one node, which is not asked for elsewhere, may take.
const ONE_NODE: Duration = Duration::from_secs(2);
/// The label that says who made a VM.
const MADE_BY: &str = "made-by";

/// How a call ended.
enum Answer<T> {
    Given(T),
    /// Refused, for this reason: it did nothing.
    Refused(Reason),
    /// It was never sent.
    Unsent,
    Unknown,
}

pub(super) struct Client {
    shared: Arc<Shared>,
    number: usize,
    random: Random,
    made: u64,
    patient: Reach,
    hasty: Reach,
    nodes: Vec<Reach>,
}

impl Client {
    /// A client of the runtime that it is made in.
    pub(super) fn new(shared: Arc<Shared>, number: usize, random: Random) -> anyhow::Result<Self> {
        let addresses: Vec<Address> = shared
            .addresses
            .iter()
            .map(|address| address.parse().map_err(anyhow::Error::msg))
            .collect::<anyhow::Result<_>>()?;
        // Each begins with another node.
        let mut mine = addresses.clone();
        mine.rotate_left(number % addresses.len());
        let reach = |addresses: &[Address], limit| {
            Reach::for_user(addresses, Some(&shared.certs), limit)
                .map_err(|failure| anyhow::anyhow!("{}", failure.line()))
        };
        Ok(Self {
            patient: reach(&mine, PATIENT)?,
            hasty: reach(&mine, HASTY)?,
            nodes: addresses
                .iter()
                .map(|address| reach(std::slice::from_ref(address), ONE_NODE))
                .collect::<anyhow::Result<_>>()?,
            shared,
            number,
            random,
            made: 0,
        })
    }

    /// A value that nobody else uses.
    fn value(&mut self) -> u64 {
        self.made += 1;
        (self.number as u64 + 1) * 1_000_000 + self.made
    }

    /// Does something, other than forking.
    pub(super) async fn work(&mut self) -> anyhow::Result<()> {
        match self.random.below(100) {
            0..20 => self.set_label().await?,
            20..23 => self.drop_label().await?,
            23..45 => self.read_label().await?,
            45..50 => self.list_labels(None).await?,
            50..62 => self.create_vm().await?,
            62..74 => self.delete_vm(Kind::Vm).await?,
            74..88 => self.read_vm(Kind::Vm).await?,
            88..92 => self.list_vms(None).await?,
            _ if self.shared.snapshot.is_empty() => {}
            92..95 => self.rename().await?,
            _ => self.read_name(None).await?,
        }
        tokio::time::sleep(self.random.millis(0, 20)).await;
        Ok(())
    }

    /// Forks the guest or its snapshot, looks at the fork, and deletes it.
    pub(super) async fn fork(&mut self) -> anyhow::Result<()> {
        let key = self.take(Kind::Fork);
        let value = self.value();
        let source = match self.random.percent(50) {
            true => PARENT.to_owned(),
            false => format!("@{}", self.shared.snapshot),
        };
        let request = ForkRequest {
            source,
            count: 1,
            name: key.name.clone(),
            paused: true,
            labels: BTreeMap::from([made_by(value)]).into_iter().collect(),
            request_id: self.request_id(value),
            ..Default::default()
        };
        let object = key.object();
        let begun = self.shared.history().now();
        let answer = call(&self.patient, async |attempt| {
            attempt.vms().fork(attempt.request(request.clone())).await
        });
        let create = Action::Create(value);
        match answer.await? {
            Answer::Given(_) => self.note(&object, begun, create, Outcome::Done),
            Answer::Refused(Reason::NameTaken) => {
                self.note(&object, begun, create, Outcome::Refused);
            }
            // Nothing of it was proposed.
            Answer::Refused(Reason::NoCapacity | Reason::DiskFull) | Answer::Unsent => {}
            // It may have been there, and have gone.
            Answer::Refused(Reason::WorkFailed | Reason::Cancelled | Reason::NotFound)
            | Answer::Unknown => {
                self.note(&object, begun, create, Outcome::Unknown);
                self.note(&object, begun, Action::Vanish(value), Outcome::Unknown);
                self.shared.keys().unknown(&key);
            }
            Answer::Refused(reason) => anyhow::bail!("a fork was refused: {reason:?}"),
        }
        self.read_vm(Kind::Fork).await?;
        self.delete_vm(Kind::Fork).await?;
        tokio::time::sleep(self.random.millis(100, 1_000)).await;
        Ok(())
    }

    fn take(&mut self, kind: Kind) -> Key {
        let number = self.random.below(1 << 32);
        self.shared.keys().take(kind, number)
    }

    fn request_id(&self, value: u64) -> String {
        format!("workload-{}-{value}", self.shared.seed)
    }

    /// How the next change is made.
    fn changer(&mut self) -> &Reach {
        match self.random.percent(20) {
            true => &self.hasty,
            false => &self.patient,
        }
    }

    /// How the next read is made: half of them are of one node.
    fn reader(&mut self) -> &Reach {
        let number = self.random.below(2 * self.nodes.len() as u64) as usize;
        self.nodes.get(number).unwrap_or(&self.patient)
    }

    fn note(&self, object: &str, begun: Duration, action: Action, outcome: Outcome) {
        self.shared.history().add(object, begun, action, outcome);
    }

    /// Notes what came of a change that can be refused for one reason only.
    fn note_change<T>(
        &self,
        key: &Key,
        begun: Duration,
        action: Action,
        answer: Answer<T>,
        refusal: Option<Reason>,
    ) -> anyhow::Result<()> {
        let object = key.object();
        match answer {
            Answer::Given(_) => self.note(&object, begun, action, Outcome::Done),
            Answer::Unsent | Answer::Refused(Reason::NoCapacity | Reason::DiskFull) => {}
            Answer::Unknown => {
                self.note(&object, begun, action, Outcome::Unknown);
                self.shared.keys().unknown(key);
            }
            Answer::Refused(reason) if Some(reason) == refusal => {
                self.note(&object, begun, action, Outcome::Refused);
            }
            Answer::Refused(reason) => {
                anyhow::bail!("{action:?} of {object} was refused: {reason:?}")
            }
        }
        Ok(())
    }

    async fn label(&mut self, value: Option<u64>) -> anyhow::Result<()> {
        let key = self.take(Kind::Label);
        let id = self.value();
        let mut request = LabelNodeRequest {
            node: key.node.clone(),
            remove: key.old.clone().into_iter().collect(),
            request_id: self.request_id(id),
            ..Default::default()
        };
        let action = match value {
            Some(value) => {
                request.set.insert(key.name.clone(), value.to_string());
                Action::Write(value)
            }
            None => {
                request.remove.push(key.name.clone());
                // One that is not there is removed without an error.
                Action::Clear
            }
        };
        let begun = self.shared.history().now();
        let answer = call(self.changer(), async |attempt| {
            let request = attempt.request(request.clone());
            attempt.nodes().label_node(request).await
        });
        let answer = answer.await?;
        self.note_change(&key, begun, action, answer, None)
    }

    async fn set_label(&mut self) -> anyhow::Result<()> {
        let value = self.value();
        self.label(Some(value)).await
    }

    async fn drop_label(&mut self) -> anyhow::Result<()> {
        self.label(None).await
    }

    async fn read_label(&mut self) -> anyhow::Result<()> {
        let key = self.take(Kind::Label);
        let request = GetNodeRequest {
            node: key.node.clone(),
        };
        let begun = self.shared.history().now();
        let answer = call(self.reader(), async |attempt| {
            let request = attempt.request(request.clone());
            attempt.nodes().get_node(request).await
        });
        if let Some(node) = given(answer.await?)? {
            let value = value_of(node.labels.get(&key.name))?;
            self.note(&key.object(), begun, Action::Read, Outcome::Value(value));
        }
        Ok(())
    }

    async fn list_labels(&mut self, through: Option<usize>) -> anyhow::Result<()> {
        let keys = self.shared.keys().of(Kind::Label);
        let begun = self.shared.history().now();
        let reach = match through {
            Some(node) => &self.nodes[node],
            None => self.reader(),
        };
        let answer = call(reach, async |attempt| {
            let request = attempt.request(ListNodesRequest {});
            attempt.nodes().list_nodes(request).await
        });
        if let Some(list) = given(answer.await?)? {
            for key in keys {
                let is_its = |node: &&Node| node.name == key.node;
                let node = list.nodes.iter().find(is_its);
                let value = value_of(node.and_then(|node| node.labels.get(&key.name)))?;
                self.note(&key.object(), begun, Action::Read, Outcome::Value(value));
            }
        }
        Ok(())
    }

    async fn create_vm(&mut self) -> anyhow::Result<()> {
        let key = self.take(Kind::Vm);
        let value = self.value();
        let request = CreateVmRequest {
            name: key.name.clone(),
            image: HOLLOW.to_owned(),
            memory_bytes: 32 << 20,
            labels: [made_by(value)].into(),
            request_id: self.request_id(value),
            ..Default::default()
        };
        let begun = self.shared.history().now();
        let answer = call(self.changer(), async |attempt| {
            let request = attempt.request(request.clone());
            attempt.vms().create_vm(request).await
        });
        // It may be deleted before its own creator looks at it.
        let answer = match answer.await? {
            Answer::Refused(Reason::NotFound) => Answer::Given(Vm::default()),
            answer => answer,
        };
        let action = Action::Create(value);
        self.note_change(&key, begun, action, answer, Some(Reason::NameTaken))
    }

    async fn delete_vm(&mut self, kind: Kind) -> anyhow::Result<()> {
        let key = self.take(kind);
        let value = self.value();
        let request = DeleteVmRequest {
            vm: key.name.clone(),
            force: true,
            request_id: self.request_id(value),
        };
        let begun = self.shared.history().now();
        let answer = call(self.changer(), async |attempt| {
            let request = attempt.request(request.clone());
            attempt.vms().delete_vm(request).await
        });
        let answer = answer.await?;
        self.note_change(&key, begun, Action::Remove, answer, Some(Reason::NotFound))
    }

    async fn read_vm(&mut self, kind: Kind) -> anyhow::Result<()> {
        let key = self.take(kind);
        let request = GetVmRequest {
            vm: key.name.clone(),
        };
        let begun = self.shared.history().now();
        let answer = call(self.reader(), async |attempt| {
            attempt.vms().get_vm(attempt.request(request.clone())).await
        });
        let value = match answer.await? {
            Answer::Refused(Reason::NotFound) => None,
            answer => match given(answer)? {
                Some(vm) => value_of(vm.labels.get(MADE_BY))?,
                None => return Ok(()),
            },
        };
        self.note(&key.object(), begun, Action::Read, Outcome::Value(value));
        Ok(())
    }

    async fn list_vms(&mut self, through: Option<usize>) -> anyhow::Result<()> {
        let mut keys = self.shared.keys().of(Kind::Vm);
        keys.extend(self.shared.keys().of(Kind::Fork));
        let begun = self.shared.history().now();
        let reach = match through {
            Some(node) => &self.nodes[node],
            None => self.reader(),
        };
        let answer = call(reach, async |attempt| attempt.list_vms::<Vm>().await);
        if let Some(vms) = given(answer.await?)? {
            for key in keys {
                let vm = vms.iter().find(|vm| vm.name == key.name);
                let value = value_of(vm.and_then(|vm| vm.labels.get(MADE_BY)))?;
                self.note(&key.object(), begun, Action::Read, Outcome::Value(value));
            }
        }
        Ok(())
    }

    async fn rename(&mut self) -> anyhow::Result<()> {
        let value = self.value();
        let request = TagSnapshotRequest {
            snapshot: self.shared.snapshot.clone(),
            name: format!("name-{value}"),
            request_id: self.request_id(value),
        };
        let begun = self.shared.history().now();
        // Patiently: there is one snapshot only.
        let answer = call(&self.patient, async |attempt| {
            let request = attempt.request(request.clone());
            attempt.snapshots().tag_snapshot(request).await
        });
        let outcome = match answer.await? {
            Answer::Given(_) => Outcome::Done,
            Answer::Unknown => Outcome::Unknown,
            Answer::Unsent => return Ok(()),
            Answer::Refused(reason) => anyhow::bail!("a new name was refused: {reason:?}"),
        };
        self.note(&self.renamed(), begun, Action::Write(value), outcome);
        Ok(())
    }

    fn renamed(&self) -> String {
        format!("snapshot {}", self.shared.snapshot)
    }

    async fn read_name(&mut self, through: Option<usize>) -> anyhow::Result<()> {
        let request = GetSnapshotRequest {
            snapshot: self.shared.snapshot.clone(),
        };
        let begun = self.shared.history().now();
        let reach = match through {
            Some(node) => &self.nodes[node],
            None => self.reader(),
        };
        let answer = call(reach, async |attempt| {
            let request = attempt.request(request.clone());
            attempt.snapshots().get_snapshot(request).await
        });
        if let Some(snapshot) = given(answer.await?)? {
            // Its first name was none of ours.
            let value = snapshot.name.strip_prefix("name-");
            let value = value.map(str::parse).transpose()?;
            self.note(&self.renamed(), begun, Action::Read, Outcome::Value(value));
        }
        Ok(())
    }

    /// Reads all objects there are now through every node.
    pub(super) async fn read_everything(&mut self) -> anyhow::Result<()> {
        for node in 0..self.nodes.len() {
            self.list_labels(Some(node)).await?;
            self.list_vms(Some(node)).await?;
            if !self.shared.snapshot.is_empty() {
                self.read_name(Some(node)).await?;
            }
        }
        Ok(())
    }
}

fn made_by(value: u64) -> (String, String) {
    (MADE_BY.to_owned(), value.to_string())
}

fn value_of(text: Option<&String>) -> anyhow::Result<Option<u64>> {
    Ok(text.map(|text| text.parse()).transpose()?)
}

/// What a read was answered, if it was.
fn given<T>(answer: Answer<T>) -> anyhow::Result<Option<T>> {
    match answer {
        Answer::Given(value) => Ok(Some(value)),
        Answer::Unsent | Answer::Unknown => Ok(None),
        Answer::Refused(reason) => anyhow::bail!("a read was refused: {reason:?}"),
    }
}

/// Calls, with the client's own retries.
async fn call<T>(
    reach: &Reach,
    call: impl AsyncFn(Attempt) -> Result<Response<T>, Status>,
) -> anyhow::Result<Answer<T>> {
    let sent = Shown::new(false);
    let last = RefCell::new(None);
    let answered = reach.call(async |attempt| {
        // A try that is given up for its time may have been sent.
        let before = sent.replace(true);
        let answer = call(attempt).await;
        if let Err(status) = &answer {
            let unsent = matches!(classify(status), Trouble::NotConnected | Trouble::Distrust);
            sent.set(before || !unsent);
            last.replace(Some(status.clone()));
        }
        answer
    });
    let failure = match answered.await {
        Ok(value) => return Ok(Answer::Given(value)),
        Err(failure) => failure,
    };
    let reason = last
        .borrow()
        .as_ref()
        .map_or(Reason::Unspecified, reason_of);
    match failure.kind {
        FailureKind::Unreachable | FailureKind::TimedOut if !sent.get() => Ok(Answer::Unsent),
        FailureKind::Unreachable | FailureKind::TimedOut => Ok(Answer::Unknown),
        _ if reason == Reason::Unspecified => anyhow::bail!("{}", failure.line()),
        _ => Ok(Answer::Refused(reason)),
    }
}
