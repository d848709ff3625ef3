//! The command line: what it prints, what it refuses, and how it says so.

use std::process::Command;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::support::{
    CAPVEC, Cluster, Outgoing, capvec, capvec_fails, capvec_ok, free_address, sets, text,
    tiny_package,
};

#[test]
fn what_has_no_room_for_a_result_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let captions = folder.path().join("captions");
    std::fs::write(&captions, "a caption\n").unwrap();
    let (package, captions) = (text(tiny_package()), text(&captions));
    for format in ["jsonl", "npy", "f32"] {
        let (code, error) = capvec_fails(&[
            "embed",
            "--model",
            package,
            captions,
            "--format",
            format,
            "--out",
            "/dev/full",
        ]);
        assert_eq!(code, 1);
        assert!(error.contains("/dev/full: No space left"), "{error}");
    }
    let model = format!("model.package={package}");
    let options = ["kafka.brokers=b", "kafka.group=g", "input.topic=i", "output.topic=o", &model];
    let check = [&["check", "--offline"][..], &sets(&options)].concat();
    for args in [
        &["embed", "--model", package, captions, "--out", "-"][..],
        &["tokenize", "--model", package, captions],
        &["model", "inspect", package],
        &check,
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(CAPVEC).args(args).stdout(full).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.contains("standard output: No space left"), "{args:?}: {error}");
    }
}

#[test]
fn figures_are_told_though_their_plot_has_no_room() {
    let package = text(tiny_package());
    let flags = ["--tokens", "16", "--repeats", "1", "--plot", "/dev/full"];
    let args = [&["bench", "encoder", "--model", package][..], &flags].concat();
    let output = capvec(&args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("/dev/full: No space left"), "{error}");
    let figures = String::from_utf8(output.stdout).unwrap();
    assert!(figures.contains("packed / padded"), "{figures}");
}

#[test]
fn a_plot_that_cannot_be_written_is_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let package = text(tiny_package());
    for plot in [folder.path().to_owned(), folder.path().join("none/plot.svg"), "/proc/x".into()] {
        let args = ["bench", "encoder", "--model", package, "--plot", text(&plot)];
        let output = capvec(&args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("--plot") && output.stdout.is_empty(), "{error}");
    }
}

#[test]
fn numbers_that_no_machine_can_serve_are_refused() {
    let package = text(tiny_package());
    for args in [
        &["embed", "--model", package, "--out", "-", "/dev/null", "--threads", "100000"][..],
        &["bench", "encoder", "--model", package, "--threads", "100000"],
        &["bench", "encoder", "--model", package, "--tokens", "18446744073709551615"],
        &["bench", "encoder", "--model", package, "--tokens", "16,0"],
        &["bench", "host", "--repeats", "0"],
        &["bench", "host", "--repeats", "1001"],
        &["model", "compare", package, package, "--captions", "/dev/null", "--repeats", "1001"],
    ] {
        let (code, error) = capvec_fails(args);
        assert_eq!(code, 2, "{args:?}: {error}");
        assert!(error.contains("is not in "), "{args:?}: {error}");
    }
}

#[test]
fn none_of_what_there_must_be_some_of_is_refused_in_plain_words() {
    let package = text(tiny_package());
    for args in [
        &["embed", "--model", package, "--out", "-", "/dev/null", "--batch-tokens", "0"][..],
        &["embed", "--model", package, "--out", "-", "/dev/null", "--batch-captions", "many"],
        &["model", "compare", package, package, "--captions", "/dev/null", "--limit", "0"],
    ] {
        let (code, error) = capvec_fails(args);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(": a whole number above 0 is due"), "{error}");
    }
}

#[test]
fn a_missing_library_says_how_to_get_it() {
    let output = Command::new(CAPVEC)
        .args(["embed", "--model", text(tiny_package()), "/dev/null", "--out", "/dev/null"])
        .env("CAPVEC_CACHE", "/nowhere")
        .env_remove("ORT_DYLIB_PATH")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    for part in ["/nowhere", "scripts/onnxruntime", "ORT_DYLIB_PATH", "--onnxruntime"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn what_is_no_package_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [folder.path(), &file] {
        let (_, error) = capvec_fails(&["model", "inspect", text(path)]);
        assert!(
            error.contains("not a model package") && error.contains("capvec model import"),
            "{error}"
        );
    }
}

#[test]
fn lines_of_json_without_a_pointer_are_no_silent_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("captions");
    let told = |lines: &str, flags: &[&str]| {
        std::fs::write(&file, lines).unwrap();
        let args = ["tokenize", "--model", text(tiny_package()), text(&file)];
        let output = capvec(&[&args[..], flags].concat());
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let json = "{\"caption\": \"a fox\"}\n{\"caption\": \"a dog\"}\n";
    assert_eq!(told(json, &[]).matches("--pointer /caption").count(), 1);
    assert_eq!(told(json, &["--pointer", "/caption"]), "");
    assert_eq!(told("{a fox}\n", &[]), "");
}

#[test]
fn the_demo_names_its_own_flag_where_the_package_is_none() {
    let (_, error) = capvec_fails(&["demo", "--model", "/nowhere"]);
    assert!(error.contains("--model: ") && !error.contains("model.package"), "{error}");
}

#[test]
fn a_library_that_is_named_and_not_there_is_told_by_what_names_it() {
    let args = ["embed", "--model", text(tiny_package()), "/dev/null", "--out", "/dev/null"];
    let (_, error) = capvec_fails(&[&args[..], &["--onnxruntime", "/nowhere"]].concat());
    assert!(error.contains("--onnxruntime or embed.onnxruntime names /nowhere"), "{error}");
}

#[test]
fn a_family_that_is_not_known_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "xlm-roberta"}"#).unwrap();
    let out = folder.path().join("out");
    let dir = text(folder.path());
    let (_, error) =
        capvec_fails(&["model", "import", dir, "--head", "head.pkl", "--out", text(&out)]);
    assert!(error.contains("xlm-roberta") && error.contains("distilbert"), "{error}");
}

#[test]
fn a_name_that_nobody_could_read_is_refused() {
    for name in ["", " ", "a\nb"] {
        let to = ["--head", "h", "--out", "o", "--name", name];
        let (code, error) = capvec_fails(&[&["model", "import", "none"], &to[..]].concat());
        assert_eq!(code, 2, "{name:?}: {error}");
        assert!(error.contains("--name"), "{error}");
    }
}

#[test]
fn inspect_speaks_to_people_and_to_programs() {
    let package = text(tiny_package());
    let people = capvec_ok(&["model", "inspect", package]);
    assert!(people.contains("640 numbers") && people.contains("synthetic-tiny@"), "{people}");
    let json = capvec_ok(&["model", "inspect", package, "--json"]);
    let manifest: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(manifest["network"]["dim"], 640);
    assert_eq!(manifest["graph"]["output"], "embedding");
    let verified = capvec_ok(&["model", "verify", package]);
    assert_eq!(verified.lines().filter(|line| line.starts_with("ok")).count(), 3);
}

#[test]
fn check_tells_every_fault_of_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("capvec.toml");
    std::fs::write(&config, "[kafka]\nbroker = \"x\"\n[batch]\ntokens_max = -1\n").unwrap();
    let output = capvec(&["check", "--offline", "--config", text(&config)]);
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stdout).unwrap();
    for fault in [
        "kafka.broker: no such option; is it brokers?",
        "kafka.brokers: is required",
        "batch.tokens_max: ",
        "input.topic: is required",
        "model.package: is required",
    ] {
        assert!(said.contains(fault), "{fault}\n{said}");
    }
    let output = capvec(&["check", "--offline", "--json", "--config", text(&config)]);
    assert_eq!(output.status.code(), Some(64));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["check"], &told["status"]), (&"configuration".into(), &"failed".into()));
    assert!(told["detail"].as_str().unwrap().contains("kafka.brokers: is required"), "{told}");
    let message = "no such option; is it brokers?";
    let fault = serde_json::json!({"option": "kafka.broker", "message": message});
    assert!(told["faults"].as_array().unwrap().contains(&fault), "{told}");
    let output = capvec(&["run", "--config", text(&config)]);
    assert_eq!(output.status.code(), Some(64), "run refuses it too");
}

#[test]
fn a_configuration_that_is_no_toml_is_refused_without_the_secret_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("capvec.toml");
    std::fs::write(&config, "[kafka.librdkafka]\n\"sasl.password\" = hunter2\n").unwrap();
    for command in [&["run"][..], &["check", "--offline"], &["dlq", "list"]] {
        let output = capvec(&[command, &["--config", text(&config)]].concat());
        assert_eq!(output.status.code(), Some(64), "{command:?}");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(said.contains("capvec.toml is no TOML: line 2, column 19: "), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

fn check(cluster: &str, options: &[&str]) -> (Option<i32>, String) {
    checked(&[], cluster, options)
}

fn checked(flags: &[&str], cluster: &str, options: &[&str]) -> (Option<i32>, String) {
    let brokers = format!("kafka.brokers={cluster}");
    let package = format!("model.package={}", tiny_package().display());
    let common = sets(&[&brokers, &package, "kafka.group=check"]);
    let output = capvec(&[&["check"], flags, &common, &sets(options)].concat());
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn check_looks_at_the_brokers_the_topics_and_the_model() {
    let cluster = Cluster::shared();
    cluster.create_topics("check", 2);
    let options = ["input.topic=check", "output.topic=check.out", "reject.topic=check.dead"];
    let (code, said) = check(&cluster.bootstrap, &options);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), 8, "{said}");
    assert_eq!(said.matches("may be written").count(), 2, "{said}");
    assert_eq!(cluster.records("check.out"), [], "no trace is left");
    assert_eq!(cluster.records("check.dead"), []);

    let captions: Vec<_> = (0..20).map(|i| Outgoing::caption(&format!("k{i}"), "a fox")).collect();
    cluster.send("check", &captions);
    let (code, said) = check(&cluster.bootstrap, &options);
    assert_eq!(code, Some(0), "{said}");
    let whence = "20 messages were read from where the group \"check\" would begin";
    assert!(said.contains(whence), "{said}");
    assert!(
        said.contains("ok      captions: all 20 messages that were read have one, of "),
        "{said}"
    );
    let json = checked(&["--json"], &cluster.bootstrap, &options).1;
    let told: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(told.len(), said.lines().count());
    assert!(told.iter().all(|check| check["status"] == "ok"), "{json}");
    assert_eq!(told[5]["check"], "input topic");
    let wrong = [&options[..], &["input.pointer=/nope"]].concat();
    let (code, said) = check(&cluster.bootstrap, &wrong);
    assert_eq!(code, Some(1), "{said}");
    let all = "FAILED  captions: all 20 messages that were read would be rejected: caption_missing 20; check/";
    assert!(said.contains(all), "{said}");
    assert!(
        said.contains(": nothing stands at /nope, but text at /caption; set input.pointer"),
        "{said}"
    );
    let json = checked(&["--json"], &cluster.bootstrap, &wrong).1;
    assert!(json.contains(r#"{"check":"captions","detail":"all 20 messages"#), "{json}");

    let options = ["input.topic=nowhere", "output.topic=check.out"];
    let (code, said) = check(&cluster.bootstrap, &options);
    assert_eq!(code, Some(1));
    assert!(said.contains("FAILED  input topic") && said.contains("\"nowhere\""), "{said}");

    let without_package = [&options[..], &["model.package=/nowhere"]].concat();
    let (code, said) = check(&cluster.bootstrap, &without_package);
    assert_eq!(code, Some(1));
    for skipped in ["tokenizer", "embedder"] {
        assert!(said.contains(&format!("skipped {skipped}: no model package\n")), "{said}");
    }
}

#[test]
fn check_finds_an_output_topic_that_takes_no_vector() {
    let cluster = Cluster::shared();
    cluster.create_topics("no-room", 1);
    cluster.create_topic_with("no-room.small", 1, &[("max.message.bytes", "2000")]);
    let options = ["input.topic=no-room", "output.topic=no-room.small"];
    let (code, said) = check(&cluster.bootstrap, &options);
    assert_eq!(code, Some(1), "{said}");
    let why = "FAILED  output topic: \"no-room.small\" takes 2000 bytes at most (max.message.bytes), and \
               the 640 numbers of a vector are 2560; raise it\n";
    assert!(said.contains(why), "{said}");
    // Numbers of text may be shorter.
    let json = [&options[..], &["output.format=json"]].concat();
    assert_eq!(check(&cluster.bootstrap, &json).0, Some(0));
}

#[test]
fn check_warns_of_dead_letters_that_are_not_all_kept() {
    let cluster = Cluster::shared();
    cluster.create_topics("not-kept", 1);
    let options = ["input.topic=not-kept", "output.topic=not-kept.out"];
    for (name, policy) in [("delete", "delete"), ("both", "compact,delete")] {
        let topic = format!("not-kept.{name}");
        cluster.create_topic_with(&topic, 1, &[("cleanup.policy", policy)]);
        let dead = format!("reject.topic={topic}");
        let (code, said) = check(&cluster.bootstrap, &[&options[..], &[&dead]].concat());
        assert_eq!(code, Some(0), "{said}");
        let warns = said.contains("WARNING dead letters: not-kept.both is compacted: ");
        assert_eq!(warns, name == "both", "{said}");
    }
}

#[test]
fn check_warns_of_captions_without_a_key_where_the_output_is_compacted() {
    let cluster = Cluster::shared();
    cluster.create_topics("unkeyed", 1);
    cluster.create_topic_with("unkeyed.compact", 1, &[("cleanup.policy", "compact")]);
    let message = Outgoing { key: None, ..Outgoing::caption("k", "a fox") };
    cluster.send("unkeyed", &[message, Outgoing::caption("k", "a dog")]);
    let to = |output| {
        let options = ["input.topic=unkeyed", "reject.topic=unkeyed.dead", output];
        check(&cluster.bootstrap, &options)
    };
    let (code, said) = to("output.topic=unkeyed.compact");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("WARNING keys: 1 of 2 messages have none, and output.topic"), "{said}");
    let (_, said) = to("output.topic=unkeyed.out");
    assert!(!said.contains("keys: "), "{said}");
}

#[test]
fn check_finds_a_wrong_pointer_by_one_message() {
    let cluster = Cluster::shared();
    cluster.create_topics("pointed", 1);
    let message = Outgoing { value: Some(r#"{"text":"a fox"}"#.into()), ..Outgoing::default() };
    cluster.send("pointed", &[message]);
    let options = ["input.topic=pointed", "output.topic=pointed.out"];
    let (code, said) = check(&cluster.bootstrap, &options);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("FAILED  captions: the message that was read"), "{said}");
    assert!(said.contains("nothing stands at /caption, but text at /text;"), "{said}");
    let right = [&options[..], &["input.pointer=/text"]].concat();
    let (code, said) = check(&cluster.bootstrap, &right);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn check_looks_at_the_last_messages_where_the_group_has_read_all() {
    let cluster = Cluster::shared();
    cluster.create_topics("caught-up", 2);
    let caption = |index: usize| Outgoing {
        partition: Some(0),
        ..Outgoing::caption(&format!("k{index}"), "a fox")
    };
    let earlier = Outgoing { value: Some("another form".into()), ..caption(0) };
    let messages: Vec<_> = std::iter::repeat_n(earlier, 20).chain((0..10).map(caption)).collect();
    cluster.send("caught-up", &messages);
    let consumer: BaseConsumer = cluster.client().set("group.id", "check").create().unwrap();
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset("caught-up", 0, Offset::Offset(30)).unwrap();
    consumer.commit(&offsets, CommitMode::Sync).unwrap();

    let options = ["input.topic=caught-up", "output.topic=caught-up.out"];
    let (code, said) = check(&cluster.bootstrap, &options);
    assert_eq!(code, Some(0), "{said}");
    let last = "nothing is left for the group \"check\", so the last 10 messages were read";
    assert!(said.contains(last), "{said}");
    assert!(said.contains("ok      captions: all 10 messages that were read have one"), "{said}");
    let wrong = [&options[..], &["input.pointer=/nope"]].concat();
    let (code, said) = check(&cluster.bootstrap, &wrong);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("caption_missing 10; caught-up/0/20: nothing stands at /nope"), "{said}");
    let committed = cluster.committed("check", "caught-up");
    assert_eq!(committed, [(0, 30), (1, -1)].into(), "it commits nothing");

    let blank = Outgoing { partition: Some(1), ..Outgoing::caption("k", " ") };
    cluster.send("caught-up", &[caption(0), caption(1), caption(2), blank]);
    let (code, said) = check(&cluster.bootstrap, &options);
    assert_eq!(code, Some(1), "without a dead-letter topic the worker stops: {said}");
    let options = [&options[..], &["reject.on_reject=skip"]].concat();
    let (code, said) = check(&cluster.bootstrap, &options);
    assert_eq!(code, Some(0), "{said}");
    let share = "WARNING captions: 1 of the 4 messages that were read (25 %) would be rejected: \
                 caption_empty 1; caught-up/1/0: ";
    assert!(said.contains(share), "{said}");
    assert!(said.contains("4 messages were read from where the group"), "{said}");
}

#[test]
fn check_passes_over_brokers_that_are_away_while_one_is_there() {
    let cluster = Cluster::shared();
    cluster.create_topics("one-is-there", 2);
    let away: Vec<String> = (0..8).map(|_| free_address()).collect();
    let brokers = format!("{},{}", away.join(","), cluster.bootstrap);
    let options = ["input.topic=one-is-there", "output.topic=one-is-there.out"];
    // Which one is asked first is a matter of chance.
    for _ in 0..3 {
        let (code, said) = check(&brokers, &options);
        assert_eq!(code, Some(0), "{said}");
    }
}

#[test]
fn check_says_when_no_broker_answers_and_why() {
    let options = ["input.topic=a", "output.topic=b", "kafka.startup_timeout=3s"];
    let (code, said) = check(&free_address(), &options);
    assert_eq!(code, Some(1));
    assert!(said.contains("FAILED  brokers") && said.contains("skipped"), "{said}");
    assert!(said.contains("(kafka.brokers)") && said.contains("Connection refused"), "{said}");

    // A broker that speaks no TLS hangs up.
    let tls = "kafka.librdkafka.security.protocol=SSL";
    let (code, said) = check(&Cluster::shared().bootstrap, &[&options[..], &[tls]].concat());
    assert_eq!(code, Some(1));
    assert!(said.contains("FAILED  brokers") && said.contains("see security.protocol"), "{said}");
}

#[test]
fn who_looks_at_dead_letters_does_not_wait_as_long_as_a_worker() {
    let nobody = format!("kafka.brokers={}", free_address());
    let options =
        [&nobody, "kafka.group=g", "input.topic=i", "output.topic=o", "reject.topic=dead"];
    let options = [&options[..], &["model.package=none"]].concat();
    let (code, error) = capvec_fails(&[&["dlq", "list"][..], &sets(&options)].concat());
    assert_eq!(code, 1, "{error}");
    assert!(
        error.contains("no answer from the brokers at ") && error.contains(" within 10s"),
        "{error}"
    );
}

#[test]
fn where_letters_begin_in_a_partition_is_named_once() {
    let options = ["kafka.brokers=b", "kafka.group=g", "input.topic=i", "output.topic=o"];
    let options = [&options[..], &["reject.topic=dead", "model.package=none"]].concat();
    let from = ["--from", "1:5", "--from", "0:3", "--from", "1:2"];
    let (code, error) = capvec_fails(&[&["dlq", "list"][..], &from, &sets(&options)].concat());
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("--from names partition 1 twice"), "{error}");
}

#[test]
fn check_compares_the_time_of_a_transaction_with_the_brokers_and_run_names_the_options() {
    let cluster = Cluster::shared();
    cluster.create_topics("timed", 1);
    let exactly_once =
        ["input.topic=timed", "output.topic=timed.out", "delivery.mode=exactly-once"];
    let (code, said) = check(&cluster.bootstrap, &exactly_once);
    assert_eq!(code, Some(0), "{said}");
    let line = said.lines().find(|line| line.starts_with("ok      transactions: ")).unwrap();
    assert!(
        line.contains("45s") && line.contains("allow 15m;") && line.contains("none is tried"),
        "{line}"
    );

    let long = [&exactly_once[..], &["delivery.transaction_timeout=20m"]].concat();
    let (code, said) = check(&cluster.bootstrap, &long);
    assert_eq!(code, Some(1), "{said}");
    let line = said.lines().find(|line| line.starts_with("FAILED  transactions: ")).unwrap();
    for part in ["delivery.transaction_timeout is 20m,", "15m of transaction.max.timeout.ms"] {
        assert!(line.contains(part), "{part}: {line}");
    }

    let brokers = format!("kafka.brokers={}", cluster.bootstrap);
    let package = format!("model.package={}", tiny_package().display());
    let more = [
        &brokers,
        &package,
        "kafka.group=timed",
        "admin.listen=127.0.0.1:0",
        "embed.embedder=hash",
    ];
    let (code, error) = capvec_fails(&[&["run"][..], &sets(&long), &sets(&more)].concat());
    assert_eq!(code, 1);
    for part in ["delivery.transaction_timeout is 20m,", "transaction.max.timeout.ms"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn run_names_every_topic_that_is_missing() {
    let cluster = Cluster::shared();
    cluster.create_topic("only-this", 1);
    let brokers = format!("kafka.brokers={}", cluster.bootstrap);
    let package = format!("model.package={}", tiny_package().display());
    let options = [&brokers, &package, "kafka.group=g", "admin.listen=127.0.0.1:0"];
    let topics = ["input.topic=none.in", "output.topic=only-this", "reject.topic=none.dead"];
    let (code, error) = capvec_fails(&[&["run"][..], &sets(&options), &sets(&topics)].concat());
    assert_eq!(code, 1, "{error}");
    for part in ["none.in", "input.topic", "none.dead", "reject.topic"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("only-this"), "{error}");
}

#[test]
fn the_log_has_no_colours_where_nobody_wants_them() {
    let options = [
        "kafka.brokers=none",
        "kafka.group=g",
        "input.topic=i",
        "output.topic=o",
        "model.package=none",
        "admin.listen=127.0.0.1:0",
    ];
    let run = format!("{CAPVEC} run {}", sets(&options).join(" "));
    let log = |no_color: Option<&str>| {
        // It runs the program on a terminal.
        let mut script = Command::new("script");
        script.args(["-qec", &run, "/dev/null"]).env_remove("NO_COLOR").env("TERM", "xterm");
        script.envs(no_color.map(|value| ("NO_COLOR", value)));
        let output = script.stdin(std::process::Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (coloured, plain) = (log(None), log(Some("1")));
    assert!(coloured.contains("\u{1b}["), "{coloured}");
    assert!(plain.contains(" ERROR ") && !plain.contains("\u{1b}["), "{plain}");
}

#[test]
fn without_a_configuration_the_file_is_asked_for() {
    for command in [&["run"][..], &["dlq", "list"]] {
        let (code, error) = capvec_fails(command);
        assert_eq!(code, 64);
        assert!(error.contains("--config FILE"), "{error}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let captions = folder.path().join("captions");
    std::fs::write(&captions, "a caption\n".repeat(100_000)).unwrap();
    let package = text(tiny_package());
    for args in [
        &["tokenize", "--model", package, text(&captions)][..],
        &["model", "inspect", package, "--json"],
        &["model", "verify", package],
    ] {
        let mut child = Command::new(CAPVEC)
            .args(args)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{args:?}: {error}");
    }
}
