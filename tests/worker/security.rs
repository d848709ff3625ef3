//! TLS and SASL against a real broker that requires them: each kind of login works, and where one
//! is refused the worker says which options to look at, and no secret.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::kafka::{FOR_TESTS, Kafka, Plan, free_ports};
use crate::support::{
    CAPVEC, Cluster, Outgoing, Worker, capvec, eventually, mock, sets, tiny_package,
};

const PLAIN_SECRET: &str = "plain-hunter2";
const SCRAM_SECRET: &str = "scram-hunter2";
const KEY_SECRET: &str = "key-hunter2";

/// How long a wrong login may take to be known as one.
const STARTUP: &str = "kafka.startup_timeout=5s";

/// A node with a listener for logins by SASL and one for certificates, both with TLS.
struct Fortress {
    _kafka: Kafka,
    /// Seen through a listener that asks for nothing.
    cluster: Cluster,
    sasl: String,
    mtls: String,
    folder: tempfile::TempDir,
}

impl Fortress {
    fn shared() -> &'static Fortress {
        static SHARED: OnceLock<Fortress> = OnceLock::new();
        SHARED.get_or_init(Fortress::start)
    }

    fn start() -> Fortress {
        let folder = tempfile::tempdir().unwrap();
        authority(folder.path(), "ca");
        authority(folder.path(), "another-ca");
        certificate(folder.path(), "server", None);
        certificate(folder.path(), "client", Some(KEY_SECRET));
        let server = folder.path().join("server");
        let pem = ["key", "pem"].map(|part| std::fs::read(server.with_extension(part)).unwrap());
        std::fs::write(folder.path().join("server.both.pem"), pem.concat()).unwrap();

        let [client_port, sasl, mtls, controller] = free_ports();
        let properties = properties(folder.path(), client_port, sasl, mtls, controller);
        let credentials = "SCRAM-SHA-512=[name=worker,password=scram-hunter2,iterations=4096]";
        let format: &'static [&'static str] =
            vec!["--standalone", "--add-scram", credentials].leak();
        let kafka = Kafka::start_all(&[Plan { properties, client_port, format }]);
        let kafka = kafka.unwrap_or_else(|why| panic!("{why}")).remove(0);
        let cluster = Cluster { bootstrap: kafka.bootstrap().into() };
        let address = |port| format!("127.0.0.1:{port}");
        Fortress { cluster, sasl: address(sasl), mtls: address(mtls), folder, _kafka: kafka }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file, at once as a whole, and returns its path.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(format!("{path}.part"), text).unwrap();
        std::fs::rename(format!("{path}.part"), &path).unwrap();
        path
    }

    /// Options for the SASL listener.
    fn sasl(&self, mechanism: &str) -> Vec<String> {
        vec![
            format!("kafka.brokers={}", self.sasl),
            "kafka.librdkafka.security.protocol=SASL_SSL".into(),
            format!("kafka.librdkafka.ssl.ca.location={}", self.path("ca.pem")),
            format!("kafka.librdkafka.sasl.mechanism={mechanism}"),
        ]
    }

    /// Starts a worker from a topic that exists.
    fn worker(&self, topic: &str, options: &[String]) -> Worker {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Worker::start(&self.cluster, topic, &options)
    }

    /// Lets a worker move captions, and returns its log.
    #[track_caller]
    fn moves_captions(&self, topic: &str, start: impl FnOnce(&str) -> Worker) -> String {
        self.cluster.create_topics(topic, 1);
        self.cluster.send(topic, &[Outgoing::caption("k", "a caption")]);
        let worker = start(topic).ready();
        self.cluster.await_records(&format!("{topic}.out"), 1);
        worker.stop()
    }

    /// Starts a worker that the brokers don't let in, and returns what it says.
    #[track_caller]
    fn is_kept_out(&self, topic: &str, options: Vec<String>) -> String {
        self.cluster.create_topics(topic, 1);
        let mut worker = self.worker(topic, &options);
        assert_eq!(worker.wait().code(), Some(1));
        let log = worker.log();
        let (code, said) = check(topic, &options);
        assert_eq!(code, Some(1));
        let brokers = said.lines().find(|line| line.starts_with("FAILED  brokers")).expect(&said);
        let error = log.lines().find(|line| line.contains("ERROR capvec::cli")).expect(&log);
        for secret in ["hunter2", "wrong-secret", "eyJ"] {
            assert!(!log.contains(secret) && !said.contains(secret), "{secret}:\n{log}\n{said}");
        }
        format!("{error}\n{brokers}")
    }
}

/// Runs `capvec check` for the topics of `topic`; returns its exit code and all that it says.
fn check(topic: &str, options: &[String]) -> (Option<i32>, String) {
    let own = [
        format!("kafka.group={topic}.group"),
        format!("input.topic={topic}"),
        format!("output.topic={topic}.out"),
        format!("model.package={}", tiny_package().display()),
        "embed.embedder=hash".into(),
    ];
    let all: Vec<&str> = own.iter().chain(options).map(String::as_str).collect();
    let check = capvec(&[&["check"][..], &sets(&all)].concat());
    (check.status.code(), String::from_utf8([check.stdout, check.stderr].concat()).unwrap())
}

fn openssl(folder: &Path, args: &[&str]) {
    let output = Command::new("openssl").args(args).current_dir(folder).output();
    let output = output.expect("openssl is there where Java is; else install it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const NEW_KEY: [&str; 6] =
    ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

/// Makes an authority that signs certificates: `name.pem` and `name.key`.
fn authority(folder: &Path, name: &str) {
    let (key, pem, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
    let args = ["-nodes", "-days", "2", "-subj", &subject, "-keyout", &key, "-out", &pem];
    openssl(folder, &[&NEW_KEY[..], &args].concat());
}

/// Makes a certificate that `ca` has signed, for the loopback address.
fn certificate(folder: &Path, name: &str, password: Option<&str>) {
    let (key, pem, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
    let password = password.map(|password| format!("pass:{password}"));
    let protection = match &password {
        Some(password) => vec!["-passout", password],
        None => vec!["-nodes"],
    };
    let args = [
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-days",
        "2",
        "-subj",
        &subject,
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        &key,
        "-out",
        &pem,
    ];
    openssl(folder, &[&NEW_KEY[..], &protection, &args].concat());
}

fn properties(folder: &Path, client: u16, sasl: u16, mtls: u16, controller: u16) -> String {
    let path = |name: &str| -> PathBuf { folder.join(name) };
    format!(
        "\
process.roles=broker,controller
node.id=1
listeners=OPEN://127.0.0.1:{client},SASL://127.0.0.1:{sasl},MTLS://127.0.0.1:{mtls},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=OPEN://127.0.0.1:{client},SASL://127.0.0.1:{sasl},MTLS://127.0.0.1:{mtls}
listener.security.protocol.map=OPEN:PLAINTEXT,SASL:SASL_SSL,MTLS:SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=OPEN
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs=data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
ssl.keystore.type=PEM
ssl.keystore.location={}
ssl.truststore.type=PEM
ssl.truststore.location={}
listener.name.mtls.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_worker=\"{PLAIN_SECRET}\";
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";
# A connection ends with the token that it logged in with, unless its client logs in again.
listener.name.sasl.oauthbearer.connections.max.reauth.ms=3600000
{FOR_TESTS}",
        path("server.both.pem").display(),
        path("ca.pem").display(),
    )
}

/// Returns a JWT without a signature that lives for so long, which Kafka's own validator for tests
/// takes.
fn token(life: Duration) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let claims = serde_json::json!({
        "sub": "worker",
        "iat": now.as_secs(),
        "exp": (now + life).as_secs(),
    });
    format!("{}.{}.", base64url(br#"{"alg":"none"}"#), base64url(claims.to_string().as_bytes()))
}

fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let encode = |chunk: &[u8]| {
        let number = chunk.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        let number = number << (8 * (3 - chunk.len()));
        let letter = |index: usize| LETTERS[(number >> (18 - 6 * index)) as usize & 63] as char;
        (0..=chunk.len()).map(letter).collect::<String>()
    };
    bytes.chunks(3).map(encode).collect()
}

/// Whatever cuts it off: a password that is another's by now, a certificate that has expired, or,
/// as here, a broker that is gone.
#[test]
fn a_worker_that_no_broker_answers_ends_where_what_it_has_read_was_renewed() {
    let (mock, cluster) = mock(1);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "old").unwrap();
    // Any property may be in a file.
    let option = format!("kafka.librdkafka_files.client.rack={}", file.path().display());
    let mut worker = Worker::start(&cluster, "in", &[&option]).ready();
    std::fs::write(file.path(), "new").unwrap();
    drop(mock);
    assert_eq!(worker.wait().code(), Some(1));
    let said = format!("no broker answers, and {} has changed", file.path().display());
    assert!(worker.log().contains(&said), "{}", worker.log());
}

#[test]
fn a_password_in_a_file_logs_in_by_plain() {
    let fortress = Fortress::shared();
    let password = fortress.file("plain", &format!("{PLAIN_SECRET}\n"));
    let mut options = fortress.sasl("PLAIN");
    options.push("kafka.librdkafka.sasl.username=worker".into());
    options.push(format!("kafka.librdkafka_files.sasl.password={password}"));
    let log = fortress.moves_captions("plain", |topic| fortress.worker(topic, &options));
    assert!(!log.contains(PLAIN_SECRET));

    let password = fortress.file("plain-wrong", "wrong-secret\n");
    *options.last_mut().unwrap() = format!("kafka.librdkafka_files.sasl.password={password}");
    let said = fortress.is_kept_out("plain-wrong", options);
    assert_eq!(said.matches("Authentication failed").count(), 2, "{said}");
    assert_eq!(said.matches("sasl.password").count(), 2, "{said}");
}

#[test]
fn a_password_in_a_variable_logs_in_by_scram() {
    let fortress = Fortress::shared();
    let mut options = fortress.sasl("SCRAM-SHA-512");
    options.push("kafka.librdkafka.sasl.username=worker".into());
    let log = fortress.moves_captions("scram", |topic| {
        let mut program = Command::new(CAPVEC);
        program.arg("run").env("CAPVEC__KAFKA__LIBRDKAFKA__SASL_PASSWORD", SCRAM_SECRET);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Worker::launch(program, &fortress.cluster, topic, &options)
    });
    assert!(!log.contains(SCRAM_SECRET));

    let password = fortress.file("scram-wrong", "wrong-secret\n");
    options.push(format!("kafka.librdkafka_files.sasl.password={password}"));
    let said = fortress.is_kept_out("scram-wrong", options);
    assert_eq!(said.matches("sasl.password").count(), 2, "{said}");
}

#[test]
fn a_bearer_token_is_read_again_before_it_expires() {
    const LIFE: Duration = Duration::from_secs(6);
    let fortress = Fortress::shared();
    let topic = "bearer";
    fortress.cluster.create_topics(topic, 1);
    let file = fortress.file("token", &token(LIFE));
    let mut options = fortress.sasl("OAUTHBEARER");
    options.push(format!("kafka.bearer_token_file={file}"));
    let mut exactly = options.clone();
    exactly.extend(["delivery.mode=exactly-once".into(), "delivery.commit_interval=100ms".into()]);
    let mut worker = fortress.worker(topic, &exactly);
    eventually("the worker is ready", || {
        // However long the start takes, what it reads is of use.
        fortress.file("token", &token(LIFE));
        worker.is_ready().then_some(())
    });
    let another = token(LIFE);
    let until = SystemTime::now() + LIFE;
    fortress.file("token", &token(Duration::from_secs(3600)));
    let seen = || fortress.cluster.records("bearer.out").len();
    fortress.cluster.send(topic, &[Outgoing::caption("k", "with a first token")]);
    eventually("a vector", || (seen() == 1).then_some(()));
    eventually("the first tokens have expired", || (SystemTime::now() > until).then_some(()));
    fortress.cluster.send(topic, &[Outgoing::caption("k", "with the second token")]);
    eventually("another vector", || (seen() == 2).then_some(()));
    let log = worker.stop();
    assert!(!log.contains("eyJ"), "no token is in the log");

    fortress.cluster.send(topic, &[Outgoing::caption("k", "for the check")]);
    let (code, said) = check(topic, &options);
    assert!(code == Some(0) && said.contains("a message was read"), "{said}");

    // It has expired with the first ones.
    let file = fortress.file("token-expired", &another);
    *options.last_mut().unwrap() = format!("kafka.bearer_token_file={file}");
    let said = fortress.is_kept_out("bearer-expired", options);
    assert_eq!(said.matches("the token has expired").count(), 2, "{said}");
    assert_eq!(said.matches("kafka.bearer_token_file").count(), 2, "{said}");
}

#[test]
fn a_certificate_logs_in_and_an_authority_that_is_not_trusted_is_named() {
    let fortress = Fortress::shared();
    let password = fortress.file("key-password", KEY_SECRET);
    let tls = |authority: &str| {
        vec![
            format!("kafka.brokers={}", fortress.mtls),
            STARTUP.into(),
            "kafka.librdkafka.security.protocol=SSL".into(),
            format!("kafka.librdkafka.ssl.ca.location={}", fortress.path(authority)),
        ]
    };
    let mut options = tls("ca.pem");
    options.extend([
        format!("kafka.librdkafka.ssl.certificate.location={}", fortress.path("client.pem")),
        format!("kafka.librdkafka.ssl.key.location={}", fortress.path("client.key")),
        format!("kafka.librdkafka_files.ssl.key.password={password}"),
    ]);
    let log = fortress.moves_captions("mtls", |topic| fortress.worker(topic, &options));
    assert!(!log.contains(KEY_SECRET));

    let said = fortress.is_kept_out("mtls-untrusted", tls("another-ca.pem"));
    assert_eq!(said.matches("certificate verify failed").count(), 2, "{said}");
    assert!(said.contains("ssl.ca.location"), "{said}");
    // The brokers hang up on a client without a certificate, and say nothing.
    let said = fortress.is_kept_out("mtls-none", tls("ca.pem"));
    assert_eq!(said.matches("no answer from the brokers").count(), 2, "{said}");
}
