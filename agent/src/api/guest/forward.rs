//! Connections to guests' ports.

use std::sync::Arc;

use guest::channel::{link::Stream, mux::Broken};
use proto::v1::{
    ForwardRequest, ForwardResponse, ForwardStart, forward_request::Part as In,
    forward_response::Part as Out,
};
use tokio::time::Instant;
use tonic::Streaming;

use super::super::carry::{Answers, Found};
use crate::{errors::ApiError, guest::connect, node::Node};

/// What is taken at once, bytes.
const MOST_DATA: usize = 64 << 10;

/// What the first message asks for.
pub(super) fn start(first: ForwardRequest) -> Result<ForwardStart, ApiError> {
    let invalid = |field, problem: &str| ApiError::InvalidField {
        field,
        problem: problem.to_owned(),
    };
    let Some(In::Start(start)) = first.part else {
        return Err(invalid("start", "the first message says where to connect"));
    };
    if !(1..=u32::from(u16::MAX)).contains(&start.port) {
        return Err(invalid("port", "must be 1 to 65535"));
    }
    if !start.host.is_empty() && start.host.parse::<std::net::IpAddr>().is_err() {
        return Err(invalid(
            "host",
            "must be an address, or empty for the guest itself",
        ));
    }
    Ok(start)
}

/// Connects to a port of a VM of this node, for a call.
pub(super) async fn open(
    node: &Arc<Node>,
    found: &Found,
    start: ForwardStart,
    inputs: Streaming<ForwardRequest>,
    deadline: Instant,
) -> Result<Answers<ForwardResponse>, ApiError> {
    let guest = super::guest(node, found, deadline).await?;
    let stream = connect(&guest, &start.host, start.port)
        .await
        .map_err(|problem| found.unheard(problem))?;
    Ok(super::attended(node, found, |answers| async move {
        Ok(attend(&stream, inputs, &answers).await?)
    }))
}

type Answer = super::Answer<ForwardResponse>;

/// Carries both ways until both have ended.
async fn attend(
    stream: &Stream,
    mut inputs: Streaming<ForwardRequest>,
    answers: &Answer,
) -> Result<(), Broken> {
    let say = async |part| {
        let answer = ForwardResponse { part: Some(part) };
        let said = answers.send(Ok(answer)).await;
        said.map_err(|_| Broken::Cancelled)
    };
    say(Out::Connected(true)).await?;
    let inward = async {
        loop {
            let next = inputs.message().await.map_err(|_| Broken::Cancelled)?;
            let Some(next) = next else {
                return Err(Broken::Cancelled);
            };
            match next.part {
                Some(In::Data(bytes)) if bytes.len() > MOST_DATA => {
                    return Err(Broken::Failed("more than 64 KiB came at once".to_owned()));
                }
                Some(In::Data(bytes)) => stream.send(0, bytes).await?,
                Some(In::End(_)) => {
                    stream.end(0);
                    return Ok(());
                }
                Some(In::Start(_)) => {
                    return Err(Broken::Failed(
                        "a second connection came in one call".to_owned(),
                    ));
                }
                // Of a newer client.
                None => {}
            }
        }
    };
    let outward = async {
        while let Some(bytes) = stream.take(0).await? {
            say(Out::Data(bytes)).await?;
        }
        say(Out::End(true)).await
    };
    tokio::try_join!(inward, outward)?;
    stream.close();
    Ok(())
}
