//! Every order of the events below in small worlds: one file, one or two clients, replies that come late or are lost.
//!
//! A world runs the machine itself against the fake services that `tests/unit/meta/test_contract.py` compares with the
//! real ones. What the driver's threads do is cut into the steps between which other threads may come: a request is
//! begun, carried out, and answered. After each step the world checks what a program would see; in states in which
//! nothing is left to do, it checks what the services hold. Mistakes (`Bug`) are planted to see that it finds them.
//!
//! Events: buffered writes and their write-back, moving out of the inode, metadata syncs with conflicts, truncation, what
//! the metadata service says of the inode. Not: appends, direct writes, syncs that a close carries, fsync, deferred
//! attributes, set-id bits, the fence, lost sessions (`interleaving_tests` and `file_tests` have those).

mod checks;
mod world;

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::bug::Bug;
use world::{Action, Limits, World};

/// A world with more states is too large to be explored by each run of the tests.
const STATES_MAX: usize = 400_000;

/// How a state was reached.
struct Trace {
    action: Action,
    before: Option<Rc<Trace>>,
}

fn path(mut step: Option<Rc<Trace>>) -> String {
    let mut actions = Vec::new();
    while let Some(one) = step {
        actions.push(format!("{:?}", one.action));
        step = one.before.clone();
    }
    actions.reverse();
    actions.join("\n")
}

/// Explore a world, breadth first. Return the number of states, or what is wrong and the shortest way there.
fn explore(limits: Limits) -> Result<usize, String> {
    let world = World::new(limits);
    let mut known = HashSet::from([world.fingerprint()]);
    let mut frontier: VecDeque<(World, Option<Rc<Trace>>)> = VecDeque::from([(world, None)]);
    while let Some((world, step)) = frontier.pop_front() {
        let mut is_last = true;
        for action in world.actions() {
            let mut next = world.clone();
            let applied = catch_unwind(AssertUnwindSafe(|| next.apply(action)));
            let reached = Some(Rc::new(Trace { action, before: step.clone() }));
            let is_enabled = match applied {
                Ok(applied) => applied.map_err(|wrong| format!("{wrong}\n{}", path(reached.clone())))?,
                Err(panic) => return Err(format!("{}\n{}", message(&panic), path(reached))),
            };
            if !is_enabled {
                continue;
            }
            is_last = false;
            if known.insert(next.fingerprint()) {
                assert!(known.len() < STATES_MAX, "{limits:?} has too many states");
                frontier.push_back((next, reached));
            }
        }
        if is_last {
            world.check_end().map_err(|wrong| format!("{wrong}\n{}", path(step)))?;
        }
    }
    Ok(known.len())
}

fn message(panic: &Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn must_hold(name: &str, limits: Limits) {
    match explore(limits) {
        Ok(states) => println!("{name}: {states} states"),
        Err(wrong) => panic!("{name}: {wrong}"),
    }
}

fn must_find(bug: Bug, limits: Limits, expected: &[&str]) {
    let wrong = explore(Limits { bug, ..limits }).expect_err("the mistake is not found");
    println!("{wrong}");
    assert!(expected.iter().any(|part| wrong.contains(part)), "found something else: {wrong}");
}

/// One client that writes, cuts and is answered late.
const ALONE: Limits = Limits { writes: [2, 0], cuts: 1, stats: 1, ..Limits::SMALL };
/// Bytes in the inode and in two chunks.
const THREE: Limits = Limits { writes: [3, 0], slots: [3, 0], ..Limits::SMALL };
/// Two clients that write one file, which exceeds its inode.
const TWO: Limits = Limits { clients: 2, early_syncs: 0, ..Limits::SMALL };
/// The same, and one client writes more.
const TWO_UNEQUAL: Limits = Limits { writes: [2, 1], ..TWO };
/// Two clients, one of which truncates.
const TWO_CUT: Limits = Limits { cuts: 1, ..TWO };
/// The same with chunks.
const TWO_CHUNKED: Limits = Limits { is_chunked: true, early_syncs: 1, ..TWO_CUT };
/// Buffered and direct writes of two chunks.
const DIRECT: Limits = Limits { writes: [3, 0], direct: 2, is_chunked: true, ..Limits::SMALL };
/// The metadata service ends the session of one of two clients.
const LOST: Limits = Limits { losses: 1, ..TWO };
/// Chains and the metadata service fail.
const FAULTS: Limits = Limits { writes: [2, 0], faults: 1, ..Limits::SMALL };

#[test]
fn one_client_that_writes_three_places() {
    must_hold("three", THREE);
}

#[test]
fn one_client_that_writes_and_truncates() {
    must_hold("alone", ALONE);
}

#[test]
fn one_client_of_a_chunked_file() {
    must_hold("chunked", Limits { is_chunked: true, ..ALONE });
}

#[test]
fn two_clients_that_write_one_file() {
    must_hold("two", TWO);
}

#[test]
fn two_clients_one_of_which_writes_more() {
    must_hold("two, unequal", TWO_UNEQUAL);
}

#[test]
fn two_clients_one_of_which_truncates() {
    must_hold("two, cut", TWO_CUT);
}

#[test]
fn two_clients_of_a_chunked_file_one_of_which_truncates() {
    must_hold("two, chunked, cut", TWO_CHUNKED);
}

#[test]
fn one_client_that_writes_directly_too() {
    must_hold("direct", DIRECT);
}

#[test]
fn a_client_that_loses_its_session() {
    must_hold("lost", LOST);
    must_hold("lost, chunked", Limits { writes: [2, 0], is_chunked: true, clients: 1, ..LOST });
}

#[test]
fn services_that_fail() {
    must_hold("faults", FAULTS);
}

#[test]
fn finds_a_second_update_of_a_chunk_in_flight() {
    must_find(Bug::SecondInFlight, THREE, &["I2: one update of a chunk at a time"]);
}

#[test]
fn finds_a_length_that_is_sent_before_its_bytes_are_acknowledged() {
    must_find(Bug::ReportUnacknowledged, ALONE, &["I3: the length sent"]);
}

#[test]
fn finds_chunks_written_under_the_content_of_an_inline_file() {
    must_find(Bug::WriteBackInline, ALONE, &["is stored", "I6", "is read", "X2"]);
}

#[test]
fn finds_a_conflict_that_drops_the_bytes_written_here() {
    must_find(Bug::RebaseDropsEdits, TWO, &["is read", "is stored"]);
}

#[test]
fn finds_what_was_written_during_a_sync_and_counts_as_sent() {
    must_find(Bug::SyncClearsNewer, ALONE, &["the file is", "is stored"]);
}

#[test]
fn finds_an_acknowledged_length_kept_over_a_truncation() {
    must_find(Bug::KeepAcknowledged, TWO_CHUNKED, &["the file is", "I3"]);
}

#[test]
fn finds_a_stale_reply_that_is_believed() {
    must_find(Bug::TakeStaleReply, ALONE, &["is read", "is stored", "the file is", "goes back"]);
}

#[test]
fn finds_bytes_that_become_dirty_while_they_are_sent() {
    must_find(Bug::SpillWhileSyncing, TWO_UNEQUAL, &["is read", "is stored"]);
}

#[test]
fn finds_bytes_dropped_when_another_client_moved_the_file() {
    must_find(Bug::MigrationDropsEdits, TWO, &["is read", "is stored"]);
}

#[test]
fn finds_waiters_that_are_not_woken() {
    must_find(Bug::NoWakeAfterBatch, ALONE, &["is not woken"]);
}

#[test]
fn finds_memory_that_is_not_given_back() {
    must_find(Bug::LeakBatch, ALONE, &["bytes of memory are counted"]);
}

#[test]
fn finds_an_error_that_is_not_reported() {
    must_find(Bug::ForgetError, FAULTS, &["without an error"]);
}

#[test]
fn finds_exclusive_access_while_a_batch_is_in_flight() {
    must_find(Bug::EnterWhileInFlight, ALONE, &["I4"]);
}

#[test]
fn finds_writes_while_access_is_exclusive() {
    must_find(Bug::WriteWhileExclusive, ALONE, &["is read", "is stored", "I4", "I1"]);
}

#[test]
fn finds_a_direct_write_that_overtakes_dirty_bytes() {
    must_find(Bug::DirectPastDirty, DIRECT, &["is read", "is stored"]);
}

#[test]
fn finds_bytes_kept_when_their_session_is_lost() {
    must_find(Bug::KeepDirtyOfLostSession, LOST, &["is stored"]);
}
