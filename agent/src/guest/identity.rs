//! Who a guest is, from the replicated state. Pure: the same VM is always the same.

use std::collections::BTreeMap;

use guest::channel::message::{Identity, Network, Origin};
use raft::state::{Source, Vm, VmId};
use sha2::{Digest as _, Sha256};

/// Names a VM since it was booted, forked or reset last.
pub fn incarnation(vm: VmId, boot: u64) -> String {
    format!("{vm}.{boot}")
}

/// Who the guest of a VM is in this boot of it. Secrets are not known here.
pub fn identity(vm: &Vm, boot: u64) -> Identity {
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
            .map_or_else(String::new, |(_, name)| name.clone()),
        index: 0,
        count: 0,
        settings: BTreeMap::new(),
        secrets: BTreeMap::new(),
        secrets_lost: false,
        network: None,
        asked_for: String::new(),
    }
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
