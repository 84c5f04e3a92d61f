//! The certificates of this process, and TLS 1.3 with them (docs/decisions/0053-lane-and-data-plane.md).
//!
//! - A client expects a server's certificate to name its role, address and cluster at once; a server expects one of the
//!   cluster's authority, of any name: the token inside says who calls.
//! - No tickets and no resumption: nothing is on a connection unasked, and each has keys of its own.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::lock::Mutex;

/// What a server has to be, by its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Mgmtd,
    Meta,
    Storage,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Mgmtd => "mgmtd",
            Role::Meta => "meta",
            Role::Storage => "storage",
        }
    }
}

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
#[error("the certificates of this machine cannot be used: {0}")]
pub struct UnusableCertificates(String);

type Result<T> = std::result::Result<T, UnusableCertificates>;

/// A key, its certificate, and the authority that is trusted.
struct Material {
    cluster_id: String,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// The certificates of this process. Clones share them; those of before the last `replace` open no connection.
#[derive(Clone)]
pub struct Certificates(Arc<Mutex<Arc<Material>>>);

impl Certificates {
    /// `authority`, `key` and `certificate` are PEM. Errors: they are not, or do not belong together.
    pub fn new(cluster_id: &str, authority: &[u8], key: &[u8], certificate: &[u8]) -> Result<Certificates> {
        let material = Material::new(cluster_id, authority, key, certificate)?;
        Ok(Certificates(Arc::new(Mutex::new(Arc::new(material)))))
    }

    /// Open connections with those of `newer` from now on.
    pub fn replace(&self, newer: &Certificates) {
        let material = newer.0.lock().clone();
        *self.0.lock() = material;
    }

    /// The client's end of a connection to the service of that role and address.
    pub(crate) fn client(&self, role: Role, address: IpAddr) -> io::Result<ClientConnection> {
        let material = self.0.lock().clone();
        let name = ServerName::try_from(service_name(role, address, &material.cluster_id));
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        ClientConnection::new(material.client.clone(), name).map_err(io::Error::other)
    }

    pub(crate) fn server(&self) -> io::Result<ServerConnection> {
        let material = self.0.lock().clone();
        ServerConnection::new(material.server.clone()).map_err(io::Error::other)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificates {{ {} }}", self.0.lock().cluster_id)
    }
}

impl Material {
    fn new(cluster_id: &str, authority: &[u8], key: &[u8], certificate: &[u8]) -> Result<Material> {
        let mut trusted = RootCertStore::empty();
        for each in chain(authority)? {
            trusted.add(each).map_err(unusable)?;
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(unusable)?;
        let (trusted, provider) = (Arc::new(trusted), Arc::new(provider()));
        let versions = &[&rustls::version::TLS13];
        let verifier = WebPkiServerVerifier::builder_with_provider(trusted.clone(), provider.clone());
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(unusable)?
            .with_webpki_verifier(verifier.build().map_err(unusable)?)
            .with_client_auth_cert(chain(certificate)?, key.clone_key())
            .map_err(unusable)?;
        client.resumption = Resumption::disabled();
        let verifier = WebPkiClientVerifier::builder_with_provider(trusted, provider.clone());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(unusable)?
            .with_client_cert_verifier(verifier.build().map_err(unusable)?)
            .with_single_cert(chain(certificate)?, key)
            .map_err(unusable)?;
        server.send_tls13_tickets = 0;
        Ok(Material { cluster_id: cluster_id.into(), client: Arc::new(client), server: Arc::new(server) })
    }
}

#[allow(
    deprecated,
    reason = "it is for want of post-quantum algorithms, which aws-lc has, a build of minutes"
)]
fn provider() -> CryptoProvider {
    ring::default_provider()
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain.map_err(unusable)? {
        chain if chain.is_empty() => Err(unusable("there is no certificate")),
        chain => Ok(chain),
    }
}

fn unusable(error: impl fmt::Display) -> UnusableCertificates {
    UnusableCertificates(error.to_string())
}

/// The name by which a certificate entitles to serve as `role` at `address`.
fn service_name(role: Role, address: IpAddr, cluster_id: &str) -> String {
    let address = match address.to_canonical() {
        IpAddr::V4(address) => address.octets().map(|octet| octet.to_string()).join("-"),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:04x}")).join("-"),
    };
    format!("{}.{address}.{cluster_id}.luciola", role.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services_are_those_of_certificates() {
        let name = |address: &str| service_name(Role::Meta, address.parse().unwrap(), "c1");
        assert_eq!(name("10.0.0.1"), "meta.10-0-0-1.c1.luciola");
        assert_eq!(name("fd00::1"), "meta.fd00-0000-0000-0000-0000-0000-0000-0001.c1.luciola");
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let error = Certificates::new("c1", b"nothing", b"", b"").unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}
