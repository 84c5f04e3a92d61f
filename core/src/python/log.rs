//! Log lines of the native threads: to stderr, like those of the services, without the GIL.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Warnings of our own: what an operator should see of a library.
        metadata.level() <= Level::Warn && metadata.target().starts_with("luciola_core")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mut line = timestamp(since.as_secs(), since.subsec_millis());
        let target = record.target().replace("::", ".");
        // A line break in a message must not look like another event.
        let message = record.args().to_string().replace('\n', "\\n");
        let _ = writeln!(line, " {} {target} {message}", record.level());
        // One call, so that lines of several threads do not mix.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// `2026-11-25 15:01:07,528`, UTC.
fn timestamp(unix_s: u64, millis: u32) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Days to a date of the Gregorian calendar, counted from 0000-03-01 in eras of 400 years
    // (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02},{millis:03}")
}

/// Let warnings through to stderr; called once, when the module is imported.
pub(super) fn start() {
    // Fails if the process has a logger already; then that one gets the lines.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_dates() {
        assert_eq!(timestamp(0, 0), "1970-01-01 00:00:00,000");
        assert_eq!(timestamp(951_782_400, 7), "2000-02-29 00:00:00,007");
        assert_eq!(timestamp(951_868_799, 0), "2000-02-29 23:59:59,000");
        assert_eq!(timestamp(1_795_618_867, 528), "2026-11-25 15:01:07,528");
        assert_eq!(timestamp(4_107_542_399, 0), "2100-02-28 23:59:59,000");
        assert_eq!(timestamp(4_107_542_400, 0), "2100-03-01 00:00:00,000");
    }
}
