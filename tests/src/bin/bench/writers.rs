//! Writers: each has a connection of its own that is kept, and writes one after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::future::try_join_all;
use prost::Message as _;
use proto::v1::{LabelNodeRequest, node_service_client::NodeServiceClient};
use tonic::transport::Channel;

use crate::etcd::{self, PutRequest};

/// What a label's value may hold at most, bytes: as much as is written.
const VALUE: usize = 255;

/// One writer's connection.
#[derive(Clone)]
pub enum Writer {
    /// To an agent: a label of a node is set.
    Agent {
        /// The connection.
        client: NodeServiceClient<Channel>,
        /// The node whose label it is.
        node: String,
    },
    /// To a member of etcd: a key is set, with as many bytes.
    Etcd(etcd::Client),
}

impl Writer {
    /// One write. Each has another number, which is its request's id and the value.
    async fn write(&mut self, number: u64) -> anyhow::Result<()> {
        match self {
            Self::Agent { client, node } => {
                client.label_node(label(node, number)).await?;
                Ok(())
            }
            Self::Etcd(client) => client.put(put(number)).await,
        }
    }
}

fn label(node: &str, number: u64) -> LabelNodeRequest {
    LabelNodeRequest {
        node: node.to_owned(),
        set: [("bench".to_owned(), format!("{number:0VALUE$}"))].into(),
        remove: Vec::new(),
        request_id: format!("bench-{number:020}"),
    }
}

/// As large as the other.
fn put(number: u64) -> PutRequest {
    let mut request = PutRequest {
        key: b"bench".to_vec(),
        value: Vec::new(),
    };
    let rest = label("node1", number).encoded_len() - request.encoded_len();
    // The field's tag and its length in two bytes.
    request.value = format!("{number:0width$}", width = rest - 3).into_bytes();
    request
}

/// How many bytes one write's request has, on both sides.
pub fn request_bytes() -> usize {
    put(0).encoded_len()
}

/// Gives every write of a run its number.
#[derive(Clone, Default)]
pub struct Numbers(Arc<AtomicU64>);

impl Numbers {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// What some writers did.
pub struct Written {
    /// How long each write took, milliseconds.
    pub ms: Vec<f64>,
    /// From the first one's beginning to the last one's end.
    pub took: Duration,
}

/// How long writers write.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// Each so many times.
    Count(u32),
    /// So long.
    Elapsed(Duration),
}

/// Has all write, side by side.
pub async fn write(writers: &[Writer], numbers: &Numbers, until: Until) -> anyhow::Result<Written> {
    let begun = Instant::now();
    let each = writers.iter().cloned().map(|mut writer| {
        let numbers = numbers.clone();
        tokio::spawn(async move {
            let mut ms = Vec::new();
            loop {
                let done = match until {
                    Until::Count(count) => ms.len() >= count as usize,
                    Until::Elapsed(time) => begun.elapsed() >= time,
                };
                if done {
                    return anyhow::Ok(ms);
                }
                let asked = Instant::now();
                let written = writer.write(numbers.next()).await;
                written.context("a write was refused")?;
                ms.push(asked.elapsed().as_secs_f64() * 1e3);
            }
        })
    });
    let all = try_join_all(each).await?;
    let took = begun.elapsed();
    let ms = all.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Written {
        ms: ms.concat(),
        took,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_write_as_many_bytes() {
        for number in [0, 7, 123_456_789] {
            assert_eq!(
                label("node1", number).encoded_len(),
                put(number).encoded_len()
            );
        }
    }
}
