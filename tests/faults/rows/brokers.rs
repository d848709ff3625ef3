//! Brokers that are restarted, and leaders and coordinators that move.

use std::time::{Duration, Instant};

use super::workers::{self, start_for};
use super::{BOTH, middle_and_longest};
use crate::cluster::NODES;
use crate::scene::{IN_FLIGHT_MAX, PARTITIONS, Scene};
use crate::{Found, Mode, Row};

/// How long all partitions may stand still while a broker is away.
const SOON: Duration = Duration::from_secs(90);

/// Captions that may come again where a worker was put out of its group meanwhile.
const AGAIN_MAX: usize = 2 * IN_FLIGHT_MAX;

/// How often each coordinator is killed.
const ROUNDS: usize = 3;

/// Workers of a row.
const WORKERS: usize = 2;

fn none_lost(mode: Mode) -> String {
    let again = format!(
        "none lost; repeats at most {AGAIN_MAX}, as where a coordinator's absence cost the membership"
    );
    mode.choose(again, "none lost, none repeated, no transaction left open".into())
}

pub const RESTARTED: Row = Row {
    id: "3",
    fault: "broker restart, clean and by kill -9",
    is_quick: false,
    modes: BOTH,
    bound: none_lost,
    run: |setting| {
        let (scene, workers) = start_for(setting, WORKERS);
        let mut times = Vec::new();
        for n in 0..NODES {
            scene.cluster.node(n).stop();
            times.push(come_back(&scene, n));
            scene.cluster.node(n).kill();
            times.push(come_back(&scene, n));
        }
        let end = scene.finish(workers);
        let (middle, longest) = middle_and_longest(&mut times);
        Found {
            injected: format!(
                "each of {NODES} brokers stopped once and killed once, back when all partitions went on"
            ),
            found: format!(
                "{}; all partitions going again after {middle}, {longest} at most",
                end.verdict
            ),
            broken: end.verdict.broken(setting.mode.choose(AGAIN_MAX, 0)),
        }
    },
};

pub const LEADERS_MOVED: Row = Row {
    id: "4",
    fault: "leader moves",
    is_quick: false,
    modes: BOTH,
    bound: none_lost,
    run: |setting| {
        let moves = 6;
        let (scene, workers) = start_for(setting, WORKERS);
        let (mut times, mut moved) = (Vec::new(), 0);
        for n in 0..moves {
            let before = leaders(&scene);
            move_leaders(&scene, n);
            times.push(scene.until_going_again(SOON));
            moved += leaders(&scene).iter().zip(&before).filter(|(now, then)| now != then).count();
        }
        let end = scene.finish(workers);
        let (middle, longest) = middle_and_longest(&mut times);
        let mut broken = end.verdict.broken(setting.mode.choose(AGAIN_MAX, 0));
        if moved < PARTITIONS as usize {
            broken.push(format!("only {moved} leaders moved"));
        }
        Found {
            injected: format!(
                "{moves} elections after which {moved} partitions had another leader"
            ),
            found: format!(
                "{}; all partitions going again after {middle}, {longest} at most",
                end.verdict
            ),
            broken,
        }
    },
};

pub const COORDINATORS_KILLED: Row = Row {
    id: "5",
    fault: "the coordinator of the group, and of the transaction, killed",
    is_quick: false,
    modes: BOTH,
    bound: |mode| {
        let again = format!(
            "none lost; repeats at most {} for each kill and each of {WORKERS} workers, whose membership \
             it may cost",
            workers::AGAIN_MAX
        );
        mode.choose(again, "none lost, none repeated, no transaction left open".into())
    },
    run: |setting| {
        let (scene, workers) = start_for(setting, WORKERS);
        let (mut times, mut kills) = (Vec::new(), 0);
        for _ in 0..ROUNDS {
            let coordinator = scene.cluster.group_coordinator(&scene.group());
            scene.cluster.node(coordinator).kill();
            times.push(come_back(&scene, coordinator));
            kills += 1;
            if scene.mode == Mode::ExactlyOnce {
                let id = scene.transactional_id(0);
                let coordinator = scene.cluster.transaction_coordinator(&id);
                scene.cluster.node(coordinator).kill();
                times.push(come_back(&scene, coordinator));
                kills += 1;
            }
        }
        let to = ["--bootstrap-server", scene.cluster.direct()];
        let tool = "org.apache.kafka.tools.TransactionsCommand";
        let (cluster, topic) = (scene.cluster, scene.topic.clone());
        let end = scene.finish(workers);
        let transactions = cluster.tool(tool, &[&to[..], &["list"]].concat());
        let ours = transactions.lines().filter(|line| line.contains(&topic));
        let open =
            ours.filter(|line| !line.contains("Complete") && !line.contains("Empty")).count();
        let (middle, longest) = middle_and_longest(&mut times);
        let again_max = kills * WORKERS * workers::AGAIN_MAX;
        let mut broken = end.verdict.broken(setting.mode.choose(again_max, 0));
        if open > 0 {
            broken.push(format!("{open} transactions open: {transactions}"));
        }
        Found {
            injected: format!("{kills} coordinators killed, each back when all partitions went on"),
            found: format!(
                "{}; all partitions going again after {middle}, {longest} at most",
                end.verdict
            ),
            broken,
        }
    },
};

/// Waits until the partitions go on without the broker, then starts it; returns how long they stood
/// still.
fn come_back(scene: &Scene<'_>, node: usize) -> Duration {
    let started = Instant::now();
    let going = scene.until_going_again(SOON);
    debug_assert!(going <= started.elapsed());
    scene.cluster.node(node).restart();
    scene.cluster.until_in_sync();
    going
}

fn leaders(scene: &Scene<'_>) -> Vec<i32> {
    let topics = [scene.topic.clone(), format!("{}.out", scene.topic)];
    topics.iter().flat_map(|topic| scene.cluster.leaders(topic).into_values()).collect()
}

/// Gives every partition of the input and the output another preferred leader, and elects it.
fn move_leaders(scene: &Scene<'_>, round: usize) {
    let topics = [scene.topic.clone(), format!("{}.out", scene.topic)];
    let partitions: Vec<_> = topics
        .iter()
        .flat_map(|topic| (0..PARTITIONS).map(move |partition| (topic, partition)))
        .map(|(topic, partition)| {
            let first = partition as usize + round;
            let replicas: Vec<_> = (0..NODES).map(|n| (first + n) % NODES + 1).collect();
            serde_json::json!({ "topic": topic, "partition": partition, "replicas": replicas })
        })
        .collect();
    let plan = serde_json::json!({ "version": 1, "partitions": partitions }).to_string();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), plan).unwrap();
    let file = file.path().to_str().unwrap();
    let to = ["--bootstrap-server", scene.cluster.direct()];
    let reassign = ["--reassignment-json-file", file, "--execute"];
    let tool = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";
    scene.cluster.tool(tool, &[&to[..], &reassign].concat());
    let elect = ["--election-type", "preferred", "--all-topic-partitions"];
    scene.cluster.tool("org.apache.kafka.tools.LeaderElectionCommand", &[&to[..], &elect].concat());
}
