//! `fpagent op`.

use proto::v1::{CancelOperationRequest, GetOperationRequest};

use crate::client::{
    Context, args::objects::OperationCommand, failure::Failure, views::operation::OperationView,
};

pub(crate) async fn run(context: &Context, command: OperationCommand) -> Result<(), Failure> {
    let reach = context.reach()?;
    match command {
        OperationCommand::Ls => {
            let listed =
                reach.call(async |attempt| attempt.list_operations::<OperationView>().await);
            context.list(&listed.await?)
        }
        OperationCommand::Show { operation } => {
            let request = GetOperationRequest { operation };
            let shown = reach.call(async |attempt| {
                attempt
                    .operations()
                    .get_operation(attempt.request(request.clone()))
                    .await
            });
            context.show(&OperationView::from(shown.await?))
        }
        OperationCommand::Cancel { operation, change } => {
            let request = CancelOperationRequest {
                operation,
                request_id: change.id(),
            };
            let cancelled = reach.change(&request.request_id, async |attempt| {
                attempt
                    .operations()
                    .cancel_operation(attempt.request(request.clone()))
                    .await
            });
            context.one(OperationView::from(cancelled.await?))
        }
    }
}
