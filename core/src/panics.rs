//! A panic of one job is a failure of that job.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `job` returns; `None` if it panicked, which the panic hook has reported.
///
/// Locks have no poison (`lock`): others see what the job left half done. The caller fails or ends whatever that was.
#[must_use]
pub fn caught<T>(job: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(job)).ok()
}
