//! TLS to the members, by rustls, with the files that `etcdctl` takes.

use std::{fs, io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsConnector;

use super::url::TlsFiles;

/// Makes TLS sessions.
///
/// # Errors
/// When a file cannot be read or used; says what to do.
pub(super) fn connector(files: &TlsFiles) -> Result<TlsConnector, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder =
        builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let authorities = match &files.cacert {
        Some(path) => certificates("cacert", path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities);
    if roots.is_empty() {
        return Err(String::from(
            "etcds:// needs certificates of authorities, and there are none; give cacert=FILE, or install the \
             package ca-certificates",
        ));
    }
    let builder = builder.with_root_certificates(roots);
    let config = match &files.client {
        Some((cert, key)) => {
            let chain = certificates("cert", cert)?;
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("cannot read key {}: {error}", key.display()))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| {
                format!("cannot use cert {} with its key: {error}", cert.display())
            })?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = || {
        let text = fs::read(path)?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        match certificates.map_err(io::Error::other)? {
            none if none.is_empty() => Err(io::Error::other("it holds no certificate in PEM form")),
            certificates => Ok(certificates),
        }
    };
    read().map_err(|error: io::Error| format!("cannot read {what} {}: {error}", path.display()))
}
