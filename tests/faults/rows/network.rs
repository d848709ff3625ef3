//! The network between workers and brokers: cut, slow, resetting connections, and cut for one
//! worker alone.

use std::time::Duration;

use super::workers::{self, RATE, start_for};
use super::{BOTH, Memory, captions, every, seconds};
use crate::scene::{SESSION_TIMEOUT, Scene, Way};
use crate::{Found, Mode, Row, Setting};

/// How long the workers may take to go on once the network is there again.
const SOON: Duration = Duration::from_secs(120);

/// Captions that two workers may do again: what was in flight and what was settled since the last
/// commit.
const AGAIN_MAX: usize = 2 * workers::AGAIN_MAX;

/// Counts how often a worker lost its membership.
const LOST: &str = "capvec_rebalances_total{event=\"lost\"}";

/// What a worker's memory may grow by while the brokers are away: what is in flight is bounded.
pub const GROWTH_MIB_MAX: u64 = 32;

fn heals(mode: Mode) -> String {
    mode.choose(
        format!(
            "none lost; repeats at most {AGAIN_MAX}, and {} for each membership lost beyond two; heals by itself; memory \
             grows by {GROWTH_MIB_MAX} MiB at most",
            workers::AGAIN_MAX
        ),
        format!("none lost, none repeated; heals by itself; memory grows by {GROWTH_MIB_MAX} MiB at most"),
    )
}

pub const CUT_SHORT: Row = Row {
    id: "6a",
    fault: "network cut for 5 s",
    is_quick: false,
    modes: BOTH,
    bound: heals,
    run: |setting| cut(setting, Duration::from_secs(5), RATE),
};

pub const CUT_LONG: Row = Row {
    id: "6b",
    fault: "network cut for 60 s",
    is_quick: false,
    modes: BOTH,
    bound: heals,
    run: |setting| cut(setting, Duration::from_secs(60), RATE / 4),
};

pub const CUT_VERY_LONG: Row = Row {
    id: "6c",
    fault: "network cut for 400 s",
    is_quick: false,
    modes: BOTH,
    bound: heals,
    run: |setting| cut(setting, Duration::from_secs(400), RATE / 16),
};

/// Cuts the network; meanwhile `rate` captions a second come, so that what has piled up is embedded
/// soon.
fn cut(setting: &Setting<'_>, time: Duration, rate: u32) -> Found {
    let injected =
        format!("nothing between 2 workers and the brokers arrived for {}", seconds(time));
    disturb(setting, injected, |scene| {
        scene.cluster.proxies().cut();
        scene.feed().set_rate(rate);
        scene.pass(time);
    })
}

pub const SLOW: Row = Row {
    id: "6d",
    fault: "500 ms latency",
    is_quick: false,
    modes: BOTH,
    bound: heals,
    run: |setting| {
        let time = Duration::from_secs(60);
        let injected = format!("each round trip took 500 ms longer, for {}", seconds(time));
        disturb(setting, injected, |scene| {
            scene.cluster.proxies().delay(Duration::from_millis(500));
            scene.pass(time);
        })
    },
};

pub const RESET: Row = Row {
    id: "6e",
    fault: "connections reset",
    is_quick: false,
    modes: BOTH,
    bound: heals,
    run: |setting| {
        let (time, interval) = (Duration::from_secs(40), Duration::from_secs(4));
        let injected =
            format!("all connections reset every {} for {}", seconds(interval), seconds(time));
        disturb(setting, injected, |scene| {
            every(interval, time, |_| {
                scene.cluster.proxies().reset_connections();
                scene.pass(Duration::from_millis(300));
                scene.cluster.proxies().heal();
            });
        })
    },
};

fn disturb(setting: &Setting<'_>, injected: String, disturb: impl FnOnce(&Scene<'_>)) -> Found {
    let (scene, workers) = start_for(setting, 2);
    let memory = Memory::watch(workers[0].id());
    disturb(&scene);
    scene.cluster.proxies().heal();
    let going = scene.until_going_again(SOON);
    let (first, most) = memory.stop();
    let lost: f64 = workers.iter().filter_map(|w| w.metric(LOST)).sum();
    let end = scene.finish(workers);
    let again_max = AGAIN_MAX.max(lost as usize * workers::AGAIN_MAX);
    let mut broken = end.verdict.broken(setting.mode.choose(again_max, 0));
    if most > first + GROWTH_MIB_MAX {
        broken.push(format!("memory grew from {first} to {most} MiB"));
    }
    Found {
        injected,
        found: format!(
            "{}; {lost} memberships lost; going again {} after the network; memory {first} MiB before, {most} at most",
            end.verdict,
            seconds(going)
        ),
        broken,
    }
}

pub const ZOMBIE: Row = Row {
    id: "6f",
    fault: "network cut for one worker, which another replaces meanwhile",
    is_quick: false,
    modes: BOTH,
    bound: |mode| {
        mode.choose(
            format!("none lost; repeats at most {AGAIN_MAX}"),
            "none lost, none repeated: what the zombie had begun is not committed".into(),
        )
    },
    run: |setting| {
        let time = SESSION_TIMEOUT * 5;
        let mut scene = Scene::new(setting);
        scene.start_feed(400, captions());
        let zombie = scene.worker(0, Way::Proxied, &[]).ready();
        scene.until_going_again(SOON);
        let other = scene.worker(1, Way::Direct, &[]).ready();
        scene.until_going_again(SOON);
        scene.cluster.proxies().cut();
        let going = scene.until_going_again(SOON);
        scene.pass(time.saturating_sub(going));
        scene.cluster.proxies().heal();
        scene.until_going_again(SOON);
        scene.pass(Duration::from_secs(10));
        let end = scene.finish(vec![zombie, other]);
        Found {
            injected: format!("one of 2 workers was cut off for {}", seconds(time)),
            found: format!(
                "{}; the other had all partitions after {}",
                end.verdict,
                seconds(going)
            ),
            broken: end.verdict.broken(setting.mode.choose(AGAIN_MAX, 0)),
        }
    },
};
