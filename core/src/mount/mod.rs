//! The client as the file system of a mount: `file_system` answers the calls of the kernel, `readdir` lists directories.

mod file_system;
mod readdir;

pub use file_system::{Consistency, MountedFs};
