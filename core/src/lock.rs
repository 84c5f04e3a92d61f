//! Locks that hold their whole state themselves.
//!
//! A process may be forked while its threads wait for locks. Those of `parking_lot` wait in one table of the process,
//! which then names threads that the child does not have: any lock of the child that falls into such a bucket reads and
//! writes their memory, which new threads have by then. Those of `std` wait in the kernel, by the lock's own address, so
//! what a child makes for itself works. This is `std` with the calls of `parking_lot`: no poison, and a condition takes
//! the guard by reference.
//!
//! In tests, threads of a schedule take turns here (`schedule.rs`).

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{self, PoisonError, RwLockReadGuard, RwLockWriteGuard, TryLockError};
use std::time::{Duration, Instant};

#[cfg(test)]
use crate::schedule;

/// How a wait with a limit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    timed_out: bool,
}

impl Waited {
    pub fn timed_out(self) -> bool {
        self.timed_out
    }
}

/// Mutual exclusion. A panic of the holder releases it.
#[derive(Default)]
pub struct Mutex<T: ?Sized>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { mutex: self, held: Some(self.acquire()) }
    }

    /// `None` if it is held.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let held = self.try_acquire()?;
        #[cfg(test)]
        self.took();
        Some(MutexGuard { mutex: self, held: Some(held) })
    }

    fn try_acquire(&self) -> Option<sync::MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn acquire(&self) -> sync::MutexGuard<'_, T> {
        #[cfg(test)]
        if schedule::is_current() {
            return self.acquire_in_turn();
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl<T: ?Sized> Mutex<T> {
    fn address(&self) -> usize {
        (&raw const self.0).cast::<()>() as usize
    }

    fn acquire_in_turn(&self) -> sync::MutexGuard<'_, T> {
        schedule::give_way();
        let held = loop {
            if let Some(held) = self.try_acquire() {
                break held;
            }
            if !schedule::wait_for_lock(self.address()) {
                // Held by a thread outside the schedule.
                break self.0.lock().unwrap_or_else(PoisonError::into_inner);
            }
        };
        self.took();
        held
    }

    fn took(&self) {
        if schedule::is_current() {
            schedule::took(self.address());
        }
    }

    fn released(&self) {
        if schedule::is_current() {
            schedule::released(self.address());
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The right to what a `Mutex` protects.
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    /// None only inside `unlocked` and while a condition is waited for.
    held: Option<sync::MutexGuard<'a, T>>,
}

const HELD: &str = "the lock is held, except inside a call that has the guard";

impl<T: ?Sized> MutexGuard<'_, T> {
    /// Do something without the lock, and take it again.
    pub fn unlocked<R>(guard: &mut Self, work: impl FnOnce() -> R) -> R {
        guard.held = None;
        #[cfg(test)]
        guard.mutex.released();
        let result = work();
        guard.held = Some(guard.mutex.acquire());
        result
    }
}

#[cfg(test)]
impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.held.take().is_some() {
            self.mutex.released();
        }
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect(HELD)
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect(HELD)
    }
}

/// A condition of what a `Mutex` protects. Waiting may end for no reason: look again.
#[derive(Debug, Default)]
pub struct Condvar {
    condition: sync::Condvar,
    /// Threads that wait, counted under the mutex before they do: a thread that changes what it protects sees them. Without
    /// any, to notify costs no system call; that of `std` always makes one.
    waiting: AtomicU32,
}

impl Condvar {
    pub const fn new() -> Condvar {
        Condvar { condition: sync::Condvar::new(), waiting: AtomicU32::new(0) }
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        #[cfg(test)]
        if schedule::is_current() {
            self.wait_in_turn(guard, false);
            return;
        }
        let held = guard.held.take().expect(HELD);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        guard.held = Some(self.condition.wait(held).unwrap_or_else(PoisonError::into_inner));
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, limit: Duration) -> Waited {
        #[cfg(test)]
        if schedule::is_current() {
            return self.wait_in_turn(guard, true);
        }
        let held = guard.held.take().expect(HELD);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let (held, result) = self.condition.wait_timeout(held, limit).unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        guard.held = Some(held);
        Waited { timed_out: result.timed_out() }
    }

    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> Waited {
        self.wait_for(guard, deadline.saturating_duration_since(Instant::now()))
    }

    pub fn notify_one(&self) {
        #[cfg(test)]
        self.notify_in_turn(false);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.condition.notify_one();
        }
    }

    pub fn notify_all(&self) {
        #[cfg(test)]
        self.notify_in_turn(true);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.condition.notify_all();
        }
    }
}

#[cfg(test)]
impl Condvar {
    fn address(&self) -> usize {
        (&raw const self.condition) as usize
    }

    fn wait_in_turn<T>(&self, guard: &mut MutexGuard<'_, T>, limited: bool) -> Waited {
        drop(guard.held.take().expect(HELD));
        guard.mutex.released();
        let timed_out = schedule::wait_for_condition(self.address(), limited);
        guard.held = Some(guard.mutex.acquire());
        Waited { timed_out }
    }

    fn notify_in_turn(&self, all: bool) {
        if schedule::is_current() {
            schedule::notify(self.address(), all);
        }
    }
}

/// Many readers or one writer.
#[derive(Default)]
pub struct RwLock<T: ?Sized>(sync::RwLock<T>);

impl<T> RwLock<T> {
    pub const fn new(value: T) -> RwLock<T> {
        RwLock(sync::RwLock::new(value))
    }
}

impl<T: ?Sized> RwLock<T> {
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
