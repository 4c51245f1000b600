//! The cluster's certificate authority: makes the certificates of nodes and of those who use the cluster.
//!
//! The first node creates it, every node holds its key (so that any of them can let others in). A subject names the
//! cluster (O), the role (OU) and the node or person (CN); a node's certificate also carries its TLS server names.

use std::{path::Path, time::SystemTime};

use raft::state::{CertificateId, Millis, Role};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};
use ulid::Ulid;
use x509_parser::{asn1_rs::Oid, certificate::X509Certificate, x509::AttributeTypeAndValue};

use super::{
    TrustError,
    files::{self, Readers},
    tls::{AGENT_SERVER_NAME, node_server_name},
};

/// The organizational unit of a node's certificate.
pub const NODE_ROLE: &str = "node";

/// The organizational unit of the certificate of somebody with this role.
pub const fn unit_of(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

/// The attribute of a subject that names a user's owner where that is not the user's own name: `uid` of RFC 4519.
const OWNER: &[u64] = &[0, 9, 2342, 19_200_300, 100, 1, 1];

/// The role that an organizational unit names.
fn role_of(unit: &str) -> Option<Role> {
    [Role::Viewer, Role::Operator, Role::Admin]
        .into_iter()
        .find(|role| unit_of(*role) == unit)
}

/// Somebody's certificate that is to be signed.
#[derive(Debug, Clone, Copy)]
pub struct UserCertificate<'a> {
    /// Its serial number.
    pub id: Ulid,
    /// Whose.
    pub name: &'a str,
    /// Whose objects are there for it.
    pub owner: &'a str,
    /// What it allows.
    pub role: Role,
    /// When it ends.
    pub expires_at: SystemTime,
}

const AUTHORITY_DAYS: i64 = 3_650;
const LEAF_DAYS: i64 = 365;

/// A certificate with its private key.
#[derive(Debug)]
pub struct Credentials {
    /// DER.
    pub certificate: CertificateDer<'static>,
    /// PKCS #8, DER. Its `Debug` shows nothing of it.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl Credentials {
    /// Reads a certificate and its key, both PEM.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TrustError> {
        Ok(Self {
            certificate: load_certificate(certificate)?,
            key: load_key(key)?,
        })
    }

    /// Checks that they belong together.
    ///
    /// # Errors
    /// `Malformed` when they do not, or either of them is not what it should be.
    pub fn check(&self) -> Result<(), TrustError> {
        if spki_of(&self.certificate)? == self.key_pair()?.subject_public_key_info() {
            return Ok(());
        }
        Err(malformed("it is for another key"))
    }

    fn key_pair(&self) -> Result<KeyPair, TrustError> {
        let key = PrivatePkcs8KeyDer::from(self.key.secret_der());
        KeyPair::try_from(&key).map_err(|error| TrustError::Malformed {
            what: "the private key",
            problem: error.to_string(),
        })
    }

    /// Writes both as PEM; the key for its owner only.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), TrustError> {
        save_certificate(&self.certificate, certificate)?;
        files::write(
            key,
            pem("PRIVATE KEY", self.key.secret_der()).as_bytes(),
            Readers::Owner,
        )
    }
}

/// The authority of one cluster.
pub struct Authority {
    cluster: Ulid,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the authority of a new cluster.
    pub fn create(cluster: Ulid) -> Result<Self, TrustError> {
        let params = authority_params(cluster, "Forky Pig authority")?;
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self {
            cluster,
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// One that has ended.
    #[cfg(test)]
    pub fn create_ended(cluster: Ulid) -> Result<Self, TrustError> {
        let mut params = authority_params(cluster, "Forky Pig authority")?;
        params.not_after = OffsetDateTime::now_utc() - Duration::HOUR;
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self {
            cluster,
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Makes the authority that is to come in this one's place, and a certificate of its key that this one signs (DER): by that, whoever
    /// trusts this one trusts what the other one signs.
    pub fn successor(&self) -> Result<(Self, CertificateDer<'static>), TrustError> {
        let name = format!("Forky Pig authority {}", Ulid::new());
        let params = authority_params(self.cluster, &name)?;
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        let mut vouched = authority_params(self.cluster, &name)?;
        vouched.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        vouched.use_authority_key_identifier_extension = true;
        let cross = vouched.signed_by(&key, &self.issuer)?.der().clone();
        let successor = Self {
            cluster: self.cluster,
            certificate,
            issuer: Issuer::new(params, key),
        };
        Ok((successor, cross))
    }

    /// Takes over an authority from its certificate and its key (PKCS #8), both DER.
    ///
    /// # Errors
    /// `Malformed` when they are not what they should be, or do not belong together.
    pub fn from_der(cluster: Ulid, certificate: &[u8], key: &[u8]) -> Result<Self, TrustError> {
        let wrong = |problem: String| TrustError::Malformed {
            what: "the authority",
            problem,
        };
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key))
            .map_err(|error| wrong(error.to_string()))?;
        let certificate = CertificateDer::from(certificate.to_vec());
        if spki_of(&certificate)? != key.subject_public_key_info() {
            return Err(wrong("the key is not the certificate's".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Self {
            cluster,
            certificate,
            issuer,
        })
    }

    /// Reads the authority from PEM files.
    pub fn load(cluster: Ulid, certificate: &Path, key: &Path) -> Result<Self, TrustError> {
        let loaded = Credentials::load(certificate, key)?;
        Self::from_der(cluster, &loaded.certificate, loaded.key.secret_der()).map_err(|error| {
            TrustError::Damaged {
                path: key.to_owned(),
                problem: error.to_string(),
            }
        })
    }

    /// Writes the authority as PEM files; the key for its owner only.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), TrustError> {
        let key_der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key_der()));
        Credentials {
            certificate: self.certificate.clone(),
            key: key_der,
        }
        .save(certificate, key)
    }

    /// The cluster's id.
    pub fn cluster(&self) -> Ulid {
        self.cluster
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its private key, PKCS #8 DER: a secret.
    pub fn key_der(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    /// Whether a certificate is of this authority, by the name that it says: each authority of a cluster has another one.
    pub fn has_signed(&self, certificate: &CertificateDer<'_>) -> Result<bool, TrustError> {
        let (own, of) = (parse(&self.certificate)?, parse(certificate)?);
        Ok(own.subject().as_raw() == of.issuer().as_raw())
    }

    /// SHA-256 of its certificate: what a join token pins.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// Makes a key and a certificate for a node.
    pub fn issue_node(&self, id: u64, name: &str) -> Result<Credentials, TrustError> {
        let key = KeyPair::generate()?;
        let certificate = self.sign_node(id, name, &key)?;
        Ok(credentials(certificate, &key))
    }

    /// Makes a key and a certificate for somebody who uses the cluster.
    pub fn issue_user(&self, user: UserCertificate<'_>) -> Result<Credentials, TrustError> {
        let key = KeyPair::generate()?;
        let certificate = self.sign_user(user, &key)?;
        Ok(credentials(certificate, &key))
    }

    /// The same for the first administrator, whose certificate the cluster's state comes to know when the cluster is founded.
    pub fn issue_admin(&self, name: &str) -> Result<Credentials, TrustError> {
        let lifetime = std::time::Duration::from_secs(LEAF_DAYS as u64 * 24 * 3600);
        self.issue_user(UserCertificate {
            id: Ulid::new(),
            name,
            owner: name,
            role: Role::Admin,
            expires_at: SystemTime::now() + lifetime,
        })
    }

    /// Makes somebody's certificate for the public key in a certificate request: see [`Self::sign_node_request`].
    pub fn sign_user_request(
        &self,
        user: UserCertificate<'_>,
        request: &[u8],
    ) -> Result<CertificateDer<'static>, TrustError> {
        self.sign_user(user, &requested_key(request)?)
    }

    fn sign_user(
        &self,
        user: UserCertificate<'_>,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let mut subject = subject(self.cluster, unit_of(user.role), user.name);
        if user.owner != user.name {
            subject.push(DnType::CustomDnType(OWNER.to_vec()), user.owner);
        }
        let mut params = leaf_params(subject, Vec::new())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = user.expires_at.into();
        params.serial_number = Some(SerialNumber::from_slice(&user.id.to_bytes()));
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// Makes a node's certificate for the public key in a certificate request (PKCS #10, DER), whose signature is
    /// checked. Nothing else is taken from the request.
    ///
    /// # Errors
    /// `Malformed` when it is no certificate request or its signature is wrong.
    pub fn sign_node_request(
        &self,
        id: u64,
        name: &str,
        request: &[u8],
    ) -> Result<CertificateDer<'static>, TrustError> {
        self.sign_node(id, name, &requested_key(request)?)
    }

    /// Makes another certificate for a node's key, which begins no later than the one that it has.
    pub fn sign_node_again(
        &self,
        id: u64,
        name: &str,
        own: &Credentials,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let mut params = self.node_params(id, name)?;
        let begun = parse(&own.certificate)?.validity().not_before.to_datetime();
        params.not_before = params.not_before.min(begun);
        let key = own.key_pair()?;
        Ok(params.signed_by(&key, &self.issuer)?.der().clone())
    }

    /// The same, with an end of its own.
    #[cfg(test)]
    pub fn sign_node_until(
        &self,
        id: u64,
        name: &str,
        own: &Credentials,
        expires_at: SystemTime,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let mut params = self.node_params(id, name)?;
        params.not_after = expires_at.into();
        Ok(params
            .signed_by(&own.key_pair()?, &self.issuer)?
            .der()
            .clone())
    }

    fn sign_node(
        &self,
        id: u64,
        name: &str,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let params = self.node_params(id, name)?;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    fn node_params(&self, id: u64, name: &str) -> Result<CertificateParams, TrustError> {
        let names = vec![node_server_name(id), AGENT_SERVER_NAME.to_owned()];
        let mut params = leaf_params(subject(self.cluster, NODE_ROLE, name), names)?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        Ok(params)
    }
}

fn authority_params(cluster: Ulid, name: &str) -> Result<CertificateParams, TrustError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(cluster, "authority", name);
    // It vouches for the one that comes in its place, and that for nodes and people. Our side does not look at how long that may get;
    // other programs do.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, AUTHORITY_DAYS)?;
    Ok(params)
}

/// The public key in a certificate request (PKCS #10, DER), whose signature is checked.
fn requested_key(request: &[u8]) -> Result<impl PublicKeyData, TrustError> {
    let request = CertificateSigningRequestParams::from_der(&request.into());
    request
        .map(|request| request.public_key)
        .map_err(|error| TrustError::Malformed {
            what: "the certificate request",
            problem: error.to_string(),
        })
}

/// What a certificate's subject says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The cluster's id.
    pub cluster: String,
    /// A node's, or a role.
    pub unit: String,
    /// A node's name or a user's.
    pub name: String,
}

/// A certificate's subject; `None` when it does not have each part once.
pub fn subject_of(certificate: &X509Certificate<'_>) -> Option<Subject> {
    fn only<'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Option<String> {
        let value = values.next()?.as_str().ok()?.to_owned();
        values.next().is_none().then_some(value)
    }
    let subject = certificate.subject();
    Some(Subject {
        cluster: only(subject.iter_organization())?,
        unit: only(subject.iter_organizational_unit())?,
        name: only(subject.iter_common_name())?,
    })
}

/// When a certificate ends.
///
/// # Errors
/// `Malformed` when it is none.
pub fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, TrustError> {
    let parsed = parse(certificate)?;
    let end = end_of(&parsed).ok_or_else(|| malformed("it ended before 1970"))?;
    Ok(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(end))
}

/// The same in milliseconds since the epoch.
///
/// # Errors
/// As there.
pub fn expiry_millis(certificate: &CertificateDer<'_>) -> Result<Millis, TrustError> {
    let end = end_of(&parse(certificate)?);
    end.and_then(|end| end.checked_mul(1000))
        .ok_or_else(|| malformed("it ended before 1970"))
}

/// The same in seconds since the epoch; `None` when that was before.
fn end_of(certificate: &X509Certificate<'_>) -> Option<u64> {
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}

/// Somebody who uses the cluster, as a certificate says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// Whose objects are there for it.
    pub owner: String,
    /// What it allows.
    pub role: Role,
    /// Its serial number.
    pub certificate: CertificateId,
    /// When it ends.
    pub expires_at: Millis,
}

/// Whose a certificate is; `None` when it is not one of somebody who uses the cluster.
pub fn user(certificate: &X509Certificate<'_>) -> Option<User> {
    let Subject { unit, name, .. } = subject_of(certificate)?;
    let oid = Oid::from(OWNER).ok()?;
    let mut owners = certificate.subject().iter_by_oid(&oid);
    let owner = match (owners.next(), owners.next()) {
        (None, _) => name.clone(),
        (Some(owner), None) => owner.as_str().ok()?.to_owned(),
        (Some(_), Some(_)) => return None,
    };
    let serial = certificate.tbs_certificate.serial.to_bytes_be();
    let serial = Ulid::from_bytes(serial.try_into().ok()?);
    Some(User {
        name,
        owner,
        role: role_of(&unit)?,
        certificate: CertificateId(serial.0),
        expires_at: end_of(certificate)?.checked_mul(1000)?,
    })
}

/// The same of its DER form.
///
/// # Errors
/// `Malformed` when it is not one.
pub fn user_of(certificate: &CertificateDer<'_>) -> Result<User, TrustError> {
    user(&parse(certificate)?).ok_or_else(|| malformed("it is not a user's"))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TrustError> {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    parsed
        .map(|(_, parsed)| parsed)
        .map_err(|error| malformed(error.to_string()))
}

fn malformed(problem: impl Into<String>) -> TrustError {
    TrustError::Malformed {
        what: "the certificate",
        problem: problem.into(),
    }
}

/// A newcomer's key and its certificate request (PKCS #10, DER).
pub fn certificate_request() -> Result<(PrivateKeyDer<'static>, Vec<u8>), TrustError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key)?.der().to_vec();
    Ok((
        PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        request,
    ))
}

/// SHA-256 of a certificate's DER form.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// A certificate's SubjectPublicKeyInfo, DER.
pub(super) fn spki_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, TrustError> {
    Ok(parse(certificate)?.public_key().raw.to_vec())
}

/// Reads a certificate, PEM.
pub fn load_certificate(path: &Path) -> Result<CertificateDer<'static>, TrustError> {
    CertificateDer::from_pem_slice(&files::read(path)?).map_err(|error| TrustError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// Reads certificates, PEM; at least one.
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let damaged = |problem: String| TrustError::Damaged {
        path: path.to_owned(),
        problem,
    };
    let text = files::read(path)?;
    let all = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| damaged(error.to_string()))?;
    match all.is_empty() {
        true => Err(damaged("no certificate is in it".to_owned())),
        false => Ok(all),
    }
}

/// A certificate as PEM.
pub fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    pem("CERTIFICATE", certificate)
}

/// SHA-256 of the public key (SubjectPublicKeyInfo, DER) of a certificate.
pub fn key_hash(certificate: &CertificateDer<'_>) -> Result<[u8; 32], TrustError> {
    Ok(Sha256::digest(spki_of(certificate)?).into())
}

/// Writes a certificate as PEM.
pub fn save_certificate(certificate: &CertificateDer<'_>, path: &Path) -> Result<(), TrustError> {
    files::write(
        path,
        pem("CERTIFICATE", certificate).as_bytes(),
        Readers::Everybody,
    )
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, TrustError> {
    PrivateKeyDer::from_pem_slice(&files::read(path)?).map_err(|error| TrustError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

fn credentials(certificate: CertificateDer<'static>, key: &KeyPair) -> Credentials {
    Credentials {
        certificate,
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    }
}

fn subject(cluster: Ulid, role: &str, name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, cluster.to_string());
    subject.push(DnType::OrganizationalUnitName, role);
    subject.push(DnType::CommonName, name);
    subject
}

fn leaf_params(
    subject: DistinguishedName,
    names: Vec<String>,
) -> Result<CertificateParams, TrustError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = subject;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, LEAF_DAYS)?;
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, days: i64) -> Result<(), TrustError> {
    let now = OffsetDateTime::now_utc();
    // Clocks of hosts differ: a certificate is valid a day before it was made.
    params.not_before = now - Duration::DAY;
    params.not_after = now + Duration::days(days);
    let mut serial = [0; 16];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| TrustError::NoRandomness)?;
    // A serial number is positive: the highest bit is the sign.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|&byte| char::from(byte)));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests;
