//! `fpagent authority`.

use proto::v1::{
    FinishAuthorityRequest, GetAuthorityRequest, ListCertificatesRequest, ListTokensRequest,
    ReplaceAuthorityRequest,
};

use crate::client::{
    Context,
    args::cluster::AuthorityCommand,
    failure::Failure,
    reach::Reach,
    views::{
        authority::AuthorityView,
        cluster::{CertificateView, TokenView},
    },
};

pub(crate) async fn run(context: &Context, command: AuthorityCommand) -> Result<(), Failure> {
    let reach = context.reach()?;
    match command {
        AuthorityCommand::Show => {
            let view = show(&reach).await?;
            match context.for_people() {
                true => context.lines(&view.lines()),
                false => context.data(&view),
            }
        }
        AuthorityCommand::Replace {
            compromised,
            change,
        } => {
            let request = ReplaceAuthorityRequest {
                compromised,
                request_id: change.id(),
            };
            let replaced = reach.change(&request.request_id, async |attempt| {
                let request = attempt.request(request.clone());
                attempt.cluster().replace_authority(request).await
            });
            let view = AuthorityView::from(replaced.await?);
            if !context.for_people() {
                return context.data(&view);
            }
            context.lines(&view.lines())?;
            context.say("\nNodes take the new authority over by themselves, within seconds.")?;
            context.say("  how far it is       fpagent authority show")?;
            context
                .say("  whose is of the old fpagent cert ls; then cert create NAME --replace")?;
            context.say("  end the old one     fpagent authority finish")
        }
        AuthorityCommand::Finish { force, yes, change } => {
            if !yes {
                return tell(context, &reach, force).await;
            }
            let request = FinishAuthorityRequest {
                force,
                request_id: change.id(),
            };
            let finished = reach.change(&request.request_id, async |attempt| {
                let request = attempt.request(request.clone());
                attempt.cluster().finish_authority(request).await
            });
            let view = AuthorityView::from(finished.await?);
            match context.for_people() {
                true => context.lines(&view.lines()),
                false => context.data(&view),
            }
        }
    }
}

async fn show(reach: &Reach) -> Result<AuthorityView, Failure> {
    let shown = reach.call(async |attempt| {
        let request = attempt.request(GetAuthorityRequest {});
        attempt.cluster().get_authority(request).await
    });
    Ok(AuthorityView::from(shown.await?))
}

/// Says what finishing would end. Nothing is changed.
async fn tell(context: &Context, reach: &Reach, force: bool) -> Result<(), Failure> {
    let view = show(reach).await?;
    let Some(old) = view.other.as_ref().filter(|_| view.phase == "renewing") else {
        return Err(Failure::refused(
            format!(
                "there is nothing to be finished: the phase is {:?}",
                view.phase
            ),
            "begin with `fpagent authority replace`, and see `fpagent authority show`",
        ));
    };
    let listed = reach.call(async |attempt| {
        let request = attempt.request(ListCertificatesRequest {});
        attempt.cluster().list_certificates(request).await
    });
    let certificates = listed.await?.certificates.into_iter();
    let ending: Vec<CertificateView> = certificates
        .map(CertificateView::from)
        .filter(|one| one.authority == old.fingerprint && one.revoked_at.is_none())
        .collect();
    let listed = reach.call(async |attempt| {
        let request = attempt.request(ListTokensRequest {});
        attempt.cluster().list_tokens(request).await
    });
    let tokens = listed.await?.tokens.into_iter();
    let tokens: Vec<TokenView> = tokens
        .map(TokenView::from)
        .filter(|one| one.authority == old.fingerprint)
        .collect();
    let behind: Vec<&str> = view.behind().collect();
    if !context.for_people() {
        context.data(&serde_json::json!({
            "done": false,
            "certificates": ending,
            "tokens": tokens,
            "nodes": behind,
        }))?;
    } else {
        for one in &ending {
            context.say(format_args!(
                "the certificate {} of {} ({}) will end",
                one.id, one.name, one.role
            ))?;
        }
        for one in &tokens {
            context.say(format_args!("the join token {} will end", one.id))?;
        }
        for node in &behind {
            context.say(format_args!(
                "node {node} is not renewed{}",
                if force {
                    ": it will have to join anew"
                } else {
                    ""
                }
            ))?;
        }
        if ending.is_empty() && tokens.is_empty() && behind.is_empty() {
            context.say("nothing is of the old authority any more")?;
        }
    }
    Err(Failure::refused(
        format!("the authority {} would be trusted no more", old.short()),
        "nothing was changed; read the above, and add --yes to do it",
    ))
}
