//! What stands between a client and the brokers before the first request: a login that they refuse,
//! a certificate that isn't trusted, no token, or nobody at the address.
//!
//! librdkafka tells a client's context of it, and tries again. A request only learns that nobody
//! answered; whoever waits for one looks here for the reason.

use std::sync::{Mutex, MutexGuard};

use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::lock::lock;

/// The last trouble of one client with its login, and with its connections.
#[derive(Debug, Default)]
pub struct Login(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    trouble: Option<LoginTrouble>,
    connection: Option<String>,
}

/// What librdkafka said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginTrouble {
    /// The brokers refuse the login, or there is no token to log in with.
    Refused(String),
    /// There is no TLS connection.
    Tls(String),
}

impl Login {
    /// Notes an error that a context is told of, if it is of this kind.
    pub fn note(&self, error: &KafkaError, reason: &str) {
        let trouble = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => {
                LoginTrouble::Refused(reason.into())
            }
            Some(RDKafkaErrorCode::SSL) => LoginTrouble::Tls(reason.into()),
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve) => {
                self.noted().connection = Some(reason.into());
                return;
            }
            _ => return,
        };
        self.noted().trouble = Some(trouble);
    }

    /// Returns the last trouble.
    pub fn trouble(&self) -> Option<LoginTrouble> {
        self.noted().trouble.clone()
    }

    /// Returns why the last connection failed: nobody listens, no such host, or the other end hung
    /// up.
    pub fn connection(&self) -> Option<String> {
        let words = self.noted().connection.clone()?;
        // An end that speaks TLS and one that doesn't part without a word of why.
        let is_protocol = ["Disconnected", "handshake", "ApiVersion", "PLAINTEXT"]
            .iter()
            .any(|part| words.contains(part));
        Some(match is_protocol {
            true => format!("{words}; see security.protocol in kafka.librdkafka"),
            false => words,
        })
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        lock(&self.0)
    }
}

/// A context that notes them.
pub trait WithLogin: ClientContext {
    /// Returns what it has noted.
    fn login(&self) -> &Login;
}

impl LoginTrouble {
    /// Returns librdkafka's words, and which options to look at.
    pub fn in_words(&self) -> String {
        match self {
            LoginTrouble::Refused(words) => format!(
                "they refuse the login: {words}; see sasl.mechanism, sasl.username and sasl.password \
                 in kafka.librdkafka and kafka.librdkafka_files, or kafka.bearer_token_file"
            ),
            LoginTrouble::Tls(words) => format!(
                "there is no TLS connection: {words}; see security.protocol, ssl.ca.location and the \
                 other ssl properties in kafka.librdkafka"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_of_the_login_are_kept_and_others_are_not() {
        let login = Login::default();
        let note = |code, words| login.note(&KafkaError::Global(code), words);
        note(RDKafkaErrorCode::AllBrokersDown, "all down");
        assert_eq!(login.trouble(), None);
        note(RDKafkaErrorCode::SSL, "unknown CA");
        note(RDKafkaErrorCode::Authentication, "bad password");
        note(RDKafkaErrorCode::AllBrokersDown, "all down");
        let trouble = login.trouble().unwrap();
        assert_eq!(trouble, LoginTrouble::Refused("bad password".into()));
        let words = trouble.in_words();
        assert!(words.contains("bad password") && words.contains("sasl.password"), "{words}");
        assert_eq!(login.connection(), None);
    }

    #[test]
    fn the_last_failure_to_connect_is_kept_and_tls_is_thought_of() {
        let login = Login::default();
        let note = |code, words| login.note(&KafkaError::Global(code), words);
        note(RDKafkaErrorCode::BrokerTransportFailure, "Connect failed: Connection refused");
        note(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down");
        assert_eq!(login.connection().as_deref(), Some("Connect failed: Connection refused"));
        note(RDKafkaErrorCode::Resolve, "Failed to resolve 'b:9092'");
        assert_eq!(login.connection().as_deref(), Some("Failed to resolve 'b:9092'"));
        note(RDKafkaErrorCode::BrokerTransportFailure, "SSL handshake failed: Disconnected");
        assert!(login.connection().unwrap().contains("see security.protocol"));
        assert_eq!(login.trouble(), None);
    }
}
