//! The client's side of delegations against the fake of the service, with a poll that is turned by hand.

use std::sync::Arc;

use super::{Delegations, ENTRIES_MAX, Open};
use crate::buffer::Placement;
use crate::client::fake::{self, FakeMeta};
use crate::client::{
    CreateOptions, File, Identity, OpenFiles, OpenOptions, WriteOffset, inode_path, name_path,
};
use crate::clock;
use crate::wire::pb::{self, Method};

const FILE: u64 = 5;
const LEASE_MS: u32 = 1000;
/// What a client counts on.
const COUNTED_NS: u64 = 950_000_000;

struct Cluster {
    metas: Arc<FakeMeta>,
    files: Arc<OpenFiles>,
    identity: Arc<Identity>,
}

impl Cluster {
    /// With a small file that is open nowhere, and a client that has a lease.
    fn new() -> Cluster {
        let chunks = Arc::default();
        let metas = FakeMeta::new(Arc::clone(&chunks));
        let cluster =
            Cluster { files: fake::client(&chunks, &metas, 1 << 20), metas, identity: Arc::default() };
        let options = OpenOptions { write: true, ..Default::default() };
        let create = CreateOptions { permissions: 0o644, exclusive: true, layout: None };
        let path = name_path(1, format!("f{FILE}").as_bytes());
        let file = File::create(&cluster.files, &cluster.identity, path, options, create).unwrap();
        file.write(WriteOffset::At(0), &Placement::from_vec(vec![7; 10]), false).unwrap();
        file.close().unwrap();
        cluster.files.shared().send_closes();
        cluster.files.delegations().offer();
        cluster.poll();
        cluster.poll();
        cluster
    }

    fn poll(&self) {
        let delegations = self.files.delegations();
        let (poll, sent_ns) = (delegations.poll(), clock::now_ns());
        let reply = self.files.shared().meta.await_recalls(poll.clone()).unwrap();
        delegations.polled(&poll, sent_ns, &reply, clock::now_ns());
    }

    fn open(&self) -> Arc<File> {
        let options = OpenOptions { read: true, ..Default::default() };
        File::open(&self.files, &self.identity, inode_path(FILE), options).unwrap()
    }

    fn delegated(self) -> Cluster {
        for _ in 0..2 {
            self.open().close().unwrap();
        }
        assert_eq!(self.files.delegations().count(), 1);
        self
    }

    fn asked(&self) -> usize {
        self.metas.count(Method::MetaOpen)
    }

    fn holds(&self) -> usize {
        self.files.shared().send_closes();
        self.metas.holds(self.files.shared().meta.client(), FILE)
    }
}

fn inode(id: u64) -> Arc<pb::Inode> {
    Arc::new(pb::Inode { id, change: 1, ..Default::default() })
}

/// One that has a lease of `LEASE_MS` from a poll at 0, and a file by grant 3.
fn leased(files: &Arc<OpenFiles>, identity: &Arc<Identity>) -> Delegations {
    let delegations = Delegations::default();
    delegations.offer();
    for _ in 0..2 {
        answer(&delegations, 0, 0, &[]);
    }
    grant(&delegations, files, identity, 3);
    delegations
}

fn answer(delegations: &Delegations, sent_ns: u64, now_ns: u64, recalled: &[pb::Delegation]) {
    let reply = pb::AwaitRecallsReply { incarnation: 9, lease_ms: LEASE_MS, recalled: recalled.to_vec() };
    delegations.polled(&delegations.poll(), sent_ns, &reply, now_ns);
}

fn grant(delegations: &Delegations, files: &Arc<OpenFiles>, identity: &Arc<Identity>, grant: u64) {
    for _ in 0..2 {
        if let Open::Ask(asking) = delegations.open(FILE, identity, 1)
            && asking.delegate
        {
            files.hold(FILE, grant);
            let hold = super::ReadHold::new(files, identity, FILE, grant);
            delegations.granted(asking, grant, inode(FILE), identity, &hold);
        }
    }
}

fn is_local(delegations: &Delegations, now_ns: u64) -> bool {
    matches!(delegations.open(FILE, &Identity::default(), now_ns), Open::Local(..))
}

#[test]
fn from_the_third_on_opens_and_closes_are_local() {
    let cluster = Cluster::new().delegated();
    let (asked, closed) = (cluster.asked(), cluster.metas.count(Method::MetaClose));
    for _ in 0..5 {
        let file = cluster.open();
        let into = Placement::from_vec(vec![0; 16]);
        assert_eq!(file.read_at(0, &into).unwrap(), 10);
        file.close().unwrap();
    }
    cluster.files.shared().send_closes();
    // The first open's close had been waiting.
    assert!(cluster.metas.count(Method::MetaClose) <= closed + 1);
    assert_eq!((cluster.asked(), cluster.holds()), (asked, 1));
}

#[test]
fn hold_stays_until_the_delegation_and_the_last_handle_are_gone() {
    let cluster = Cluster::new().delegated();
    let (one, other) = (cluster.open(), cluster.open());
    cluster.files.delegations().stop();
    one.close().unwrap();
    assert_eq!(cluster.holds(), 1, "another handle has the file open");
    other.close().unwrap();
    assert_eq!(cluster.holds(), 0);
    assert!(cluster.files.held().is_empty());
}

#[test]
fn another_user_is_not_answered_by_it() {
    let cluster = Cluster::new().delegated();
    let other = Identity { uid: 7, ..Default::default() };
    assert!(matches!(cluster.files.delegations().open(FILE, &other, clock::now_ns()), Open::Ask(_)));
}

#[test]
fn what_is_recalled_is_dropped_and_returned_until_the_service_has_heard_it() {
    let cluster = Cluster::new();
    let delegations = leased(&cluster.files, &cluster.identity);
    assert!(is_local(&delegations, 1));
    let recalled = pb::Delegation { inode: FILE, grant: 3 };
    answer(&delegations, 5, 5, &[recalled]);
    assert!(!is_local(&delegations, 6));
    let poll = delegations.poll();
    assert_eq!(poll.returned, [recalled]);
    assert_eq!(delegations.poll().returned, [recalled], "the poll may have been lost");
    answer(&delegations, 7, 7, &[]);
    assert!(delegations.poll().returned.is_empty());
}

#[test]
fn open_under_way_during_a_recall_brings_no_delegation() {
    let cluster = Cluster::new();
    let delegations = leased(&cluster.files, &cluster.identity);
    answer(&delegations, 1, 1, &[pb::Delegation { inode: FILE, grant: 3 }]);
    let Open::Ask(asking) = delegations.open(FILE, &cluster.identity, 2) else { panic!("it was recalled") };
    assert!(asking.delegate);
    answer(&delegations, 3, 3, &[pb::Delegation { inode: FILE, grant: 4 }]);
    cluster.files.hold(FILE, 4);
    let hold = super::ReadHold::new(&cluster.files, &cluster.identity, FILE, 4);
    delegations.granted(asking, 4, inode(FILE), &cluster.identity, &hold);
    assert!(!is_local(&delegations, 4));
    assert!(delegations.poll().returned.contains(&pb::Delegation { inode: FILE, grant: 4 }));
}

#[test]
fn lease_is_counted_from_the_sending_and_shortened_and_its_end_is_final() {
    let cluster = Cluster::new();
    let delegations = leased(&cluster.files, &cluster.identity);
    assert!(is_local(&delegations, COUNTED_NS - 1) && !is_local(&delegations, COUNTED_NS));
    answer(&delegations, 100, COUNTED_NS - 1, &[]);
    assert!(is_local(&delegations, COUNTED_NS + 99) && !is_local(&delegations, COUNTED_NS + 100));
    answer(&delegations, COUNTED_NS + 90, COUNTED_NS + 100, &[]);
    assert!(!is_local(&delegations, COUNTED_NS + 101), "it is from before the lease ended");
    let Open::Ask(asking) = delegations.open(FILE, &cluster.identity, COUNTED_NS + 102) else { panic!() };
    assert!(asking.delegate, "there is a new lease");
}

#[test]
fn what_ends_with_a_lease_is_returned_because_the_service_may_still_count_it() {
    let cluster = Cluster::new();
    let delegations = leased(&cluster.files, &cluster.identity);
    answer(&delegations, COUNTED_NS - 1, COUNTED_NS, &[]);
    assert_eq!(delegations.poll().returned, [pb::Delegation { inode: FILE, grant: 3 }]);
    answer(&delegations, COUNTED_NS + 1, COUNTED_NS + 1, &[]);
    assert!(delegations.poll().returned.is_empty());
}

#[test]
fn service_that_delegates_nothing_is_never_polled() {
    let cluster = Cluster::new();
    let delegations = cluster.files.delegations();
    let none = pb::AwaitRecallsReply { incarnation: 1, ..Default::default() };
    delegations.polled(&delegations.poll(), clock::now_ns(), &none, clock::now_ns());
    cluster.metas.end_delegations();
    for _ in 0..5 {
        let Open::Ask(asking) = delegations.open(FILE, &cluster.identity, clock::now_ns()) else { panic!() };
        assert!(!asking.delegate);
        cluster.open().close().unwrap();
    }
    assert!(!delegations.is_poll_wanted(), "so there is no thread");
    assert!(!delegations.stop(), "and no leave notice");
}

#[test]
fn poll_begins_with_the_second_open_at_a_service_that_delegates() {
    let chunks = Arc::default();
    let metas = FakeMeta::new(Arc::clone(&chunks));
    let files = fake::client(&chunks, &metas, 1 << 20);
    let delegations = files.delegations();
    for _ in 0..2 {
        assert!(matches!(delegations.open(FILE, &Identity::default(), 1), Open::Ask(_)));
    }
    delegations.offer();
    assert!(matches!(delegations.open(FILE, &Identity::default(), 1), Open::Ask(_)));
    assert!(!delegations.is_poll_wanted());
    assert!(matches!(delegations.open(FILE, &Identity::default(), 1), Open::Ask(_)));
    assert!(delegations.is_poll_wanted());
    assert!(delegations.stop());
    assert!(!delegations.is_poll_wanted());
}

#[test]
fn another_service_knows_nothing_of_what_was_delegated() {
    let cluster = Cluster::new();
    let delegations = leased(&cluster.files, &cluster.identity);
    let reply = pb::AwaitRecallsReply { incarnation: 10, lease_ms: LEASE_MS, ..Default::default() };
    delegations.polled(&delegations.poll(), 2, &reply, 2);
    assert!(!is_local(&delegations, 3));
    assert_eq!((delegations.poll().incarnation, delegations.poll().returned.len()), (10, 0));
}

#[test]
fn nothing_is_answered_after_the_end() {
    let cluster = Cluster::new();
    let delegations = leased(&cluster.files, &cluster.identity);
    let Open::Ask(asking) = delegations.open(FILE + 1, &cluster.identity, 2) else { panic!() };
    delegations.stop();
    cluster.files.hold(FILE, 4);
    let hold = super::ReadHold::new(&cluster.files, &cluster.identity, FILE, 4);
    delegations.granted(asking, 4, inode(FILE), &cluster.identity, &hold);
    assert!(!is_local(&delegations, 3) && delegations.count() == 0);
}

#[test]
fn the_oldest_make_room_and_are_returned() {
    let cluster = Cluster::new();
    let delegations = leased(&cluster.files, &cluster.identity);
    for id in 0..2 * ENTRIES_MAX as u64 {
        for _ in 0..2 {
            if let Open::Ask(asking) = delegations.open(100 + id, &cluster.identity, 1)
                && asking.delegate
            {
                cluster.files.hold(100 + id, 100 + id);
                let hold = super::ReadHold::new(&cluster.files, &cluster.identity, 100 + id, 100 + id);
                delegations.granted(asking, 100 + id, inode(100 + id), &cluster.identity, &hold);
            }
        }
    }
    assert!(delegations.count() <= ENTRIES_MAX && delegations.count() > ENTRIES_MAX / 2);
    let returned = delegations.poll().returned;
    assert!(returned.contains(&pb::Delegation { inode: FILE, grant: 3 }));
    assert_eq!(returned.len() + delegations.count(), 2 * ENTRIES_MAX + 1);
}
