//! Long random walks through larger worlds than the model check can explore: loss, duplication, delay, slow and
//! full disks, crashes, restarts, lost leases, chain changes and recovery, with several requests of each writer.
//!
//! Replay a walk with `LUCIOLA_SEED=… cargo test --test craq_simulator`; `LUCIOLA_STEPS` makes it longer.

mod craq_world;

use craq_world::{Action, Limits, World};
use luciola_core::craq::Bug;

const LIMITS: Limits = Limits {
    replicas: 3,
    serving: 2,
    writers: 3,
    requests: 20,
    sends: 12,
    crashes: 12,
    expiries: 6,
    restarts: 12,
    chain_versions: 60,
    resends: 200,
    slow_disks: true,
    full_disks: 4,
    duplicates: 40,
    losses: true,
    bug: Bug::None,
    removers: 0,
    purges: 0,
    neighbours: 4,
    purges_early: false,
    lease_without_routing: false,
    compares: true,
};
const STEPS: u64 = 200_000;
const EPISODE_STEPS: u64 = 3000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// How likely an action is chosen: faults are rarer than progress.
fn weight(action: &Action) -> u64 {
    match action {
        Action::Deliver(_) | Action::DiskDone { .. } => 40,
        Action::Send { .. } | Action::Read { .. } | Action::Learn { .. } | Action::Grant { .. } => 10,
        Action::Push
        | Action::List
        | Action::Compare
        | Action::Promote
        | Action::Next { .. }
        | Action::PurgeNeighbour { .. } => 10,
        // Possible only for a moment, after a removal while all serve.
        Action::Purge { .. } => 200,
        Action::BeginSync { .. } | Action::Restart { .. } | Action::Revive { .. } => 6,
        Action::Remove { .. } | Action::FallTogether | Action::Resend { .. } => 4,
        Action::DeliverAndKeep(_) | Action::Lose(_) | Action::GiveUp { .. } => 2,
        Action::Crash { .. } | Action::Expire { .. } | Action::DiskFull { .. } => 1,
    }
}

#[derive(Debug, Default)]
struct Seen {
    acknowledged: u64,
    changes: u64,
    quiet: u64,
    forgotten: u64,
    steps: u64,
}

/// A connection delivers what is sent on it once or not at all, and R9 rests on that: where a network that
/// duplicates is simulated, disks do not fill.
fn limits_of(seed: u64) -> Limits {
    let limits = match seed / 2 % 2 {
        0 => LIMITS,
        _ => Limits { removers: 1, purges: 30, neighbours: 0, ..LIMITS },
    };
    if seed.is_multiple_of(2) {
        Limits { duplicates: 0, ..limits }
    } else {
        Limits { full_disks: 0, ..limits }
    }
}

/// One world from its beginning; what is broken, with the way there.
fn walk(limits: &Limits, seed: u64, seen: &mut Seen) -> Option<(&'static str, Vec<Action>)> {
    let mut random = Random(seed);
    let mut world = World::new(limits);
    let mut way = Vec::new();
    for _ in 0..EPISODE_STEPS {
        let mut actions = Vec::new();
        world.actions(limits, &mut actions);
        for writer in 0..world.writers.len() {
            for node in 0..world.nodes.len() {
                if world.nodes[node].machine.is_some() && world.writers[writer].sends > 0 {
                    actions.push(Action::GiveUp { writer, node });
                }
            }
        }
        let total: u64 = actions.iter().map(weight).sum();
        if total == 0 {
            break;
        }
        let mut ticket = random.next() % total;
        let action = actions
            .into_iter()
            .find(|action| {
                let weight = weight(action);
                let chosen = ticket < weight;
                ticket = ticket.saturating_sub(weight);
                chosen
            })
            .expect("one of them");
        let before: usize = world.writers.iter().filter(|writer| writer.acknowledged).count();
        seen.forgotten += u64::from(matches!(action, Action::Purge { .. }));
        world.act(limits, &action);
        way.push(action);
        seen.steps += 1;
        let after: usize = world.writers.iter().filter(|writer| writer.acknowledged).count();
        seen.acknowledged += after.saturating_sub(before) as u64;
        if std::env::var("LUCIOLA_TRACE").is_ok() {
            println!("--- {:?}", way.last());
            println!("chain {} {:?}, seen {}", world.latest(), world.chains.last(), world.seen.len());
            for message in &world.network {
                println!("  {message:?}");
            }
            for node in &world.nodes {
                println!("  {node:?}");
            }
        }
        if let Some(broken) = world.broken() {
            return Some((broken, way));
        }
        let serving = world.serving();
        seen.quiet += u64::from(serving.len() > 1 && world.is_quiet(&serving));
    }
    seen.changes += world.latest() - 1;
    None
}

fn seed() -> Option<u64> {
    std::env::var("LUCIOLA_SEED").ok().map(|text| text.parse().expect("LUCIOLA_SEED is a number"))
}

#[test]
fn long_random_walks_break_nothing() {
    let given = seed();
    let steps = std::env::var("LUCIOLA_STEPS").map_or(STEPS, |text| text.parse().expect("a number"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let mut seed = given.unwrap_or(now.as_nanos() as u64);
    let mut seen = Seen::default();
    while seen.steps < steps {
        if let Some((broken, way)) = walk(&limits_of(seed), seed, &mut seen) {
            let tail = &way[way.len().saturating_sub(60)..];
            panic!("{broken} after {} steps: LUCIOLA_SEED={seed}\n{tail:#?}", way.len());
        }
        if given.is_some() {
            break;
        }
        seed = seed.wrapping_add(1);
    }
    println!("last seed {seed}: {seen:?}");
    if given.is_none() {
        assert!(
            seen.acknowledged > 100 && seen.changes > 50 && seen.quiet > 100 && seen.forgotten > 0,
            "too little: {seen:?}"
        );
    }
}

/// The walks find what the model check finds, at least the mistakes that do not need a rare course of events.
#[test]
fn random_walks_find_planted_mistakes() {
    let bugs = [
        Bug::ServeWhilePending,
        Bug::CommitBeforeAnswer,
        Bug::DropPendingOnChange,
        Bug::ForgetWriters,
        Bug::UpdateWithoutPrevious,
        Bug::FloorForAll,
    ];
    for bug in bugs {
        let mut seen = Seen::default();
        let found = (1..200).find_map(|seed| {
            walk(&Limits { bug, ..limits_of(seed) }, seed, &mut seen).map(|(broken, _)| (broken, seed))
        });
        let (broken, seed) = found.unwrap_or_else(|| panic!("{bug:?} was not found in {} steps", seen.steps));
        println!("{bug:?}: {broken}, seed {seed}, {} steps", seen.steps);
    }
}
