//! Lists that may be long: they are sent in parts.

use std::iter;

use futures::{StreamExt as _, stream};
use prost::Message;
use tokio::task::yield_now;

use super::carry::Answers;

/// How many objects a part has at most: other calls wait while they are made.
const PART: usize = 64;

/// A part with so many bytes gets no more. gRPC's clients take in 4 MiB unless they are told to take more, and no object has nearly as
/// much.
const ENOUGH: usize = 256 << 10;

/// Objects in parts, as they are shown, without those that are not. A part is made when the one before it is on its way, and other calls
/// have their turn in between.
pub(super) fn in_parts<T, M, P>(
    objects: Vec<T>,
    shown: impl Fn(&T) -> Option<M> + Send + 'static,
    part_of: impl Fn(Vec<M>) -> P + Send + 'static,
) -> Answers<P>
where
    T: Send + 'static,
    M: Message + 'static,
    P: Send + 'static,
{
    let mut left = objects.into_iter();
    let parts = iter::from_fn(move || {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while part.len() < PART
            && bytes < ENOUGH
            && let Some(object) = left.next()
        {
            if let Some(message) = shown(&object) {
                bytes += message.encoded_len();
                part.push(message);
            }
        }
        (!part.is_empty()).then(|| Ok(part_of(part)))
    });
    Box::pin(stream::iter(parts).then(async |part| {
        yield_now().await;
        part
    }))
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    /// The parts of a list of texts with these sizes, of which empty ones are not shown.
    async fn parts(sizes: Vec<usize>) -> Vec<Vec<usize>> {
        let shown = |size: &usize| (*size > 0).then(|| "x".repeat(*size));
        let part_of = |texts: Vec<String>| texts.iter().map(String::len).collect();
        in_parts(sizes, shown, part_of).try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn all_come_in_order_and_none_of_the_parts_is_large() {
        for count in [0, 1, PART, PART + 1, 10 * PART] {
            let parts = parts((1..=count).collect()).await;
            assert!(parts.iter().all(|part| (1..=PART).contains(&part.len())));
            assert!(parts.into_iter().flatten().eq(1..=count));
        }
        let large = ENOUGH * 2 / 3;
        assert_eq!(
            parts(vec![large, 1, large, large, 1]).await,
            [vec![large, 1, large], vec![large, 1]]
        );
        let (one, none) = (vec![1], Vec::<Vec<usize>>::new());
        assert_eq!(
            parts([vec![0; 2 * PART], one.clone()].concat()).await,
            [one]
        );
        assert_eq!(parts(vec![0; 2 * PART]).await, none);
    }
}
