//! `fpagent token`.

use proto::v1::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest};

use crate::client::{
    Context,
    args::cluster::TokenCommand,
    failure::Failure,
    views::cluster::{NewTokenView, TokenView},
};

pub(crate) async fn run(context: &Context, command: TokenCommand) -> Result<(), Failure> {
    let reach = context.reach()?;
    match command {
        TokenCommand::Create { ttl, change } => {
            // 0 means "as usual" on the wire: less than a second is not that.
            let request = CreateTokenRequest {
                ttl_seconds: ttl.as_secs().max(1),
                request_id: change.id(),
            };
            let id = &request.request_id;
            let created = reach.change(id, async |attempt| {
                attempt
                    .cluster()
                    .create_token(attempt.request(request.clone()))
                    .await
            });
            let token = NewTokenView::from(created.await?);
            // The bare token, so that a script can take it as it is.
            if context.for_people() {
                context.say(&token.token)
            } else {
                context.data(&token)
            }
        }
        TokenCommand::Ls => {
            let listed = reach.call(async |attempt| {
                attempt
                    .cluster()
                    .list_tokens(attempt.request(ListTokensRequest {}))
                    .await
            });
            let tokens: Vec<_> = listed
                .await?
                .tokens
                .into_iter()
                .map(TokenView::from)
                .collect();
            context.list(&tokens)
        }
        TokenCommand::Revoke { id, change } => {
            let request = RevokeTokenRequest {
                id,
                request_id: change.id(),
            };
            let revoked = reach.change(&request.request_id, async |attempt| {
                attempt
                    .cluster()
                    .revoke_token(attempt.request(request.clone()))
                    .await
            });
            revoked.await?;
            if context.for_people() {
                return context.say(format_args!("{} revoked", request.id));
            }
            context.data(&serde_json::json!({ "id": request.id, "revoked": true }))
        }
    }
}
