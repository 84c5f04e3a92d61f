//! Explores `craq::Replica` exhaustively in small worlds, and checks that planted mistakes are found.

mod craq_world;
mod states;

use craq_world::{Action, Limits, Mistake, World};
use luciola_core::craq::Bug;
use stateright::{Checker, Model, Property};
use states::Size;

struct Small(Limits);

impl Model for Small {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.0)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(&self.0, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        world.after(&self.0, &action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("sound", |Small(limits), world: &World| world.broken(limits).is_none()),
            Property::sometimes("all acknowledged", |_, world: &World| {
                world.writers.iter().all(|writer| writer.acknowledged)
            }),
            Property::sometimes("acknowledged after a change", |Small(limits), world: &World| {
                world.latest() == limits.chain_versions
                    && world.writers.iter().all(|writer| writer.acknowledged)
                    && world.is_quiet(&world.serving())
            }),
            Property::sometimes("synced", |Small(limits), world: &World| {
                limits.syncs == 0 || world.durable.iter().any(|history| !history.is_empty())
            }),
        ]
    }
}

/// Worlds are kept small enough for every run of the tests; `LUCIOLA_MODEL=wide` (`make sim`) explores larger ones.
fn wide(usual: u8, wide: u8) -> u8 {
    if is_wide() { wide } else { usual }
}

/// Steps after which a larger world is left: they must fit into memory.
const WIDE_STEPS_MAX: usize = 10_000_000;

fn is_wide() -> bool {
    std::env::var("LUCIOLA_MODEL").is_ok_and(|value| value == "wide")
}

/// Explores a world to its end: every state is sound, what should be possible is, and the world is as large as recorded.
fn explore(name: &str, limits: Limits) {
    let started = std::time::Instant::now();
    let steps_max = if is_wide() { WIDE_STEPS_MAX } else { usize::MAX };
    let checker = Small(limits.clone()).checker().target_state_count(steps_max).spawn_bfs().join();
    let size = Size { states: checker.unique_state_count(), depth: checker.max_depth() };
    println!("{name}: {size}, {} steps, {:.1} s", checker.state_count(), started.elapsed().as_secs_f32());
    if let Some(path) = checker.discovery("sound") {
        let (world, actions) = (path.last_state().clone(), path.into_actions());
        panic!("{:?} after {actions:#?}\n{world:#?}", world.broken(&limits));
    }
    if checker.state_count() >= steps_max {
        return println!("{name}: left after {steps_max} steps, nothing wrong so far");
    }
    checker.assert_properties();
    if !is_wide() {
        states::check(name, size);
    }
}

/// The checker must find that the planted mistake breaks one of these invariants.
fn must_find(limits: Limits, expected: &[&str]) {
    let checker = Small(limits.clone()).checker().spawn_bfs().join();
    let path = checker.discovery("sound").expect("the planted mistake was not found");
    let broken = path.last_state().broken(&limits).expect("a broken invariant");
    println!("found: {broken}, after {} steps", path.into_actions().len());
    assert!(expected.contains(&broken), "found {broken:?}, not {expected:?}");
}

#[test]
fn one_crash_and_one_change_of_the_chain() {
    explore("crash", Limits { resends: wide(0, 1), ..Limits::SMALL });
}

#[test]
fn slow_disks_and_a_crash() {
    explore("slow disks", Limits { slow_disks: true, resends: 0, ..Limits::SMALL });
}

#[test]
fn a_node_cut_off_from_the_manager() {
    explore(
        "cut off",
        Limits { crashes: 0, expiries: 1, sends: wide(1, 2), resends: wide(0, 1), ..Limits::SMALL },
    );
}

#[test]
fn a_node_that_restarts_before_anybody_notices() {
    explore("restart", Limits { restarts: 1, sends: 1, resends: wide(0, 1), ..Limits::SMALL });
}

/// Two replicas: one falls, comes back, is brought up to date and serves again.
#[test]
fn a_replica_that_returns() {
    explore("return", Limits { resends: wide(0, 1), ..RETURNING });
}

const RETURNING: Limits =
    Limits { replicas: 2, serving: 2, restarts: 1, chain_versions: 4, sends: 1, ..Limits::SMALL };

/// An empty replica joins while two writers write, and a member falls then.
#[test]
fn an_empty_replica_joins_while_writing() {
    explore("join", Limits { resends: wide(0, 1), ..JOINING });
}

const JOINING: Limits =
    Limits { replicas: 2, serving: 1, crashes: 0, expiries: 1, chain_versions: 4, sends: 1, ..Limits::SMALL };

/// An empty replica joins while the only one that serves has a slow disk: what is being staged is compared as well.
#[test]
fn an_empty_replica_joins_beside_a_slow_disk() {
    explore("slow join", SLOW_JOINING);
}

const SLOW_JOINING: Limits =
    Limits { expiries: 0, chain_versions: 3, slow_disks: true, resends: 0, ..JOINING };

/// The last replica falls and comes back.
#[test]
fn the_last_replica_falls_and_returns() {
    let limits = Limits {
        replicas: 2,
        serving: 2,
        restarts: 2,
        crashes: 2,
        writers: wide(1, 2),
        sends: 1,
        chain_versions: 4,
        resends: 0,
        ..Limits::SMALL
    };
    explore("last", limits);
}

/// Both replicas fall in one look of the manager, with whatever is under way, and either of them resumes.
#[test]
fn two_replicas_that_fall_together_and_return() {
    let limits = Limits {
        replicas: 2,
        serving: 2,
        restarts: 2,
        crashes: 2,
        sends: 1,
        chain_versions: 5,
        resends: 0,
        writers: wide(1, 2),
        ..Limits::SMALL
    };
    explore("together", limits);
}

/// A head whose disk is slow is taken out of the chain and comes back as a returning replica meanwhile.
#[test]
fn a_slow_disk_under_a_replica_that_returns() {
    explore("slow return", SLOW_RETURN);
}

const SLOW_RETURN: Limits = Limits {
    replicas: 2,
    serving: 2,
    writers: 2,
    sends: 1,
    crashes: 0,
    expiries: 1,
    chain_versions: 4,
    resends: 0,
    slow_disks: true,
    ..Limits::SMALL
};

#[test]
fn a_full_disk_somewhere_in_the_chain() {
    explore(
        "full",
        Limits { crashes: 0, full_disks: 1, slow_disks: true, chain_versions: 1, ..Limits::SMALL },
    );
}

#[test]
fn late_duplicates_in_the_network() {
    explore(
        "duplicates",
        Limits {
            replicas: 2,
            serving: 1,
            crashes: 0,
            duplicates: wide(1, 2),
            resends: wide(0, 1),
            chain_versions: 3,
            sends: 1,
            ..Limits::SMALL
        },
    );
}

/// A chunk is written, removed, forgotten by one member after the other, and written again, while a member falls.
#[test]
fn a_chunk_that_is_forgotten_and_written_again() {
    explore("forgotten", Limits { purges: 2, ..FORGETTING });
}

const FORGETTING: Limits = Limits {
    replicas: 2,
    serving: 2,
    writers: 2,
    removers: 1,
    requests: 2,
    sends: 1,
    crashes: 1,
    resends: 0,
    ..Limits::SMALL
};

/// The same with a replica that falls, comes back and is brought up to date.
#[test]
fn a_forgotten_chunk_and_a_replica_that_returns() {
    let limits = Limits { purges: 1, restarts: 1, requests: 1, chain_versions: 4, ..FORGETTING };
    explore("forgotten, return", limits);
}

/// The same with messages that arrive twice and late.
#[test]
fn a_forgotten_chunk_and_late_duplicates() {
    let limits = Limits { purges: 2, crashes: 0, duplicates: wide(1, 2), chain_versions: 1, ..FORGETTING };
    explore("forgotten, duplicates", limits);
}

/// A chunk that lives, beside another one on the same disk whose higher tombstone is forgotten.
#[test]
fn a_chunk_that_lives_below_the_floor_of_its_disk() {
    explore("below the floor", BELOW);
}

const BELOW: Limits = Limits { removers: 0, neighbours: 2, ..FORGETTING };

/// Clients whose routing is older, or newer, than that of the node they ask.
#[test]
fn clients_with_other_routing_than_their_node() {
    explore("other routing", OTHER_ROUTING);
}

const OTHER_ROUTING: Limits = Limits {
    replicas: 2,
    serving: 2,
    crashes: 0,
    expiries: 1,
    chain_versions: 3,
    resends: 0,
    other_routing: true,
    ..Limits::SMALL
};

/// A replica returns while one writer cuts what another one writes.
#[test]
fn a_chunk_that_is_cut_and_overwritten_while_a_replica_returns() {
    explore("cut", Limits { cutters: 1, resends: 0, ..RETURNING });
}

/// An administrator takes a replica that serves to the tail, while it is in the middle of an update.
#[test]
fn a_replica_that_is_rotated_to_the_tail() {
    explore("rotated", ROTATED);
}

const ROTATED: Limits = Limits {
    replicas: 2,
    serving: 2,
    crashes: 0,
    rotations: 1,
    chain_versions: 3,
    sends: 1,
    resends: 0,
    slow_disks: true,
    ..Limits::SMALL
};

/// Two chunks of one chain, and a client that writes one after the other: what returns is compared chunk by chunk.
#[test]
fn two_chunks_and_a_replica_that_returns() {
    explore("chunks", CHUNKS);
}

const CHUNKS: Limits = Limits {
    replicas: 2,
    serving: 2,
    chunks: 2,
    writers: 1,
    requests: 2,
    sends: 1,
    restarts: 1,
    chain_versions: 4,
    resends: 0,
    ..Limits::SMALL
};

/// One disk, and rounds of `sync` step by step while clients write and power may fail at any moment.
#[test]
fn rounds_of_sync_while_clients_write() {
    explore("rounds", ROUNDS);
}

const ROUNDS: Limits = Limits {
    replicas: 1,
    serving: 1,
    writers: 2,
    requests: 2,
    sends: 1,
    crashes: 0,
    chain_versions: 1,
    resends: 0,
    slow_disks: true,
    slow_rounds: true,
    syncs: 1,
    flushes: 1,
    reads: false,
    ..Limits::SMALL
};

/// A replica joins and is promoted while a client syncs: from then on it has on its disk what was synced.
#[test]
fn a_replica_that_is_promoted_while_a_client_syncs() {
    explore("promoted", PROMOTED);
}

const PROMOTED: Limits = Limits {
    replicas: 2,
    serving: 1,
    writers: 1,
    requests: 2,
    crashes: 0,
    chain_versions: 3,
    sends: 1,
    resends: 0,
    syncs: 1,
    reads: false,
    ..Limits::SMALL
};

/// Both replicas lose power, one after the other or together; the chain resumes, and the other one is compared with it.
#[test]
fn power_is_lost_everywhere() {
    explore("power", Limits { requests: wide(1, 2), ..POWER });
}

const POWER: Limits = Limits {
    replicas: 2,
    serving: 2,
    writers: 1,
    requests: 2,
    crashes: 0,
    restarts: 2,
    chain_versions: 4,
    sends: 1,
    resends: 0,
    power_losses: 2,
    syncs: 1,
    reads: false,
    ..Limits::SMALL
};

/// One replica loses power and the process of the other ends: that one has all that was acknowledged.
#[test]
fn power_is_lost_beside_a_crash() {
    explore("power, crash", Limits { chain_versions: u64::from(wide(3, 5)), ..POWER_AND_CRASH });
}

const POWER_AND_CRASH: Limits =
    Limits { requests: 1, crashes: 1, power_losses: 1, syncs: 0, chain_versions: 3, ..POWER };

/// What two replicas have kept of two chunks need not fit together.
#[test]
fn two_chunks_of_which_power_loss_leaves_different_parts() {
    explore("power, chunks", POWER_CHUNKS);
}

const POWER_CHUNKS: Limits = Limits { chunks: 2, syncs: 0, ..POWER };

/// What a client, or the next one, would see of a mistake.
const WRONG: &[&str] = &[
    "a read is older than what had been seen before it began",
    "two clients have seen different histories",
    "a member lacks what a client has seen",
    "a member has committed what a later member has not",
    "a member has committed what an earlier member does not even hold",
    "replicas at rest differ",
];

#[test]
fn finds_serving_while_pending() {
    must_find(Limits { bug: Bug::ServeWhilePending, ..Limits::SMALL }, WRONG);
}

#[test]
fn finds_commit_before_the_successor_answered() {
    must_find(Limits { bug: Bug::CommitBeforeAnswer, ..Limits::SMALL }, WRONG);
}

#[test]
fn finds_pending_dropped_when_the_chain_changes() {
    must_find(Limits { bug: Bug::DropPendingOnChange, ..Limits::SMALL }, WRONG);
}

#[test]
fn finds_requests_forgotten_on_failover() {
    must_find(Limits { bug: Bug::ForgetWriters, ..Limits::SMALL }, &["a request was executed twice"]);
}

#[test]
fn finds_serving_without_lease() {
    must_find(Limits { bug: Bug::IgnoreLease, crashes: 0, expiries: 1, ..Limits::SMALL }, WRONG);
}

#[test]
fn finds_a_lease_given_back_without_new_routing() {
    must_find(
        Limits { mistake: Mistake::LeaseWithoutRouting, crashes: 0, expiries: 1, ..Limits::SMALL },
        WRONG,
    );
}

#[test]
fn finds_a_tail_that_serves_while_its_syncing_successor_may() {
    must_find(Limits { bug: Bug::TailIgnoresSyncing, ..JOINING }, WRONG);
}

#[test]
fn finds_a_replacement_that_rolls_back() {
    let limits = Limits {
        bug: Bug::ReplaceRollsBack,
        replicas: 2,
        serving: 1,
        crashes: 0,
        duplicates: 1,
        chain_versions: 3,
        sends: 1,
        ..Limits::SMALL
    };
    must_find(limits, WRONG);
}

#[test]
fn finds_a_stale_pending_version_kept_by_a_returning_replica() {
    must_find(Limits { bug: Bug::KeepStalePending, ..RETURNING }, WRONG);
}

#[test]
fn finds_an_update_that_skips_versions() {
    must_find(
        Limits { bug: Bug::UpdateWithoutPrevious, ..JOINING },
        &["a content is not what its version says"],
    );
}

#[test]
fn finds_an_update_dropped_that_another_try_had_delivered() {
    let limits = Limits {
        bug: Bug::AbortAfterRetry,
        crashes: 0,
        full_disks: 1,
        slow_disks: true,
        chain_versions: 1,
        replicas: 2,
        serving: 2,
        ..Limits::SMALL
    };
    must_find(limits, WRONG);
}

#[test]
fn finds_an_own_update_committed_by_a_returning_replica() {
    must_find(Limits { bug: Bug::CommitOwnAsSyncing, ..SLOW_RETURN }, WRONG);
}

#[test]
fn finds_an_update_staged_unseen_and_committed_alone() {
    must_find(Limits { bug: Bug::KeepStagedByLeaver, ..SLOW_RETURN }, WRONG);
}

#[test]
fn finds_a_tombstone_forgotten_too_early() {
    let limits = Limits {
        purges: 2,
        mistake: Mistake::PurgeEarly,
        crashes: 0,
        duplicates: 1,
        chain_versions: 1,
        ..FORGETTING
    };
    let expected = ["a request was executed twice", "a member has committed what a later member has not"];
    must_find(limits, &[&expected[..], WRONG].concat());
}

#[test]
fn finds_versions_that_begin_again_below_a_tombstone() {
    let limits = Limits { bug: Bug::BirthRestarts, purges: 2, crashes: 0, ..FORGETTING };
    must_find(limits, &[&["an acknowledged write is not in the history"], WRONG].concat());
}

#[test]
fn finds_a_floor_that_counts_for_chunks_that_live() {
    must_find(
        Limits { bug: Bug::FloorForAll, ..BELOW },
        &[
            "a pending version does not follow the committed one",
            "an acknowledged write is not in the history",
        ],
    );
}

#[test]
fn finds_a_request_taken_under_another_chain_version() {
    must_find(
        Limits { bug: Bug::IgnoreChainVersion, ..OTHER_ROUTING },
        &["a request under another chain version was taken"],
    );
}

#[test]
fn finds_a_queue_kept_when_the_chain_changes() {
    must_find(
        Limits { bug: Bug::KeepQueueOnChange, chain_versions: 2, ..SLOW_RETURN },
        &["an update was begun under another chain version than its request's"],
    );
}

#[test]
fn finds_an_own_update_of_a_rotated_replica_committed_alone() {
    must_find(Limits { bug: Bug::KeepStagedByLeaver, ..ROTATED }, WRONG);
}

#[test]
fn finds_a_comparison_that_does_not_look_at_what_is_pending() {
    must_find(Limits { mistake: Mistake::CompareCommittedOnly, ..RETURNING }, WRONG);
}

#[test]
fn finds_a_comparison_that_does_not_look_at_what_is_being_staged() {
    must_find(Limits { mistake: Mistake::CompareIndexOnly, ..SLOW_JOINING }, WRONG);
}

#[test]
fn finds_a_record_that_names_one_state_to_fall_back_to() {
    must_find(Limits { mistake: Mistake::OneFallback, ..ROUNDS }, &[TAKEN]);
}

const TAKEN: &str = "power loss would take what was synced";

#[test]
fn finds_a_replica_promoted_with_its_data_in_memory() {
    must_find(Limits { mistake: Mistake::PromoteUnflushed, ..PROMOTED }, &[TAKEN]);
}

#[test]
fn finds_a_sync_that_does_not_ask_the_syncing_replica() {
    must_find(Limits { mistake: Mistake::SyncWithoutSyncing, ..PROMOTED }, &[TAKEN]);
}

#[test]
fn finds_a_chain_that_resumes_with_the_first_that_returns() {
    must_find(Limits { mistake: Mistake::ResumeWithFirst, ..POWER_AND_CRASH }, WRONG);
}

#[test]
fn finds_a_replica_that_serves_on_after_it_lost_power() {
    must_find(
        Limits { mistake: Mistake::ServeOnAfterPowerLoss, ..POWER_AND_CRASH },
        &[&["a content is not what its version says"], WRONG].concat(),
    );
}

#[test]
fn finds_a_chunk_kept_that_is_ahead_of_its_predecessors() {
    must_find(Limits { mistake: Mistake::KeepAhead, ..POWER_CHUNKS }, WRONG);
}
