//! References: the names of images and artifacts in a registry, as typed by users.

use std::fmt;
use std::str::FromStr;

use super::host::{DOCKER_HUB, canonical_host};
use super::{Digest, OciError};

/// Selects a manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ManifestSelector {
    /// The current target of a tag.
    Tag(String),
    /// Exactly this document (or, for tools that address blobs this way, this blob).
    Digest(Digest),
}

/// A registry, a repository in it, and a tag or a digest or both. With both, the digest decides and the tag is for
/// display.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
    /// The name as written, if it was written without a host; else `None`.
    short: Option<String>,
}

impl Reference {
    /// The canonical host, with its port: `docker.io`, `ghcr.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host to connect to. Docker Hub's API has another host name than its references.
    pub fn host(&self) -> &str {
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }

    /// The repository without the host.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The name without tag and digest as written, if it has no host: its meaning depends on the machine's
    /// configuration.
    pub fn short_name(&self) -> Option<&str> {
        self.short.as_deref()
    }

    /// The same tag and digest in another repository.
    pub fn elsewhere(&self, registry: &str, repository: &str) -> Result<Self, OciError> {
        let bad =
            |reason: String| OciError::Reference { reference: format!("{registry}/{repository}"), reason };
        if registry.len() + repository.len() >= MAX_NAME {
            return Err(bad(format!("the name is longer than {MAX_NAME} characters")));
        }
        let Some(registry) = canonical_host(registry) else {
            return Err(bad(format!("{registry:?} is not a host")));
        };
        check_repository(repository).map_err(bad)?;
        let official = registry == DOCKER_HUB && !repository.contains('/');
        Ok(Self {
            registry,
            repository: if official { format!("library/{repository}") } else { repository.to_owned() },
            tag: self.tag.clone(),
            digest: self.digest.clone(),
            short: None,
        })
    }

    /// The tag, written or implied; `None` if only a digest was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The deciding part: the digest if there is one, else the tag.
    pub fn selector(&self) -> ManifestSelector {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => ManifestSelector::Digest(digest.clone()),
            (None, Some(tag)) => ManifestSelector::Tag(tag.clone()),
            (None, None) => ManifestSelector::Tag("latest".into()),
        }
    }

    /// The same repository at another digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = OciError;

    /// Accepts `[docker://|oras://|oci://][host[:port]/]path[:tag][@digest]`. A name without a host refers to Docker
    /// Hub; a name without tag and digest means `:latest`.
    fn from_str(text: &str) -> Result<Self, OciError> {
        let bad = |reason: String| OciError::Reference { reference: text.to_owned(), reason };
        let name = ["docker://", "oras://", "oci://"]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        if name.contains("://") {
            return Err(bad("only docker://, oras:// and oci:// may stand in front".into()));
        }
        let (name, digest) = match name.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>()?)),
            None => (name, None),
        };
        if let Some(unserved) = digest.as_ref().filter(|digest| digest.algorithm().is_none()) {
            return Err(bad(format!(
                "digest algorithm {:?} is not sha256 or sha512",
                unserved.algorithm_name()
            )));
        }
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].find(':').filter(|_| !name[last..].starts_with('[')) {
            Some(colon) => (&name[..last + colon], Some(&name[last + colon + 1..])),
            None => (name, None),
        };
        if name.is_empty() {
            return Err(bad("the name is empty".into()));
        }
        let (registry, repository) = split_host(name);
        let Some(registry) = canonical_host(registry) else {
            return Err(bad(format!("{registry:?} is not a host")));
        };
        if name.len() > MAX_NAME {
            return Err(bad(format!("the name is longer than {MAX_NAME} characters")));
        }
        check_repository(repository).map_err(bad)?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(bad)?;
        }
        let official = registry == DOCKER_HUB && !repository.contains('/');
        Ok(Self {
            registry,
            repository: if official { format!("library/{repository}") } else { repository.to_owned() },
            tag: tag.or(digest.is_none().then_some("latest")).map(str::to_owned),
            digest,
            short: (!has_host(name)).then(|| name.to_owned()),
        })
    }
}

/// Limit of a name with its host, in characters (distribution's reference grammar).
const MAX_NAME: usize = 255;

/// Splits off the host. The first component is a host if it has a dot or a port, is `localhost`, or is an IPv6
/// address in brackets; it could not be anything else.
fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/').filter(|_| has_host(name)) {
        Some(split) => split,
        None => (DOCKER_HUB, name),
    }
}

fn has_host(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost") || host.contains(['.', ':']))
}

/// Components of lower-case letters and digits, joined inside by `.`, `_`, `__` or any number of `-`.
fn check_repository(repository: &str) -> Result<(), String> {
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository name must be lowercase".into());
    }
    for component in repository.split('/') {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let mut separators =
            component.split(|c: char| c.is_ascii() && word(c as u8)).filter(|part| !part.is_empty());
        let good =
            separators.all(|part| matches!(part, "." | "_" | "__") || part.bytes().all(|byte| byte == b'-'));
        let ends = component.bytes().next().is_some_and(word) && component.bytes().last().is_some_and(word);
        if !good || !ends {
            return Err(format!("{component:?} is not a component of a repository name"));
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    if good { Ok(()) } else { Err(format!("{tag:?} is not a tag")) }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn shown(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn every_way_to_write_a_reference_means_one_thing() {
        assert_eq!(shown("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(shown("docker://nginx:1.27"), "docker.io/library/nginx:1.27");
        assert_eq!(shown("oras://ghcr.io/a/b:v1"), "ghcr.io/a/b:v1");
        assert_eq!(shown("localhost:5000/a/b/c:v1"), "localhost:5000/a/b/c:v1");
        assert_eq!(shown(&format!("ghcr.io/a/b@sha256:{HEX}")), format!("ghcr.io/a/b@sha256:{HEX}"));
        let both: Reference = format!("ghcr.io/a/b:v1@sha256:{HEX}").parse().unwrap();
        assert_eq!((both.tag(), both.digest().map(Digest::encoded)), (Some("v1"), Some(HEX)));
        assert!(matches!(both.selector(), ManifestSelector::Digest(_)));
    }

    #[test]
    fn a_name_without_a_host_is_known_as_such_and_can_be_taken_elsewhere() {
        let parse = |text: &str| text.parse::<Reference>().unwrap();
        assert_eq!(parse("nginx:1.27").short_name(), Some("nginx"));
        assert_eq!(parse("team/app").short_name(), Some("team/app"));
        assert_eq!(parse("docker.io/library/nginx").short_name(), None);
        let there = parse("nginx:1.27").elsewhere("mirror.example:5000", "hub/nginx").unwrap();
        assert_eq!(there.to_string(), "mirror.example:5000/hub/nginx:1.27");
        assert_eq!(there.short_name(), None);
        for (host, repository) in [("a b", "x"), ("r.example", "../x"), ("r.example", ""), ("", "x")] {
            assert!(parse("nginx").elsewhere(host, repository).is_err(), "{host} {repository}");
        }
    }

    #[test]
    fn an_address_in_brackets_is_a_host() {
        let reference: Reference = "[::1]:5000/a/b:v1".parse().unwrap();
        assert_eq!(
            (reference.registry(), reference.repository(), reference.tag()),
            ("[::1]:5000", "a/b", Some("v1"))
        );
        assert!("[::x]:5000/a".parse::<Reference>().is_err());
    }

    #[test]
    fn a_host_has_one_spelling_however_the_reference_was_written() {
        for (written, expected) in [
            ("LOCALHOST/a:v1", "localhost/a:v1"),
            ("LocalHost:5000/a", "localhost:5000/a:latest"),
            ("127.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("[::ffff:127.0.0.1]:5000/a", "127.0.0.1:5000/a:latest"),
            ("GHCR.io:443/a/b", "ghcr.io/a/b:latest"),
            ("ghcr.io./a/b", "ghcr.io/a/b:latest"),
            ("registry-1.docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ] {
            assert_eq!(shown(written), expected, "{written}");
        }
        let there = "nginx".parse::<Reference>().unwrap().elsewhere("2130706433:5000", "a").unwrap();
        assert_eq!(there.registry(), "127.0.0.1:5000");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// The oracle is another client's parser: distribution's own grammar as a regular expression.
        #[test]
        fn references_parse_as_in_other_clients(
            text in "((a\\.b|localhost|A|x_y|index\\.docker\\.io|docker\\.io)(:[0-9]{1,5})?/)?[a-bA.:/_@-]{1,12}(:[a-bA._-]{0,4})?(@sha256:[0-9a-f]{62,66})?"
        ) {
            let (ours, theirs) = (text.parse::<Reference>(), text.parse::<oci_client::Reference>());
            match (&ours, &theirs) {
                (Ok(ours), Ok(theirs)) => {
                    let one = canonical_host(theirs.registry());
                    proptest::prop_assert_eq!(Some(ours.registry()), one.as_deref());
                    proptest::prop_assert_eq!(ours.repository(), theirs.repository());
                    proptest::prop_assert_eq!(ours.tag(), theirs.tag());
                    proptest::prop_assert_eq!(ours.digest().map(Digest::as_str), theirs.digest());
                }
                (Err(_), Err(_)) => {}
                // They take ports that do not exist, numbers that are no address, and upper case where Docker Hub has none.
                (Err(_), Ok(theirs)) => proptest::prop_assert!(
                    theirs.repository().contains(|c: char| c.is_ascii_uppercase())
                        || canonical_host(theirs.registry()).is_none(),
                    "{} is refused", text
                ),
                // They do not take the dot at the end of a name.
                (Ok(_), Err(_)) if text.contains("./") || text.contains(".:") => {}
                (Ok(_), Err(error)) => proptest::prop_assert!(false, "{} is taken, they say {}", text, error),
            }
        }
    }

    #[test]
    fn docker_hub_is_reached_at_its_own_host() {
        let reference: Reference = "nginx".parse().unwrap();
        assert_eq!((reference.registry(), reference.host()), ("docker.io", "registry-1.docker.io"));
    }

    #[test]
    fn malformed_reference_is_refused_with_the_reason() {
        for bad in [
            "",
            "UPPER/Case",
            "UPPER/case:tag",
            "ghcr.io/a/b@sha256:12",
            "http://ghcr.io/a/b",
            "a b",
            "ghcr.io/a/b:",
            "../x",
            "ghcr.io/a/b:t@sha256:zz",
        ] {
            let error = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(error.starts_with("reference") || error.starts_with("digest"), "{bad}: {error}");
        }
    }
}
