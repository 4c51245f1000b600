//! `fpagent status` and `fpagent doctor`.

use proto::v1::{CheckHostRequest, GetStatusRequest};

use crate::client::{
    Context,
    failure::Failure,
    views::cluster::{CheckView, StatusView},
};

pub(crate) async fn status(context: &Context) -> Result<(), Failure> {
    let reach = context.reach()?;
    let answer = reach.call(async |attempt| {
        attempt
            .cluster()
            .get_status(attempt.request(GetStatusRequest {}))
            .await
    });
    let status = StatusView::from(answer.await?);
    if !context.for_people() {
        return context.data(&status);
    }
    context.lines(&status.lines())
}

pub(crate) async fn doctor(context: &Context) -> Result<(), Failure> {
    let reach = context.reach()?;
    let answer = reach.call(async |attempt| {
        attempt
            .cluster()
            .check_host(attempt.request(CheckHostRequest {}))
            .await
    });
    let checks: Vec<_> = answer
        .await?
        .checks
        .into_iter()
        .map(CheckView::from)
        .collect();
    context.list(&checks)?;
    match checks
        .iter()
        .filter(|check| check.result == "failed")
        .count()
    {
        0 => Ok(()),
        1 => Err(Failure::refused(
            "one check failed",
            "do what its hint says, and check again",
        )),
        count => Err(Failure::refused(
            format!("{count} checks failed"),
            "do what their hints say, and check again",
        )),
    }
}
