//! The API as other programs see it: health, reflection, errors with reasons and hints.

use std::path::PathBuf;

use agent::trust::tls::connect::{Target, channel};
use anyhow::Context as _;
use harness::cluster::Cluster;
use proto::v1::{ForkRequest, vm_service_client::VmServiceClient};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

#[tokio::test]
async fn health_reflection_and_reasons_are_served() -> anyhow::Result<()> {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await??;
    let socket = cluster.node(1).address();
    let socket = PathBuf::from(socket.strip_prefix("unix://").context("no socket")?);
    let channel = channel(Target::Unix(socket));

    let health = HealthClient::new(channel.clone())
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await?;
    assert_eq!(health.into_inner().status, 1, "SERVING");

    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::iter([list]))
        .await?
        .into_inner();
    let answer = answers
        .message()
        .await?
        .and_then(|answer| answer.message_response);
    let Some(MessageResponse::ListServicesResponse(services)) = answer else {
        anyhow::bail!("{answer:?}")
    };
    let names: Vec<&str> = services
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for service in [
        "ClusterService",
        "NodeService",
        "ImageService",
        "VmService",
        "SnapshotService",
        "OperationService",
    ] {
        let name = format!("forkypig.v1.{service}");
        assert!(names.contains(&name.as_str()), "{name} is not in {names:?}");
    }

    let fork = ForkRequest {
        source: "nobody".into(),
        count: 1,
        ..ForkRequest::default()
    };
    let status = VmServiceClient::new(channel)
        .fork(fork)
        .await
        .err()
        .context("it was not refused")?;
    assert_eq!(status.code(), Code::NotFound);
    let details = String::from_utf8_lossy(status.details()).into_owned();
    assert!(
        details.contains("NOT_FOUND")
            && details.contains("forkypig")
            && details.contains("fpagent vm ls"),
        "{details}"
    );
    Ok(())
}
