//! The callbacks of a client that only asks: of topics, of their options, of dead letters.

use std::error::Error;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::bearer;
use super::login::{Login, WithLogin};

/// By default it keeps librdkafka's log out of a command's lines.
#[derive(Default)]
pub struct Asker {
    login: Login,
    heard_as: Option<&'static str>,
}

impl Asker {
    /// Returns one whose log is heard, as that of a worker is.
    pub fn heard_as(client: &'static str) -> Asker {
        Asker { heard_as: Some(client), ..Asker::default() }
    }
}

impl ClientContext for Asker {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if self.heard_as.is_some() {
            super::log(level, facility, message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.login.note(&error, reason);
        if let Some(client) = self.heard_as {
            super::log_client_error(client, &error, reason);
        }
    }

    fn generate_oauth_token(&self, file: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        bearer::answer(file)
    }
}

impl ConsumerContext for Asker {}

impl ProducerContext for Asker {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, (): ()) {}
}

impl WithLogin for Asker {
    fn login(&self) -> &Login {
        &self.login
    }
}
