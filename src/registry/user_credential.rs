//! User credential: a user name and a password, as files, helpers and the command line give them.

use super::redact::RedactedSecret;

/// A user name and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserCredential {
    /// The user name.
    pub user: String,
    /// The password.
    pub secret: RedactedSecret,
}

impl UserCredential {
    /// Parses `user:password`; `None` without a colon. Only the first colon separates (RFC 7617 section 2).
    pub fn parse(text: &str) -> Option<Self> {
        let (user, password) = text.split_once(':')?;
        Some(Self { user: user.to_owned(), secret: RedactedSecret::new(password) })
    }
}
