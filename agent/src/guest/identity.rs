//! Who a guest is, from the replicated state. Pure: the same VM is always the same.

use std::collections::BTreeMap;

use guest::{
    channel::message::{Identity, Network, Origin},
    group,
};
use raft::state::{self as model, InGroup, Response, Source, State, Vm, VmId};
use sha2::{Digest as _, Sha256};

use crate::secrets::Given;

/// Names a VM since it was booted, forked or reset last.
pub fn incarnation(vm: VmId, boot: u64) -> String {
    format!("{vm}.{boot}")
}

/// The id of a request that a guest makes of its own VM: [`guest::channel::message::Fork::request`] behind it.
pub fn request_prefix(vm: VmId) -> String {
    format!("guest-{vm}-")
}

/// Who the guest of a VM is in this boot of it, with the secrets of its fork as far as they are here.
pub fn identity(state: &State, vm: &Vm, boot: u64, secrets: Option<&Given>) -> Identity {
    let origin = match vm.source {
        Source::Snapshot(_) if boot == 1 => Origin::Fork,
        Source::Snapshot(_) => Origin::Reset,
        Source::Image => Origin::Boot,
    };
    Identity {
        incarnation: incarnation(vm.id, boot),
        origin: origin.into(),
        name: vm.name.clone(),
        fork_id: vm.id.to_string(),
        machine_id: machine_id(vm.id),
        parent: vm
            .parent
            .as_ref()
            // Another owner's VM is nothing to whom it belongs.
            .filter(|parent| parent.owner == vm.ownership.owner)
            .map_or_else(String::new, |parent| parent.name.clone()),
        index: vm.place.map_or(0, |place| place.index),
        count: vm.place.map_or(0, |place| place.count),
        settings: vm.settings.clone(),
        secrets: secrets.map_or_else(BTreeMap::new, |given| {
            let secret = |(key, secret): (&String, &crate::secrets::Secret)| {
                (key.clone(), secret.bytes().to_vec())
            };
            given.iter().map(secret).collect()
        }),
        // A guest that was told them before knows them still.
        secrets_lost: vm.has_secrets && secrets.is_none() && origin == Origin::Fork,
        network: (vm.spec.network != model::Network::None).then(|| network(vm.id)),
        asked_for: asked_for(state, vm),
        group: vm.group.as_ref().map(group_network),
    }
}

/// The guest's own request that a VM came of; empty when it came of none, or of one that is forgotten.
fn asked_for(state: &State, vm: &Vm) -> String {
    let (true, Some(parent), Some(operation)) = (vm.by_guest, &vm.parent, vm.operation) else {
        return String::new();
    };
    let prefix = request_prefix(parent.vm);
    let made_it = |record: &model::RequestRecord| matches!(record.outcome, Ok(Response::Operation(made)) if made == operation);
    let found = state
        .requests
        .beginning_with(&vm.ownership.owner, &prefix)
        .find(|(_, record)| made_it(record));
    found.map_or_else(String::new, |(rest, _)| rest.to_owned())
}

/// What derives from a VM's id, for one purpose.
fn derived(purpose: &str, vm: VmId) -> [u8; 32] {
    Sha256::new()
        .chain_update(purpose)
        .chain_update([0])
        .chain_update(vm.0.to_be_bytes())
        .finalize()
        .into()
}

/// 128 bits, as machine-id(5) has them.
fn machine_id(vm: VmId) -> String {
    crate::blobs::hex(&derived("machine-id", vm)[..16])
}

/// The hardware address of a VM's network card: of those that anybody may give, for one station.
pub fn mac(vm: VmId) -> [u8; 6] {
    let digest = derived("mac", vm);
    [
        (digest[0] & 0xfc) | 0x02,
        digest[1],
        digest[2],
        digest[3],
        digest[4],
        digest[5],
    ]
}

/// The network of a VM: a guest has it for itself, so that the addresses in it are the same in all.
pub fn network(vm: VmId) -> Network {
    Network {
        mac: mac(vm).to_vec(),
        address: "10.0.2.15".to_owned(),
        prefix: 24,
        gateway: "10.0.2.2".to_owned(),
        dns: "10.0.2.3".to_owned(),
    }
}

/// A VM's place on its group's network.
fn group_network(group: &InGroup) -> Network {
    let number = crate::vms::network::number(group);
    Network {
        mac: group::mac(number).to_vec(),
        address: crate::convert::group_address(group),
        prefix: group::PREFIX,
        gateway: String::new(),
        dns: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_derives_from_an_id_is_well_formed_and_different_for_each() {
        let (one, other) = (VmId(1), VmId(2));
        assert_eq!(machine_id(one), machine_id(one));
        assert_ne!(machine_id(one), machine_id(other));
        assert_eq!(machine_id(one).len(), 32);
        for vm in (0..100).map(VmId) {
            let first = mac(vm)[0];
            assert_eq!((first & 1, first & 2), (0, 2), "local, and no group's");
        }
        assert_ne!(mac(one), mac(other));
    }
}
