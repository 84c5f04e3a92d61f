//! Long random walks through larger worlds than the model check can explore: loss, duplication, delay, slow and full
//! disks, crashes, restarts, lost leases, lost power, syncs, chain changes and recovery, with two chunks and several
//! requests of each writer.
//!
//! `make sim MINUTES=…` walks for long and says what happened how often. A failure prints its seed; replay the walk with
//! `LUCIOLA_SEED=… cargo test --test craq_simulator`, and with `LUCIOLA_TRACE=1` see every state on its way.

mod craq_world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use craq_world::{Action, Limits, Mistake, World};
use luciola_core::craq::Bug;

const LIMITS: Limits = Limits {
    replicas: 3,
    serving: 2,
    chunks: 2,
    writers: 3,
    requests: 20,
    sends: 12,
    crashes: 12,
    expiries: 6,
    restarts: 40,
    chain_versions: 80,
    resends: 200,
    slow_disks: true,
    full_disks: 4,
    duplicates: 40,
    losses: true,
    reads: true,
    other_routing: true,
    removers: 0,
    cutters: 1,
    purges: 0,
    neighbours: 4,
    rotations: 4,
    power_losses: 0,
    syncs: 0,
    flushes: 0,
    slow_rounds: true,
    bug: Bug::None,
    mistake: Mistake::None,
};
const STEPS: u64 = 200_000;
/// Walks that once failed.
const REGRESSIONS: [u64; 7] = [
    // The only replica that serves loses power; another one, that had been moved behind it and does not know of it, answers
    // a request again. Nothing of that is promised.
    1_795_991_958_468_852_461,
    // A state from before power loss does not name the request that a later one of the same client had replaced.
    1_795_992_227_347_959_779,
    // Replicas have the same tombstone, and one of them has been sent that there was another removal after it.
    1_795_992_565_029_684_950,
    // All who serve fall while a replica that was rotated has not heard of it, and would still serve.
    1_795_993_156_643_330_965,
    // A tombstone that came as a whole chunk is passed on as one.
    1_795_994_351_928_554_846,
    1_795_994_352_929_003_673,
    // A push of nothing arrives after the removal that overtook it.
    1_795_992_956_121_983_882,
];
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

/// How likely an action is chosen: faults are rarer than progress, and what is seldom possible is likely then.
fn weight(action: &Action) -> u64 {
    match action {
        // Possible only for a moment: after a removal while all serve, or when all have lost touch at once.
        Action::Purge { .. } | Action::FallTogether => 200,
        Action::Sync { .. } | Action::JoinSync { .. } | Action::SetAside { .. } => 100,
        Action::Deliver(_) | Action::DiskDone { .. } | Action::Flush { .. } => 40,
        Action::Send { .. } | Action::Learn { .. } | Action::Grant { .. } | Action::Next { .. } => 10,
        Action::List { .. } | Action::Compare { .. } | Action::Push { .. } => 10,
        Action::SyncDone | Action::Promote | Action::PurgeNeighbour { .. } => 10,
        Action::BeginSync { .. } | Action::Restart { .. } | Action::Revive { .. } => 6,
        Action::Remove { .. } | Action::Resend { .. } | Action::Read { .. } => 4,
        Action::DeliverAndKeep(_) | Action::Lose(_) => 2,
        Action::Crash { .. } | Action::LosePower { .. } | Action::Expire { .. } => 1,
        Action::DiskFull { .. } | Action::SendUnder { .. } | Action::Rotate { .. } => 1,
        Action::GiveUp { .. } => 1,
    }
}

#[derive(Debug, Default)]
struct Seen {
    acknowledged: u64,
    changes: u64,
    quiet: u64,
    steps: u64,
    worlds: u64,
    /// How often each kind of action was chosen.
    actions: BTreeMap<String, u64>,
}

impl Seen {
    fn note(&mut self, action: &Action) {
        let text = format!("{action:?}");
        let name = text.split(|letter: char| !letter.is_alphanumeric()).next().expect("a name");
        *self.actions.entry(name.to_owned()).or_default() += 1;
    }

    fn times(&self, action: &str) -> u64 {
        self.actions.get(action).copied().unwrap_or_default()
    }
}

/// A connection delivers what is sent on it once or not at all, and R9 rests on that: where a network that
/// duplicates is simulated, disks do not fill.
fn limits_of(seed: u64) -> Limits {
    let limits = match seed / 2 % 3 {
        0 => LIMITS,
        1 => Limits { removers: 1, purges: 30, neighbours: 0, ..LIMITS },
        _ => Limits { power_losses: 16, syncs: 60, flushes: 20, neighbours: 0, ..LIMITS },
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
                if world.nodes[node].is_alive() && world.writers[writer].sends > 0 {
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
        seen.note(&action);
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
        if let Some(broken) = world.broken(limits) {
            return Some((broken, way));
        }
        let serving = world.serving();
        seen.quiet += u64::from(serving.len() > 1 && world.is_quiet(&serving));
    }
    seen.changes += world.latest() - 1;
    seen.worlds += 1;
    None
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

#[test]
fn walks_that_once_failed_break_nothing() {
    for seed in REGRESSIONS {
        let mut seen = Seen::default();
        let broken = walk(&limits_of(seed), seed, &mut seen);
        assert!(broken.is_none(), "LUCIOLA_SEED={seed}: {}", broken.expect("it is").0);
        assert!(seen.changes > 0, "this walk goes nowhere: {seed}");
    }
}

#[test]
fn long_random_walks_break_nothing() {
    let given = number("LUCIOLA_SEED");
    let end = number("LUCIOLA_MINUTES").map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    // `make test` walks the same paths each time; new ones are for `make sim`.
    let first = given.unwrap_or(if end.is_some() { now.as_nanos() as u64 } else { 1 });
    let mut seed = first;
    let mut seen = Seen::default();
    while end.map_or(seen.steps < STEPS, |end| Instant::now() < end) {
        if let Some((broken, way)) = walk(&limits_of(seed), seed, &mut seen) {
            let tail = &way[way.len().saturating_sub(60)..];
            panic!("{broken} after {} steps: LUCIOLA_SEED={seed}\n{tail:#?}", way.len());
        }
        if given.is_some() {
            break;
        }
        seed = seed.wrapping_add(1);
    }
    println!("seeds {first} to {seed}: {seen:#?}");
    if given.is_none() {
        let kinds = ["Purge", "Crash", "LosePower", "Expire", "JoinSync", "Rotate", "Promote", "SendUnder"];
        let missing: Vec<_> = kinds.iter().filter(|kind| seen.times(kind) == 0).collect();
        assert!(
            seen.acknowledged > 100 && seen.changes > 50 && seen.quiet > 100 && missing.is_empty(),
            "too little, or none of {missing:?}: {seen:?}"
        );
    }
}

/// The walks find what the model check finds, at least the mistakes that do not need a rare course of events.
#[test]
fn random_walks_find_planted_mistakes() {
    let none = (Bug::None, Mistake::None);
    let planted = [
        (Bug::ServeWhilePending, none.1),
        (Bug::CommitBeforeAnswer, none.1),
        (Bug::DropPendingOnChange, none.1),
        (Bug::ForgetWriters, none.1),
        (Bug::UpdateWithoutPrevious, none.1),
        (Bug::FloorForAll, none.1),
        (Bug::KeepQueueOnChange, none.1),
        (none.0, Mistake::OneFallback),
        (none.0, Mistake::PromoteUnflushed),
    ];
    for (bug, mistake) in planted {
        let mut seen = Seen::default();
        let found = (1..400).find_map(|seed| {
            let limits = Limits { bug, mistake, ..limits_of(seed) };
            walk(&limits, seed, &mut seen).map(|(broken, _)| (broken, seed))
        });
        let (broken, seed) =
            found.unwrap_or_else(|| panic!("{bug:?} {mistake:?} was not found in {} steps", seen.steps));
        println!("{bug:?} {mistake:?}: {broken}, seed {seed}, {} steps", seen.steps);
    }
}
