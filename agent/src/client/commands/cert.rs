//! `fpagent cert`.

use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt as _, path::Path};

use proto::v1::{
    self, CreateCertificateRequest, ListCertificatesRequest, RevokeCertificateRequest,
};
use rustls::pki_types::CertificateDer;

use crate::{
    client::{
        Context,
        args::cluster::CertCommand,
        failure::Failure,
        views::{cluster::CertificateView, time_text},
    },
    trust::{
        TrustError,
        authority::{Credentials, certificate_request, save_certificate},
        names,
    },
};

pub(crate) async fn run(context: &Context, command: CertCommand) -> Result<(), Failure> {
    let reach = context.reach()?;
    match command {
        CertCommand::Create {
            name,
            role,
            owner,
            ttl,
            out,
            replace,
            change,
        } => {
            names::check_name(&name).map_err(|error| Failure::usage(error, ""))?;
            let folder = out.unwrap_or_else(|| (&name).into());
            // Before anything is asked of the cluster. The key is its owner's only.
            DirBuilder::new()
                .mode(0o700)
                .create(&folder)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => Failure::usage(
                        format!("{} is there already", folder.display()),
                        "choose another folder with --out",
                    ),
                    _ => TrustError::file("make", &folder)(error).into(),
                })?;
            let (key, csr) = certificate_request()?;
            let request = CreateCertificateRequest {
                name,
                owner,
                role: v1::Role::from(role).into(),
                // 0 means "as usual" on the wire: less than a second is not that.
                ttl_seconds: ttl.as_secs().max(1),
                csr: csr.into(),
                request_id: change.id(),
                replace,
            };
            let created = reach.change(&request.request_id, async |attempt| {
                let request = attempt.request(request.clone());
                attempt.cluster().create_certificate(request).await
            });
            let created = match created.await {
                Ok(created) => created,
                Err(failure) => {
                    // It is empty. What remains of it is no reason to say less about the failure.
                    let _empty = std::fs::remove_dir(&folder);
                    return Err(failure);
                }
            };
            let credentials = Credentials {
                certificate: CertificateDer::from(created.der.to_vec()),
                key,
            };
            credentials.check()?;
            let authority = CertificateDer::from(created.authority_certificate.to_vec());
            save(&folder, &credentials, &authority)?;
            let view = CertificateView::from(created.certificate.unwrap_or_default());
            if !context.for_people() {
                return context.data(&view);
            }
            let shown = folder.display();
            context.say(format_args!(
                "{} is {} until {}.",
                view.name,
                view.role,
                time_text(view.expires_at)
            ))?;
            context.say(format_args!(
                "  use it              fpagent --addr https://HOST:PORT --certs {shown} …"
            ))
        }
        CertCommand::Ls => {
            let listed = reach.call(async |attempt| {
                let request = attempt.request(ListCertificatesRequest {});
                attempt.cluster().list_certificates(request).await
            });
            let certificates = listed.await?.certificates.into_iter();
            let certificates: Vec<_> = certificates.map(CertificateView::from).collect();
            context.list(&certificates)
        }
        CertCommand::Revoke {
            certificate,
            change,
        } => {
            let request = RevokeCertificateRequest {
                certificate,
                request_id: change.id(),
            };
            let revoked = reach.change(&request.request_id, async |attempt| {
                let request = attempt.request(request.clone());
                attempt.cluster().revoke_certificate(request).await
            });
            let view = CertificateView::from(revoked.await?);
            if context.for_people() {
                return context.say(format_args!("{} ({}) revoked", view.name, view.id));
            }
            context.data(&view)
        }
    }
}

fn save(
    folder: &Path,
    credentials: &Credentials,
    authority: &CertificateDer<'_>,
) -> Result<(), TrustError> {
    save_certificate(authority, &folder.join("ca.pem"))?;
    credentials.save(&folder.join("cert.pem"), &folder.join("key.pem"))
}
