//! What this process logs, for tests: they share the one logger that a process can have.

use log::{LevelFilter, Log, Metadata, Record};

use crate::lock::Mutex;

static LINES: Lines = Lines(Mutex::new(Vec::new()));

/// The lines of all tests, each with its level.
struct Lines(Mutex<Vec<String>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0.lock().push(format!("{} {}", record.level(), record.args()));
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
    LINES.0.lock().iter().filter(|line| line.contains(text)).cloned().collect()
}
