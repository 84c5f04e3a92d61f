//! The threads of a session: started as requests need them, ended when they are needed no more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use super::device::FuseDevice;
use super::shared::{Life, SessionShared};
use super::slot::{ThreadSlot, Way};
use super::watch::THREADS_LIMIT;
use super::worker::{Served, Worker};
use crate::panics::caught;

impl SessionShared {
    /// Start a thread that serves `device`.
    pub fn start_thread(self: &Arc<Self>, device: FuseDevice) -> io::Result<()> {
        let slot = Arc::new(ThreadSlot::new(Way::Device(FuseDevice::from_shared(device.fd().clone()))));
        let (number, is_further) = {
            let mut life = self.life.lock();
            if life.ended || life.threads >= self.limit.load(Ordering::Relaxed) {
                return Ok(());
            }
            let is_further = life.threads - life.further >= self.options.threads_max;
            life.threads += 1;
            life.further += usize::from(is_further);
            (life.threads, is_further)
        };
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.slots.write().push(slot.clone());
        let (shared, started_slot) = (self.clone(), slot.clone());
        let started = thread::Builder::new().name(format!("fuse-{number}")).spawn(move || {
            let mut worker = Worker::new(&shared, device, slot.clone(), is_further);
            // A panic in an operation is that one's error. Elsewhere, the request may never be answered, so the session ends.
            let result = caught(|| worker.serve());
            let result = result.unwrap_or_else(|| Err(io::Error::other("a worker thread panicked")));
            shared.thread_ended(&slot, is_further, result);
        });
        if let Err(error) = started {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.slots.write().retain(|other| !Arc::ptr_eq(other, &started_slot));
            self.forget_thread(&mut self.life.lock(), is_further);
            return Err(error);
        }
        Ok(())
    }

    fn forget_thread(&self, life: &mut Life, is_further: bool) {
        assert!(life.threads > 0 && life.further >= usize::from(is_further), "threads are counted");
        life.threads -= 1;
        life.further -= usize::from(is_further);
        assert!(life.further <= life.threads, "further threads are threads");
        assert!(life.threads - life.further <= self.options.threads_max, "threads are bounded");
        if life.further == 0 {
            self.limit.store(self.options.threads_max, Ordering::Relaxed);
        }
    }

    fn thread_ended(&self, slot: &Arc<ThreadSlot>, is_further: bool, result: io::Result<Served>) {
        self.slots.write().retain(|other| !Arc::ptr_eq(other, slot));
        let is_end = matches!(result, Ok(Served::All));
        if let Err(error) = result {
            self.fail(error);
        }
        let mut life = self.life.lock();
        self.forget_thread(&mut life, is_further);
        life.ended |= is_end;
        // An unmount waits for the last thread, for any reason.
        self.changed.notify_all();
    }

    /// A thread begins to work. If no other waits for the next request, one has to.
    pub fn begin_work(self: &Arc<Self>, device: &FuseDevice) {
        let before = self.waiting.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "a thread that begins to work has waited");
        if before != 1 {
            return;
        }
        if self.life.lock().threads < self.limit.load(Ordering::Relaxed) {
            self.start_another(device);
        } else {
            self.watch.wake();
        }
    }

    fn start_another(self: &Arc<Self>, device: &FuseDevice) {
        let started = device.try_clone().and_then(|clone| self.start_thread(clone));
        if let Err(error) = started {
            log::warn!("starting another worker thread failed: {error}; continuing with those that run");
        }
    }

    /// Every thread hangs: lets there be twice as many.
    pub fn raise_limit(self: &Arc<Self>) {
        let most = THREADS_LIMIT.max(self.options.threads_max);
        let limit = self.limit.load(Ordering::Relaxed);
        if limit < most {
            self.limit.store(most.min(limit * 2), Ordering::Relaxed);
            log::info!(
                "all {limit} worker threads are busy; starting up to {} more",
                most.min(limit * 2) - limit
            );
            self.start_another(&self.mounted.device);
        }
    }
}
