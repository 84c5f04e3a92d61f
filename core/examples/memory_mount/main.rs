//! Mounts a file system in memory until it is unmounted: `memory_mount MOUNTPOINT [--strict] [--threads N]
//! [--no-allow-other]`. For tests and measurements of the session.

mod content;
mod file_system;

use std::sync::Arc;

use luciola_core::fuse::{Session, SessionOptions};

fn main() -> std::io::Result<()> {
    let mut options = SessionOptions { allow_other: true, source: "memory".into(), ..Default::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--strict" => options.bypass_cache = true,
            "--no-allow-other" => options.allow_other = false,
            "--threads" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                options.threads_max = number.expect("--threads takes a number");
            }
            _ => options.mountpoint = argument.into(),
        }
    }
    let session = Session::mount(Arc::new(file_system::MemoryFileSystem::default()), options)?;
    println!("ready");
    session.run()
}
