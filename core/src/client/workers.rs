//! A few threads that carry out jobs: write-back, read-ahead, late closes.

use std::thread::{self, JoinHandle};

use crate::lock::Mutex;
use crate::panics::caught;
use crossbeam_channel::{Sender, unbounded};

type Task = Box<dyn FnOnce() + Send>;

/// Threads start with the first jobs and stay. The queue has no limit of its own: every caller bounds how many
/// jobs it has under way (helpers of an inode, read-ahead of a handle, entries of a ring).
pub struct Workers {
    queue: Mutex<Option<Sender<Task>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    jobs: crossbeam_channel::Receiver<Task>,
    most: usize,
    name: &'static str,
}

impl Workers {
    pub fn new(name: &'static str, most: usize) -> Workers {
        assert!(most > 0, "a pool has a thread");
        let (queue, jobs) = unbounded();
        Workers { queue: Mutex::new(Some(queue)), threads: Mutex::new(Vec::new()), jobs, most, name }
    }

    /// Runs `job` on a thread. False: the pool has been stopped, the job was dropped.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> bool {
        #[cfg(test)]
        if crate::schedule::is_current() {
            crate::schedule::spawn(self.name, job);
            return true;
        }
        let sent = match &*self.queue.lock() {
            Some(queue) => queue.send(Box::new(job)).is_ok(),
            None => false,
        };
        if sent && !self.jobs.is_empty() {
            self.grow();
        }
        sent
    }

    /// One thread more, if jobs wait and the limit allows.
    fn grow(&self) {
        let mut threads = self.threads.lock();
        if threads.len() == self.most {
            return;
        }
        assert!(threads.len() < self.most, "a pool has a limit");
        let jobs = self.jobs.clone();
        // A job that panics has been reported by the panic hook; its thread continues with the next.
        let body = move || {
            jobs.iter().for_each(|job| {
                let _ = caught(job);
            })
        };
        match thread::Builder::new().name(self.name.to_owned()).spawn(body) {
            Ok(thread) => threads.push(thread),
            Err(error) if threads.is_empty() => panic!("no thread can be started: {error}"),
            Err(error) => log::warn!("{}: no further thread: {error}", self.name),
        }
    }

    /// Carries out what is queued, then ends the threads. A thread of the pool does not wait for itself.
    pub fn stop(&self) {
        drop(self.queue.lock().take());
        // Waits without the lock: a job that has just submitted another may need it, to start a thread.
        while let Some(thread) = self.last_thread() {
            if thread.thread().id() != thread::current().id() {
                thread.join().expect("its jobs' panics are caught");
            }
        }
    }

    fn last_thread(&self) -> Option<JoinHandle<()>> {
        self.threads.lock().pop()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_job_runs_before_stop_returns_and_none_after() {
        let workers = Workers::new("test", 3);
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let done = done.clone();
            assert!(workers.submit(move || {
                done.fetch_add(1, Ordering::SeqCst);
            }));
        }
        workers.stop();
        assert_eq!(done.load(Ordering::SeqCst), 100);
        assert!(!workers.submit(|| ()));
    }

    #[test]
    fn stop_waits_for_jobs_that_submit_others() {
        for _ in 0..200 {
            let workers = Arc::new(Workers::new("test", 2));
            let (report, begun) = unbounded();
            let submitting = workers.clone();
            workers.submit(move || {
                report.send(()).unwrap();
                while submitting.submit(|| ()) {}
            });
            begun.recv().unwrap();
            let (report, stopped) = unbounded();
            thread::spawn(move || {
                workers.stop();
                report.send(()).unwrap();
            });
            stopped
                .recv_timeout(std::time::Duration::from_secs(60))
                .expect("no thread waits for the one that stops");
        }
    }

    #[test]
    fn a_job_that_panics_costs_no_thread() {
        let workers = Workers::new("test", 1);
        assert!(workers.submit(|| panic!("a mistake, on purpose")));
        let (report, reported) = unbounded();
        assert!(workers.submit(move || report.send(()).unwrap()));
        reported.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn jobs_that_block_do_not_hold_up_others_below_the_limit() {
        let workers = Workers::new("test", 2);
        let (release, held) = unbounded::<()>();
        let (report, reported) = unbounded();
        workers.submit(move || held.recv().unwrap());
        workers.submit(move || report.send(()).unwrap());
        reported.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        release.send(()).unwrap();
    }
}
