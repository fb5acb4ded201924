//! TLS to the database, by rustls.

use std::{fs, io, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::url::Tls;

/// Makes TLS sessions.
///
/// # Errors
/// When the authorities cannot be read; says what to do.
pub(super) fn connector(tls: &Tls) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder =
        builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let config = match tls {
        Tls::Verified(authorities) => {
            let authorities = match authorities {
                Some(path) => {
                    fs::read(path).and_then(|text| certificates(&text)).map_err(|error| {
                        format!("cannot read sslrootcert {}: {error}", path.display())
                    })?
                }
                None => rustls_native_certs::load_native_certs().certs,
            };
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(authorities);
            if roots.is_empty() {
                return Err(String::from(
                    "sslmode=verify-full needs certificates of authorities, and there are none; give \
                     sslrootcert=FILE, or install the package ca-certificates",
                ));
            }
            builder.with_root_certificates(roots)
        }
        Tls::Unverified => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        }
    };
    Ok(MakeRustlsConnect::new(config.with_no_client_auth()))
}

fn certificates(text: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match certificates.map_err(io::Error::other)? {
        none if none.is_empty() => Err(io::Error::other("it holds no certificate in PEM form")),
        certificates => Ok(certificates),
    }
}

/// Takes any certificate, as `sslmode=require` of libpq does: it keeps out who listens, not who answers in place of the
/// server.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
