//! Working inside VMs: `GuestService`, and the same calls as nodes make them of each other.

mod asked;
mod copy;
mod copy_qemu;
mod exec;
mod exec_qemu;
mod forward;

pub use asked::run as answer_guests;

use std::sync::Arc;

use futures::StreamExt as _;
use proto::v1::{
    CopyInRequest, CopyInResponse, CopyOutRequest, CopyOutResponse, ExecRequest, ExecResponse,
    ForwardRequest, ForwardResponse, copy_in_request, copy_out_request, exec_request,
    forward_request, guest_service_server::GuestService,
};
use raft::state::VmId;
use tokio::{
    sync::mpsc,
    time::{Duration, Instant},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Api,
    asker::asked,
    carry::{Answers, Found, first},
    deadline,
};
use crate::{
    errors::ApiError,
    guest::{Contact, Guest, Unheard},
    node::Node,
};

/// How long a guest's agent is waited for that does not answer yet: a fork becomes itself in less, and so does one whose host's agent was
/// just started anew.
const CONTACT_PATIENCE: Duration = Duration::from_secs(5);

#[tonic::async_trait]
impl GuestService for Api {
    type ExecStream = Answers<ExecResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let mut inputs = request.into_inner();
        let mut start = exec::start(first(&mut inputs).await?)?;
        let found = self.find_vm(&by, &start.vm, deadline).await?;
        if found.node == self.node.id() {
            let answers = exec::open(&self.node, &found, start, inputs, deadline).await?;
            return Ok(Response::new(self.while_seen(&by, found.vm, answers)));
        }
        start.vm = found.vm.to_string();
        let mut client = self.stream_client(&found).await?;
        let first = ExecRequest {
            part: Some(exec_request::Part::Start(start)),
        };
        let carried = self.carry(found.node, first, inputs, move |inputs| {
            Box::pin(async move { client.exec(inputs).await })
        });
        let answers = carried.await?;
        Ok(Response::new(self.while_seen(&by, found.vm, answers)))
    }

    type ForwardStream = Answers<ForwardResponse>;

    async fn forward(
        &self,
        request: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let mut inputs = request.into_inner();
        let mut start = forward::start(first(&mut inputs).await?)?;
        let found = self.find_vm(&by, &start.vm, deadline).await?;
        if found.node == self.node.id() {
            let answers = forward::open(&self.node, &found, start, inputs, deadline).await?;
            return Ok(Response::new(self.while_seen(&by, found.vm, answers)));
        }
        start.vm = found.vm.to_string();
        let mut client = self.stream_client(&found).await?;
        let first = ForwardRequest {
            part: Some(forward_request::Part::Start(start)),
        };
        let carried = self.carry(found.node, first, inputs, move |inputs| {
            Box::pin(async move { client.forward(inputs).await })
        });
        let answers = carried.await?;
        Ok(Response::new(self.while_seen(&by, found.vm, answers)))
    }

    type CopyInStream = Answers<CopyInResponse>;

    async fn copy_in(
        &self,
        request: Request<Streaming<CopyInRequest>>,
    ) -> Result<Response<Self::CopyInStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let mut inputs = request.into_inner();
        let mut start = copy::start_in(first(&mut inputs).await?)?;
        let found = self.find_vm(&by, &start.vm, deadline).await?;
        if found.node == self.node.id() {
            let answers = copy::open_in(&self.node, &found, start, inputs, deadline).await?;
            return Ok(Response::new(self.while_seen(&by, found.vm, answers)));
        }
        start.vm = found.vm.to_string();
        let mut client = self.stream_client(&found).await?;
        let first = CopyInRequest {
            part: Some(copy_in_request::Part::Start(start)),
        };
        let carried = self.carry(found.node, first, inputs, move |inputs| {
            Box::pin(async move { client.copy_in(inputs).await })
        });
        let answers = carried.await?;
        Ok(Response::new(self.while_seen(&by, found.vm, answers)))
    }

    type CopyOutStream = Answers<CopyOutResponse>;

    async fn copy_out(
        &self,
        request: Request<Streaming<CopyOutRequest>>,
    ) -> Result<Response<Self::CopyOutStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let mut inputs = request.into_inner();
        let mut start = copy::start_out(first(&mut inputs).await?)?;
        let found = self.find_vm(&by, &start.vm, deadline).await?;
        if found.node == self.node.id() {
            let answers = copy::open_out(&self.node, &found, start, inputs, deadline).await?;
            return Ok(Response::new(self.while_seen(&by, found.vm, answers)));
        }
        start.vm = found.vm.to_string();
        let mut client = self.stream_client(&found).await?;
        let first = CopyOutRequest {
            part: Some(copy_out_request::Part::Start(start)),
        };
        let carried = self.carry(found.node, first, inputs, move |inputs| {
            Box::pin(async move { client.copy_out(inputs).await })
        });
        let answers = carried.await?;
        Ok(Response::new(self.while_seen(&by, found.vm, answers)))
    }
}

impl Api {
    /// `PeerService.Exec`.
    pub(super) async fn exec_here(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Answers<ExecResponse>>, Status> {
        let deadline = deadline(&request);
        let mut inputs = request.into_inner();
        let start = exec::start(first(&mut inputs).await?)?;
        let found = self.own_vm(&start.vm)?;
        let answers = exec::open(&self.node, &found, start, inputs, deadline).await?;
        Ok(Response::new(answers))
    }

    /// `PeerService.Forward`.
    pub(super) async fn forward_here(
        &self,
        request: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Answers<ForwardResponse>>, Status> {
        let deadline = deadline(&request);
        let mut inputs = request.into_inner();
        let start = forward::start(first(&mut inputs).await?)?;
        let found = self.own_vm(&start.vm)?;
        let answers = forward::open(&self.node, &found, start, inputs, deadline).await?;
        Ok(Response::new(answers))
    }

    /// `PeerService.CopyIn`.
    pub(super) async fn copy_in_here(
        &self,
        request: Request<Streaming<CopyInRequest>>,
    ) -> Result<Response<Answers<CopyInResponse>>, Status> {
        let deadline = deadline(&request);
        let mut inputs = request.into_inner();
        let start = copy::start_in(first(&mut inputs).await?)?;
        let found = self.own_vm(&start.vm)?;
        let answers = copy::open_in(&self.node, &found, start, inputs, deadline).await?;
        Ok(Response::new(answers))
    }

    /// `PeerService.CopyOut`.
    pub(super) async fn copy_out_here(
        &self,
        request: Request<Streaming<CopyOutRequest>>,
    ) -> Result<Response<Answers<CopyOutResponse>>, Status> {
        let deadline = deadline(&request);
        let mut inputs = request.into_inner();
        let start = copy::start_out(first(&mut inputs).await?)?;
        let found = self.own_vm(&start.vm)?;
        let answers = copy::open_out(&self.node, &found, start, inputs, deadline).await?;
        Ok(Response::new(answers))
    }

    /// A VM of this node by its id, as other nodes name it.
    fn own_vm(&self, id: &str) -> Result<Found, Status> {
        let vm: VmId = id
            .parse()
            .map_err(|_| Status::invalid_argument("a VM's id is not a ULID"))?;
        let state = self.node.state();
        // One that this node has and does not know of yet, it knows by its id.
        let name = state
            .vms
            .get(&vm)
            .map_or_else(|| id.to_owned(), |vm| vm.name.clone());
        Ok(Found {
            vm,
            name,
            node: self.node.id(),
        })
    }
}

/// The agent of a VM's guest on this node, once it answers.
async fn guest(node: &Arc<Node>, found: &Found, deadline: Instant) -> Result<Guest, ApiError> {
    let handle = node
        .vms
        .get(found.vm)
        .filter(|handle| handle.pid() != 0)
        .ok_or_else(|| found.unheard(Unheard::Silent))?;
    let guest = handle.guest().clone();
    let deadline = deadline.min(Instant::now() + CONTACT_PATIENCE);
    let mut contact = guest.watch();
    let heard = contact.wait_for(|contact| !matches!(contact, Contact::Silent));
    // What became of it is asked below.
    let _in_time = tokio::time::timeout_at(deadline, heard).await.is_ok();
    if !guest.answers() {
        guest.session().map_err(|problem| found.unheard(problem))?;
    }
    Ok(guest)
}

/// Answers that wait for a caller who does not read.
const ANSWERS: usize = 4;

/// Where a call's answers go.
type Answer<A> = mpsc::Sender<Result<A, Status>>;

/// Has a call be attended to until that has ended, its caller is gone, or the node ends; what it works with goes then.
fn attended<A, F>(
    node: &Arc<Node>,
    found: &Found,
    attend: impl FnOnce(Answer<A>) -> F,
) -> Answers<A>
where
    A: Send + 'static,
    F: Future<Output = Result<(), Unheard>> + Send + 'static,
{
    let (answers, receiver) = mpsc::channel(ANSWERS);
    let (ended, found) = (node.cancel.clone(), found.clone());
    let attending = attend(answers.clone());
    node.tasks.spawn(async move {
        let attended = tokio::select! {
            () = ended.cancelled() => return,
            () = answers.closed() => return,
            attended = attending => attended,
        };
        if let Err(problem) = attended {
            let status = Status::from(found.unheard(problem));
            // Whoever called may be gone.
            let _gone = answers.send(Err(status)).await;
        }
    });
    ReceiverStream::new(receiver).boxed()
}
