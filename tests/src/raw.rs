//! Calls of whatever the API has, with messages that are put together by its own description.

use std::time::Duration;

use anyhow::Context as _;
use bytes::{Buf, BufMut};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Messages as they come, whatever they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; bytes.remaining()];
        bytes.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

/// Makes a call with one message. Its status, as far as its first answer tells.
///
/// # Errors
/// It is not answered.
pub async fn call(channel: &Channel, path: &str, message: Vec<u8>) -> anyhow::Result<Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let path = PathAndQuery::try_from(format!("/{path}"))?;
    let request = Request::new(tokio_stream::once(message));
    let asking = async {
        let mut answers = client.streaming(request, path, Raw).await?.into_inner();
        answers.message().await
    };
    Ok(
        match tokio::time::timeout(PATIENCE, asking)
            .await
            .context("it hangs")?
        {
            Ok(_) => Status::ok(""),
            Err(status) => status,
        },
    )
}
