//! Lists that may be long: they are sent in parts.

use std::iter;

use futures::{StreamExt as _, stream};
use tokio::task::yield_now;

use super::carry::Answers;

/// How many objects a part has at most. With all the labels and settings that objects may have it stays below the 4 MiB that gRPC's
/// clients take in unless they are told to take more.
const PART: usize = 64;

/// Objects in parts. Each is made into its message when the one before it is on its way, and other calls have their turn in between.
pub(super) fn in_parts<T, P>(
    objects: Vec<T>,
    message: impl Fn(Vec<T>) -> P + Send + 'static,
) -> Answers<P>
where
    T: Send + 'static,
    P: Send + 'static,
{
    let mut left = objects.into_iter();
    let parts = iter::from_fn(move || {
        let part: Vec<T> = left.by_ref().take(PART).collect();
        (!part.is_empty()).then(|| Ok(message(part)))
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

    #[tokio::test]
    async fn all_come_in_order_and_none_of_the_parts_is_large() {
        for count in [0, 1, PART, PART + 1, 10 * PART] {
            let parts: Vec<Vec<usize>> = in_parts((0..count).collect(), |part| part)
                .try_collect()
                .await
                .unwrap();
            assert!(parts.iter().all(|part| (1..=PART).contains(&part.len())));
            assert!(parts.into_iter().flatten().eq(0..count));
        }
    }
}
