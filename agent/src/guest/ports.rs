//! Published ports: for each, a port of the node that leads to the guest's, through the guest's agent. It is there while the VM has a
//! process, and no two VMs share one. Which port it is the node's kernel chooses, and it stays that while it can.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use guest::channel::relay;
use proto::v1::PublishedPort;
use qemu::layout::{Layout, write_whole};
use raft::state::{State, VmId};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Guest, connect};
use crate::{
    reconcile::plan::Is,
    vms::{Vms, vm_name},
};

/// Where it is kept which ports of the node a VM's are, in its folder.
const FILE: &str = "ports.json";
/// How many connections to one published port are carried at a time.
const MOST_CONNECTIONS: usize = 128;

/// The ports of one VM.
#[derive(Debug)]
struct Open {
    process: u32,
    ports: Vec<PublishedPort>,
    /// What could not be listened on, and why.
    problems: Vec<String>,
    end: CancellationToken,
}

/// Those of a node.
#[derive(Debug)]
pub struct Ports {
    address: IpAddr,
    layout: Layout,
    open: Mutex<BTreeMap<VmId, Open>>,
    tasks: TaskTracker,
}

impl Ports {
    /// On an address of the node. Which ports they were is kept in the VMs' folders: they stay the same while they can.
    pub fn new(address: IpAddr, layout: Layout, tasks: TaskTracker) -> Self {
        Self {
            address,
            layout,
            open: Mutex::default(),
            tasks,
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<VmId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a VM's published ports are reached now.
    pub fn of(&self, vm: VmId) -> Vec<PublishedPort> {
        let open = self.open();
        open.get(&vm)
            .map_or_else(Vec::new, |open| open.ports.clone())
    }

    /// What is wrong with them.
    pub fn problems(&self, vm: VmId) -> Vec<String> {
        let open = self.open();
        open.get(&vm)
            .map_or_else(Vec::new, |open| open.problems.clone())
    }

    /// Opens the ports of VMs that have a process, and closes those of VMs that have none, or another one.
    pub fn compare(&self, state: &State, vms: &Vms) {
        let mut open = self.open();
        open.retain(|vm, open| {
            let pid = vms.get(*vm).map_or(0, |handle| handle.pid());
            let stays = pid == open.process && state.vms.contains_key(vm);
            if !stays {
                open.end.cancel();
            }
            stays
        });
        for (id, handle) in vms.all() {
            let Some(vm) = state.vms.get(&id) else {
                continue;
            };
            let process = handle.pid();
            // One that waits for a fork is that VM's only once it runs, and its folder has another name until then.
            let runs = matches!(
                handle.seen().is,
                Is::Booting { .. } | Is::Running { .. } | Is::Paused { .. }
            );
            if vm.spec.publish.is_empty() || process == 0 || !runs || open.contains_key(&id) {
                continue;
            }
            let end = CancellationToken::new();
            let (mut ports, mut problems) = (Vec::new(), Vec::new());
            let file = self.layout.vm(&vm_name(id)).path().join(FILE);
            let mut chosen = chosen(&file);
            for port in &vm.spec.publish {
                let before = chosen.get(port).copied().unwrap_or_default();
                match self.listen(handle.guest(), *port, before, &end) {
                    Ok(address) => {
                        chosen.insert(*port, address.port());
                        ports.push(PublishedPort {
                            guest_port: (*port).into(),
                            address: address.ip().to_string(),
                            port: address.port().into(),
                        });
                    }
                    Err(error) => {
                        problems.push(format!("port {port} is not published: {error}"));
                    }
                }
            }
            if let Err(error) = keep(&file, &chosen) {
                problems.push(format!("its ports may be others next time: {error}"));
            }
            let opened = Open {
                process,
                ports,
                problems,
                end,
            };
            open.insert(id, opened);
        }
    }

    /// On the port that it was before (0 for none), or on another when that is taken.
    fn listen(
        &self,
        guest: &Guest,
        port: u16,
        before: u16,
        end: &CancellationToken,
    ) -> io::Result<SocketAddr> {
        let listener = match std::net::TcpListener::bind((self.address, before)) {
            Err(error) if before != 0 && error.kind() == io::ErrorKind::AddrInUse => {
                std::net::TcpListener::bind((self.address, 0))?
            }
            other => other?,
        };
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let (guest, end, tasks) = (guest.clone(), end.clone(), self.tasks.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = accept(listener, &guest, port, &end, &tasks) => {}
            }
        });
        Ok(address)
    }

    /// Closes all.
    pub fn close(&self) {
        for open in std::mem::take(&mut *self.open()).into_values() {
            open.end.cancel();
        }
    }
}

/// Which ports of the node a VM's were before: a guest's port, and the node's.
fn chosen(file: &Path) -> BTreeMap<u16, u16> {
    // Where that cannot be told, they are chosen anew.
    let bytes = fs::read(file).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn keep(file: &Path, chosen: &BTreeMap<u16, u16>) -> io::Result<()> {
    write_whole(file, &serde_json::to_vec(chosen)?)
}

async fn accept(
    listener: TcpListener,
    guest: &Guest,
    port: u16,
    end: &CancellationToken,
    tasks: &TaskTracker,
) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        // More wait in the kernel's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::debug!(%error, "a connection to a published port could not be taken up");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let (guest, end) = (guest.clone(), end.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = carry(&guest, port, connection) => {}
            }
            drop(place);
        });
    }
}

/// Carries a connection until both sides have ended. Where it cannot be made or breaks, whoever connected sees it closed.
async fn carry(guest: &Guest, port: u16, connection: TcpStream) {
    let stream = match connect(guest, "", port.into()).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a connection to a published port was not made");
            return;
        }
    };
    if let Err(error) = relay::carry(&stream, connection).await {
        tracing::debug!(%error, "a connection to a published port broke");
    }
}
