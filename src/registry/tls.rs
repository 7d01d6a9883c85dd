//! TLS of one host: trusted certificates and client certificates.
//!
//! The authorities are those of the system and those that the user provided. A provided certificate is also trusted
//! if the server presents it byte for byte, whatever kind of certificate it is, because the user asked for its key.
//! Nothing is sent here.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore,
    SignatureScheme,
};

use super::RegistryError;
use super::certificate::GivenCertificate;
use super::endpoint::{TlsConfig, TlsVerify};

/// The largest certificate file that is read, in bytes.
const MAX_CERTIFICATES: u64 = 4 * 1024 * 1024;

/// The HTTP versions to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum HttpVersions {
    /// HTTP/2 and HTTP/1.1.
    All,
    /// HTTP/1.1 only, as the host requires.
    One,
}

/// The rustls configuration for `tls`. Reads its files.
pub(super) fn client_config(tls: &TlsConfig, versions: HttpVersions) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error: Error| unusable(Path::new("the certificates of the system"), error);
    let verifier: Arc<dyn ServerCertVerifier> = match tls.verify {
        TlsVerify::Nothing => Arc::new(TrustAnything(provider.signature_verification_algorithms)),
        TlsVerify::Certificate => {
            let mut given = Vec::new();
            for file in &tls.authorities {
                let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content(file)?).collect();
                let found = found.ok().filter(|found| !found.is_empty());
                given.extend(found.ok_or_else(|| unusable(file, "it holds no certificate in PEM"))?);
            }
            // A version 1 certificate is no authority, but may be the registry's own.
            let is_anchor =
                |given: &&CertificateDer<'static>| RootCertStore::empty().add((*given).clone()).is_ok();
            let anchors: Vec<_> = given.iter().filter(is_anchor).cloned().collect();
            let platform =
                rustls_platform_verifier::Verifier::new_with_extra_roots(anchors, provider.clone())
                    .map_err(failed)?;
            let algorithms = provider.signature_verification_algorithms;
            Arc::new(GivenFirst { given, others: Arc::new(platform), algorithms })
        }
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    // The protocol allows one client certificate: the first, as the others would not be asked for.
    let mut config = match tls.pairs.first() {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let shown = shown(certificate, key.as_deref().unwrap_or(certificate), &provider)?;
            builder.with_client_cert_resolver(Arc::new(shown))
        }
    };
    config.alpn_protocols = match versions {
        HttpVersions::All => vec!["h2".into(), "http/1.1".into()],
        HttpVersions::One => vec!["http/1.1".into()],
    };
    Ok(config)
}

/// A client certificate with its key. Its content is for the server to judge.
fn shown(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<SingleCertAndKey, RegistryError> {
    let bad = || unusable(certificate, "it makes no certificate with a key, in PEM");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content(certificate)?).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(bad)?;
    let key = PrivateKeyDer::from_pem_slice(&content(key)?).map_err(|_| bad())?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| bad())?;
    Ok(SingleCertAndKey::from(CertifiedKey::new(chain, key)))
}

fn content(file: &Path) -> Result<Vec<u8>, RegistryError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|error| unusable(file, error))?;
    opened.take(MAX_CERTIFICATES + 1).read_to_end(&mut bytes).map_err(|error| unusable(file, error))?;
    if bytes.len() as u64 > MAX_CERTIFICATES {
        return Err(unusable(file, format!("it has more than {MAX_CERTIFICATES} bytes")));
    }
    Ok(bytes)
}

fn unusable(file: &Path, reason: impl std::fmt::Display) -> RegistryError {
    RegistryError::Config { place: file.display().to_string(), reason: reason.to_string() }
}

/// Verifier: a user-provided certificate is trusted as it is, any other is left to `others`.
#[derive(Debug)]
struct GivenFirst {
    given: Vec<CertificateDer<'static>>,
    others: Arc<dyn ServerCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl GivenFirst {
    /// The presented certificate, if it is one of those provided and can be parsed.
    fn find<'a>(&self, presented: &'a CertificateDer<'_>) -> Option<GivenCertificate<'a>> {
        let is_given = self.given.iter().any(|given| given.as_ref() == presented.as_ref());
        is_given.then(|| GivenCertificate::parse(presented)).flatten()
    }
}

impl ServerCertVerifier for GivenFirst {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(given) = self.find(presented) else {
            return self.others.verify_server_cert(presented, intermediates, name, ocsp, now);
        };
        if !given.is_valid_at(std::time::Duration::from_secs(now.as_secs())) {
            return Err(CertificateError::Expired.into());
        }
        match given.is_for(&name.to_str()) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(given) = self.find(certificate) else {
            return self.others.verify_tls12_signature(message, certificate, signed);
        };
        let (_, candidates) = self
            .algorithms
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == signed.scheme)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let is_right = candidates.iter().any(|candidate| {
            candidate.public_key_alg_id().as_ref() == given.key_algorithm
                && candidate.verify_signature(given.key, message, signed.signature()).is_ok()
        });
        match is_right {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.find(certificate) {
            Some(given) => {
                let key = SubjectPublicKeyInfoDer::from(given.key_info);
                verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
            }
            None => self.others.verify_tls13_signature(message, certificate, signed),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifier that accepts every certificate: the user turned verification off.
#[derive(Debug)]
struct TrustAnything(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for TrustAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use rustls::server::danger::ClientCertVerifier;
    use rustls::{ClientConnection, DistinguishedName, ServerConfig, ServerConnection};

    use super::*;

    /// Certificates of the kinds that people make, for `lab.example`; `None` where openssl makes none.
    fn made() -> Option<tempfile::TempDir> {
        const SCRIPT: &str = "set -e
            openssl req -x509 -newkey rsa:2048 -nodes -keyout authority.key -subj /CN=lab.example \
                -addext subjectAltName=DNS:lab.example -days 30 -out authority.crt
            openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -subj /CN=lab.example \
                -addext subjectAltName=DNS:lab.example -days 30 -out other.crt
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout bare.key \
                -subj /CN=lab.example -out bare.csr
            openssl x509 -req -in bare.csr -signkey bare.key -days 30 -out bare.crt
            openssl req -newkey rsa:2048 -nodes -keyout name.key -subj /CN=other.example -out name.csr
            openssl x509 -req -in name.csr -signkey name.key -days 30 -out name.crt";
        let folder = tempfile::tempdir().ok()?;
        let done = Command::new("sh").arg("-c").arg(SCRIPT).current_dir(folder.path()).output().ok()?;
        done.status.success().then_some(folder)
    }

    /// Asks for a certificate, and looks at none.
    #[derive(Debug)]
    struct Curious;

    impl ClientCertVerifier for Curious {
        fn client_auth_mandatory(&self) -> bool {
            false
        }

        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }

        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<rustls::server::danger::ClientCertVerified, Error> {
            Ok(rustls::server::danger::ClientCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }

    /// A handshake in memory with a server that shows `own` and its key: how many certificates it was shown.
    fn shaken(
        tls: &TlsConfig,
        own: &Path,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Result<usize, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let shown = shown(own, &own.with_extension("key"), &provider).unwrap();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])?
            .with_client_cert_verifier(Arc::new(Curious))
            .with_cert_resolver(Arc::new(shown));
        let client = client_config(tls, HttpVersions::All).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), "lab.example".try_into().unwrap())?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(server.peer_certificates().map_or(0, <[_]>::len))
    }

    #[test]
    fn a_certificate_that_was_given_is_trusted_as_it_is_and_no_other() {
        let Some(folder) = made() else {
            eprintln!("skipped: openssl makes no certificates here");
            return;
        };
        let path = |name: &str| -> PathBuf { folder.path().join(name) };
        let trusting = |name: &str| TlsConfig { authorities: vec![path(name)], ..TlsConfig::default() };
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for own in ["authority.crt", "bare.crt"] {
                assert_eq!(shaken(&trusting(own), &path(own), version), Ok(0), "{own} {version:?}");
            }
            for (given, own) in
                [("authority.crt", "other.crt"), ("bare.crt", "authority.crt"), ("name.crt", "name.crt")]
            {
                let refused = shaken(&trusting(given), &path(own), version);
                assert!(matches!(refused, Err(Error::InvalidCertificate(_))), "{given} {own}: {refused:?}");
            }
            // The key of another certificate proves nothing.
            std::fs::copy(path("authority.crt"), path("stolen.crt")).unwrap();
            std::fs::copy(path("other.key"), path("stolen.key")).unwrap();
            assert!(shaken(&trusting("authority.crt"), &path("stolen.crt"), version).is_err());
            // What we show is for the server to judge, of whatever version it is.
            let showing = TlsConfig {
                pairs: vec![(path("bare.crt"), Some(path("bare.key")))],
                ..trusting("authority.crt")
            };
            assert_eq!(shaken(&showing, &path("authority.crt"), version), Ok(1));
        }
    }
}
