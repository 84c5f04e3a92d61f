//! What the lists of dirty files ask of an open file: by age, for room, and before others append (E4).

use std::sync::Arc;

use super::super::transitions::appending::UnlistAppended;
use super::super::transitions::write_back::{Age, Aged, Want};
use super::OpenInode;
use crate::client::dirty_files::DirtyFile;
use crate::error::Result;
use crate::log_rate_limit::Warnings;

/// A metadata service that is away fails the syncs of every file.
static UNREPORTED: Warnings = Warnings::new();

impl DirtyFile for OpenInode {
    fn start_write_back(self: Arc<Self>) {
        self.apply(Want { until: u64::MAX, others: 0 });
    }

    fn start_append_write_back(self: Arc<Self>) {
        self.apply(UnlistAppended);
        self.start_write_back();
    }

    fn report_appended(self: Arc<Self>) {
        if !self.machine.lock().is_edited() {
            return;
        }
        if let Err(error) = self.sync_metadata() {
            // What has aged is sent once more, and that failure counts.
            let id = self.id;
            UNREPORTED.warn(format_args!(
                "inode {id}: sync of appended bytes failed: {error}; it is retried within two seconds"
            ));
        }
    }

    fn report_deferred(self: Arc<Self>) {
        self.count_error(self.flush_deferred(), "attributes");
    }

    fn report_aged(self: Arc<Self>) -> bool {
        match self.apply(Age) {
            Aged::DeferredAttributes => self.count_error(self.flush_deferred(), "attributes"),
            Aged::InlineBytes => self.count_error(self.sync_metadata(), "write-back"),
            Aged::SetIdBits => {
                // No bytes are at stake, and the next sync has it again.
                if let Err(error) = self.sync_metadata() {
                    let id = self.id;
                    UNREPORTED.warn(format_args!(
                        "inode {id}: clearing set-id bits failed: {error}; the next sync retries"
                    ));
                }
            }
            Aged::WriteBack => {}
            Aged::Nothing => return false,
        }
        true
    }
}

impl OpenInode {
    fn count_error(self: &Arc<Self>, result: Result<()>, operation: &str) {
        if let Err(error) = result {
            self.fail(error.context(operation));
        }
    }
}
