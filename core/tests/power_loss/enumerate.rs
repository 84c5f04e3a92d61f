//! Every cut of a recording, several states of each, checked on both processors.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Instant;

use super::crash::{Chance, Data, Metadata, Replay, Variant};
use super::disk::{Disk, Log};
use super::image::Image;

/// How many states are checked at once: the machines that run these tests have two processors.
const WORKERS: usize = 2;

/// The states that are looked at for every cut.
const FIXED: [(Metadata, Data); 3] =
    [(Metadata::Nothing, Data::Nothing), (Metadata::All, Data::Nothing), (Metadata::Nothing, Data::All)];
/// The kinds of which one is looked at for every cut, in turn.
const BY_TURNS: [(Metadata, Data); 5] = [
    (Metadata::Journal, Data::Pages),
    (Metadata::Separate, Data::Torn),
    (Metadata::All, Data::All),
    (Metadata::Separate, Data::Pages),
    (Metadata::Journal, Data::Torn),
];

/// One state of a disk that lost power before change number `cut`.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub cut: usize,
    pub variant: Variant,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Places at which power was cut.
    pub cuts: usize,
    /// States that were opened; equal ones of successive cuts with equal promises once.
    pub states: usize,
    /// Of them, those whose opening was cut in turn, at every change that it made.
    pub recoveries: usize,
}

impl std::fmt::Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { cuts, states, recoveries } = self;
        write!(
            formatter,
            "power cut at {cuts} places, {states} states opened, {recoveries} recoveries cut in turn"
        )
    }
}

impl Case {
    /// Whether this is one of the few, one in `among`, of which more is looked at.
    pub fn is_chosen(&self, among: u64) -> bool {
        let kind = self.variant.metadata as u64 * 8 + self.variant.data as u64;
        Chance(self.variant.seed ^ (self.cut as u64) << 16 ^ kind).next().is_multiple_of(among)
    }
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Report) {
        self.cuts += other.cuts;
        self.states += other.states;
        self.recoveries += other.recoveries;
    }
}

/// Which cuts of a recording are made.
pub struct Plan<'a> {
    pub seed: u64,
    /// Kinds of `BY_TURNS` at each cut.
    pub by_turns: usize,
    pub fixed: bool,
    /// The one cut to make, instead of all.
    pub only: Option<usize>,
    /// Equal numbers: what was promised before these cuts is the same.
    pub promises: &'a (dyn Fn(usize) -> usize + Sync),
}

/// A state that is not as it should be.
#[derive(Clone, Debug)]
pub struct Fault {
    pub cut: usize,
    /// What is wrong, and where.
    pub what: String,
}

/// Checks every case of a recording; the first that is not as `check` wants it.
pub fn every_cut(
    log: &Log,
    plan: &Plan<'_>,
    check: &(dyn Fn(&Case, &mut Image) -> Result<Report, String> + Sync),
) -> Result<Report, Fault> {
    let (sender, receiver) = mpsc::sync_channel::<(Case, Image)>(2 * WORKERS);
    let receiver = Mutex::new(receiver);
    let failure = Mutex::new(None);
    let total = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let next = receiver.lock().expect("not poisoned").recv();
                    let Ok((case, mut image)) = next else { return };
                    if failure.lock().expect("not poisoned").is_some() {
                        continue;
                    }
                    let unwound = std::panic::AssertUnwindSafe(|| check(&case, &mut image));
                    let outcome = std::panic::catch_unwind(unwound)
                        .unwrap_or_else(|panic| Err(format!("panicked: {}", message(&*panic))));
                    match outcome {
                        Ok(report) => *total.lock().expect("not poisoned") += report,
                        Err(what) => _ = failure.lock().expect("not poisoned").get_or_insert((case, what)),
                    }
                }
            });
        }
        let cuts = generate(log, plan, |case, image| sender.send((case, image)).expect("workers wait"));
        total.lock().expect("not poisoned").cuts += cuts;
        drop(sender);
    });
    if let Some((case, what)) = failure.into_inner().expect("not poisoned") {
        if std::env::var_os("LUCIOLA_TRACE").is_some() {
            (0..case.cut).for_each(|at| eprintln!("{at:6} {}", describe(log, at)));
        }
        let change = describe(log, case.cut);
        let Case { cut, variant } = case;
        return Err(Fault {
            cut,
            what: format!("power lost before change {cut} ({change}), {variant:?}: {what}"),
        });
    }
    Ok(total.into_inner().expect("not poisoned"))
}

/// As `every_cut` of the workload with this seed. Panics with what is wrong, and how to repeat it.
pub fn every_cut_of(
    log: &Log,
    plan: &Plan<'_>,
    check: &(dyn Fn(&Case, &mut Image) -> Result<Report, String> + Sync),
) -> Report {
    let began = Instant::now();
    let report = every_cut(log, plan, check).unwrap_or_else(|fault| {
        let Fault { cut, what } = fault;
        panic!("{what}\nrepeat with LUCIOLA_SEED={} LUCIOLA_CUT={cut}", plan.seed)
    });
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    eprintln!("{test}, seed {}: {report} in {:.1} s", plan.seed, began.elapsed().as_secs_f64());
    report
}

/// A change, for people.
fn describe(log: &Log, at: usize) -> String {
    log.changes
        .get(at)
        .map_or("the end".into(), |change| format!("{change:?}").chars().take(160).collect::<String>())
}

fn message(panic: &dyn std::any::Any) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

/// Hands out each case; the number of cuts.
fn generate(log: &Log, plan: &Plan<'_>, mut send: impl FnMut(Case, Image)) -> usize {
    let mut replay = Replay::new(log);
    let mut last: [Option<(usize, Image)>; FIXED.len()] = Default::default();
    let mut cut = 0;
    loop {
        if plan.only.is_none_or(|wanted| wanted == cut) {
            for (place, &(metadata, data)) in FIXED.iter().enumerate().filter(|_| plan.fixed) {
                let case = Case { cut, variant: Variant { metadata, data, seed: plan.seed } };
                let state = ((plan.promises)(cut), replay.crash(case.variant));
                if last[place].as_ref() != Some(&state) {
                    send(case, state.1.clone());
                    last[place] = Some(state);
                }
            }
            for turn in 0..plan.by_turns {
                let (metadata, data) = BY_TURNS[(cut * plan.by_turns + turn) % BY_TURNS.len()];
                let case = Case { cut, variant: Variant { metadata, data, seed: plan.seed } };
                send(case, replay.crash(case.variant));
            }
        }
        if !replay.advance() {
            return cut + 1;
        }
        cut += 1;
    }
}

/// The name of a volume for one more state.
pub fn volume_name() -> String {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    format!("state-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

/// Shows `image` as a volume while `work` uses it.
pub fn with_volume<R>(disk: &Disk, image: &Image, work: impl FnOnce(&Path) -> R) -> R {
    let name = volume_name();
    let path = disk.add(&name, image);
    let result = work(&path);
    disk.remove(&name).expect("an unused volume can be removed");
    result
}

/// As `with_volume`; what it wrote.
pub fn with_recorded_volume<R>(disk: &Disk, image: &Image, work: impl FnOnce(&Path, u64) -> R) -> (R, Log) {
    let name = volume_name();
    let (path, volume) = disk.record(&name, image);
    let result = work(&path, volume);
    let log = disk.finish(volume);
    disk.remove(&name).expect("an unused volume can be removed");
    (result, log)
}
