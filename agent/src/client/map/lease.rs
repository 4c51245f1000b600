//! The lease that all of a map is kept by.

use std::time::Duration;

use proto::v1::{
    CreateLeaseRequest, EndLeaseRequest, Keep, Reason, RenewLeaseRequest, keep::HowLong,
};
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use crate::client::{args::keep::millis, failure::Failure, reach::Reach};

/// How often the lease is renewed while it lasts.
const RENEWALS: u32 = 6;

/// A lease that is held.
pub(crate) struct Lease<'a> {
    reach: &'a Reach,
    id: String,
    /// How long what was made stays when nobody is there any more.
    ttl: Duration,
}

impl<'a> Lease<'a> {
    pub async fn take(reach: &'a Reach, ttl: Duration) -> Result<Self, Failure> {
        let request = CreateLeaseRequest {
            ttl_ms: millis(ttl),
            request_id: Ulid::new().to_string(),
            ..CreateLeaseRequest::default()
        };
        let taken = reach.change(&request.request_id, async |attempt| {
            let request = attempt.request(request.clone());
            attempt.leases().create_lease(request).await
        });
        let id = taken.await?.id;
        Ok(Self { reach, id, ttl })
    }

    /// One that is there already.
    pub fn held(reach: &'a Reach, id: String, ttl: Duration) -> Self {
        Self { reach, id, ttl }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Has something that is made be kept by it.
    pub fn keeps(&self) -> Keep {
        Keep {
            how_long: Some(HowLong::Lease(self.id.clone())),
        }
    }

    /// A request's id that is this map's own.
    pub fn request_id(&self, what: &str) -> String {
        format!("{}-{what}", self.id)
    }

    /// Renews it, again and again. Returns when it cannot be had any longer.
    pub async fn keep(&self) -> Failure {
        let mut renewed = Instant::now();
        loop {
            sleep(self.ttl / RENEWALS).await;
            let request = RenewLeaseRequest {
                lease: self.id.clone(),
            };
            let answer = self.reach.call(async |attempt| {
                let request = attempt.request(request.clone());
                attempt.leases().renew_lease(request).await
            });
            match answer.await {
                Ok(_) => renewed = Instant::now(),
                Err(failure) if failure.reason == Reason::NotFound => {
                    return failure.and("its forks are deleted");
                }
                // Its owner may not any more.
                Err(failure) if failure.reason == Reason::NotAllowed => return failure,
                Err(failure) if renewed.elapsed() > self.ttl => return failure,
                Err(_) => {}
            }
        }
    }

    /// Ends it, and all that is kept by it.
    pub async fn end(&self) -> Result<(), Failure> {
        let request = EndLeaseRequest {
            lease: self.id.clone(),
            request_id: self.request_id("end"),
        };
        let ended = self.reach.change(&request.request_id, async |attempt| {
            let request = attempt.request(request.clone());
            attempt.leases().end_lease(request).await
        });
        match ended.await {
            Ok(_) => Ok(()),
            Err(failure) if failure.reason == Reason::NotFound => Ok(()),
            Err(failure) => {
                let seconds = self.ttl.as_secs();
                Err(failure.and(&format!(
                    "what is left of its forks is deleted when lease {} ends, within {seconds} s",
                    self.id
                )))
            }
        }
    }
}
