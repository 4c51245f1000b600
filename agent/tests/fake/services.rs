//! The services of the fake agent.

use std::{pin::Pin, sync::atomic::Ordering};

use agent::trust::{
    authority::Authority, tls::accept::Peer, tls::server::PeerRole, token::JoinToken,
};
use futures::{Stream, stream};
use proto::v1::{import_image_request::Part, *};
use tonic::{Request, Response, Status, Streaming};
use ulid::Ulid;

use super::Shared;

type Answer<T> = Result<Response<T>, Status>;

fn vm(name: &str) -> Vm {
    Vm {
        id: format!("ID-{name}").to_uppercase(),
        name: name.to_owned(),
        node: "host-a".to_owned(),
        state: VmState::Running.into(),
        ..Default::default()
    }
}

/// What comes in parts.
type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn parts<T: Send + 'static, const N: usize>(parts: [T; N]) -> Response<Parts<T>> {
    Response::new(Box::pin(stream::iter(parts.map(Ok))))
}

fn unused<T>() -> Answer<T> {
    Err(Status::unimplemented("no test needs it"))
}

#[tonic::async_trait]
impl vm_service_server::VmService for Shared {
    async fn create_vm(&self, request: Request<CreateVmRequest>) -> Answer<Vm> {
        let request = request.into_inner();
        self.obey(&request.request_id).await?;
        Ok(Response::new(Vm {
            network: request.network,
            publish: request.publish,
            self_fork: request.self_fork,
            unready: request.unready,
            ..vm(&request.name)
        }))
    }

    type ListVmsStream = Parts<ListVmsResponse>;

    async fn list_vms(&self, _request: Request<ListVmsRequest>) -> Answer<Self::ListVmsStream> {
        self.obey("").await?;
        let child = Vm {
            parent: vm("demo").id,
            snapshot: "ID-SNAPSHOT".to_owned(),
            ..vm("demo-1")
        };
        Ok(parts(
            [vm("demo"), child].map(|vm| ListVmsResponse { vms: vec![vm] }),
        ))
    }

    async fn get_vm(&self, request: Request<GetVmRequest>) -> Answer<Vm> {
        self.obey("").await?;
        Ok(Response::new(vm(&request.into_inner().vm)))
    }

    async fn set_vm_power(&self, _request: Request<SetVmPowerRequest>) -> Answer<Vm> {
        unused()
    }

    async fn wait_vm(&self, request: Request<WaitVmRequest>) -> Answer<Vm> {
        let request = request.into_inner();
        self.obey("").await?;
        if request.until() == WaitFor::Port {
            return Err(Status::unimplemented(format!("port {}", request.port)));
        }
        // As it is named, so it ended.
        let ending = |cause: EndCause, exit_code| Ending {
            cause: cause.into(),
            exit_code,
            ..Default::default()
        };
        let (state, ending) = match request.vm.as_str() {
            "exited-7" => (VmState::Failed, ending(EndCause::Exited, Some(7))),
            "panicked" => (VmState::Failed, ending(EndCause::Panic, None)),
            _ => (VmState::Stopped, ending(EndCause::Poweroff, None)),
        };
        Ok(Response::new(match request.until() {
            WaitFor::Exit => Vm {
                state: state.into(),
                ending: Some(ending),
                reason: "the guest's kernel panicked".to_owned(),
                ..vm(&request.vm)
            },
            _ => vm(&request.vm),
        }))
    }

    async fn reset_vm(&self, request: Request<ResetVmRequest>) -> Answer<ResetVmResponse> {
        let request = request.into_inner();
        self.obey(&request.request_id).await?;
        Ok(Response::new(ResetVmResponse {
            operation: "OP".to_owned(),
            vm: Some(vm(&request.vm)),
            running_ms: 41.5,
        }))
    }

    async fn fork_group(&self, _request: Request<ForkGroupRequest>) -> Answer<ForkGroupResponse> {
        unused()
    }

    type ListGroupsStream = Parts<ListGroupsResponse>;

    async fn list_groups(
        &self,
        _request: Request<ListGroupsRequest>,
    ) -> Answer<Self::ListGroupsStream> {
        unused()
    }

    async fn get_group(&self, _request: Request<GetGroupRequest>) -> Answer<Group> {
        unused()
    }

    async fn delete_group(
        &self,
        _request: Request<DeleteGroupRequest>,
    ) -> Answer<DeleteGroupResponse> {
        unused()
    }

    async fn suspend_vm(&self, request: Request<SuspendVmRequest>) -> Answer<Vm> {
        let request = request.into_inner();
        self.obey(&request.request_id).await?;
        Ok(Response::new(Vm {
            state: VmState::Suspended.into(),
            ..vm(&request.vm)
        }))
    }

    async fn protect_vm(&self, _request: Request<ProtectVmRequest>) -> Answer<Vm> {
        unused()
    }

    async fn move_vm(&self, request: Request<MoveVmRequest>) -> Answer<MoveVmResponse> {
        let request = request.into_inner();
        self.obey(&request.request_id).await?;
        Ok(Response::new(MoveVmResponse {
            operation: "ID-OPERATION".to_owned(),
            vm: Some(Vm {
                node: request.node,
                ..vm(&request.vm)
            }),
            pause_ms: 12.5,
        }))
    }

    async fn delete_vm(&self, request: Request<DeleteVmRequest>) -> Answer<DeleteVmResponse> {
        self.obey(&request.into_inner().request_id).await?;
        Ok(Response::new(DeleteVmResponse { completed: true }))
    }

    async fn fork(&self, request: Request<ForkRequest>) -> Answer<ForkResponse> {
        let request = request.into_inner();
        self.obey(&request.request_id).await?;
        *self.told.lock().unwrap() = Some((request.settings, request.secrets));
        let error = if request.source == "broken" {
            "no memory"
        } else {
            ""
        };
        let child = |number| ForkedVm {
            id: format!("ID-{number}"),
            name: format!("{}-{number}", request.source),
            node: "host-a".to_owned(),
            state: if error.is_empty() {
                VmState::Running
            } else {
                VmState::Failed
            }
            .into(),
            running_ms: 81.25,
            ready_ms: 81.25,
            error: error.to_owned(),
            failed_steps: Vec::new(),
        };
        Ok(Response::new(ForkResponse {
            operation: "OP".to_owned(),
            snapshot: "ID-SNAPSHOT".to_owned(),
            pause_ms: 5.5,
            children: (1..=request.count).map(child).collect(),
            capture: None,
        }))
    }

    type ConsoleStream = Parts<ConsoleResponse>;

    async fn console(
        &self,
        _request: Request<Streaming<ConsoleRequest>>,
    ) -> Answer<Self::ConsoleStream> {
        unused()
    }

    type ReadLogsStream = Parts<ReadLogsResponse>;

    async fn read_logs(&self, request: Request<ReadLogsRequest>) -> Answer<Self::ReadLogsStream> {
        let chunk = |text: &'static str| Ok(ReadLogsResponse { chunk: text.into() });
        Ok(Response::new(if request.into_inner().follow {
            Box::pin(stream::repeat_with(move || chunk("hello\n")))
        } else {
            Box::pin(stream::iter([chunk("hello\nwor"), chunk("ld\n")]))
        }))
    }
}

#[tonic::async_trait]
impl image_service_server::ImageService for Shared {
    async fn import_image(&self, request: Request<Streaming<ImportImageRequest>>) -> Answer<Image> {
        let mut parts = request.into_inner();
        let mut image = Image::default();
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Header(header)) => {
                    image.guest_agent = header.guest_agent;
                    (image.name, image.cmdline) = (header.name, header.cmdline);
                }
                Some(Part::BeginFile(kind)) => image.files.push(ImageFile {
                    kind,
                    ..Default::default()
                }),
                Some(Part::Chunk(chunk)) => {
                    let file = image
                        .files
                        .last_mut()
                        .ok_or_else(|| Status::invalid_argument("no file was begun"))?;
                    file.size_bytes += chunk.len() as u64;
                }
                None => return Err(Status::invalid_argument("an empty part")),
            }
        }
        Ok(Response::new(image))
    }

    async fn list_images(
        &self,
        _request: Request<ListImagesRequest>,
    ) -> Answer<ListImagesResponse> {
        unused()
    }

    async fn get_image(&self, _request: Request<GetImageRequest>) -> Answer<Image> {
        unused()
    }

    async fn delete_image(
        &self,
        _request: Request<DeleteImageRequest>,
    ) -> Answer<DeleteImageResponse> {
        unused()
    }
}

#[tonic::async_trait]
impl snapshot_service_server::SnapshotService for Shared {
    async fn create_snapshot(&self, _request: Request<CreateSnapshotRequest>) -> Answer<Snapshot> {
        unused()
    }

    type ListSnapshotsStream = Parts<ListSnapshotsResponse>;

    async fn list_snapshots(
        &self,
        _request: Request<ListSnapshotsRequest>,
    ) -> Answer<Self::ListSnapshotsStream> {
        let snapshot = Snapshot {
            id: "ID-SNAPSHOT".to_owned(),
            name: "golden".to_owned(),
            vm: vm("demo").id,
            vm_name: "demo".to_owned(),
            state: SnapshotState::Ready.into(),
            ..Default::default()
        };
        Ok(parts([ListSnapshotsResponse {
            snapshots: vec![snapshot],
        }]))
    }

    async fn get_snapshot(&self, _request: Request<GetSnapshotRequest>) -> Answer<Snapshot> {
        unused()
    }

    async fn tag_snapshot(&self, _request: Request<TagSnapshotRequest>) -> Answer<Snapshot> {
        unused()
    }

    async fn warm_snapshot(&self, _request: Request<WarmSnapshotRequest>) -> Answer<Snapshot> {
        unused()
    }

    async fn replicate_snapshot(
        &self,
        _request: Request<ReplicateSnapshotRequest>,
    ) -> Answer<Snapshot> {
        unused()
    }

    async fn delete_snapshot(
        &self,
        _request: Request<DeleteSnapshotRequest>,
    ) -> Answer<DeleteSnapshotResponse> {
        unused()
    }
}

#[tonic::async_trait]
impl cluster_service_server::ClusterService for Shared {
    async fn get_status(&self, _request: Request<GetStatusRequest>) -> Answer<GetStatusResponse> {
        let problems = vec!["host-b is offline".to_owned()];
        Ok(Response::new(GetStatusResponse {
            problems,
            ..Default::default()
        }))
    }

    async fn check_host(&self, _request: Request<CheckHostRequest>) -> Answer<CheckHostResponse> {
        let check = |name: &str, result: HostCheckResult| HostCheck {
            name: name.to_owned(),
            result: result.into(),
            ..Default::default()
        };
        let checks = vec![
            check("qemu", HostCheckResult::Failed),
            check("kvm", HostCheckResult::Warning),
        ];
        Ok(Response::new(CheckHostResponse { checks }))
    }

    async fn create_token(
        &self,
        _request: Request<CreateTokenRequest>,
    ) -> Answer<CreateTokenResponse> {
        let internal = |error: agent::trust::TrustError| Status::internal(error.to_string());
        let addresses = [self.https.clone()];
        let token = JoinToken::generate(Ulid::new(), self.node.authority.fingerprint(), &addresses)
            .map_err(internal)?;
        self.tokens
            .0
            .lock()
            .unwrap()
            .insert(token.key_hash().map_err(internal)?);
        Ok(Response::new(CreateTokenResponse {
            token: token.to_text(),
            id: token.id.to_string(),
            expires_at: None,
        }))
    }

    async fn list_tokens(
        &self,
        _request: Request<ListTokensRequest>,
    ) -> Answer<ListTokensResponse> {
        unused()
    }

    type CreateBackupStream = stream::Empty<Result<CreateBackupResponse, Status>>;

    async fn create_backup(
        &self,
        _request: Request<CreateBackupRequest>,
    ) -> Answer<Self::CreateBackupStream> {
        unused()
    }

    async fn get_authority(
        &self,
        _request: Request<GetAuthorityRequest>,
    ) -> Answer<proto::v1::Authority> {
        unused()
    }

    async fn replace_authority(
        &self,
        _request: Request<ReplaceAuthorityRequest>,
    ) -> Answer<proto::v1::Authority> {
        unused()
    }

    async fn finish_authority(
        &self,
        _request: Request<FinishAuthorityRequest>,
    ) -> Answer<proto::v1::Authority> {
        unused()
    }

    async fn create_certificate(
        &self,
        _request: Request<CreateCertificateRequest>,
    ) -> Answer<CreateCertificateResponse> {
        unused()
    }

    async fn list_certificates(
        &self,
        _request: Request<ListCertificatesRequest>,
    ) -> Answer<ListCertificatesResponse> {
        unused()
    }

    async fn revoke_certificate(
        &self,
        _request: Request<RevokeCertificateRequest>,
    ) -> Answer<Certificate> {
        unused()
    }

    async fn revoke_token(
        &self,
        _request: Request<RevokeTokenRequest>,
    ) -> Answer<RevokeTokenResponse> {
        unused()
    }
}

#[tonic::async_trait]
impl join_service_server::JoinService for Shared {
    async fn join(&self, request: Request<JoinRequest>) -> Answer<JoinResponse> {
        let Some(Peer {
            role: PeerRole::Joiner { key_hash },
            ..
        }) = request.extensions().get::<Peer>().cloned()
        else {
            return Err(Status::permission_denied("only with a token"));
        };
        let lies = self.lies.load(Ordering::Relaxed);
        if !lies {
            assert!(self.tokens.0.lock().unwrap().remove(&key_hash));
        }
        let request = request.into_inner();
        let authority = &self.node.authority;
        let shown = match lies {
            true => Authority::create(Ulid::new())
                .unwrap()
                .certificate()
                .to_vec(),
            false => authority.certificate().to_vec(),
        };
        let certificate = authority
            .sign_node_request(2, &request.name, &request.csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let founder = Node {
            id: 1,
            name: "host-a".to_owned(),
            address: self.https.clone(),
            ..Default::default()
        };
        Ok(Response::new(JoinResponse {
            cluster_id: authority.cluster().to_string(),
            incarnation: authority.cluster().to_string(),
            node_id: 2,
            certificate: certificate.to_vec().into(),
            authority_certificate: shown.into(),
            authority_key: authority.key_der().into(),
            nodes: vec![founder],
            replacement: Default::default(),
        }))
    }

    async fn withdraw_join(
        &self,
        _request: Request<WithdrawJoinRequest>,
    ) -> Answer<WithdrawJoinResponse> {
        self.withdrawn.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(WithdrawJoinResponse {}))
    }
}
