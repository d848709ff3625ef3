//! Two controls of the checker: a worker that loses must be caught, and one that is known to be
//! right must pass.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::Duration;

use rdkafka::message::Message;

use super::captions;
use crate::check::{Seen, Verdict, judge};
use crate::feed::Place;
use crate::misbehave::careless;
use crate::scene::{PARTITIONS, Scene, Way, read, read_as};
use crate::{Found, Mode, Row};

/// How long a worker may take to go on after its death.
const SOON: Duration = Duration::from_secs(60);

pub const CARELESS: Row = Row {
    id: "C1",
    fault: "control: a worker that commits before it produces, killed",
    is_quick: false,
    modes: &[Mode::AtLeastOnce],
    bound: |_| "the checker finds captions lost".into(),
    run: |setting| {
        let kills = setting.size.choose(2, 8);
        let mut scene = Scene::new(setting);
        // It does at most 200 a second, and is to be without a backlog.
        scene.start_feed(100, captions());
        let mut worker = scene.worker_of(careless(), 0, Way::Proxied, &[]);
        for n in 0..kills {
            scene.until_going_again(SOON);
            // At another moment of its round each time: its vectors have just come.
            scene.pass(Duration::from_millis(40 * n));
            worker.kill();
            worker = scene.worker_of(careless(), 0, Way::Proxied, &[]);
        }
        scene.until_going_again(SOON);
        let truth = scene.stop_feed();
        scene.until_settled();
        // It knows no other way, and what it has committed last it has produced by now.
        scene.pass(Duration::from_secs(2));
        worker.kill();
        let verdict = scene.compare(&truth);
        let others = Verdict { lost: Vec::new(), repeated: 0, ..verdict.clone() };
        let mut broken = Vec::new();
        if verdict.lost.is_empty() {
            broken.push("the checker found nothing lost, though something must be".into());
        }
        broken.extend(others.broken(0));
        Found { injected: format!("{kills} kills"), found: format!("caught: {verdict}"), broken }
    },
};

pub const COPIER: Row = Row {
    id: "C2",
    fault: "control: Kafka's own TransactionalMessageCopier, with random aborts",
    is_quick: false,
    modes: &[Mode::ExactlyOnce],
    bound: |_| "the checker finds none lost, none repeated, all in order, all committed".into(),
    run: |setting| {
        let mut scene = Scene::new(setting);
        scene.start_feed(400, captions());
        scene.pass(Duration::from_secs(20));
        let truth = scene.stop_feed();
        // It copies up to the end that it finds at its start, a partition each.
        let copiers: Vec<Child> = (0..PARTITIONS).map(|p| copier(&scene, p)).collect();
        let number = copiers.len();
        for copier in copiers {
            let output = copier.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "the copier: {}\n{said}\n{errors}", output.status);
        }
        scene.until_settled();
        let source: BTreeMap<Vec<u8>, Place> =
            truth.iter().map(|(place, sent)| (sent.value.clone(), *place)).collect();
        let mut copies = Vec::new();
        let out = format!("{}.out", scene.topic);
        read(scene.cluster, &out, |record| {
            // It copies keys and values: which message it was is in its text, which none has twice.
            let source = source.get(record.payload().unwrap_or_default()).copied();
            copies.push(Seen {
                source: source.unwrap_or((-1, -1)),
                place: (record.partition(), record.offset()),
                key: record.key().unwrap_or_default().to_vec(),
                proven: source.is_some(),
            });
        });
        let mut all = 0;
        read_as(scene.cluster, &out, "read_uncommitted", |_| all += 1);
        let verdict = Verdict {
            uncommitted: scene.uncommitted().expect("the brokers answer"),
            open_transactions: scene.open_transactions(),
            ..judge(&truth, &copies, &[])
        };
        let mut broken = verdict.broken(0);
        if all <= copies.len() {
            broken.push("no transaction was aborted, so nothing was tried".into());
        }
        Found {
            injected: format!(
                "{number} copiers of a partition each; {} of {all} records in aborted transactions",
                all - copies.len()
            ),
            found: format!("passed: {verdict}"),
            broken,
        }
    },
};

fn copier(scene: &Scene<'_>, partition: i32) -> Child {
    let (topic, id) = (&scene.topic, format!("{}-copier-{partition}", scene.topic));
    let (output, partition) = (format!("{topic}.out"), partition.to_string());
    let group = scene.group();
    let args = [
        ("--broker-list", scene.cluster.direct()),
        ("--input-topic", topic),
        ("--input-partition", &partition),
        ("--output-topic", &output),
        ("--consumer-group", &group),
        ("--transactional-id", &id),
        ("--transaction-size", "50"),
    ];
    scene
        .cluster
        .node(0)
        .class("org.apache.kafka.tools.TransactionalMessageCopier")
        .args(args.iter().flat_map(|(key, value)| [*key, *value]))
        .arg("--enable-random-aborts")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
