//! What this process logs, for tests: they share the one logger that a process can have.

use std::sync::{Mutex, MutexGuard, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};

static LINES: Lines = Lines(Mutex::new(Vec::new()));

/// The lines of all tests, each with its level. Their lock is not one of those at which threads of a schedule take
/// turns: whether logging has begun must not change a schedule.
struct Lines(Mutex<Vec<String>>);

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.lock().push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// From now on warnings and errors are kept.
pub fn begin() {
    // All but the first find it set already.
    let _ = log::set_logger(&LINES);
    log::set_max_level(LevelFilter::Warn);
}

/// Kept lines with this text, as "WARN what was said".
pub fn with(text: &str) -> Vec<String> {
    LINES.lock().iter().filter(|line| line.contains(text)).cloned().collect()
}
