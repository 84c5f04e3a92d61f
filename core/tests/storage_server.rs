//! Nodes with real engines and real connections in one process: replication, failure, return, retries.

mod storage_cluster;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use luciola_core::error::Kind;
use luciola_core::types::*;
use storage_cluster::{CHAIN, Cluster, chunk, pattern, soon, tag};

#[test]
fn what_is_written_is_read_from_every_member() {
    for replicas in 1..=3 {
        let cluster = Cluster::start(replicas);
        for (index, length) in [1usize, 5000, 16 << 10, 100_000, 1 << 20].into_iter().enumerate() {
            let bytes = pattern(length, index);
            let result = cluster.write(chunk(index as u32), 0, &bytes, tag(1, 1 + index as u64));
            assert_eq!((result.status, result.length as usize), (Status::Ok, length));
            for node in 0..replicas {
                assert_eq!(cluster.read(node, chunk(index as u32)).unwrap(), bytes);
            }
        }
        // An overwrite in the middle, a gap, a cut and a removal.
        let result = cluster.write(chunk(3), 50_000, &pattern(10_000, 77), tag(1, 10));
        assert_eq!((result.status, result.version, result.length), (Status::Ok, Version(2), 100_000));
        assert_eq!(cluster.write(chunk(1), 9_000, b"end", tag(1, 11)).length, 9_003);
        assert_eq!(cluster.update(chunk(4), Op::Truncate { length: 10 }, tag(1, 12)).length, 10);
        assert_eq!(cluster.update(chunk(0), Op::Remove, tag(1, 13)).status, Status::Ok);
        let mut expected = pattern(100_000, 3);
        expected[50_000..60_000].copy_from_slice(&pattern(10_000, 77));
        for node in 0..replicas {
            assert_eq!(cluster.read(node, chunk(3)).unwrap(), expected);
            let with_gap = cluster.read(node, chunk(1)).unwrap();
            assert_eq!(&with_gap[..5000], pattern(5000, 1));
            assert!(with_gap[5000..9000].iter().all(|byte| *byte == 0));
            assert_eq!(cluster.read(node, chunk(4)).unwrap(), pattern(10, 4));
            assert_eq!(cluster.read(node, chunk(0)), Err(Status::NotFound));
        }
        cluster.assert_equal_replicas();
    }
}

#[test]
fn a_batch_writes_many_chunks_and_one_chunk_many_times() {
    let cluster = Cluster::start(3);
    let ops: Vec<(ChunkId, Vec<u8>)> =
        (0..64).map(|place| (chunk(place % 16), pattern(3000, place as usize))).collect();
    let results = cluster.write_batch(&ops, 1);
    assert!(results.iter().all(|result| result.status == Status::Ok), "{results:?}");
    for index in 0..16 {
        // The order within one batch is the order of its operations.
        assert_eq!(cluster.read(1, chunk(index)).unwrap(), pattern(3000, 48 + index as usize));
    }
    cluster.assert_equal_replicas();
}

#[test]
fn who_may_not_serve_says_why() {
    let cluster = Cluster::start(2);
    cluster.write(chunk(0), 0, b"abc", tag(1, 1));
    let stale = cluster.update_at(0, ChainVersion(9), chunk(0), Op::Remove, tag(1, 2));
    assert_eq!(stale.status, Status::WrongChainVersion);
    let not_head = cluster.update_at(1, cluster.version(), chunk(0), Op::Remove, tag(1, 2));
    assert_eq!(not_head.status, Status::NotHead);
    cluster.node(1).drop_lease();
    assert_eq!(cluster.read(1, chunk(0)), Err(Status::NoLease));
    cluster.node(0).drop_lease();
    let no_lease = cluster.update_at(0, cluster.version(), chunk(0), Op::Remove, tag(1, 2));
    assert_eq!(no_lease.status, Status::NoLease);
    // A client may not speak as a predecessor does.
    let forged = cluster.forge(chunk(0), Op::Remove, tag(1, 2));
    assert_eq!(forged.status, Status::Denied);
}

#[test]
fn a_retry_is_not_executed_twice_by_a_new_head() {
    let cluster = Cluster::start(3);
    let first = cluster.write(chunk(0), 0, b"aaaa", tag(1, 7));
    assert_eq!((first.status, first.version), (Status::Ok, Version(1)));
    // Another client writes after it; then the head falls, and the first one never heard of its success.
    assert_eq!(cluster.write(chunk(0), 0, b"bb", tag(2, 1)).version, Version(2));
    cluster.kill(0);
    cluster.set_states(&[TargetState::Offline, TargetState::Serving, TargetState::Serving]);
    let again = cluster.write(chunk(0), 0, b"aaaa", tag(1, 7));
    assert_eq!((again.status, again.version), (Status::Ok, Version(1)));
    assert_eq!(cluster.read(1, chunk(0)).unwrap(), b"bbaa");
    assert_eq!(cluster.write(chunk(0), 0, b"cccc", tag(1, 6)).status, Status::Stale);
    // So it is after a return by recovery, too.
    cluster.restart(0);
    cluster.resync(0);
    cluster.kill(1);
    cluster.kill(2);
    cluster.set_states(&[TargetState::Serving, TargetState::Offline, TargetState::Offline]);
    let again = cluster.write(chunk(0), 0, b"aaaa", tag(1, 7));
    assert_eq!((again.status, again.version), (Status::Ok, Version(1)));
    assert_eq!(cluster.read(0, chunk(0)).unwrap(), b"bbaa");
}

#[test]
fn an_update_waits_for_a_dead_successor_until_the_chain_changes() {
    for victim in 1..3 {
        let cluster = Cluster::start(3);
        cluster.write(chunk(0), 0, b"before", tag(1, 1));
        cluster.kill(victim);
        let writer = cluster.write_in_background(chunk(0), 0, b"after!", tag(1, 2));
        // The head holds a version that the tail may have committed: it does not serve.
        cluster.wait_until("the update is pending", || cluster.pending(0) == 1);
        assert_eq!(cluster.read(0, chunk(0)), Err(Status::Dirty));
        let mut states = [TargetState::Serving; 3];
        states[victim] = TargetState::Offline;
        cluster.set_states(&states);
        assert_eq!(writer.join().unwrap().status, Status::Ok);
        for node in (0..3).filter(|node| *node != victim) {
            assert_eq!(cluster.read(node, chunk(0)).unwrap(), b"after!");
        }
        cluster.assert_equal_replicas();
    }
}

#[test]
fn an_update_whose_caller_gave_up_is_driven_on() {
    let cluster = Cluster::start(2);
    cluster.kill(1);
    cluster.write_in_vain(chunk(0), 0, b"patience", tag(1, 1));
    assert_eq!(cluster.pending(0), 1);
    cluster.set_states(&[TargetState::Serving, TargetState::Offline]);
    cluster.wait_until("the update is committed", || cluster.pending(0) == 0);
    assert_eq!(cluster.read(0, chunk(0)).unwrap(), b"patience");
    // Its retry is known.
    assert_eq!(cluster.write(chunk(0), 0, b"patience", tag(1, 1)).version, Version(1));
}

#[test]
fn a_pending_version_survives_a_restart_and_is_driven_on() {
    let cluster = Cluster::start(2);
    cluster.kill(1);
    cluster.write_in_vain(chunk(3), 0, b"survivor", tag(1, 1));
    cluster.kill(0);
    cluster.restart(0);
    // The last one that served comes back: it commits what it has.
    cluster.set_states(&[TargetState::LastServing, TargetState::Offline]);
    assert_eq!(cluster.read(0, chunk(3)), Err(Status::NotServing));
    cluster.set_states(&[TargetState::Serving, TargetState::Offline]);
    assert_eq!(cluster.node(0).commit_pending(CHAIN, Duration::from_secs(60)), 0);
    assert_eq!(cluster.read(0, chunk(3)).unwrap(), b"survivor");
}

#[test]
fn an_empty_replica_is_brought_up_to_date_while_others_write() {
    let cluster = Cluster::start(3);
    for index in 0..20 {
        cluster.write(chunk(index), 0, &pattern(40_000, index as usize), tag(1, 1));
    }
    cluster.update(chunk(19), Op::Remove, tag(1, 2));
    cluster.kill(2);
    cluster.set_states(&[TargetState::Serving, TargetState::Serving, TargetState::Offline]);
    cluster.wipe_disk(2);
    cluster.restart(2);
    let stop = AtomicBool::new(false);
    let writes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let cluster = &cluster;
        for client in 2..4u64 {
            let (stop, writes) = (&stop, &writes);
            scope.spawn(move || {
                let mut sequence = 1;
                while !stop.load(Ordering::Relaxed) {
                    let index = (sequence % 25) as u32;
                    let bytes = pattern(2000, (client * 1000 + sequence) as usize);
                    let result =
                        cluster.write_persistently(chunk(index), 3000, &bytes, tag(client, sequence));
                    assert_eq!(result.status, Status::Ok);
                    writes.fetch_add(1, Ordering::Relaxed);
                    sequence += 1;
                }
            });
        }
        cluster.resync(2);
        let before = writes.load(Ordering::Relaxed);
        cluster.wait_until("writes continue", || writes.load(Ordering::Relaxed) > before + 20);
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(cluster.states(), [TargetState::Serving; 3]);
    cluster.assert_equal_replicas();
    for index in 0..19 {
        assert_eq!(cluster.read(2, chunk(index)).unwrap()[5000..], pattern(40_000, index as usize)[5000..]);
    }
}

#[test]
fn a_stale_replica_loses_what_was_never_decided() {
    let cluster = Cluster::start(2);
    cluster.write(chunk(0), 0, b"agreed", tag(1, 1));
    // The head stages two updates that no other node will ever see, one of them of a new chunk.
    cluster.kill(1);
    cluster.write_in_vain(chunk(0), 0, b"LOST!!", tag(1, 2));
    cluster.write_in_vain(chunk(1), 0, b"LOST!!", tag(1, 3));
    cluster.kill(0);
    cluster.restart(1);
    cluster.set_states(&[TargetState::Offline, TargetState::Serving]);
    cluster.write(chunk(0), 0, b"other!", tag(2, 1));
    cluster.restart(0);
    cluster.resync(0);
    assert_eq!(cluster.read(0, chunk(0)).unwrap(), b"other!");
    assert_eq!(cluster.read(0, chunk(1)), Err(Status::NotFound));
    cluster.assert_equal_replicas();
}

/// A disk that hangs on demand. An update that is staged waits at it.
static STAGES: Gate = Gate::new();
static TAIL_STAGES: Gate = Gate::new();

struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GateState {
    Open,
    Closed,
    /// Somebody waits at it.
    Reached,
}

impl Gate {
    const fn new() -> Gate {
        Gate { state: Mutex::new(GateState::Open), changed: Condvar::new() }
    }

    fn set(&self, state: GateState) {
        *self.state.lock().unwrap() = state;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        while *state != GateState::Open {
            *state = GateState::Reached;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
        }
    }

    fn wait_until_reached(&self) {
        let closed =
            self.changed.wait_while(self.state.lock().unwrap(), |state| *state != GateState::Reached);
        drop(closed.unwrap());
    }
}

/// Two replicas; the head hangs in the middle of staging `updates` of chunk 0, which has one version.
fn hanging_in_a_stage(update: &'static [u8]) -> (Arc<Cluster>, JoinHandle<UpdateResult>) {
    let cluster = Cluster::start(2);
    cluster.restart_with(0, |options| options.engine.on_write = Some(|| STAGES.pass()));
    assert_eq!(cluster.write(chunk(0), 0, b"old", tag(1, 1)).status, Status::Ok);
    STAGES.set(GateState::Closed);
    let write = cluster.write_in_background(chunk(0), 0, update, tag(1, 2));
    STAGES.wait_until_reached();
    (cluster, write)
}

fn assert_taken_back(cluster: &Cluster, write: JoinHandle<UpdateResult>) {
    assert_eq!(write.join().unwrap().status, Status::WrongChainVersion, "only one replica has it");
    cluster.assert_equal_replicas();
    for node in 0..2 {
        assert_eq!(cluster.read(node, chunk(0)).unwrap(), b"old");
    }
    assert_eq!(cluster.write(chunk(0), 0, b"new", tag(1, 2)).status, Status::Ok, "the chunk takes writes");
    assert_eq!(cluster.read(0, chunk(0)).unwrap(), b"new");
}

/// One after the other: there is one gate.
#[test]
fn an_update_that_is_staged_while_its_replica_is_away_is_taken_back() {
    // Nothing was sent to the returning replica: in both indexes the chunk was equal.
    let (cluster, write) = hanging_in_a_stage(b"lost");
    for state in [TargetState::Offline, TargetState::Syncing, TargetState::Serving] {
        cluster.set_state(0, state);
    }
    STAGES.set(GateState::Open);
    assert_taken_back(&cluster, write);

    // The stage ends while the replica is compared.
    let (cluster, write) = hanging_in_a_stage(b"lost");
    cluster.set_state(0, TargetState::Offline);
    cluster.set_state(0, TargetState::Syncing);
    assert_eq!(cluster.lines(0)[&(500, 0)].pending, Some(Version(2)), "listed as pending while it is staged");
    STAGES.set(GateState::Open);
    let refused = write.join().unwrap();
    assert_eq!(cluster.lines(0)[&(500, 0)].pending, None, "nothing of it is left on the disk");
    cluster.set_state(0, TargetState::Serving);
    assert_taken_back(&cluster, std::thread::spawn(move || refused));

    // Recovery as it is: it sends the chunk, because it is pending, and so waits for the stage.
    let (cluster, write) = hanging_in_a_stage(b"lost");
    cluster.set_state(0, TargetState::Offline);
    let other = cluster.clone();
    let recovery = std::thread::spawn(move || other.resync(0));
    cluster.wait_until("recovery has looked at the chunk", || {
        let waits =
            cluster.node(0).slow_ops(Duration::ZERO).iter().any(|line| line.contains("behind it 1 updates"));
        waits || cluster.states()[0] == TargetState::Serving
    });
    STAGES.set(GateState::Open);
    recovery.join().unwrap();
    assert_taken_back(&cluster, write);
}

/// A replica returns while the only one that serves is staging an update, and commits it with that: it gets it as well.
#[test]
fn an_update_that_the_tail_is_staging_reaches_a_replica_that_returns() {
    let cluster = Cluster::start(2);
    cluster.restart_with(0, |options| options.engine.on_write = Some(|| TAIL_STAGES.pass()));
    assert_eq!(cluster.write(chunk(0), 0, b"old", tag(1, 1)).status, Status::Ok);
    cluster.set_state(1, TargetState::Offline);
    TAIL_STAGES.set(GateState::Closed);
    let write = cluster.write_in_background(chunk(0), 0, b"new", tag(1, 2));
    TAIL_STAGES.wait_until_reached();
    let other = cluster.clone();
    let recovery = std::thread::spawn(move || other.resync(1));
    cluster.wait_until("recovery has looked at the chunk", || {
        let waits =
            cluster.node(0).slow_ops(Duration::ZERO).iter().any(|line| line.contains("behind it 1 updates"));
        waits || cluster.states()[1] == TargetState::Serving
    });
    TAIL_STAGES.set(GateState::Open);
    recovery.join().unwrap();
    assert_eq!(write.join().unwrap().status, Status::Ok);
    cluster.assert_equal_replicas();
    for node in 0..2 {
        assert_eq!(cluster.read(node, chunk(0)).unwrap(), b"new");
    }
}

/// N-to-1 with native clients: each writes its part of one chunk, and is known at the head that comes next.
#[test]
fn hundreds_of_clients_write_one_chunk_and_are_known_after_failover() {
    const CLIENTS: u64 = 300;
    let cluster = Cluster::start(2);
    for client in 1..=CLIENTS {
        let offset = client as u32 * 10;
        assert_eq!(
            cluster.write(chunk(0), offset, b"checkpoint", tag(client, 1)).status,
            Status::Ok,
            "{client}"
        );
    }
    cluster.kill(0);
    cluster.set_states(&[TargetState::Offline, TargetState::Serving]);
    for client in 1..=CLIENTS {
        let again = cluster.write(chunk(0), client as u32 * 10, b"once more!", tag(client, 1));
        assert_eq!((again.status, again.version), (Status::Ok, Version(client)), "it was executed before");
    }
    let whole = cluster.read(1, chunk(0)).unwrap();
    assert!(whole[10..].chunks(10).all(|part| part == b"checkpoint"));
}

/// One frame with a wrong claim must not make nodes forget what a client may send again.
#[test]
fn a_request_that_settles_itself_is_refused_and_settles_nothing() {
    let cluster = Cluster::start(2);
    assert_eq!(cluster.write(chunk(0), 0, b"first", tag(1, 1)).status, Status::Ok);
    let claim = cluster.write_settling(chunk(0), b"claim", tag(1, 2), u64::MAX);
    assert_eq!(claim.status, Status::Invalid);
    assert_eq!(cluster.write(chunk(0), 0, b"other", tag(2, 1)).status, Status::Ok);
    let again = cluster.write(chunk(0), 0, b"again", tag(1, 1));
    assert_eq!((again.status, again.version), (Status::Ok, Version(1)), "it was executed before");
    assert_eq!(cluster.read(0, chunk(0)).unwrap(), b"other");
}

/// Somebody made the wrong replica serve: what the other one has beyond it is kept, chunk by chunk.
#[test]
fn a_chunk_that_its_chain_never_had_is_set_aside_and_replaced() {
    use TargetState::*;
    let cluster = Cluster::start(2);
    let folder = cluster.folder("quarantine");
    for index in 0..3 {
        cluster.write(chunk(index), 0, b"old", tag(1, 1 + u64::from(index)));
    }
    cluster.set_states(&[Offline, Serving]);
    let newer = pattern(40_000, 5);
    cluster.write(chunk(1), 0, &newer, tag(1, 9));
    cluster.write(chunk(7), 0, b"only here", tag(1, 10));
    cluster.set_states(&[Serving, Offline]);
    let quarantine =
        |version, index, stamp| cluster.node(1).quarantine(CHAIN, version, chunk(index), stamp, &folder);
    let ahead = cluster.lines(1)[&(500, 1)].stamp;
    let unknown = cluster.lines(1)[&(500, 7)].stamp;
    let refused = quarantine(cluster.version(), 1, ahead).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "a replica that is not being synced keeps what it has");
    cluster.set_states(&[Serving, Syncing]);
    let version = cluster.version();
    assert_eq!(quarantine(ChainVersion(version.0 - 1), 1, ahead).unwrap_err().kind(), Kind::StaleRouting);
    let other = Stamp { version: Version(1), ..ahead };
    assert!(!quarantine(version, 1, other).unwrap(), "it is in another state than was listed");
    assert!(quarantine(version, 1, ahead).unwrap());
    assert!(quarantine(version, 7, unknown).unwrap());
    assert!(!quarantine(version, 7, unknown).unwrap(), "it is gone");
    let name = |index: u32, stamp: Stamp| {
        format!("{}-{:x}.{index}-{}.{}", CHAIN.0, 500, stamp.chain_version, stamp.version)
    };
    assert_eq!(std::fs::read(folder.join(name(1, ahead))).unwrap(), newer);
    assert_eq!(std::fs::read(folder.join(name(7, unknown))).unwrap(), b"only here");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    cluster.resync(1);
    cluster.assert_equal_replicas();
    assert_eq!(cluster.read(1, chunk(1)).unwrap(), b"old");
    assert_eq!(cluster.write(chunk(1), 0, b"new", tag(1, 20)).status, Status::Ok);
    cluster.assert_equal_replicas();
}

#[test]
fn an_unreadable_record_is_an_error_until_the_predecessor_sends_the_chunk() {
    use TargetState::*;
    let cluster = Cluster::start(2);
    let folder = cluster.folder("quarantine");
    cluster.write(chunk(0), 0, b"kept", tag(1, 1));
    cluster.set_states(&[Serving, Offline]);
    cluster.set_states(&[Serving, Syncing]);
    // What the predecessor orders for chunks that it cannot read itself.
    let set_unreadable =
        |index| cluster.node(1).quarantine(CHAIN, cluster.version(), chunk(index), Stamp::default(), &folder);
    assert!(!set_unreadable(0).unwrap(), "committed");
    for index in [7, 8] {
        assert!(set_unreadable(index).unwrap());
        assert_eq!(cluster.lines(1)[&(500, index)].pending, Some(Version(0)));
    }
    let report = cluster.node(1).scrub(CHAIN, None, 100, true).unwrap();
    assert_eq!(report.damaged, [(chunk(7), Version(0)), (chunk(8), Version(0))]);
    cluster.set_states(&[Serving, Offline]);
    cluster.kill(1);
    cluster.restart(1);
    cluster.set_states(&[Serving, Syncing]);
    assert_eq!(cluster.write(chunk(7), 0, b"written", tag(1, 2)).status, Status::Ok);
    cluster.resync(1);
    cluster.assert_equal_replicas();
    assert_eq!(cluster.read(1, chunk(0)).unwrap(), b"kept");
    assert_eq!(cluster.read(1, chunk(7)).unwrap(), b"written");
    assert_eq!(cluster.read(1, chunk(8)), Err(Status::NotFound));
}

#[test]
fn an_unreadable_record_of_the_only_replica_is_removed_with_its_content() {
    use TargetState::*;
    let cluster = Cluster::start(2);
    cluster.write(chunk(0), 0, b"kept", tag(1, 1));
    cluster.set_states(&[Serving, Offline]);
    cluster.set_states(&[Serving, Syncing]);
    let folder = cluster.folder("quarantine");
    assert!(
        cluster.node(1).quarantine(CHAIN, cluster.version(), chunk(9), Stamp::default(), &folder).unwrap()
    );
    let remove = |node: usize| {
        let removals = [(ContentId(500), 0)];
        cluster.node(node).remove_chunks((CHAIN, cluster.version()), &removals, 10, tag(2, 1), soon())
    };
    cluster.set_states(&[Offline, Serving]);
    assert_eq!(cluster.read(1, chunk(9)), Err(Status::Checksum));
    assert_eq!(cluster.write(chunk(9), 0, b"x", tag(1, 3)).status, Status::Checksum);
    assert_eq!(cluster.read(1, chunk(0)).unwrap(), b"kept");
    assert_eq!(remove(1).unwrap().1, None);
    assert_eq!(cluster.read(1, chunk(9)), Err(Status::NotFound));
    assert_eq!(cluster.read(1, chunk(0)), Err(Status::NotFound));
}

#[test]
fn a_flipped_byte_is_found_served_from_elsewhere_and_repaired() {
    let cluster = Cluster::start(2);
    let bytes = pattern(200_000, 5);
    cluster.write(chunk(0), 0, &bytes, tag(1, 1));
    cluster.flip_byte(1, &bytes[100_000..100_064]);
    assert_eq!(cluster.read(1, chunk(0)), Err(Status::Checksum));
    assert_eq!(cluster.read(0, chunk(0)).unwrap(), bytes);
    cluster.wait_until("the chunk is repaired", || cluster.read(1, chunk(0)).as_ref() == Ok(&bytes));
    cluster.flip_byte(0, &bytes[150_000..150_064]);
    let report = cluster.node(0).scrub(CHAIN, None, 100, true).unwrap();
    assert_eq!((report.chunks, report.damaged.len(), report.repaired), (1, 1, 1));
    assert_eq!(cluster.read(0, chunk(0)).unwrap(), bytes);
}

#[test]
fn control_operations_go_through_the_chain() {
    let cluster = Cluster::start(3);
    for index in 0..10 {
        cluster.write(chunk(index), 0, &pattern(1000 + index as usize, 1), tag(1, 1));
    }
    let (head, version) = (cluster.node(0), cluster.version());
    let content = chunk(0).content;
    assert_eq!(head.last_chunk(CHAIN, version, content).unwrap(), Some((9, 1009)));
    head.truncate_chunk(CHAIN, version, chunk(5), 7, tag(9, 1), storage_cluster::soon()).unwrap();
    let led = (CHAIN, version);
    assert_eq!(
        head.remove_chunks(led, &[(content, 6)], 3, tag(9, 2), storage_cluster::soon()).unwrap(),
        (3, Some((0, 9)))
    );
    assert_eq!(
        head.remove_chunks(led, &[(content, 6)], 3, tag(9, 3), storage_cluster::soon()).unwrap(),
        (1, None)
    );
    assert_eq!(
        head.remove_chunks(led, &[(content, 6)], 3, tag(9, 4), storage_cluster::soon()).unwrap(),
        (0, None)
    );
    for node in 0..3 {
        assert_eq!(cluster.node(node).last_chunk(CHAIN, version, content).unwrap(), Some((5, 7)));
        assert_eq!(cluster.lines(node).values().filter(|line| !line.removed).count(), 6);
    }
    assert!(
        cluster.node(1).remove_chunks(led, &[(content, 0)], 3, tag(9, 5), storage_cluster::soon()).is_err(),
        "not the head"
    );
    cluster.assert_equal_replicas();
}

/// A tombstone and its absence are the same, whichever members have forgotten it (R7).
#[test]
fn a_forgotten_chunk_is_written_again_whichever_replica_has_forgotten_it() {
    let cluster = Cluster::start(3);
    let content = chunk(0).content;
    cluster.write(chunk(9), 0, b"stays", tag(1, 1));
    for (round, forgetful) in
        [vec![0], vec![1], vec![2], vec![0, 2], vec![0, 1, 2], vec![]].iter().enumerate()
    {
        let sequence = 10 * round as u64;
        let bytes = pattern(3000, round);
        cluster.write(chunk(0), 0, &bytes, tag(1, sequence + 2));
        for node in 0..3 {
            assert_eq!(cluster.read(node, chunk(0)).unwrap(), bytes, "{forgetful:?}, node {node}");
        }
        cluster.assert_equal_replicas();
        let (head, soon) = (cluster.node(0), storage_cluster::soon());
        let led = (CHAIN, cluster.version());
        let removed = head.remove_chunks(led, &[(content, 0)], 1, tag(9, sequence + 3), soon);
        assert_eq!(removed.unwrap(), (1, Some((0, 9))), "continues at the chunk that stays");
        for node in forgetful {
            let node = cluster.node(*node);
            assert_eq!(node.purge_tombstones(CHAIN, None, 0, 10).unwrap(), (0, None), "too young");
            assert_eq!(node.purge_tombstones(CHAIN, None, u64::MAX, 10).unwrap(), (1, None));
            assert_eq!(node.list_chunks(CHAIN, None, 10, 0).unwrap().len(), 1);
        }
    }
    // Not while a replica is away, which would come back with it.
    cluster.kill(2);
    cluster.set_states(&[TargetState::Serving, TargetState::Serving, TargetState::Offline]);
    assert_eq!(cluster.node(0).purge_tombstones(CHAIN, None, u64::MAX, 10).unwrap(), (0, None));
}

#[test]
fn sync_reaches_every_member() {
    let cluster = Cluster::start(3);
    cluster.write(chunk(0), 0, b"durable", tag(1, 1));
    assert_eq!(cluster.sync(), [Status::Ok]);
    for node in 0..3 {
        let counters: BTreeMap<&str, u64> = cluster.node(node).counters().into_iter().collect();
        assert_eq!(counters["syncs"], 1, "node {node}");
    }
}

#[test]
fn a_sync_counts_a_returning_replica_and_one_that_was_just_promoted() {
    use TargetState::*;
    let cluster = Cluster::start(2);
    cluster.write(chunk(0), 0, b"abc", tag(1, 1));
    cluster.set_states(&[Serving, Offline]);
    cluster.set_states(&[Serving, Syncing]);
    assert_eq!(cluster.sync(), [Status::Ok]);
    // The head has not heard of the promotion: what it alone makes durable is not all that serves.
    let known_to_the_head = cluster.version();
    cluster.set_states_at(1, &[Serving, Serving]);
    assert_eq!(cluster.sync_under(known_to_the_head), [Status::WrongChainVersion]);
    cluster.set_states(&[Serving, Serving]);
    assert_eq!(cluster.sync(), [Status::Ok]);

    cluster.set_states(&[Serving, Offline]);
    cluster.set_states(&[Serving, Syncing]);
    cluster.kill(1);
    assert!(cluster.sync()[0].is_retryable(), "until the manager has taken it out");
    cluster.set_states(&[Serving, Offline]);
    assert_eq!(cluster.sync(), [Status::Ok]);
}

#[test]
fn machines_are_forgotten_when_they_are_at_rest() {
    let cluster = Cluster::start(2);
    for index in 0..200 {
        cluster.write(chunk(index), 0, b"x", tag(1, 1));
    }
    for node in 0..2 {
        let counters: BTreeMap<&str, u64> = cluster.node(node).counters().into_iter().collect();
        assert_eq!(counters["machines"], 0, "node {node}");
    }
}

#[test]
fn a_full_disk_refuses_one_write_and_nothing_else() {
    let cluster = Cluster::start(2);
    cluster.write(chunk(0), 0, b"fits", tag(1, 1));
    // More is kept in reserve than any disk has.
    cluster.restart_with(0, |options| options.engine.reserve_bytes = 1 << 60);
    assert_eq!(cluster.write(chunk(1), 0, b"does not", tag(1, 2)).status, Status::NoSpace);
    assert_eq!(cluster.pending(0) + cluster.pending(1), 0);
    assert_eq!(cluster.read(0, chunk(0)).unwrap(), b"fits");
    assert_eq!(cluster.update(chunk(0), Op::Remove, tag(1, 3)).status, Status::Ok);
    cluster.restart_with(0, |_| {});
    assert_eq!(cluster.write(chunk(1), 0, b"does now", tag(1, 4)).status, Status::Ok);
    cluster.assert_equal_replicas();
}

#[test]
fn shared_memory_is_forwarded_without_copies_by_nodes() {
    let cluster = Cluster::start(3);
    let bytes = pattern(1 << 20, 3);
    for (number, role) in ["client", "mount"].into_iter().enumerate() {
        let sequence = 1 + number as u64;
        let result = cluster.write_shared(chunk(7), &bytes, tag(1, sequence), role == "mount");
        assert_eq!(result.status, Status::Ok);
        for node in 0..3 {
            assert_eq!(cluster.read_shared(node, chunk(7)).unwrap(), bytes);
        }
    }
    cluster.assert_equal_replicas();
}

#[test]
fn a_program_that_scribbles_over_its_buffer_does_not_make_replicas_differ() {
    let cluster = Cluster::start(3);
    for round in 0..20u64 {
        cluster.write_while_scribbling(chunk(round as u32), 256 << 10, tag(1, round + 1));
    }
    cluster.assert_equal_replicas();
}

/// Random load on few chunks while members fall and return; every read is checked.
#[test]
fn reads_are_linearizable_while_members_fall_and_return() {
    let seed = storage_cluster::seed();
    println!("LUCIOLA_SEED={seed}");
    let cluster = Cluster::start(3);
    let history = storage_cluster::history::History::new(4);
    let stop = AtomicBool::new(false);
    let (enough, patience) = (Duration::from_secs(8), Duration::from_secs(600));
    let begun = Instant::now();
    let is_small = |(reads, writes): (usize, usize)| reads <= 200 || writes <= 100;
    let mut random = storage_cluster::Random(seed);
    std::thread::scope(|scope| {
        for client in 1..=4u64 {
            let (history, stop, cluster) = (&history, &stop, &cluster);
            scope.spawn(move || storage_cluster::history::run_client(cluster, history, client, seed, stop));
        }
        // Clients must end, too, when this thread fails.
        let _stop = storage_cluster::SetOnDrop(&stop);
        // An emulated machine takes longer to do as much.
        while begun.elapsed() < enough || (is_small(history.counts()) && begun.elapsed() < patience) {
            let victim = (random.next() % 3) as usize;
            std::thread::sleep(Duration::from_millis(random.next() % 300));
            storage_cluster::fall_and_return(&cluster, victim, random.next().is_multiple_of(2));
        }
    });
    let (reads, writes) = history.check();
    println!("{reads} reads and {writes} writes were checked");
    assert!(!is_small((reads, writes)), "the load was too small to say anything: {reads}, {writes}");
    cluster.assert_equal_replicas();
}

#[test]
fn a_read_of_several_operations_answers_each() {
    let cluster = Cluster::start(1);
    cluster.write(chunk(0), 0, b"0123456789", tag(1, 1));
    let results = cluster.read_ranges(0, &[(chunk(0), 0), (chunk(0), 8), (chunk(0), 10), (chunk(1), 0)], 4);
    let seen: Vec<(Status, u32)> = results.iter().map(|result| (result.status, result.length)).collect();
    assert_eq!(seen, [(Status::Ok, 4), (Status::Ok, 2), (Status::Ok, 0), (Status::NotFound, 0)]);
}

/// `cargo test --release --test storage_server measure -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn measure_one_mebibyte_at_a_time() {
    // Few enough that the kernel does not make writers wait for the disk.
    const ROUNDS: u32 = 128;
    for replicas in 1..=3 {
        let cluster = Cluster::start(replicas);
        for mount in [true, false] {
            let began = Instant::now();
            cluster.write_rounds(ROUNDS, mount);
            let seconds = began.elapsed().as_secs_f64();
            let who = if mount { "mount" } else { "program" };
            println!("{replicas} replicas, {who}: write {:.0} MiB/s", f64::from(ROUNDS) / seconds);
        }
        let began = Instant::now();
        cluster.read_rounds(ROUNDS);
        println!("{replicas} replicas: read {:.0} MiB/s", f64::from(ROUNDS) / began.elapsed().as_secs_f64());
    }
}

#[test]
fn chunks_of_several_contents_are_removed_up_to_a_limit_and_synced_on_all_members() {
    let cluster = Cluster::start(2);
    let contents = [ContentId(41), ContentId(42), ContentId(43)];
    for (place, content) in contents.iter().enumerate() {
        for index in 0..=place {
            let chunk = ChunkId { content: *content, index: index.try_into().unwrap() };
            assert_eq!(cluster.write(chunk, 0, b"bytes", tag(1, 1)).status, Status::Ok);
        }
    }
    let (head, led) = (cluster.node(0), (CHAIN, cluster.version()));
    let all = contents.map(|content| (content, 0));
    let removed = head.remove_chunks(led, &all, 4, tag(9, 1), storage_cluster::soon());
    assert_eq!(removed.unwrap(), (4, Some((2, 1))), "one, two, and one of three");
    let left = [(contents[2], 1)];
    let removed = head.remove_chunks(led, &left, 2, tag(9, 2), storage_cluster::soon());
    assert_eq!(removed.unwrap(), (2, None));
    let removed = head.remove_chunks(led, &[], 1, tag(9, 3), storage_cluster::soon());
    assert_eq!(removed.unwrap(), (0, None));
    cluster.assert_equal_replicas();
    let before: Vec<u64> = (0..2).map(|node| cluster.node(node).round()).collect();
    head.sync_chain(led.0, led.1).unwrap();
    for (node, round) in before.into_iter().enumerate() {
        assert!(cluster.node(node).round() > round, "node {node} has not synced");
    }
    assert!(head.sync_chain(led.0, ChainVersion(led.1.0 + 1)).is_err(), "not the version of the chain");
}
