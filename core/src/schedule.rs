//! Threads of which one runs at a time, and a seed says which: what goes wrong between them goes wrong again.
//!
//! Threads of a schedule give way wherever they take a lock or wait for a condition (`lock.rs`), and at `pause`. All
//! in between is not interrupted. Time does not pass: a wait with a limit ends by it when nothing else can run.
//! Threads that belong to no schedule are not touched.

use std::cell::RefCell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

/// A run that takes more counts as one without an end.
const STEPS_MAX: u64 = 400_000;
/// One in so many choices wakes a thread spuriously.
const WOKEN_FOR_NOTHING: u64 = 256;

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Wait {
    Ready,
    /// Until that step, or until no other thread can run.
    Step(u64),
    Lock(usize),
    Condition {
        address: usize,
        limited: bool,
    },
    /// Until these have ended.
    End(Vec<usize>),
    Ended,
}

struct Task {
    name: String,
    wait: Wait,
    thread: Option<Thread>,
    timed_out: bool,
}

struct SchedulerInner {
    tasks: Vec<Task>,
    /// Addresses of locks that threads of this schedule hold.
    held: HashSet<usize>,
    random: Random,
    step: u64,
    /// One in so many chances to give way is taken.
    switch: u64,
    failure: Option<String>,
    is_over: bool,
}

/// The threads of one run.
struct Schedule {
    inner: Mutex<SchedulerInner>,
    over: Condvar,
    running: AtomicUsize,
}

thread_local! {
    static CURRENT: RefCell<Option<(Arc<Schedule>, usize)>> = const { RefCell::new(None) };
}

const NO_THREAD: usize = usize::MAX;

/// Run `body`, and all that it spawns, in the order that the seed makes of it. The error says what went wrong; the
/// threads are then left where they are.
pub fn run(seed: u64, body: impl FnOnce() + Send + 'static) -> Result<u64, String> {
    let mut random = Random::new(seed);
    let switch = 1 + random.below(6);
    let schedule = Arc::new(Schedule {
        inner: Mutex::new(SchedulerInner {
            tasks: Vec::new(),
            held: HashSet::new(),
            random,
            step: 0,
            switch,
            failure: None,
            is_over: false,
        }),
        over: Condvar::new(),
        running: AtomicUsize::new(NO_THREAD),
    });
    schedule.spawn("first".to_owned(), body);
    let mut inner = schedule.lock();
    schedule.hand_over(&mut inner);
    while !inner.is_over {
        inner = schedule.over.wait(inner).unwrap_or_else(PoisonError::into_inner);
    }
    match inner.failure.take() {
        Some(failure) => Err(failure),
        None => Ok(inner.step),
    }
}

/// Whether this thread belongs to a schedule.
pub fn is_current() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

fn current<R>(work: impl FnOnce(&Arc<Schedule>, usize) -> R) -> R {
    let (schedule, me) = CURRENT.with_borrow(Clone::clone).expect("a thread of a schedule");
    if thread::panicking() {
        schedule.fail(me, "a panic, see above".to_owned());
    }
    work(&schedule, me)
}

/// Start a thread of this thread's schedule. Returns its number.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> usize {
    current(|schedule, _| schedule.spawn(name.to_owned(), body))
}

/// Return when those threads have ended.
pub fn join(tasks: Vec<usize>) {
    current(|schedule, me| schedule.wait(me, Wait::End(tasks)));
}

/// Return when all other threads have ended.
pub fn join_all() {
    loop {
        let others = current(|schedule, me| {
            let inner = schedule.lock();
            let lives = |number: &usize| *number != me && inner.tasks[*number].wait != Wait::Ended;
            (0..inner.tasks.len()).filter(lives).collect::<Vec<_>>()
        });
        if others.is_empty() {
            return;
        }
        join(others);
    }
}

/// What this run's seed makes of a question; never zero outside a schedule.
pub fn below(end: u64) -> u64 {
    if !is_current() {
        return end - 1;
    }
    current(|schedule, _| schedule.lock().random.below(end))
}

pub fn one_in(count: u64) -> bool {
    is_current() && below(count) == 0
}

/// Others run for a while: not at all, a little, or so long that they can get much done.
pub fn pause() {
    if !is_current() {
        return;
    }
    current(|schedule, me| {
        let mut inner = schedule.lock();
        let most = match inner.random.below(8) {
            0..=2 => return,
            3..=4 => 10,
            5..=6 => 60,
            _ => 400,
        };
        let until = inner.step + inner.random.below(most);
        drop(inner);
        schedule.wait(me, Wait::Step(until));
    });
}

/// End the run with this failure.
pub fn fail(message: String) -> ! {
    current(|schedule, me| schedule.fail(me, message))
}

// For locks.

/// A chance for others to run.
pub fn give_way() {
    current(|schedule, me| {
        let mut inner = schedule.lock();
        let switch = inner.switch;
        if inner.random.one_in(switch) {
            drop(inner);
            schedule.wait(me, Wait::Ready);
        } else {
            schedule.count(&mut inner);
        }
    });
}

pub fn took(lock: usize) {
    current(|schedule, _| schedule.lock().held.insert(lock));
}

pub fn released(lock: usize) {
    current(|schedule, _| {
        let mut inner = schedule.lock();
        inner.held.remove(&lock);
        for task in inner.tasks.iter_mut().filter(|task| task.wait == Wait::Lock(lock)) {
            task.wait = Wait::Ready;
        }
    });
}

/// Wait for a lock that another thread of the schedule holds. False: none of them does.
pub fn wait_for_lock(lock: usize) -> bool {
    current(|schedule, me| {
        let held = schedule.lock().held.contains(&lock);
        if held {
            schedule.wait(me, Wait::Lock(lock));
        }
        held
    })
}

/// True: nothing happened, and nothing else could.
pub fn wait_for_condition(address: usize, limited: bool) -> bool {
    current(|schedule, me| {
        schedule.wait(me, Wait::Condition { address, limited });
        std::mem::take(&mut schedule.lock().tasks[me].timed_out)
    })
}

/// Wake those who wait for a condition, or one of them.
pub fn notify(condition: usize, all: bool) {
    current(|schedule, _| {
        let mut inner = schedule.lock();
        let waits =
            |task: &Task| matches!(task.wait, Wait::Condition { address, .. } if address == condition);
        let mut waiting: Vec<usize> =
            (0..inner.tasks.len()).filter(|number| waits(&inner.tasks[*number])).collect();
        if !all && !waiting.is_empty() {
            let one = inner.random.below(waiting.len() as u64) as usize;
            waiting = vec![waiting[one]];
        }
        for number in waiting {
            inner.tasks[number].wait = Wait::Ready;
        }
    });
}

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, SchedulerInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Self>, name: String, body: impl FnOnce() + Send + 'static) -> usize {
        let number = {
            let mut inner = self.lock();
            inner.tasks.push(Task { name, wait: Wait::Ready, thread: None, timed_out: false });
            inner.tasks.len() - 1
        };
        let schedule = self.clone();
        let thread = thread::spawn(move || {
            schedule.wait_for_turn(number);
            CURRENT.set(Some((schedule.clone(), number)));
            let ended = catch_unwind(AssertUnwindSafe(body));
            CURRENT.set(None);
            if ended.is_err() {
                schedule.fail(number, "a panic, see above".to_owned());
            }
            let mut inner = schedule.lock();
            inner.tasks[number].wait = Wait::Ended;
            schedule.hand_over(&mut inner);
        });
        self.lock().tasks[number].thread = Some(thread.thread().clone());
        number
    }

    fn wait_for_turn(&self, me: usize) {
        while self.running.load(Ordering::Acquire) != me {
            thread::park();
        }
    }

    fn count(&self, inner: &mut SchedulerInner) {
        inner.step += 1;
        if inner.step > STEPS_MAX && inner.failure.is_none() {
            let message = format!("no end after {STEPS_MAX} steps: {}", inner.describe());
            self.end(inner, Some(message));
        }
    }

    /// This thread continues when that is over and its turn has come.
    fn wait(&self, me: usize, wait: Wait) {
        let mut inner = self.lock();
        inner.tasks[me].wait = wait;
        let next = self.hand_over(&mut inner);
        drop(inner);
        if next != Some(me) {
            self.wait_for_turn(me);
        }
    }

    /// Choose who runs next, and let it.
    fn hand_over(&self, inner: &mut SchedulerInner) -> Option<usize> {
        self.count(inner);
        if inner.is_over {
            self.running.store(NO_THREAD, Ordering::Release);
            return None;
        }
        let Some(next) = inner.choose() else {
            let ended = inner.tasks.iter().all(|task| task.wait == Wait::Ended);
            let stuck = (!ended).then(|| format!("deadlock: no thread can run: {}", inner.describe()));
            self.end(inner, stuck);
            return None;
        };
        inner.tasks[next].wait = Wait::Ready;
        self.running.store(next, Ordering::Release);
        if let Some(thread) = &inner.tasks[next].thread {
            thread.unpark();
        }
        Some(next)
    }

    fn end(&self, inner: &mut SchedulerInner, failure: Option<String>) {
        inner.failure = failure;
        inner.is_over = true;
        self.running.store(NO_THREAD, Ordering::Release);
        self.over.notify_all();
    }

    fn fail(&self, me: usize, message: String) -> ! {
        let mut inner = self.lock();
        if !inner.is_over {
            let name = inner.tasks[me].name.clone();
            self.end(&mut inner, Some(format!("{name}: {message}")));
        }
        drop(inner);
        loop {
            thread::park();
        }
    }
}

impl SchedulerInner {
    fn describe(&self) -> String {
        let lives = self.tasks.iter().filter(|task| task.wait != Wait::Ended);
        lives.map(|task| format!("{} {:?}", task.name, task.wait)).collect::<Vec<_>>().join(", ")
    }

    fn choose(&mut self) -> Option<usize> {
        let step = self.step;
        let tasks = &self.tasks;
        let ended = |others: &[usize]| others.iter().all(|other| tasks[*other].wait == Wait::Ended);
        let can = |task: &Task| match &task.wait {
            Wait::Ready => true,
            Wait::Step(until) => *until <= step,
            Wait::End(others) => ended(others),
            _ => false,
        };
        let numbers = |chosen: &dyn Fn(&Task) -> bool| {
            (0..tasks.len()).filter(|number| chosen(&tasks[*number])).collect::<Vec<usize>>()
        };
        let ready = numbers(&can);
        if !ready.is_empty() {
            let waiting = numbers(&|task| matches!(task.wait, Wait::Condition { .. }));
            let from =
                if !waiting.is_empty() && self.random.one_in(WOKEN_FOR_NOTHING) { waiting } else { ready };
            return Some(from[self.random.below(from.len() as u64) as usize]);
        }
        let until = |number: &usize| match tasks[*number].wait {
            Wait::Step(until) => Some((until, *number)),
            _ => None,
        };
        if let Some((until, number)) = (0..tasks.len()).filter_map(|number| until(&number)).min() {
            self.step = until;
            return Some(number);
        }
        let limited = numbers(&|task| matches!(task.wait, Wait::Condition { limited: true, .. }));
        let number = *limited.first()?;
        self.tasks[number].timed_out = true;
        Some(number)
    }
}
